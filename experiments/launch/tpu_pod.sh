#!/usr/bin/env bash
# Trains on a slice of TPU VMs and resumes after preemption. Unmeasured: written for gcloud, not run on a slice.
#
#   export NAME=mine ZONE=us-central2-b TYPE=v4-32 SOURCE=https://HOST/REPOSITORY
#   experiments/launch/tpu_pod.sh create
#   experiments/launch/tpu_pod.sh run --config=configs/imagenet.py:moco_v3 \
#       --config.data.data_dir=gs://BUCKET/tfds --workdir=gs://BUCKET/runs/moco_v3
#
# `run` waits until the run ends. After a preemption it recreates the slice and resumes from the last checkpoint with the
# same command. It gives up on a user error (exit status 2), when the command has failed three times on an existing slice,
# and when the set-up of new slices has failed three times. PAUSE: seconds between attempts.
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?its zone}" "${PAUSE:=30}" "${VERSION:=tpu-ubuntu2204-base}"

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

state() { gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' || echo GONE; }

allocate() {
  : "${TYPE:?such as v4-32}" "${SOURCE:?a repository that the VMs can clone}"
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" --spot
}

# By uv, which downloads a Python: that of Ubuntu 22.04 is too old.
set_up() {
  everywhere "git clone $SOURCE dualcl && cd dualcl && python3 -m pip install -q --user uv &&
    python3 -m uv venv -q --python 3.13 .venv &&
    python3 -m uv pip install --python .venv -q -c constraints.txt -e '.[tpu]'"
}

recreate() {
  local failures=0
  while true; do
    gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet || true # also one whose set-up has failed
    if allocate; then
      if set_up; then return 0; fi
      failures=$((failures + 1))
      if ((failures == 3)); then return 1; fi
    fi
    sleep "$PAUSE"
  done
}

run() {
  local arguments status failures=0
  printf -v arguments '%q ' "$@"
  while true; do
    status=0
    everywhere "cd dualcl && .venv/bin/python -m dualcl_jax.main $arguments" || status=$?
    case $status in 0 | 2) return "$status" ;; esac
    if [[ $(state) == READY ]]; then
      [[ $status == 75 ]] || failures=$((failures + 1)) # 75: stopped by a signal, and saved
      if ((failures == 3)); then return "$status"; fi
    else
      failures=0
      recreate || return
    fi
    sleep "$PAUSE"
  done
}

case ${1:-} in create) allocate && set_up ;; run) shift; run "$@" ;; *) echo "usage: $0 create | run FLAGS" >&2; exit 2 ;; esac

#!/usr/bin/env bash
# Trains on a slice of TPU VMs and resumes after preemption. Unmeasured: written for gcloud, not run on a slice.
#
#   export NAME=mine ZONE=us-central2-b TYPE=v4-32 SOURCE=https://HOST/REPOSITORY
#   experiments/launch/tpu_pod.sh create
#   experiments/launch/tpu_pod.sh run --config=configs/imagenet.py:moco_v3 \
#       --config.data.data_dir=gs://BUCKET/tfds --workdir=gs://BUCKET/runs/moco_v3
#
# `run` waits until the run ends. After a preemption it recreates the slice and resumes from the last checkpoint with the
# same command. It gives up on a user error (exit status 2), and when the command has failed three times on an existing
# slice. PAUSE: seconds between attempts.
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?its zone}" "${PAUSE:=30}" "${VERSION:=tpu-ubuntu2204-base}"

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

state() { gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' || echo GONE; }

create() {
  : "${TYPE:?such as v4-32}" "${SOURCE:?a repository that the VMs can clone}"
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION" --spot &&
    everywhere "git clone $SOURCE dualcl && cd dualcl && python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
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
      gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet || true
      until create; do sleep "$PAUSE"; done
    fi
    sleep "$PAUSE"
  done
}

case ${1:-} in create) create ;; run) shift; run "$@" ;; *) echo "usage: $0 create | run FLAGS" >&2; exit 2 ;; esac

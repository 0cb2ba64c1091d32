#!/usr/bin/env bash
# A run on a slice of TPU VMs, taken up again after preemption. Unmeasured: written for gcloud, not run on a slice.
#
#   NAME=mine ZONE=us-central2-b TYPE=v4-32 SOURCE=git+https://HOST/REPOSITORY experiments/launch/tpu_pod.sh create
#   NAME=mine ZONE=us-central2-b experiments/launch/tpu_pod.sh run --config=configs/imagenet.py:moco_v3 \
#       --config.data.data_dir=gs://BUCKET/tfds --workdir=gs://BUCKET/runs/moco_v3
#
# `run` waits for the end and, where a preemption takes the slice (VERSION, TYPE and SOURCE set), makes it again and goes
# on from the last checkpoint: the command is the same each time. A mistake (exit status 2) ends it at once.
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?its zone}"
VERSION=${VERSION:-tpu-ubuntu2204-base}

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

create() {
  gcloud compute tpus tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="${TYPE:?such as v4-32}" \
    --version="$VERSION" --spot
  everywhere "git clone ${SOURCE#git+} dualcl && cd dualcl && python3 -m venv .venv && .venv/bin/pip install -q '.[tpu]'"
}

run() {
  local arguments; printf -v arguments '%q ' "$@"
  while true; do
    local status=0
    everywhere "cd dualcl && .venv/bin/python -m dualcl_jax.main $arguments" || status=$?
    [[ $status == 0 || $status == 2 ]] && return "$status"
    local state
    state=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' || echo GONE)
    if [[ $state != READY ]]; then
      gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet || true
      create
    fi
    sleep 30
  done
}

case ${1:-} in create) create ;; run) shift; run "$@" ;; *) echo "usage: $0 create | run FLAGS" >&2; exit 2 ;; esac

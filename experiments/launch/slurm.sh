#!/usr/bin/env bash
# Trains on a SLURM cluster, and requeues itself until the run has ended. One process per task, which uses its share of
# the GPUs of its node:
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 experiments/launch/slurm.sh \
#       --config=configs/imagenet.py:moco_v3 --config.data.data_dir=DIR --workdir=DIR
#
# With --gpus-per-task=1 a task sees its own GPU alone, and NCCL may not copy directly between the GPUs of a node.
#
# 600 s ahead of the time limit SLURM signals the tasks; they save and exit with 75. After any status but 0 (done) and 2
# (a mistake), at most RESTARTS times (100), the job is requeued. Give --cpus-per-task: decoding needs cores.
# Tried: SLURM 22.05 on one CPU node, tests/programs/test_slurm.py. Not tried: several nodes, GPUs.
#SBATCH --job-name=dualcl --time=12:00:00 --signal=USR1@600 --requeue --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  "${PYTHON:-.venv/bin/python}" -m dualcl_jax.main "$@"
status=$?
case $status in 0 | 2) exit "$status" ;; esac
if ((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-100})); then
  echo "exit status $status: requeued, restart $((${SLURM_RESTART_COUNT:-0} + 1))"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # SLURM ends this script
fi
exit "$status"

#!/usr/bin/env bash
# Trains on GPU nodes of a SLURM cluster, one process per GPU, detected from SLURM's variables. Unmeasured.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 experiments/launch/slurm.sh --config=... --workdir=...
#
# SLURM warns 120 s before the time limit; the run saves and exits with status 75, and this job requeues itself.
#SBATCH --job-name=dualcl
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --gpus-per-task=1
#SBATCH --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m dualcl_jax.main "$@"
status=$?
[[ $status == 75 ]] && scontrol requeue "$SLURM_JOB_ID"
exit "$status"

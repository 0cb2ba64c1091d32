"""Trains under Ray Train, which starts all processes again until the run has ended.

    python experiments/launch/ray_run.py --workers=4 --resources GPU=1 CPU=8 -- --config=... --workdir=...

Each worker runs the training command, whose processes join by themselves. A worker that is lost, and any exit status
but 0 (done) and 2 (a mistake), counts as a failure for Ray; `--restarts` is its `max_failures`.
It needs pip install -e '.[ray]'.
Tested with ray 2.60 on one CPU machine (tests/programs/test_ray.py). Not tested: several machines, GPUs, TPUs.
"""

import argparse
import ctypes
import signal
import socket
import subprocess
import sys
from typing import Any

import ray
from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxTrainer
from ray.train.v2.jax.config import JaxConfig

PR_SET_PDEATHSIG = 1


def end_with_worker() -> None:
    """Makes Linux kill this process when its worker is killed; otherwise it would keep the devices and the workdir."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(config: dict[str, Any]) -> int:
    """Runs one process of the run on a worker; returns its exit status, if that is the end."""
    context = train.get_context()
    with socket.socket() as free:
        free.bind(('', 0))
        address = broadcast_from_rank_zero(f'{ray.util.get_node_ip_address()}:{free.getsockname()[1]}')
    command = [sys.executable, '-m', 'dualcl_jax.main', *config['flags'], f'--coordinator_address={address}']
    command += [f'--num_processes={context.get_world_size()}', f'--process_id={context.get_world_rank()}']
    status = subprocess.run(command, check=False, preexec_fn=end_with_worker, cwd=config['folder']).returncode
    if status not in (0, 2):
        raise RuntimeError(f'exit status {status}: run the same command again')
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workers', type=int, required=True, help='number of processes')
    parser.add_argument('--resources', nargs='*', default=['CPU=1'], metavar='NAME=COUNT', help='of each worker')
    parser.add_argument('--restarts', type=int, default=100)
    parser.add_argument('--folder', help='working directory of the workers')
    parser.add_argument('flags', nargs='+', help='flags of the training command, after --')
    flags = parser.parse_args()
    resources = {name: float(count) for name, count in (pair.split('=') for pair in flags.resources)}
    trainer = JaxTrainer(
        work,
        train_loop_config={'flags': flags.flags, 'folder': flags.folder},
        jax_config=JaxConfig(),  # without devices: Ray must not join the processes, the command does
        scaling_config=ScalingConfig(
            num_workers=flags.workers, use_gpu='GPU' in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=flags.restarts)),
    )
    return trainer.fit().return_value


if __name__ == '__main__':
    sys.exit(main())

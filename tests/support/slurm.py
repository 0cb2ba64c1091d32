"""A SLURM cluster of one node on this machine, with Debian's slurmctld and slurmd and without authentication."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.runs import TIMEOUT, free_port, wait_until

COMMANDS = ('slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'scancel')
INSTALL = 'apt-get install slurmctld slurmd slurm-client'

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
KillWait=30
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; empty if there can be one."""
    absent = [name for name in COMMANDS if not shutil.which(name)]
    return f'needs SLURM ({", ".join(absent)}): {INSTALL}' if absent else ''


class Cluster:
    """A running cluster; `environment` is that of its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {'SLURM_CONF': str(folder / 'slurm.conf')}

    def command(self, *arguments: str, **environment: str) -> str:
        """Runs a command of SLURM and returns its output."""
        variables = os.environ | environment | self.environment
        done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        assert done.returncode == 0, (arguments, done)
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the cluster knows about a job, such as JobState, ExitCode and Restarts. A requeued job need not wait."""
        found = self.command('scontrol', '--oneliner', 'show', 'job', number)
        fields = dict(field.split('=', 1) for field in found.split() if '=' in field)
        if fields['Reason'] == 'BeginTime':  # two minutes, until old credentials have expired
            self.command('scontrol', 'update', f'JobId={number}', 'StartTime=now')
        return fields

    def tasks(self, number: str) -> dict[int, list[int]]:
        """The processes of each task of a job that runs, by index."""
        found: dict[int, list[int]] = {}
        for line in self.command('scontrol', 'listpids', number).splitlines()[1:]:
            pid, _, step, _, index = line.split()
            if step != 'batch' and index.isdecimal():
                found.setdefault(int(index), []).append(int(pid))
        return found


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts a cluster, and ends it with all of its jobs."""
    for name in ('state', 'spool'):
        (folder / name).mkdir()
    ports = {'controller_port': free_port(), 'node_port': free_port()}
    text = CONFIG.format(host=socket.gethostname(), user=getpass.getuser(), folder=folder, **ports)
    (folder / 'slurm.conf').write_text(text)
    found = Cluster(folder)
    with contextlib.ExitStack() as stack:
        for name in ('slurmctld', 'slurmd'):
            daemon = subprocess.Popen(
                [name, '-D'], env=os.environ | found.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        wait_until(lambda: _idle(found), None)
        try:
            yield found
        finally:
            subprocess.run(['scancel', '--full', '--user', getpass.getuser()], env=os.environ | found.environment)
            wait_until(lambda: not found.command('squeue', '--noheader'), None)


def _idle(found: Cluster) -> bool:
    arguments = ['sinfo', '--noheader', '--format=%T']
    done = subprocess.run(arguments, env=os.environ | found.environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() == 'idle'

"""A Slurm of two nodes for tests, from Debian's packages, in a folder of its own; runs in containers, without cgroups.

    python -m tests.services.slurm start /tmp/slurm     # prints the variables to export: SLURM_CONF=...
    python -m tests.services.slurm status /tmp/slurm
    python -m tests.services.slurm stop /tmp/slurm

It has its own munge and its own ports on loopback, and does not touch a Slurm that the machine may have. Each node is
a slurmd on this machine that claims four CPUs and two GPUs, whatever the machine has, so that jobs are packed as on a
cluster. There are two partitions: `main`, and `low`, whose jobs are requeued when a job of `main` needs their CPUs.
"""

from __future__ import annotations

import getpass
import os
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.services.daemons import find, free_ports, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
NODES, PARTITIONS = ("n1", "n2"), ("main", "low")
DAEMONS = (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged")  # in the order in which they are stopped

# cred_expire also sets how long a requeued job is held before it starts again: 120 s by default, at least 5 s. With
# 5 s, a job starts 6 s after `scontrol requeue` or a preemption if it ends at once on SIGTERM, and 11 s after it
# (KillWait and the hold) if it ignores SIGTERM.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=60
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=2 PreemptMode=OFF MaxTime=60
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE MaxTime=10
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000 Gres=gpu:2"


def start(folder: Path) -> dict[str, str]:
    """Starts the daemons, waits until the nodes are idle, and returns the environment to reach it with."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().partition(".")[0]
    controller, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(NODE.format(node=node, host=host, port=port) for node, port in zip(NODES, ports, strict=True))
    values = {"folder": folder, "host": host, "user": getpass.getuser(), "controller": controller, "nodes": nodes}
    (folder / "slurm.conf").write_text(CONFIG.format(**values))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")  # any two device files
    if _version() >= (23, 11):  # from then on, cgroups are the default
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log",
             "seed-file": "munge.seed"}  # fmt: skip
    _start("munged", "--force", *(f"--{flag}={folder / name}" for flag, name in files.items()))
    _start("slurmctld", "-f", str(folder / "slurm.conf"))
    for node in NODES:
        _start("slurmd", "-f", str(folder / "slurm.conf"), "-N", node)
    wait_until(
        lambda: status(folder).count(f" {len(NODES)} idle") == len(PARTITIONS),
        30,
        f"Slurm did not come up; see the logs in {folder}",
    )
    return environment(folder)


def environment(folder: Path) -> dict[str, str]:
    """Returns the environment variables with which a process uses this Slurm."""
    return {"SLURM_CONF": str(folder / "slurm.conf")}


def status(folder: Path) -> str:
    """Returns the states of the partitions as `sinfo` prints them, or its error message."""
    done = _client(folder, "sinfo", "--noheader", "--format=%P %D %T")
    return (done.stdout or done.stderr).strip()


def stop(folder: Path) -> None:
    """Kills all jobs and stops the daemons."""
    me = f"--user={getpass.getuser()}"
    _client(folder, "scancel", me, "--signal=KILL", "--full")  # otherwise the node waits KillWait seconds for them
    _client(folder, "scancel", me)
    for daemon in DAEMONS:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            pid = int((folder / f"{daemon}.pid").read_text())
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda pid=pid: not _alive(pid), 15, f"{daemon} ({pid}) did not stop")


def _client(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(find(program)), *arguments], env={**os.environ, **environment(folder)}, capture_output=True, text=True
    )


def _start(daemon: str, *arguments: str) -> None:
    done = subprocess.run([str(find(daemon)), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{daemon} did not start: {done.stderr.strip() or done.stdout.strip()}")


def _version() -> tuple[int, ...]:
    """Parses Slurm's version: `slurm-wlm 22.05.8` -> (22, 5, 8)."""
    printed = subprocess.run([str(find("slurmctld")), "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(part) for part in printed.split()[1].split("-")[0].split("."))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if verb == "start":
        for name, value in start(folder).items():
            print(f"export {name}={value}")
    elif verb == "stop":
        stop(folder)
    else:
        print(status(folder))

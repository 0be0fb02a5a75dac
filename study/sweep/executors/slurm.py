"""Runs trials as Slurm job arrays, through submitit. Jobs outlive the driver; another driver collects their results."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from study.config.errors import UserError, allowed_names
from study.config.rendezvous import Rendezvous
from study.config.schema import LaunchConfig, RunConfig, StudyConfig
from study.config.signals import STOP_SIGNALS
from study.plan.job import Job, split_processes
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.dependencies import topological_batches
from study.sweep.executors.follower_node import join_trials
from study.sweep.executors.resources import check_job_resources, count_job_cores
from study.sweep.executors.worker import work
from study.sweep.retries import CANCELLED
from study.training.preemption import handle_signals

QUEUE_POLL_SECONDS = 5.0  # between calls of squeue, one for all jobs
COMMAND_TIMEOUT_SECONDS = 60.0
WARNING_SHARE = 0.5  # of a job's time limit, at most; the rest is left for training
NODE_EXIT_SECONDS = 60  # between the end of a job's first node and that of the others
_SUBMITTED = TypeAdapter(dict[str, list[str]])  # trials by job, in queue.json
_BLOCK_SIGNALS = (  # starts Python with these signals blocked: they are pending until the job handles them
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, "
    f"{[int(number) for number in STOP_SIGNALS]}); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
ENDED_STATES = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
                "REVOKED", "TIMEOUT")  # fmt: skip
KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS")  # which Slurm to use, also from within a job
GRACE_SHARE = 0.8  # share of `launch.warning_seconds` in which trials may stop by themselves


class QueuedJob(NamedTuple):
    """A job that Slurm knows: its state, such as PENDING or RUNNING, the reason, and the node it runs on."""

    state: str
    reason: str
    node: str

    @property
    def has_ended(self) -> bool:
        """Whether it has left the queue; Slurm still knows it for some minutes."""
        return self.state in ENDED_STATES

    def describe(self) -> str:
        """Its state, the reason for it, and what to do about it."""
        reason = "" if self.reason in ("None", "") else f" ({self.reason})"
        held = re.search("held|hold", self.reason, re.IGNORECASE) and self.state == "PENDING"
        return f"{self.state}{reason}" + ("; to let it run: `scontrol release JOB`" if held else "")


def build_executor(study: StudyConfig, folder: StudyFolder, workers: int | None) -> SlurmExecutor:
    """Builds an executor that submits from this machine."""
    return SlurmExecutor(folder, study.launch, study.run)


class SlurmExecutor:
    """Submits all trials at once, `launch.trials_per_job` per job; a group of fused trials counts as one.

    A job trains its trials with `worker.work`, and requeues itself when its time runs out. queue.json in the study's
    folder lists the trials of every job.
    """

    outlives_driver = True
    free = 10**9  # Slurm has a queue

    def __init__(self, folder: StudyFolder, launch: LaunchConfig, run: RunConfig) -> None:
        check_slurm(launch, run)
        self.folder, self.launch = folder, launch
        trials_at_once = run.trials_per_device * int(launch.gpus) or count_job_cores(launch) // run.threads
        trials_at_once = max(1, trials_at_once // run.devices_per_trial) if launch.nodes == 1 else 1
        self.places = launch.jobs * min(launch.trials_per_job, trials_at_once)
        self.jobs: dict[str, set[str]] = {}  # job -> its trials that have not ended
        self.queue: dict[str, QueuedJob] = {}  # the latest answer of squeue
        self.ending: set[str] = set()  # jobs that were about to end when this driver started
        self.waiting: Counter[str] = Counter()  # trials in the queue, by the state of their jobs and the reason
        self.polled = self.submitted = 0.0  # times of the latest squeue and sbatch

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Returns the trials whose job an earlier driver submitted and that is still in Slurm's queue."""
        found = {key: (name, job) for key, (name, job) in read_queue(self.folder).items() if key in keys}
        attached = {key: (name, job) for key, (name, job) in found.items() if not job.has_ended}
        for key, (name, job) in attached.items():
            self.jobs.setdefault(name, set()).add(key)
            if job.state == "COMPLETING":
                self.ending.add(name)
        return set(attached)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submits job arrays; trials that start from others depend on their arrays. Raises `UserError` if refused."""
        by_key, largest, size = {job.trial.key: job for job in jobs}, _read_array_limit(), self.launch.trials_per_job
        for batch in topological_batches([job.trial for job in jobs]):
            after = self._find_arrays({trial.waits_for for trial in batch})
            processes = split_processes([by_key[trial.key] for trial in batch])
            packed = [
                list(itertools.chain(*processes[start : start + size])) for start in range(0, len(processes), size)
            ]
            for start in range(0, len(packed), largest):
                self._submit_array(packed[start : start + largest], after)
        self.submitted = time.monotonic()

    def wait(self, seconds: float) -> dict[str, str]:
        """Returns the trials that have a result, and those whose job has left Slurm's queue or was cancelled."""
        time.sleep(seconds)
        if time.monotonic() - self.polled >= QUEUE_POLL_SECONDS:
            self._poll_queue()
        ended: dict[str, str] = {}
        for name, keys in list(self.jobs.items()):
            queued = self.queue.get(name)
            if queued.has_ended if queued else self.polled > self.submitted:
                ended |= dict.fromkeys(keys, self._describe_end(name, queued))
                del self.jobs[name]
            elif queued is not None and queued.state != "PENDING":
                finished = {key for key in keys if self._has_result(key)}
                ended |= dict.fromkeys(finished, "has a result")
                keys -= finished
        return ended

    def count_waiting(self) -> Counter[str]:
        """Returns how many trials wait in Slurm's queue, by the state of their jobs and the reason."""
        return self.waiting

    def cancel(self) -> None:
        """Cancels all jobs whose trials have not ended."""
        if self.jobs:
            _call("scancel", *self.jobs)
            self.jobs.clear()

    def close(self) -> None:
        """Does nothing: jobs continue without the driver."""

    def _submit_array(self, batches: Sequence[Sequence[Job]], after: Sequence[str]) -> None:
        names = _submit(batches, self.folder, with_dependency(self.launch, after))
        self.jobs |= {name: {job.trial.key for job in batch} for name, batch in zip(names, batches, strict=True)}
        _write_queue(self.folder, {name: sorted(self.jobs[name]) for name in names})

    def _find_arrays(self, keys: Collection[str | None]) -> list[str]:
        """Returns the job arrays that train any of these trials."""
        return sorted({name.partition("_")[0] for name, trials in self.jobs.items() if trials & set(keys)})

    def _describe_end(self, name: str, job: QueuedJob | None) -> str:
        """Slurm forgets a task of an array that is cancelled before it starts, and has thus no log."""
        is_cancelled = job.state == "CANCELLED" if job else not any(self.folder.jobs.glob(f"{name}_*log.out"))
        if is_cancelled and name not in self.ending:
            return f"{CANCELLED} with Slurm job {name}"
        return describe_end(self.folder, name, job)

    def _poll_queue(self) -> None:
        queue = query_queue()
        if queue is not None:  # None while Slurm restarts: its jobs are not lost
            self.queue, self.polled, self.waiting = queue, time.monotonic(), Counter()
            for name, keys in self.jobs.items():
                if name in queue and queue[name].state == "PENDING":
                    self.waiting[queue[name].describe()] += len(keys)

    def _has_result(self, key: str) -> bool:
        trial_id, _, replicate = key.rpartition("-r")
        return is_complete(self.folder.trial(trial_id, int(replicate)))


def is_complete(record: TrialFolder) -> bool:
    """Whether a trial has an intact record; one with a damaged record is in the queue to be trained again."""
    return record.read_result() is not None and not record.damaged_files()


def with_dependency(launch: LaunchConfig, after: Sequence[str]) -> LaunchConfig:
    """Returns a copy whose jobs wait for other jobs to end in any way; the worker checks whether they succeeded."""
    if not after:
        return launch
    given = [str(launch.sbatch["dependency"])] if "dependency" in launch.sbatch else []
    dependency = ",".join([*given, "afterany:" + ":".join(after)])
    return launch.model_copy(update={"sbatch": {**launch.sbatch, "dependency": dependency}})


# ---------------------------------------------------------------------------------------------------- inside a job


def _run_batch(jobs: Sequence[Job], launch: LaunchConfig) -> None:
    """Runs in the job: trains its trials, and requeues the job if a signal stopped it before they were done.

    Also if another process held the lock of a trial all the time, as one may on a node that has died: it is released
    when the file server notices, which takes 90 s for NFSv4.
    """
    name, grace = _read_own_name(), GRACE_SHARE * launch.warning_seconds
    with handle_signals() as stop_request:  # replaces submitit's handlers, which ignore SIGTERM or pickle the job
        rendezvous = _find_rendezvous(launch) if launch.nodes > 1 else None
        if rendezvous and rendezvous.node:
            join_trials(jobs, launch, stop_request, grace=grace, rendezvous=rendezvous)
            return
        try:
            work(jobs, launch, stop_request, place=f"slurm {name}", grace=grace, rendezvous=rendezvous)
        except Exception:
            if stop_request.signal is None:
                raise
            traceback.print_exc()
        left = [record for job in jobs if not is_complete(record := TrialFolder(job.folder))]
        locked = [record.key for record in left if record.is_locked()]
        reason = stop_request.signal or f"locked by another process: {', '.join(locked)}"
        if left and (stop_request.signal or locked):
            _requeue(name, launch.requeues, reason)


def _find_rendezvous(launch: LaunchConfig) -> Rendezvous:
    """The first node of the job and a port that follows from its number, or $MASTER_ADDR and $MASTER_PORT.

    Raises `RuntimeError` for a name that has no address here; torch would look for it for half an hour.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    here = SLURMEnvironment()
    try:
        socket.getaddrinfo(here.main_address, here.main_port)
    except OSError as error:
        hint = "--set 'launch.setup=[\"export MASTER_ADDR=...\"]'"
        raise RuntimeError(f"launch.nodes: no address of {here.main_address}: {error}; give one: {hint}") from None
    return Rendezvous(
        nodes=launch.nodes, node=here.node_rank(), address=here.main_address, port=here.main_port,
        interface=launch.interface,
    )  # fmt: skip


def _requeue(name: str, limit: int, reason: str) -> None:
    """Requeues this job if it is still RUNNING, as it is at the warning before its time limit.

    Slurm itself requeues jobs that it preempts, and jobs that a user cancels must not come back; both have another
    state.
    """
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    state = _call("squeue", "--noheader", "--format=%T", f"--jobs={name}").strip() or "no longer in the queue"
    if state == "RUNNING" and restarts < limit:
        print(f"{name}: requeued, {restarts + 1} of {limit} times: {reason}", flush=True)
        _call("scontrol", "requeue", name)
    else:
        print(f"{name}: not requeued by itself: {state}, {restarts} of {limit} times: {reason}", flush=True)


def _read_own_name() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


# ------------------------------------------------------------------------------------------------ Slurm's commands


def check_slurm(launch: LaunchConfig, run: RunConfig) -> None:
    """Raises `UserError` if there is no Slurm on this machine, or if it cannot run jobs of these settings."""
    if shutil.which("sbatch") is None:
        raise UserError("--launcher slurm: no sbatch on this machine; use a login node, or --launcher local")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError("--launcher slurm: submitit is not installed; pip install 'normalizer-study[slurm]'") from None
    if launch.cpus != int(launch.cpus):
        raise UserError(f"launch.cpus={launch.cpus:g}: Slurm allocates whole cores")
    if launch.gpus != int(launch.gpus):
        raise UserError(
            f"launch.gpus={launch.gpus}: Slurm allocates whole GPUs; run.trials_per_device runs several trials on one"
        )
    check_job_resources(launch, run)
    try:
        lines = _call("sinfo", "--noheader", "--format=%R %l %P").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"--launcher slurm: Slurm does not answer: {_first_line(error)}") from None
    limits = {name: _parse_minutes(limit) for name, limit, _ in map(str.split, lines)}
    default = ",".join({name for name, _, marked in map(str.split, lines) if marked.endswith("*")})
    setting, minutes = _read_time_limit(launch)
    key = "sbatch.partition" if "partition" in launch.sbatch else "partition"  # `sbatch` overrides the other settings
    for name in str(launch.sbatch.get("partition", launch.partition or default)).split(","):
        if name not in limits:
            raise UserError(f"launch.{key}={name}: no such partition; {allowed_names(name, sorted(limits))}")
        if minutes > limits[name]:
            raise UserError(f"{setting}: allowed in partition {name}: 1 to {limits[name]:.0f} minutes")
    if launch.warning_seconds > 60 * minutes * WARNING_SHARE:
        raise UserError(
            f"launch.warning_seconds={launch.warning_seconds}: allowed with {setting}: 1 to "
            f"{60 * minutes * WARNING_SHARE:.0f} seconds, half of the time of a job"
        )


def query_queue() -> dict[str, QueuedJob] | None:
    """Returns the user's jobs by name, `12_3` for task 3 of array 12; None if Slurm does not answer.

    With those that ended in the last minutes (`MinJobAge`): their state says which ones were cancelled.
    """
    try:
        lines = _call("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.split("|", 3) for line in lines)
    return {name: QueuedJob(state, reason, node) for name, state, reason, node in rows}


def read_queue(folder: StudyFolder) -> dict[str, tuple[str, QueuedJob]]:
    """Returns the name and state of the job of every trial that this user has submitted; empty if Slurm is silent.

    A job that Slurm no longer knows has the state `COMPLETED`.
    """
    submitted = _read_submitted(folder)
    is_mine = bool(submitted) and folder.queue.stat().st_uid == os.geteuid()
    queue = query_queue() if is_mine and shutil.which("squeue") else None
    if queue is None:
        return {}
    unknown = QueuedJob("COMPLETED", "None", "")
    return {key: (job, queue.get(job, unknown)) for job, keys in submitted.items() for key in keys}


def describe_end(folder: StudyFolder, name: str, job: QueuedJob | None) -> str:
    """How a job has ended, and where its output is."""
    state = "" if job is None or job.state == "COMPLETED" else f"{job.state}, "
    return f"ended with Slurm job {name} ({state}{folder.jobs}/{name}_*.out)"


def _read_submitted(folder: StudyFolder) -> dict[str, list[str]]:
    """The trials of the jobs in queue.json; empty where it is missing or damaged."""
    try:
        return _SUBMITTED.validate_python((read_json(folder.queue) or {}).get("slurm", {}))
    except ValidationError:
        return {}


def _write_queue(folder: StudyFolder, jobs: dict[str, list[str]]) -> None:
    """Adds jobs to the study's queue.json, and removes those that have left Slurm's queue."""
    queue = query_queue()
    known = {
        name: keys for name, keys in _read_submitted(folder).items()
        if queue is None or (name in queue and not queue[name].has_ended)
    }  # fmt: skip
    write_json(folder.queue, {"slurm": {**known, **jobs}})


def _submit(batches: Sequence[Sequence[Job]], folder: StudyFolder, launch: LaunchConfig) -> list[str]:
    """Submits a job array with a job per batch; returns the jobs' names. Raises `UserError` if Slurm refuses it."""
    import submitit

    folder.jobs.mkdir(mode=0o700, parents=True, exist_ok=True)  # scripts contain `launch.setup`
    executor = submitit.SlurmExecutor(folder=folder.jobs, python=shlex.join([sys.executable, "-ISc", _BLOCK_SIGNALS]))
    executor.update_parameters(
        job_name=folder.path.name,
        time=launch.minutes,
        partition=launch.partition,
        nodes=launch.nodes,
        ntasks_per_node=1,
        # The nodes of a job end together: at once if one fails, and soon after the first has ended.
        srun_args=["--kill-on-bad-exit=1", f"--wait={NODE_EXIT_SECONDS}"],
        cpus_per_task=int(launch.cpus),
        gpus_per_node=int(launch.gpus) or None,
        array_parallelism=launch.jobs,
        signal_delay_s=launch.warning_seconds,
        setup=[
            *launch.setup,
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        ],  # srun does not inherit it
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, **({"mem": launch.memory} if launch.memory else {}), **launch.sbatch},
    )
    try:
        with redirect_stderr(io.StringIO()), _without_job_variables():  # submitit repeats sbatch's message there
            jobs = executor.map_array(_run_batch, batches, [launch] * len(batches))
    except submitit.core.utils.FailedJobError as error:
        reason = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error).splitlines()[0])
        raise UserError(f"launch: Slurm refuses the jobs: {reason.strip()}") from None
    return [job.job_id for job in jobs]


@contextmanager
def _without_job_variables() -> Iterator[None]:
    """Hides the variables of the Slurm job that this driver runs in, if any.

    sbatch would pass them on: srun would refuse SLURM_MEM_PER_NODE beside the SLURM_MEM_PER_CPU of the new job, and the
    new job would count the requeues of the driver's job as its own.
    """
    names = [name for name in os.environ if name.startswith(("SLURM", "SRUN_")) and name not in KEPT_VARIABLES]
    hidden = {name: os.environ.pop(name) for name in names} if "SLURM_JOB_ID" in os.environ else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _read_array_limit() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"))
    return max(1, int(found[1]) - 1) if found else 1000


def _read_time_limit(launch: LaunchConfig) -> tuple[str, float]:
    """Returns the setting that limits the time of a job, and the limit in minutes. Raises `UserError` for no time."""
    given = launch.sbatch.get("time", launch.minutes)
    setting = f"launch.{'sbatch.time' if 'time' in launch.sbatch else 'minutes'}={given}"
    try:
        return setting, _parse_minutes(str(given))
    except ValueError:
        formats = "MINUTES, HOURS:MINUTES:SECONDS, DAYS-HOURS:MINUTES:SECONDS"
        raise UserError(f"{setting}: not a time limit; allowed: {formats}") from None


def _parse_minutes(limit: str) -> float:
    """Parses Slurm's time limits: `1-02:30:00` -> 1590, `90:00` and `90` -> 90, `infinite` and 0 -> inf.

    Raises `ValueError` for any other text.
    """
    if limit.lower() in ("infinite", "unlimited", "n/a"):
        return math.inf
    days, dash, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:
        parts = [0, *parts, 0][:3]
    hours, minutes, seconds = parts
    return (int(days) * 1440 if dash else 0) + hours * 60 + minutes + seconds / 60 or math.inf


def _call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_TIMEOUT_SECONDS).stdout  # noqa: S603


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""Runs trials as job arrays of Slurm, through submitit. Jobs outlive the driver: another one collects them."""

from __future__ import annotations

import io
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any, NamedTuple

from study.config.errors import UserError, allowed_names
from study.config.schema import LaunchConfig, RunConfig
from study.plan.job import Job
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from study.sweep.dependencies import topological_batches
from study.sweep.executors.resources import check_room
from study.sweep.executors.worker import work

LOOK_SECONDS = 5.0  # between two questions to Slurm, one for all jobs
ANSWER_SECONDS = 60.0
GRACE_SHARE = 0.8  # of the warning before a time limit, for trials to leave in
SUBMITIT = "'normalizer-study[slurm]'"


class QueuedJob(NamedTuple):
    """What Slurm says of a job that is waiting or running."""

    state: str
    reason: str
    node: str


class SlurmExecutor:
    """Queues everything at once, `launch.trials_per_job` trials a job; Slurm and the jobs see to the rest.

    A job has its trials trained by `worker.work` and requeues itself when it runs out of time. Which job has which
    trials is kept in the study's folder.
    """

    outlives_driver = True
    limit = 10**9

    def __init__(self, folder: StudyFolder, launch: LaunchConfig, run: RunConfig) -> None:
        check_slurm(launch, run)
        self.folder, self.launch = folder, launch
        at_once = run.trials_per_device * int(launch.gpus) or launch.cpus // run.threads
        at_once = max(1, at_once // run.devices_per_trial)
        self.places = launch.jobs * min(launch.trials_per_job, at_once)
        self.jobs: dict[str, set[str]] = {}  # job -> trials that are waited for
        self.looked = self.changed = 0.0
        self.queue: dict[str, QueuedJob] = {}

    def reattach(self, keys: Collection[str]) -> set[str]:
        """Trials in jobs of an earlier driver that are still in Slurm's queue."""
        queued = read_queue(self.folder)
        mine = {key: job for key, (job, _) in queued.items() if key in keys}
        for key, job in mine.items():
            self.jobs.setdefault(job, set()).add(key)
        return set(mine)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues jobs as arrays, those that start from others behind these. Raises `UserError` where Slurm refuses."""
        by_key, largest, size = {job.trial.key: job for job in jobs}, _largest_array(), self.launch.trials_per_job
        for wave in topological_batches([job.trial for job in jobs]):
            after = self._arrays({trial.waits_for for trial in wave})
            batches = [
                [by_key[trial.key] for trial in wave[start : start + size]] for start in range(0, len(wave), size)
            ]
            for start in range(0, len(batches), largest):
                self._submit_array(batches[start : start + largest], after)
        self.changed = time.monotonic()

    def _submit_array(self, batches: Sequence[Sequence[Job]], after: Sequence[str]) -> None:
        names = _submit(batches, self.folder, with_dependency(self.launch, after))
        self.jobs |= {name: {job.trial.key for job in batch} for name, batch in zip(names, batches, strict=True)}
        _note_jobs(self.folder, {name: sorted(self.jobs[name]) for name in names})

    def _arrays(self, keys: Collection[str | None]) -> list[str]:
        """The arrays that have trials which are waited for."""
        return sorted({name.partition("_")[0] for name, held in self.jobs.items() if held & set(keys)})

    def wait(self, seconds: float) -> dict[str, str]:
        """Trials with a result, and those whose job has left Slurm's queue."""
        time.sleep(seconds)
        if time.monotonic() - self.looked >= LOOK_SECONDS:
            self._check_losses()
        ended: dict[str, str] = {}
        for name, keys in list(self.jobs.items()):
            queued = self.queue.get(name)
            if queued is None and self.looked > self.changed:
                ended |= dict.fromkeys(keys, f"has gone with Slurm job {name} ({self.folder.jobs}/{name}_*.out)")
                del self.jobs[name]
            elif queued is not None and queued.state != "PENDING":
                finished = {key for key in keys if self._has_result(key)}
                ended |= dict.fromkeys(finished, "has a result")
                keys -= finished
        return ended

    def cancel(self) -> None:
        """Takes the jobs that are waited for from the queue."""
        if self.jobs:
            _call("scancel", *self.jobs)
            self.jobs.clear()

    def close(self) -> None:
        """Leaves the queue as it is."""

    def _check_losses(self) -> None:
        answer = ask_queue()
        if answer is not None:  # Slurm restarting is no reason to take its jobs for lost
            self.queue, self.looked = answer, time.monotonic()

    def _has_result(self, key: str) -> bool:
        trial_id, _, replicate = key.rpartition("-r")
        return is_complete(self.folder.trial(trial_id, int(replicate)))


def is_complete(record: TrialFolder) -> bool:
    """Whether a trial is done; one with a damaged record is in the queue to be trained again."""
    return record.read_result() is not None and not record.damaged_files()


def with_dependency(launch: LaunchConfig, after: Sequence[str]) -> LaunchConfig:
    """Jobs that wait for the end of others, however that is: what starts from a trial looks itself what it has left."""
    if not after:
        return launch
    given = [str(launch.sbatch["dependency"])] if "dependency" in launch.sbatch else []
    dependency = ",".join([*given, "afterany:" + ":".join(after)])
    return launch.model_copy(update={"sbatch": {**launch.sbatch, "dependency": dependency}})


# --------------------------------------------------------------------------------------------- in the job


def _run_batch(jobs: Sequence[Job], launch: LaunchConfig) -> None:
    """A job's work. What it leaves unfinished when it is told to go, it goes on with in its next life.

    Slurm requeues by itself what it preempts, and a user who cancels wants no next life: in both cases the job is not
    running any more. A time limit, and a signal from anywhere else, find it running.
    """
    name = _own_name()
    grace = GRACE_SHARE * launch.warning_seconds
    was_asked = work(jobs, launch, place=f"slurm {name}", grace=grace)
    lives = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if not was_asked or all(is_complete(TrialFolder(job.folder)) for job in jobs):
        return
    state = _call("squeue", "--noheader", "--format=%T", f"--jobs={name}").strip()
    if state == "RUNNING" and lives < launch.requeues:
        print(f"{name}: requeued, {lives + 1} of {launch.requeues} times", flush=True)
        _call("scontrol", "requeue", name)
    else:
        print(f"{name}: not requeued: {state or 'gone from the queue'}, {lives} of {launch.requeues} times", flush=True)


def _own_name() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


# ------------------------------------------------------------------------------------------- Slurm's commands


def check_slurm(launch: LaunchConfig, run: RunConfig) -> None:
    """Raises `UserError` where there is no Slurm to run on, or where it has no such partition."""
    if shutil.which("sbatch") is None:
        raise UserError("--launcher slurm: no sbatch on this machine; run it where Slurm is, or take --launcher local")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(f"--launcher slurm: submitit is not installed; pip install {SUBMITIT}") from None
    if launch.gpus != int(launch.gpus):
        raise UserError(
            f"launch.gpus={launch.gpus}: Slurm gives whole GPUs; run.trials_per_device puts several trials on one"
        )
    check_room(launch, run)
    try:
        lines = _call("sinfo", "--noheader", "--format=%R %l %P").splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"--launcher slurm: Slurm does not answer: {_said(error)}") from None
    limits = {name: _minutes(limit) for name, limit, _ in map(str.split, lines)}
    default = ",".join({name for name, _, marked in map(str.split, lines) if marked.endswith("*")})
    for name in (launch.partition or default).split(","):
        if name not in limits:
            raise UserError(f"launch.partition={name}: no such partition; {allowed_names(name, sorted(limits))}")
        if launch.minutes > limits[name]:
            raise UserError(f"launch.minutes={launch.minutes}: allowed in partition {name}: 1 to {limits[name]:.0f}")


def ask_queue() -> dict[str, QueuedJob] | None:
    """The user's jobs in Slurm's queue by name, `12_3` for task 3 of array 12; None where Slurm does not answer."""
    try:
        lines = _call("squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    rows = (line.split("|", 3) for line in lines)
    return {name: QueuedJob(state, reason, node) for name, state, reason, node in rows}


def read_queue(folder: StudyFolder) -> dict[str, tuple[str, QueuedJob]]:
    """Trial -> its job, for trials whose job is in Slurm's queue now."""
    noted: Mapping[str, Any] = (read_json(folder.queue) or {}).get("slurm", {})
    queue = ask_queue() if noted and shutil.which("squeue") else None
    if not queue:
        return {}
    return {key: (job, queue[job]) for job, keys in noted.items() if job in queue for key in keys}


def _note_jobs(folder: StudyFolder, jobs: dict[str, list[str]]) -> None:
    """Adds jobs to the study's queue file, and forgets those that have left Slurm's queue."""
    noted = (read_json(folder.queue) or {}).get("slurm", {})
    queue = ask_queue()
    known = {name: keys for name, keys in noted.items() if queue is None or name in queue}
    write_json(folder.queue, {"slurm": {**known, **jobs}})


def _submit(batches: Sequence[Sequence[Job]], folder: StudyFolder, launch: LaunchConfig) -> list[str]:
    import submitit

    executor = submitit.SlurmExecutor(folder=folder.jobs)
    executor.update_parameters(
        job_name=folder.path.name,
        time=launch.minutes,
        partition=launch.partition,
        cpus_per_task=launch.cpus,
        gpus_per_node=int(launch.gpus) or None,
        array_parallelism=launch.jobs,
        signal_delay_s=launch.warning_seconds,
        setup=[*launch.setup, "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],  # srun does not take it from sbatch
        stderr_to_stdout=True,
        additional_parameters={"requeue": True, **({"mem": launch.memory} if launch.memory else {}), **launch.sbatch},
    )
    try:
        with redirect_stderr(io.StringIO()):  # where submitit repeats what sbatch complains of
            jobs = executor.map_array(_run_batch, batches, [launch] * len(batches))
    except submitit.core.utils.FailedJobError as error:
        reason = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error).splitlines()[0])
        raise UserError(f"launch: Slurm refuses the jobs: {reason.strip()}") from None
    return [job.job_id for job in jobs]


def _largest_array() -> int:
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"))
    return max(1, int(found[1]) - 1) if found else 1000


def _minutes(limit: str) -> float:
    """`1-02:30:00` -> 1590; `infinite` is that."""
    if not limit[0].isdigit():
        return math.inf
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def _call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS).stdout  # noqa: S603


def _said(error: Exception) -> str:
    lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

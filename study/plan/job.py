"""The job that a process gets to train one trial. It is shared by the driver and the training; it imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from study.config.rendezvous import Rendezvous
from study.config.schema import RunConfig
from study.plan.trials import PlannedTrial
from study.record.wandb_names import StudyRuns


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a process needs to train one trial: plain values, so that it can be sent to any machine.

    command: the command line that trains the trial again.
    start: the folder of the trial, or the file of weights, that the trial starts from.
    data: fingerprints of the study's data sets, by name; one that is missing is not compared.
    devices: the device of each rank, node by node.
    rendezvous: of the nodes that train the trial together, each with the same number of devices; None for one machine.
    threads: CPU threads of each rank.
    wandb_runs: the names of the study's runs on W&B.
    place: name of the cluster's job or node that the trial runs on, for its record.
    group: keys of the trials whose networks are computed as one, this one's among them; empty for a trial that is
        trained by itself.
    alone: whether it has a process of its own, without the others of its group; its numbers are the same.
    build_network: a function of a module that builds the network, in place of the one that the config describes; it
        also applies the start rule, if the study has one.
    """

    trial: PlannedTrial
    folder: Path
    study: str
    run: RunConfig
    environment: dict[str, Any]
    command: str
    wandb_mode: Literal["online", "offline", "disabled"] = "disabled"
    wandb_runs: StudyRuns = field(default_factory=StudyRuns)
    start: Path | None = None
    data: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    rendezvous: Rendezvous | None = None
    threads: int = 1
    place: str = ""
    group: tuple[str, ...] = ()
    alone: bool = False
    build_network: Callable[[Job], Any] | None = None

    @property
    def nodes(self) -> int:
        """Number of nodes that train the trial together."""
        return self.rendezvous.nodes if self.rendezvous else 1

    def assign(self, devices: tuple[str, ...], threads: int) -> Job:
        """Returns the job with its devices and threads."""
        return replace(self, devices=devices, threads=threads)


def split_processes(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs of each process: those of a group share one. In the order of their first jobs."""
    processes: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        name = (job.trial.key,) if job.alone or not job.group else job.group
        processes.setdefault(name, []).append(job)
    return list(processes.values())

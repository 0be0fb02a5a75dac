"""Injects faults into a small study and compares its results with an undisturbed run: a test of a machine or cluster.

The study is `depth_vs_batch` at the smoke scale, run by the command that a user would type, and run again after each
fault that ends it. Faults come one after the other, at seeded pseudo-random moments while trials train. A study that
ends meanwhile is compared with the undisturbed one, and the faults continue in a new study. If several faults affected
a trial that differs, the table counts it for each of them, the figures only once.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from study.bench.faults.comparison import StudyDifferences, compare_studies
from study.bench.faults.harness import (
    OVERRIDES,
    SCALE,
    STUDY,
    CampaignSettings,
    NotPossibleError,
    StuckError,
    StudyFinishedError,
    StudyHarness,
)
from study.bench.faults.injections import FAULTS, NEEDS_SMALL_DISK, add_ray_node
from study.bench.result import Figure, Result
from study.config.errors import UserError, allowed_names
from study.plan.loading import load_study

ROUNDS, QUICK_ROUNDS = 2, 1  # how often each fault is injected
STOP_SECONDS, QUICK_STOP_SECONDS = 30.0, 10.0
MAX_TRIES = 5  # for a fault that comes too late
OTHER_TRIALS = "none (other trials)"

TrialKey = tuple[int, str]  # the number of the study, and the trial's key in it


@dataclass
class FaultCounts:
    """How often a fault was injected, the trials that it affected, how long it took, and remarks."""

    injected: int = 0
    affected: set[TrialKey] = field(default_factory=set)
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)


def measure(
    *,
    quick: bool,
    threads: int | None,
    device: str,
    launcher: str = "local",
    set: Sequence[str] = (),
    out: str = "runs/bench",
    only: str | None = None,
    storage: str | None = None,
    restart_storage: str | None = None,
) -> Result:
    """Runs the undisturbed study, injects the launcher's faults, and compares. Raises `UserError` for bad input."""
    if launcher not in FAULTS:
        raise UserError(f"--launcher {launcher}: unknown launcher; {allowed_names(launcher, FAULTS)}")
    names = only.split(",") if only else list(FAULTS[launcher])
    for name in names:
        if name not in FAULTS[launcher]:
            raise UserError(f"--only {name}: no such fault; {allowed_names(name, FAULTS[launcher])}")
    Path(out).mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=Path(out).resolve()))
    settings = CampaignSettings(
        launcher=launcher,
        overrides=(*OVERRIDES, f"name={root.name}", f"run.device={device}", f"run.threads={threads or 1}", *set),
        stop_seconds=QUICK_STOP_SECONDS if quick else STOP_SECONDS,
        rng=random.Random(0),  # noqa: S311
        storage=storage,
        restart_storage=restart_storage,
    )
    load_study(STUDY, SCALE, settings.overrides)  # finds mistakes in --set before anything runs
    result = Result("faults")
    with _ray_cluster_if_needed(settings, result) as settings:
        campaign = Campaign(root, settings)
        campaign.run(names * (QUICK_ROUNDS if quick else ROUNDS))
    summarize(campaign, result)
    if any(figure.met is False for figure in result.figures):
        result.notes.append(f"The studies are kept in {root}")
    else:
        shutil.rmtree(root)
    return result


class Campaign:
    """Injects faults one after the other, in as many studies as that takes."""

    def __init__(self, root: Path, settings: CampaignSettings) -> None:
        self.root, self.settings = root, settings
        self.reference = StudyHarness(root / "undisturbed", replace(settings, storage=None))
        self.studies: list[StudyHarness] = []
        self.differences: list[StudyDifferences] = []  # of the studies that have ended
        self.counts: dict[str, FaultCounts] = {}

    def run(self, names: Sequence[str]) -> None:
        """Runs the undisturbed study and injects the faults; fills `counts` and `differences`."""
        try:
            self._run_reference()
            for name in names:
                _print_progress(f"{name} ...")
                self._inject(name, self.counts.setdefault(name, FaultCounts()))
            self._end_study()
        finally:
            for study in (self.reference, *self.studies):
                study.close()

    @property
    def current(self) -> StudyHarness | None:
        """The study that runs, if one does."""
        return self.studies[-1] if len(self.studies) > len(self.differences) else None

    def _run_reference(self) -> None:
        _print_progress("the undisturbed study ...")
        if self.reference.ensure_driver().wait():
            error = self.reference.last_line().removeprefix("error: ")
            raise UserError(f"the undisturbed study fails: {error}")

    def _inject(self, name: str, counts: FaultCounts) -> None:
        """Injects a fault; tries again if the study or the process that it is for has just ended."""
        why = ""
        for _ in range(MAX_TRIES):
            try:
                study = self._provide_study(small_disk=name in NEEDS_SMALL_DISK)
                self._inject_once(study, name, counts)
                return
            except StudyFinishedError:
                why = "the study had ended"
                self._end_study()
            except (ProcessLookupError, subprocess.CalledProcessError) as error:
                why = str(getattr(error, "stderr", "") or error)
            except NotPossibleError as error:
                counts.remarks.append(f"not possible here: {error}")
                return
            except StuckError as error:
                counts.remarks.append(str(error))
                study.problems.append(str(error))
                self._end_study()
                return
        counts.remarks.append(f"came too late {MAX_TRIES} times: {why}")

    def _inject_once(self, study: StudyHarness, name: str, counts: FaultCounts) -> None:
        """Injects a fault and waits until trials train again. If the injection itself fails, nothing is counted."""
        started, known_problems = time.monotonic(), len(study.problems)
        affected = FAULTS[self.settings.launcher][name](study)
        counts.injected += 1
        counts.affected |= {(len(self.differences), record.key) for record in affected}
        try:
            if study.driver is not None:
                study.wait_until_training()
        except StudyFinishedError:
            self._end_study()
        finally:
            counts.seconds += time.monotonic() - started
            counts.remarks += study.problems[known_problems:]

    def _provide_study(self, *, small_disk: bool) -> StudyHarness:
        """The study that runs, or a new one."""
        if self.current is not None and self.current.small_disk != small_disk:
            self._end_study()
        if self.current is None:
            path = self.root / f"{len(self.studies):02}"
            self.studies.append(StudyHarness(path, self.settings, small_disk=small_disk))
        return self.studies[-1]

    def _end_study(self) -> None:
        """Lets the current study run to its end and compares it; deletes it if nothing is wrong with it."""
        study = self.current
        if study is None:
            return
        with suppress(StuckError):  # the comparison will show what is missing
            study.run_to_end()
        differences = compare_studies(self.reference.folder, study.folder, study.storage)
        self.differences.append(differences)
        study.close()
        if differences == StudyDifferences() and not study.problems:
            study.remove()


def summarize(campaign: Campaign, result: Result) -> None:
    """Adds a row per fault, the totals and the remarks to the result."""
    differences, counts = campaign.differences, campaign.counts
    trials = {(number, record.key) for number in range(len(differences))
              for record in campaign.reference.folder.trials()}  # fmt: skip
    others = FaultCounts(affected=trials.difference(*(fault.affected for fault in counts.values())))
    result.rows += [_build_row(name, fault, differences) for name, fault in {**counts, OTHER_TRIALS: others}.items()]
    problems = [problem for study in campaign.studies for problem in study.problems]
    result.figures += [
        Figure("lost trials", sum(len(each.lost) for each in differences), 0),
        Figure("trials run twice", sum(len(each.run_twice) for each in differences), 0),
        Figure("differing numbers", sum(sum(each.differing.values()) for each in differences), 0),
        Figure("differing reports", sum(each.report_differs for each in differences), 0),
        Figure("trials that Optuna misses or has twice", sum(each.optuna_errors for each in differences), 0),
        Figure("runs with an unexpected end", len(problems), 0),
    ]
    remarks = {remark for fault in counts.values() for remark in fault.remarks}
    for name, fault in counts.items():
        result.notes += [f"{name}: {remark}" for remark in dict.fromkeys(fault.remarks)]
    result.notes += [problem for problem in dict.fromkeys(problems) if problem not in remarks]
    result.notes.append(
        f"{sum(fault.injected for fault in counts.values())} faults in {len(differences)} studies of "
        f"{len(trials) // max(1, len(differences))} trials; {campaign.settings.launcher} launcher. seconds: from "
        "waiting for the moment of the fault until trials train again."
    )


def _build_row(name: str, counts: FaultCounts, differences: Sequence[StudyDifferences]) -> dict[str, Any]:
    return {
        "fault": name,
        "injected": counts.injected,
        "trials hit": len(counts.affected),
        "lost trials": sum(key in differences[number].lost for number, key in counts.affected),
        "run twice": sum(key in differences[number].run_twice for number, key in counts.affected),
        "differing numbers": sum(differences[number].differing.get(key, 0) for number, key in counts.affected),
        "seconds": round(counts.seconds, 1),
    }


@contextmanager
def _ray_cluster_if_needed(settings: CampaignSettings, result: Result) -> Iterator[CampaignSettings]:
    """Starts a Ray cluster for the Ray launcher, unless the user names one."""
    is_named = os.environ.get("RAY_ADDRESS") or any("address=" in value for value in settings.overrides)
    if settings.launcher != "ray" or is_named:
        yield settings
        return
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise UserError("--launcher ray: Ray is not installed; pip install 'normalizer-study[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves trials where other programs run
    cluster = Cluster()
    try:
        add_ray_node(cluster)
        add_ray_node(cluster)
        cluster.wait_for_nodes()
        result.notes.append("On a cluster of two Ray nodes, started on this machine for the campaign.")
        overrides = (*settings.overrides, f"launch.address={cluster.address}")
        yield replace(settings, cluster=cluster, overrides=overrides)
    finally:
        cluster.shutdown()


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""Faults in a small study, and whether its end is that of an undisturbed run: a certificate for a machine or cluster.

The command that a user types runs `depth_vs_batch` at the smoke scale, again after each fault that ends it. Faults hit
one after the other, at seeded pseudo-random moments when a trial is seen to train; a study that ends meanwhile is held
against the undisturbed one, and the faults go on in a new one. What is wrong with a trial that several have hit counts
for each of them in the table, and once in the figures.
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

from study.bench.faults.damage import Damage, compare
from study.bench.faults.harness import (
    SCALE,
    SETTINGS,
    STUDY,
    CampaignSettings,
    SmallDiskError,
    StuckError,
    StudyHarness,
    StudyOverError,
)
from study.bench.faults.injections import FAULTS, NEEDS_SMALL_DISK, NotPossibleError, add_ray_node
from study.bench.result import Figure, Result
from study.config.errors import UserError, allowed_names
from study.plan.loading import load_study

ROUNDS = 2  # how often each fault is injected; once with --quick
STOP_SECONDS, QUICK_STOP_SECONDS = 30.0, 10.0
TRIES = 5  # times that a fault may come too late
BESIDE = "none (trials beside)"

Trial = tuple[int, str]  # the number of a study, and a trial's key


@dataclass
class FaultCounts:
    """What came of one fault: how often it was injected, whom it has hit, and how long it took."""

    injected: int = 0
    hit: set[Trial] = field(default_factory=set)
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
    """Runs the undisturbed study, injects the faults of the launcher, and compares. UserError for bad input."""
    if launcher not in FAULTS:
        raise UserError(f"--launcher {launcher}: unknown launcher; {allowed_names(launcher, FAULTS)}")
    names = only.split(",") if only else list(FAULTS[launcher])
    for name in names:
        if name not in FAULTS[launcher]:
            raise UserError(f"--only {name}: no such fault; {allowed_names(name, FAULTS[launcher])}")
    Path(out).mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="faults-", dir=Path(out).resolve()))
    setting = CampaignSettings(
        launcher=launcher,
        settings=(*SETTINGS, f"name={root.name}", f"run.device={device}", f"run.threads={threads or 1}", *set),
        stop_seconds=QUICK_STOP_SECONDS if quick else STOP_SECONDS,
        rng=random.Random(0),  # noqa: S311
        storage=storage,
        restart_storage=restart_storage,
    )
    load_study(STUDY, SCALE, setting.settings)  # a mistake in --set is known before anything runs
    result = Result("faults")
    with _with_cluster(setting, result) as setting:
        campaign = Campaign(root, setting)
        campaign.run(names * (1 if quick else ROUNDS))
    report(result, campaign)
    if any(figure.met is False for figure in result.figures):
        result.notes.append(f"kept for a look: {root}")
    else:
        shutil.rmtree(root)
    return result


class Campaign:
    """The faults one after the other, in as many studies as they take."""

    def __init__(self, root: Path, setting: CampaignSettings) -> None:
        self.root, self.setting = root, setting
        self.whole = StudyHarness(root / "undisturbed", replace(setting, storage=None))
        self.stages: list[StudyHarness] = []
        self.damages: list[Damage] = []  # of the studies that have ended
        self.tallies: dict[str, FaultCounts] = {}

    def run(self, names: Sequence[str]) -> None:
        """Injects the faults, and leaves their tallies and the damage of every study."""
        try:
            self._run_undisturbed()
            for name in names:
                _say(f"{name} ...")
                self._inject(name, self.tallies.setdefault(name, FaultCounts()))
            self._end_study()
        finally:
            for stage in (self.whole, *self.stages):
                stage.close()

    def _run_undisturbed(self) -> None:
        _say("the undisturbed study ...")
        code = self.whole.running().wait()
        if code:
            raise UserError(f"the study does not run undisturbed: {self.whole.last_line().removeprefix('error: ')}")

    def _inject(self, name: str, tally: FaultCounts) -> None:
        why = ""
        for _ in range(TRIES):
            try:
                stage = self._stage(small_disk=name in NEEDS_SMALL_DISK)
                self._hit(stage, name, tally)
                return
            except StudyOverError:
                why = "the study was over"
                self._end_study()
            except (ProcessLookupError, subprocess.CalledProcessError) as error:  # what it was to hit has just ended
                why = str(getattr(error, "stderr", "") or error)
            except (NotPossibleError, SmallDiskError) as error:
                tally.remarks.append(f"not possible here: {error}")
                return
            except StuckError as error:
                tally.remarks.append(str(error))
                stage.problems.append(str(error))
                self._end_study()
                return
        tally.remarks.append(f"came too late {TRIES} times: {why}")

    def _hit(self, stage: StudyHarness, name: str, tally: FaultCounts) -> None:
        """Where the fault has left a driver, sees trials train again. Raises as the fault, before it has hit."""
        started, known = time.monotonic(), len(stage.problems)
        hit = FAULTS[self.setting.launcher][name](stage)
        tally.injected += 1
        tally.hit |= {(len(self.damages), record.key) for record in hit}
        try:
            if stage.driver is not None:
                stage.wait_training()
        except StudyOverError:
            self._end_study()
        finally:
            tally.seconds += time.monotonic() - started
            tally.remarks += stage.problems[known:]

    def _stage(self, *, small_disk: bool) -> StudyHarness:
        """The study that runs, or a new one."""
        if len(self.stages) > len(self.damages) and self.stages[-1].small_disk != small_disk:
            self._end_study()
        if len(self.stages) == len(self.damages):
            self.stages.append(StudyHarness(self.root / f"{len(self.stages):02}", self.setting, small_disk=small_disk))
        return self.stages[-1]

    def _end_study(self) -> None:
        """Lets the study end, compares it, and clears it away if nothing is wrong with it."""
        if len(self.stages) == len(self.damages):
            return
        stage = self.stages[-1]
        with suppress(StuckError):  # it shows in what is lost
            stage.finish()
        damage = compare(self.whole.folder, stage.folder, stage.storage)
        self.damages.append(damage)
        stage.close()
        if damage == Damage() and not stage.problems:
            stage.remove()


def report(result: Result, campaign: Campaign) -> None:
    """The table, a row a fault, and the totals."""
    trials = {(number, record.key) for number in range(len(campaign.damages))
              for record in campaign.whole.folder.trials()}  # fmt: skip
    beside = trials.difference(*(tally.hit for tally in campaign.tallies.values()))
    tallies = {**campaign.tallies, BESIDE: FaultCounts(hit=beside)}
    result.rows += [_row(name, tally, campaign.damages) for name, tally in tallies.items()]
    problems = [problem for stage in campaign.stages for problem in stage.problems]
    damages = campaign.damages
    result.figures += [
        Figure("lost trials", sum(len(damage.lost) for damage in damages), 0),
        Figure("trials run twice", sum(len(damage.twice) for damage in damages), 0),
        Figure("differing numbers", sum(sum(damage.differing.values()) for damage in damages), 0),
        Figure("differing reports", sum(damage.report for damage in damages), 0),
        Figure("trials that Optuna misses or has twice", sum(damage.pending for damage in damages), 0),
        Figure("runs that ended otherwise than they should", len(problems), 0),
    ]
    for name, tally in campaign.tallies.items():
        result.notes += [f"{name}: {remark}" for remark in dict.fromkeys(tally.remarks)]
    result.notes += [problem for problem in dict.fromkeys(problems)
                     if not any(problem in tally.remarks for tally in campaign.tallies.values())]  # fmt: skip
    result.notes.append(
        f"{sum(tally.injected for tally in campaign.tallies.values())} faults in {len(damages)} studies of "
        f"{len(trials) // max(1, len(damages))} trials; {campaign.setting.launcher} launcher. Seconds: from waiting "
        "for the moment until trials train again."
    )


def _row(name: str, tally: FaultCounts, damages: Sequence[Damage]) -> dict[str, Any]:
    return {
        "fault": name,
        "injected": tally.injected,
        "trials hit": len(tally.hit),
        "lost trials": sum(key in damages[number].lost for number, key in tally.hit),
        "run twice": sum(key in damages[number].twice for number, key in tally.hit),
        "differing numbers": sum(damages[number].differing.get(key, 0) for number, key in tally.hit),
        "seconds": round(tally.seconds, 1),
    }


@contextmanager
def _with_cluster(setting: CampaignSettings, result: Result) -> Iterator[CampaignSettings]:
    """Starts a Ray cluster where the launcher needs one and none is named."""
    named = os.environ.get("RAY_ADDRESS") or any("address=" in value for value in setting.settings)
    if setting.launcher != "ray" or named:
        yield setting
        return
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise UserError("--launcher ray: Ray is not installed; pip install 'normalizer-study[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster()
    try:
        add_ray_node(cluster)
        add_ray_node(cluster)
        cluster.wait_for_nodes()
        result.notes.append("on a cluster of two Ray nodes that was started on this machine for it")
        yield replace(setting, cluster=cluster, settings=(*setting.settings, f"launch.address={cluster.address}"))
    finally:
        cluster.shutdown()


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)

"""The benchmark of faults: it counts what is wrong after a fault. Nothing is trained here."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from study.bench.faults import campaign, harness
from study.bench.faults.campaign import OTHER_TRIALS, Campaign, FaultCounts, summarize
from study.bench.faults.comparison import StudyDifferences
from study.bench.faults.harness import STUDY, CampaignSettings, NotPossibleError, StudyHarness
from study.bench.faults.injections import FAULTS, Inject
from study.bench.result import Result
from study.cli.main import main
from study.record.layout import StudyFolder, TrialFolder
from tests.bench.faults.conftest import first_trial

RunFaults = Callable[..., Result]


@dataclass(frozen=True, kw_only=True)
class CopySettings(CampaignSettings):
    """Replaces the command by a process that copies a finished study, if there is none yet."""

    source: Path
    exit_code: int = 0

    def command(self, out: Path) -> list[str]:
        code = (
            "import os, shutil, sys\nsource, target, code = sys.argv[1:4]\n"
            "os.path.exists(target) or shutil.copytree(source, target)\nprint('the last line')\nsys.exit(int(code))"
        )
        return [sys.executable, "-S", "-c", code, str(self.source), str(out / STUDY), str(self.exit_code)]


@pytest.fixture
def settings(finished_study: StudyFolder) -> CopySettings:
    return CopySettings(
        launcher="local", overrides=(), stop_seconds=0, rng=random.Random(0), source=finished_study.path
    )


@pytest.fixture
def run_faults(settings: CopySettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFaults:
    """Injects faults, given by name, into a study that ends as soon as it is started."""

    def run(**faults: Inject) -> Result:
        monkeypatch.setitem(FAULTS, "local", faults)
        run, result = Campaign(tmp_path, settings), Result("faults")
        run.run(list(faults))
        summarize(run, result)
        return result

    return run


def values(result: Result) -> dict[str, float]:
    return {figure.name: figure.value for figure in result.figures}


@pytest.mark.parametrize(
    ("differences", "figure", "column"),
    [
        (lambda key: {"lost": {key}}, "lost trials", "lost trials"),
        (lambda key: {"run_twice": {key}}, "trials run twice", "run twice"),
        (lambda key: {"differing": {key: 1}}, "differing numbers", "differing numbers"),
        (lambda key: {"report_differs": True}, "differing reports", None),
        (lambda key: {"optuna_errors": 1}, "trials that Optuna misses or has twice", None),
    ],
    ids=["lost", "run twice", "differing", "report", "optuna"],
)
def test_a_difference_misses_one_bar_and_is_in_the_row_of_its_fault(
    settings: CopySettings,
    finished_study: StudyFolder,
    differences: Callable[[str], dict[str, Any]],
    figure: str,
    column: str | None,
) -> None:
    harmed, *others = finished_study.trials()
    run, result = Campaign(finished_study.path.parent, settings), Result("faults")
    run.reference.folder = finished_study
    run.differences = [StudyDifferences(), StudyDifferences(**differences(harmed.key))]
    run.counts = {
        "harmless": FaultCounts(injected=1, affected={(0, harmed.key), (1, others[0].key)}),
        "harmful": FaultCounts(injected=1, affected={(1, harmed.key)}),
    }
    summarize(run, result)
    assert values(result) == {name: float(name == figure) for name in values(result)}
    assert [found.name for found in result.figures if not found.met] == [figure]
    for row in result.rows:
        for name in ("lost trials", "run twice", "differing numbers"):
            assert row[name] == (row["fault"] == "harmful" and name == column)
    assert {row["fault"]: row["trials hit"] for row in result.rows} == {
        "harmless": 2, "harmful": 1, OTHER_TRIALS: 2 * len([harmed, *others]) - 3,
    }  # fmt: skip


def test_a_lost_result_is_found_and_its_study_is_kept(run_faults: RunFaults, tmp_path: Path) -> None:
    def harm(study: StudyHarness) -> list[TrialFolder]:
        study.run_to_end()
        first_trial(study.folder).result.unlink()
        return [first_trial(study.folder)]

    def spare(study: StudyHarness) -> list[TrialFolder]:
        study.run_to_end()
        return [record for record in study.folder.trials() if record.key != first_trial(study.folder).key]

    rows = {row["fault"]: row for row in run_faults(harm=harm, spare=spare).rows}
    assert rows["harm"]["lost trials"] == 1
    assert rows["spare"]["lost trials"] == rows[OTHER_TRIALS]["lost trials"] == 0
    assert rows["harm"]["injected"] == rows["spare"]["injected"] == 1
    assert (tmp_path / "00").exists()


def test_a_study_without_differences_is_deleted(run_faults: RunFaults, tmp_path: Path) -> None:
    result = run_faults(nothing=lambda study: [])
    assert not any(values(result).values())
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["undisturbed"]


def test_a_command_that_never_ends_well_is_counted(
    run_faults: RunFaults, settings: CopySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_command(study: StudyHarness) -> list[TrialFolder]:
        study.run_to_end()
        study.settings = replace(settings, exit_code=1)
        study.driver = study.start()
        return []

    monkeypatch.setattr(harness, "MAX_PROBLEMS", 1)
    result = run_faults(break_command=break_command)
    assert values(result)["runs with an unexpected end"] > 1
    assert any("exit code 1: the last line" in note for note in result.notes)


def test_a_fault_that_is_not_possible_is_not_counted(run_faults: RunFaults) -> None:
    def refuse(study: StudyHarness) -> list[TrialFolder]:
        raise NotPossibleError("no such thing on this machine")

    result = run_faults(refuse=refuse)
    assert result.rows[0]["injected"] == 0
    assert "refuse: not possible here: no such thing on this machine" in result.notes
    assert not any(values(result).values())


def test_a_fault_that_comes_too_late_is_not_counted(run_faults: RunFaults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "MAX_TRIES", 2)
    result = run_faults(late=lambda study: [trial.record for trial in study.wait_for_moment()])
    assert result.rows[0]["injected"] == 0
    assert "late: came too late 2 times: the study had ended" in result.notes


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--launcher", "slrum"], ["--launcher slrum", "nearest: slurm"]),
        (["--only", "kill-drivers"], ["kill-drivers", "nearest: kill-driver"]),
        (["--only", "kill-job"], ["kill-job", "no such fault"]),
        (["--set", "epoch=2"], ["epoch", "nearest: epochs"]),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert main(["bench", "faults", "--out", str(tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts)

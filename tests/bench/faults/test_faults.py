"""The benchmark of faults: it counts what is wrong, and nothing is."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from study.bench.faults.campaign import BESIDE, FAULTS, Campaign, report
from study.bench.faults.damage import Damage, compare, trained_twice
from study.bench.faults.harness import SETTINGS, STUDY, CampaignSettings, StudyHarness
from study.bench.faults.injections import NotPossibleError
from study.bench.result import Result
from study.bench.synthetic_records import Truth, write_study
from study.cli.main import main
from study.plan.loading import load_study
from study.record.io import append_line, file_digest, read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from tests.conftest import ROOT

# ------------------------------------------------------------------------------------------------- what counts


def start(attempt: int, time: float, step: int = 0) -> dict[str, Any]:
    return {"attempt": attempt, "pid": 1, "time": time, "step": step}


def end(attempt: int, time: float, step: int, how: str = "interrupted") -> dict[str, Any]:
    return {"attempt": attempt, "time": time, "step": step, "how": how}


@pytest.mark.parametrize(
    ("twice", "lines"),
    [
        (False, []),
        (False, [start(1, 0), end(1, 9, 90, "done")]),
        (False, [start(1, 0), start(2, 5, 40), end(2, 9, 90, "done")]),  # killed
        (False, [start(1, 0), end(1, 4, 40), start(2, 5, 40), end(2, 9, 90, "done")]),
        (False, [start(1, 0), end(1, 9, 90, "done"), start(2, 20, 90), end(2, 21, 90, "done")]),  # a record repaired
        (True, [start(1, 0), start(2, 5), end(1, 9, 90, "done"), end(2, 14, 90, "done")]),
        (True, [start(1, 0), start(2, 5), end(2, 8, 90, "done"), end(1, 9, 60)]),
        (True, [start(1, 0), start(1, 1), end(1, 9, 90, "done")]),
        (True, [start(1, 0), end(1, 9, 90, "done"), start(2, 20, 40), end(2, 29, 90, "done")]),
        (True, [start(1, 0), end(1, 9, 90, "done"), start(2, 20), end(2, 29, 30)]),
    ],
)
def test_attempts_that_overlap_or_train_after_a_result_are_seen(twice: bool, lines: list[dict[str, Any]]) -> None:
    assert trained_twice(random.Random(0).sample(lines, len(lines))) == twice  # whatever order they were written in


def finished_study(path: Path) -> StudyFolder:
    folder = StudyFolder(path)
    write_study(folder, load_study("depth_vs_batch", "smoke", SETTINGS), Truth())
    tell(folder, *(record.key for record in folder.trials()))
    folder.report.mkdir()
    (folder.report / "answers.json").write_text("{}")
    return folder


def tell(folder: StudyFolder, *keys: str) -> None:
    mirror = optuna.create_study(
        study_name=folder.path.name, storage=f"sqlite:///{folder.storage}", load_if_exists=True
    )
    mirror.add_trials([optuna.create_trial(value=1.0, user_attrs={"key": key}) for key in keys])


def a_trial(folder: StudyFolder) -> TrialFolder:
    return next(record for record in folder.trials() if record.trial_id.startswith("sn-"))


def vouch(record: TrialFolder, **changes: Any) -> None:
    """Makes the result fit files that were changed, as training that went wrong would."""
    result = read_json(record.result) or {}
    result["files"] = {name: file_digest(record.path / name) for name in result["files"]}
    write_json(record.result, {**result, **changes})


def lose(folder: StudyFolder) -> None:
    a_trial(folder).result.unlink()


def run_twice(folder: StudyFolder) -> None:
    for line in (start(1, 0), start(2, 5), end(1, 9, 90, "done"), end(2, 14, 90, "done")):
        append_line(a_trial(folder).attempts_log, line)


def change_a_metric(folder: StudyFolder) -> None:
    record = a_trial(folder)
    metrics = (read_json(record.result) or {})["metrics"]
    vouch(record, metrics={**metrics, "val_loss": metrics["val_loss"] * (1 + 1e-15)})


def change_a_row(folder: StudyFolder) -> None:
    record = a_trial(folder)
    first, *rest = record.metrics.read_text().splitlines(keepends=True)
    record.metrics.write_text("".join([first.replace('"step": 0', '"step": 1'), *rest]))
    vouch(record)


def change_a_weight(folder: StudyFolder) -> None:
    record = a_trial(folder)
    data = record.switch_weights.read_bytes()
    record.switch_weights.write_bytes(data[:999] + bytes([data[999] ^ 1]) + data[1000:])
    vouch(record)


def change_a_status(folder: StudyFolder) -> None:
    vouch(a_trial(folder), status="diverged")


def tell_again(folder: StudyFolder) -> None:
    tell(folder, a_trial(folder).key)


def change_the_report(folder: StudyFolder) -> None:
    (folder.report / "answers.json").write_text('{"a": 1}')


WRONG: list[tuple[Callable[[StudyFolder], None], str]] = [
    (lose, "lost trials"),
    (run_twice, "trials run twice"),
    (change_a_metric, "differing numbers"),
    (change_a_row, "differing numbers"),
    (change_a_weight, "differing numbers"),
    (change_a_status, "differing numbers"),
    (change_the_report, "differing reports"),
    (tell_again, "trials that Optuna misses or has twice"),
]


def test_a_copy_does_not_differ(tmp_path: Path) -> None:
    whole = finished_study(tmp_path / STUDY)
    copy = shutil.copytree(whole.path, tmp_path / "copy" / STUDY)
    assert compare(whole, StudyFolder(copy), f"sqlite:///{copy}/study.db") == Damage()


# --------------------------------------------------------------------------------- the frame, without training


@dataclass(frozen=True, kw_only=True)
class Canned(CampaignSettings):
    """In place of the command: a process that leaves a copy of a finished study, if there is none yet."""

    source: Path
    exit_code: int = 0

    def command(self, out: Path) -> list[str]:
        code = (
            "import os, shutil, sys\nsource, target, code = sys.argv[1:4]\n"
            "os.path.exists(target) or shutil.copytree(source, target)\nprint('the last line')\nsys.exit(int(code))"
        )
        return [sys.executable, "-c", code, str(self.source), str(out / STUDY), str(self.exit_code)]


def run_canned(
    path: Path, monkeypatch: pytest.MonkeyPatch, **faults_to_inject: Callable[[StudyHarness], Any]
) -> Result:
    """The faults in a study that is over as soon as it is started."""
    monkeypatch.setitem(FAULTS, "local", faults_to_inject)
    source = finished_study(path / "source" / STUDY)
    setting = Canned(launcher="local", settings=(), stop_seconds=0, rng=random.Random(0), source=source.path)
    campaign, result = Campaign(path / "root", setting), Result("faults")
    campaign.run(list(faults_to_inject))
    report(result, campaign)
    return result


def figures(result: Result) -> dict[str, float]:
    return {figure.name: figure.value for figure in result.figures}


@pytest.mark.parametrize(("spoil", "figure"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_harm_is_counted_once_in_its_row_and_misses_its_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[StudyFolder], None], figure: str
) -> None:
    def harm(stage: StudyHarness) -> list[TrialFolder]:
        stage.finish()
        spoil(stage.folder)
        return [a_trial(stage.folder)]

    def spare(stage: StudyHarness) -> list[TrialFolder]:
        stage.finish()
        return [record for record in stage.folder.trials() if record.key != a_trial(stage.folder).key]

    result = run_canned(tmp_path, monkeypatch, harm=harm, spare=spare)
    assert figures(result) == {name: float(name == figure) for name in figures(result)}
    assert [found.met for found in result.figures].count(False) == 1
    rows = {row["fault"]: row for row in result.rows}
    columns = {"lost trials": "lost trials", "trials run twice": "run twice", "differing numbers": "differing numbers"}
    for figure_name, column in columns.items():
        assert rows["harm"][column] == (figure_name == figure)
        assert rows["spare"][column] == rows[BESIDE][column] == 0
    assert rows["harm"]["injected"] == rows["spare"]["injected"] == 1


def test_a_command_that_never_ends_well_is_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_it(stage: StudyHarness) -> list[TrialFolder]:
        stage.finish()
        stage.setting = replace(stage.setting, exit_code=1)
        stage.driver = stage.start()
        return []

    result = run_canned(tmp_path, monkeypatch, break_it=break_it)
    assert figures(result)["runs that ended otherwise than they should"] > 1
    assert any("exit code 1: the last line" in note for note in result.notes)


def test_a_fault_that_is_not_possible_here_is_said_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stage: StudyHarness) -> list[TrialFolder]:
        raise NotPossibleError("no such thing on this machine")

    result = run_canned(tmp_path, monkeypatch, refuse=refuse)
    assert result.rows[0]["injected"] == 0
    assert "refuse: not possible here: no such thing on this machine" in result.notes
    assert not any(figures(result).values())


def test_a_fault_that_finds_no_moment_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_canned(tmp_path, monkeypatch, late=lambda stage: stage.moment())
    assert result.rows[0]["injected"] == 0
    assert any("came too late" in note and "the study was over" in note for note in result.notes)


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


def test_other_benchmarks_have_no_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "norms", "--launcher", "slurm"]) == 2
    assert "--launcher: unknown flag of norms" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ the real thing


def inject(path: Path, *arguments: str) -> dict[str, Any]:
    """Runs the command; what it leaves as JSON, after a look that all faults were injected and nothing is wrong."""
    file = path / "faults.json"
    command = [sys.executable, str(ROOT / "run_study.py"), "bench", "faults", "--quick", "--json", str(file)]
    done = subprocess.run([*command, "--out", str(path), *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(file.read_text())
    assert all(figure["met"] for figure in result["figures"]), done.stdout
    assert all(row["injected"] == 1 for row in result["rows"][:-1]), done.stdout
    assert not list(path.glob("faults-*"))  # cleared away
    return result


@pytest.mark.slow
def test_local_faults_lose_nothing(tmp_path: Path) -> None:
    result = inject(tmp_path, "--only", "truncate-checkpoint,kill-driver")
    assert [row["trials hit"] for row in result["rows"][:2]] == [1, 2]


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_faults_of_slurm_lose_nothing(tmp_path: Path) -> None:
    inject(tmp_path, "--launcher", "slurm", "--only", "term-job", "--set", "launch.partition=main")


@pytest.mark.ray
@pytest.mark.slow
def test_faults_of_ray_lose_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--require-services"):
        pytest.importorskip("ray")
    result = inject(tmp_path, "--launcher", "ray", "--only", "kill-node")
    assert any("two Ray nodes" in note for note in result["notes"])

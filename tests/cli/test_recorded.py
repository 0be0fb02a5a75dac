"""Verbs that train nothing take scale and settings from the study's folder; what they cannot use they refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from study.bench.synthetic_records import Truth
from study.bench.synthetic_records import write_study as write_records
from study.plan.loading import load_study
from study.record.environment import format_command
from study.record.layout import StudyFolder
from study.sweep.study_file import write_study
from tests.cli.conftest import NAME
from tests.conftest import ROOT, Command

SETTINGS = ("--set", "replicates=3", "--set", "tracking.mode=disabled")
RUN = ("--scale", "smoke", *SETTINGS)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study file of the user, which was run at another scale than the default and with settings of its own."""
    monkeypatch.chdir(tmp_path)
    file = Path("mine.yaml")
    shutil.copy(ROOT / "configs" / "studies" / f"{NAME}.yaml", file)
    study, folder = load_study(str(file), "smoke", SETTINGS[1::2]), StudyFolder(Path("runs/mine"))
    write_records(folder, study, Truth(), only=lambda trial: trial.replicate < 2)
    folder.config.unlink()
    write_study(study, folder, {"command": format_command(["--study", str(file), *RUN])})
    return file


def edit(file: Path, **changes: object) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes, sort_keys=False))


def test_status_plan_and_diff_need_no_flags_of_the_run(mine: Path, command: Command) -> None:
    assert "8 of 12 trials have a result" in command("status", "--study", str(mine)).out
    first, second, *_ = (trial.key for trial in StudyFolder(Path("runs/mine")).trials())
    assert "replicate" in command("diff", first, second, "--study", str(mine)).out
    plan = command("plan", "--study", str(mine))
    assert "4 cells x 3 replicates, smoke scale" in plan.out
    # The command of a run can be repeated with another verb.
    assert command("status", "--study", str(mine), *RUN).out == command("status", "--study", str(mine)).out


@pytest.mark.parametrize("verb", ["status", "plan", "report"])
def test_settings_that_may_be_secret_are_not_needed_after_the_run(verb: str, mine: Path, command: Command) -> None:
    """The recorded command has *** in their place, which is no value."""
    config = Path("runs/mine/study.yaml")
    content = yaml.safe_load(config.read_text())
    content["provenance"]["command"] += " --set 'launch.setup=***'"
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    done = command(verb, "--study", str(mine), *["--no-images"] * (verb == "report"))
    assert (done.code, done.err) == (0, "")
    assert "has changed since" not in done.out


def test_status_counts_what_an_edited_file_plans(mine: Path, command: Command) -> None:
    edit(mine, replicates=4)  # the last run's --set comes after the file
    assert "8 of 12 trials" in command("status", "--study", str(mine)).out
    assert "8 of 16 trials" in command("status", "--study", str(mine), "--set", "replicates=4").out
    edit(mine, analysis={"confidence": 0.9})
    status = command("status", "--study", str(mine))
    assert "mine.yaml has changed since the last run: analysis.confidence from 0.95 to 0.9" in status.out


def test_status_says_that_trials_on_disk_are_no_longer_planned(mine: Path, command: Command) -> None:
    assert "in no answer" not in command("status", "--study", str(mine)).out
    status = command("status", "--study", str(mine), "--set", "replicates=1")
    assert "4 of 4 trials have a result" in status.out
    assert "4 more trials on disk are not in the plan, and in no answer" in status.out


@pytest.mark.bad_input
@pytest.mark.parametrize("verb", ["status", "report", "sync", "dashboard", "diff", "show"])
def test_verbs_that_read_results_say_where_there_are_none(verb: str, mine: Path, command: Command) -> None:
    done = command(verb, "--study", str(mine), "--out", "rusn")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    expected = "no such folder" if verb == "status" else "no study has been run here; there is one in runs: --out runs"
    assert expected in done.err
    assert not Path("rusn").exists()


@pytest.mark.bad_input
def test_a_folder_above_that_of_the_results_gets_the_flag_that_names_it(mine: Path, command: Command) -> None:
    Path("runs").rename("other")
    Path("runs").mkdir()
    Path("other").rename("runs/other")
    done = command("report", "--study", str(mine))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.endswith("there is one in runs/other: --out runs/other\n")
    shutil.rmtree("runs")
    assert "run it first: --study mine.yaml" in command("report", "--study", str(mine)).err


@pytest.mark.bad_input
@pytest.mark.parametrize("verb", ["run", "plan", "status", "report"])
def test_a_folder_of_results_in_place_of_a_study_gets_the_flags_that_name_it(
    verb: str, mine: Path, command: Command
) -> None:
    done = command(verb, "--study", "runs/mine")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--study mine --out runs" in done.err


@pytest.mark.bad_input
@pytest.mark.parametrize("verb", ["run", "plan", "status", "report", "show"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--study", "runs/mine/study.yaml"), "runs/mine/study.yaml: is the record of a run"),
        (("--study", "mine.yaml", "--out", "runs/mine"), "--out runs/mine: is the folder of a study; the folder above"),
    ],
)
def test_a_part_of_the_results_in_place_of_their_folder_is_one_line(
    verb: str, flags: tuple[str, ...], message: str, mine: Path, command: Command
) -> None:
    before = sorted(Path().rglob("*"))
    done = command(verb, *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.bad_input
def test_a_study_is_not_compared_with_itself(mine: Path, command: Command) -> None:
    done = command("report", "--study", "mine.yaml", "--compare", "runs/mine/")
    assert (done.code, done.err) == (2, "error: --compare runs/mine: the same study twice\n")


def test_plan_says_whether_the_plan_on_record_still_holds(mine: Path, command: Command) -> None:
    assert re.search(r"on record in \S+: \w{8} of [\d-]{10}; unchanged\n", command("plan", "--study", str(mine)).out)
    edit(mine, analysis={"confidence": 0.9})
    changed = command("plan", "--study", str(mine)).out
    assert "; the next run records these changes with their date: confidence from 0.95 to 0.9" in changed


def test_status_of_an_edited_file_that_the_folder_does_not_fit_shows_the_last_run(mine: Path, command: Command) -> None:
    edit(mine, base={"epochs": 3})
    status = command("status", "--study", str(mine))
    assert status.code == 0
    assert "base.epochs from 2 to 3" in status.out
    assert "8 of 12 trials" in status.out
    assert command("plan", "--study", str(mine)).code == 2  # as `run`


@pytest.mark.parametrize("verb", ["run", "plan", "status"])
def test_no_message_advises_to_delete_results(verb: str, mine: Path, command: Command) -> None:
    done = command(verb, "--study", str(mine), "--scale", "laptop")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "remove" not in done.err
    assert "planned at the scale smoke, now laptop (" in done.err
    if verb != "status":
        assert "use the settings of its last run: " in done.err
        assert "--study mine.yaml --scale smoke --set replicates=3" in done.err


def test_a_folder_without_its_study_file_is_read_all_the_same(mine: Path, command: Command) -> None:
    mine.unlink()
    assert "8 of 12 trials have a result" in command("status", "--study", "mine").out
    assert command("report", "--study", "mine", "--no-images").code == 0
    unknown = command("status", "--study", "mien")
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)


def test_settings_of_analysis_apply_to_one_report(mine: Path, command: Command) -> None:
    before = Path("runs/mine/study.yaml").read_bytes()
    done = command("report", "--study", str(mine), "--no-images", "--set", "confidence=0.9")
    assert done.code == 0
    assert "Not in the plan on record: confidence from 0.95 to 0.9" in done.out
    assert json.loads(Path("runs/mine/report/answers.json").read_text())["plan"]["confidence"] == 0.9
    assert "has changed" not in done.out
    assert Path("runs/mine/study.yaml").read_bytes() == before
    edit(mine, analysis={"confidence": 0.8})
    again = command("report", "--study", str(mine), "--no-images", *RUN)
    assert "Not in the plan" not in again.out
    assert "mine.yaml has changed since the last run: analysis.confidence from 0.95 to 0.8" in again.out
    page = Path("runs/mine/report/report.html").read_text()
    assert all(f"<code>{trial.key[-11:]}</code>" in page for trial in StudyFolder(Path("runs/mine")).trials())
    serve = command("report", "--study", str(mine), "--serve", "--set", "confidence=0.9")
    assert (serve.code, serve.err.count("\n")) == (2, 1)


@pytest.mark.bad_input
@pytest.mark.parametrize("verb", ["report", "dashboard", "diff", "show"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--set", "replicates=5"), "replicates from 3 to 5"),
        (("--set", "epochs=9"), "base.epochs from 2 to 9"),
        (("--set", "epocs=9"), "nearest: epochs"),
        (("--scale", "laptop"), "is of scale smoke"),
    ],
)
def test_settings_that_change_nothing_are_refused(
    verb: str, flags: tuple[str, ...], message: str, mine: Path, command: Command
) -> None:
    done = command(verb, "--study", str(mine), *flags)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert message in done.err


def test_a_trial_is_named_as_the_report_shows_it(mine: Path, command: Command) -> None:
    first, second, third, *_ = (trial.key for trial in StudyFolder(Path("runs/mine")).trials())
    short = [key[-11:] for key in (first, third)]
    assert command("diff", *short, "--study", str(mine)).out == command("diff", first, third, "--study", str(mine)).out
    several = command("show", "r0", "--study", str(mine))
    assert (several.code, several.err.count("\n")) == (2, 1)
    assert "4 trials end like this" in several.err
    assert f"nearest: {second}" in command("diff", first, f"x{second}", "--study", str(mine)).err


def test_show_prints_config_curves_choices_and_the_log(mine: Path, command: Command) -> None:
    trial = next(trial for trial in StudyFolder(Path("runs/mine")).trials() if trial.trial_id.startswith("sn"))
    trial.log.write_text("".join(f"line {number}\n" for number in range(30)) + "\x1b]0;title\x07\n")
    shown = command("show", trial.key[-11:], "--study", str(mine))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"{trial.key}: done\n")
    for part in ("\n  batch_size: ", "\nlearning curves\n", "\nmean weights of the layers\n", "mean in", "line 29"):
        assert part in shown.out
    choices = shown.out.partition("mean weights of the layers")[2]
    assert re.findall(r"^(\d+)(?: +0\.\d+){6}$", choices, re.MULTILINE) == ["0", "1", "2"]  # epochs
    assert "line 2\n" not in shown.out  # the end of the log
    assert "\x1b" not in shown.out
    assert r"\x1b]0;title\x07" in shown.out


def test_show_of_a_damaged_trial_prints_what_there_is(mine: Path, command: Command) -> None:
    trial = next(StudyFolder(Path("runs/mine")).trials())
    trial.trial.write_text("config: [")
    trial.log.write_text("the reason\n")
    shown = command("show", trial.key, "--study", str(mine))
    assert (shown.code, shown.err) == (0, "")
    assert "not valid YAML" in shown.out
    assert "the reason" in shown.out

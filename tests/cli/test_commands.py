"""A study through the command line: from plan to report, the files it writes, and every verb on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from study.plan.analysis_plan import hash_plan, resolve_analysis_plan
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.contents import read_metrics
from study.record.layout import StudyFolder
from study.sweep.study_file import write_study
from study.training.cost_estimate import estimate_bytes, measure_cell
from tests.cli.conftest import NAME, STUDY, find_trial
from tests.conftest import Command

Trained = tuple[StudyFolder, str]
COLUMNS = ["trial_id", "replicate", "epoch", "step", "layer", "layer_index", "depth_fraction", "stage", "place",
           "role", "receptive_field", "statistic", "normalizer", "weight"]  # fmt: skip


def out(folder: StudyFolder) -> tuple[str, str]:
    return "--out", str(folder.path.parent)


# -------------------------------------------------------------------------------------------------- what it writes


def test_every_planned_trial_has_a_complete_record(trained: Trained) -> None:
    folder, _ = trained
    planned = plan_trials(load_study(NAME, "smoke"))
    assert {trial.key for trial in folder.trials()} == {trial.key for trial in planned}
    for trial in folder.trials():
        assert trial.status() == ("done", "")
        assert trial.damaged_files() == []
        for file in (trial.trial, trial.metrics, trial.switch_weights, trial.last_checkpoint, trial.environment):
            assert file.is_file()


def test_switch_weights_have_the_documented_columns_and_sum_to_one(trained: Trained) -> None:
    folder, _ = trained
    trial = find_trial(folder, "sn", 2)
    table = pd.read_parquet(trial.switch_weights)
    assert list(table.columns) == COLUMNS
    assert len(table) == 3 * 9 * 2 * 3  # epochs 0 to 2, layers, statistics, normalizers
    places = ["stem", "norm1", "norm2", *["norm1", "norm2", "shortcut"] * 2]
    assert table.drop_duplicates("layer").sort_values("layer_index")["place"].tolist() == places
    sums = table.groupby(["epoch", "layer", "statistic"]).weight.sum()
    assert sums.sub(1).abs().max() < 1e-6
    start = table[table.epoch == 0].weight
    assert start.sub(1 / 3).abs().max() < 1e-6
    assert table[table.epoch == 2].weight.sub(1 / 3).abs().max() > 1e-4  # they were trained
    assert set(table.trial_id) == {trial.trial_id}


def test_a_single_norm_has_an_empty_table_with_the_same_columns(trained: Trained) -> None:
    table = pq.read_table(find_trial(trained[0], "bn", 16).switch_weights)
    assert (table.num_rows, table.column_names) == (0, COLUMNS)


def test_metrics_hold_every_epoch(trained: Trained) -> None:
    rows = read_metrics(find_trial(trained[0], "sn", 16).metrics)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "switch/mean/bn"):
        assert [row["epoch"] for row in rows if row["name"] == name and row["epoch"]] == [1, 2]


def test_a_result_holds_metrics_batches_and_sizes(trained: Trained) -> None:
    result = find_trial(trained[0], "sn", 2).read_result()
    assert result is not None
    assert (result["statistics_batch"], result["gradient_batch"], result["device_batch"]) == (2, 16, 16)
    assert (result["epochs"], result["steps"], result["norm_layers"]) == (2, 32, 9)
    metrics = result["metrics"]
    assert metrics["generalization_gap"] == pytest.approx(metrics["fit_accuracy"] - metrics["val_accuracy"])
    assert 0 <= metrics["test_accuracy"] <= 1


def test_a_checkpoint_holds_only_plain_values_and_tensors(trained: Trained) -> None:
    checkpoint = torch.load(find_trial(trained[0], "sn", 2).last_checkpoint, weights_only=True)
    assert checkpoint["epoch"] == 1  # counted from 0, so the last one


def test_records_hold_command_versions_and_device(trained: Trained) -> None:
    folder, _ = trained
    written = yaml.safe_load(folder.config.read_text())
    assert written["study"]["base"]["epochs"] == 2
    assert "--study depth_vs_batch" in written["provenance"]["command"]
    assert written["provenance"]["versions"]["torch"]
    assert written["provenance"]["processor"]
    environment = json.loads(find_trial(folder, "sn", 2).environment.read_text())
    assert (environment["device"], environment["threads"], environment["norm_kernels"]) == ("cpu", 1, "fused")
    assert environment["wandb"] == {
        "mode": "offline",
        "url": None,
        "run": f"{find_trial(folder, 'sn', 2).key}-{written['provenance']['id']}",
    }


def test_every_trial_has_one_wandb_run_with_table_and_heat_map(trained: Trained) -> None:
    for trial in trained[0].trials():
        (run,) = trial.wandb.glob("offline-run-*")
        assert trial.key in run.name
        if trial.trial_id.startswith("sn"):
            assert list(run.glob("files/media/table/switch_weights/*.json"))
            assert list(run.glob("files/media/plotly/switch_weights/*.json"))


def test_the_report_answers_each_question_without_network(trained: Trained) -> None:
    folder, printed = trained
    page = (folder.report / "report.html").read_text()
    answers = json.loads((folder.report / "answers.json").read_text())
    assert set(answers["questions"]) == {"useful", "impacts"}
    assert answers["questions"]["impacts"]["verdict"] in ("supported", "not supported", "not enough evidence")
    assert 'src="http' not in page
    assert str(folder.report / "report.html") in printed
    assert re.search(r"\n[1-4]/4 sn-\S+: validation accuracy 0\.\d{3}, \d+ s", printed)


def test_the_disk_forecast_is_near_the_actual_size(trained: Trained) -> None:
    for trial in plan_trials(load_study(NAME, "smoke")):
        record = trained[0].trial(trial.trial_id, trial.replicate)
        taken = sum(file.stat().st_size for file in record.path.rglob("*") if not file.is_symlink() and file.is_file())
        every = 0.0 if record.previous_checkpoint.exists() else float("inf")
        forecast = estimate_bytes(trial, measure_cell(trial), checkpoint_seconds=every, wandb=True)
        assert 1 / 1.5 < forecast / taken < 1.5


# -------------------------------------------------------------------------------- verbs on a finished study


def test_the_same_command_again_trains_nothing_and_gives_the_same_answers(
    finished: StudyFolder, command: Command
) -> None:
    results = {trial.key: trial.result.stat().st_mtime_ns for trial in finished.trials()}
    answers = (finished.report / "answers.json").read_bytes()
    summaries = list(finished.wandb.glob("*summary*"))
    assert command(*STUDY, *out(finished)).code == 0
    assert {trial.key: trial.result.stat().st_mtime_ns for trial in finished.trials()} == results
    assert (finished.report / "answers.json").read_bytes() == answers
    assert list(finished.wandb.glob("*summary*")) == summaries


def test_a_damaged_record_is_reported_kept_aside_and_made_again_with_the_same_numbers(
    finished: StudyFolder, command: Command
) -> None:
    trial, other = find_trial(finished, "sn", 16), find_trial(finished, "sn", 2)
    table, rows = trial.switch_weights.read_bytes(), trial.metrics.read_bytes()
    intact = other.metrics.read_bytes()
    trial.switch_weights.write_bytes(table[:-10])
    other.metrics.write_bytes(intact[:100] + bytes([intact[100] ^ 1]) + intact[101:])
    done = command(*STUDY, "--set", "tracking.mode=disabled", *out(finished))
    assert done.code == 0
    assert "damaged: switch_weights.parquet" in done.out
    assert "damaged: metrics.jsonl" in done.out
    assert list(trial.path.glob("switch_weights.parquet.damaged-*"))
    assert (trial.switch_weights.read_bytes(), trial.metrics.read_bytes()) == (table, rows)
    assert other.metrics.read_bytes() == intact


def test_a_folder_of_another_study_is_refused_and_not_changed(trained: Trained, command: Command) -> None:
    folder, _ = trained
    before = folder.config.read_bytes()
    for change, planned in (("epochs=3", "epochs=2"), ("solver=adam", "solver=sgd")):
        done = command(*STUDY, "--set", change, *out(folder))
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert planned in done.err
    assert folder.config.read_bytes() == before


def test_a_second_driver_is_refused(trained: Trained, command: Command) -> None:
    folder, _ = trained
    with folder.lock():
        done = command(*STUDY, *out(folder))
        status = command("status", *STUDY, *out(folder))
    assert done.code == 2
    assert "another driver" in done.err
    assert "a driver is running: process" in status.out


def test_status_counts_every_cell(trained: Trained, command: Command) -> None:
    done = command("status", *STUDY, *out(trained[0]))
    assert done.code == 0
    assert "4 of 4 trials have a result" in done.out
    assert re.search(r"^sn +8 +16 +\S+ +1$", done.out, re.MULTILINE)


def test_diff_names_only_what_differs(trained: Trained, command: Command) -> None:
    folder, _ = trained
    keys = find_trial(folder, "sn", 2).key, find_trial(folder, "bn", 2).key
    printed = command("diff", *STUDY, *keys, *out(folder)).out
    assert "config.norm" in printed
    assert "result.metrics.val_accuracy" in printed
    assert "config.epochs" not in printed
    other = find_trial(folder, "sn", 16).key
    compared = command("diff", *STUDY, keys[0], other, *out(folder)).out
    assert re.search(r"^config\.batch_size +2 +16 +\+14$", compared, re.MULTILINE)
    assert re.search(r"^config\.norm +sn +bn *$", printed, re.MULTILINE)
    assert "no difference" in command("diff", *STUDY, keys[0], keys[0], *out(folder)).out
    unknown = command("diff", *STUDY, keys[0], keys[1].replace("bn-", "bm-"), *out(folder))
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    assert f"nearest: {keys[1]}" in unknown.err


def names_in(run: Path) -> tuple[set[str], set[str]]:
    """Names that a W&B run logs per epoch, and names in its summary; those of files in both."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = [json.loads(line) for line in found.splitlines()]
    logged = {name for record in records for name in record.get("history", {}).get("item", {})}
    last = {name for record in records for name in record.get("summary", {}).get("update", {})}
    files = {name.removesuffix("._type") for name in last if name.endswith("._type")}
    return logged | files, last | files


def test_a_study_has_one_summary_run_and_a_dashboard_of_what_is_logged(finished: StudyFolder, command: Command) -> None:
    (before,) = finished.wandb.glob(f"offline-run-*-summary-{NAME}-*")
    done = command("dashboard", *STUDY, *out(finished))  # nobody is logged in
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "WANDB_MODE=offline is set; unset it. Then run the verbs `sync` and `dashboard`" in done.err
    (after,) = finished.wandb.glob("*summary*")
    assert after != before
    (trial,) = find_trial(finished, "sn", 16).wandb.glob("offline-run-*")
    found = [names_in(run) for run in (trial, after)]
    logged, last = (set[str]().union(*names) for names in zip(*found, strict=True))
    spec = json.loads((finished.report / "dashboard" / "workspace.json").read_text())["spec"]
    sections = spec["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    curves = {name for panel in panels for name in panel.get("metrics", [])}
    media = {name for panel in panels for name in panel.get("mediaKeys", [])}
    ends = {column["accessor"] for panel in panels for column in panel.get("columns", [])}
    assert len(curves) > 20  # by stage, too
    assert curves | media <= logged
    assert {name.removeprefix("summary:") for name in ends if name.startswith("summary:")} <= last
    assert {"useful/verdict", "impacts/verdict", "useful/effects", "coverage/cells"} <= last


# ------------------------------------------------------------------------------------- verbs on a study that never ran


def test_the_plan_names_cells_batches_and_sizes(command: Command, tmp_path: Path) -> None:
    done = command("plan", *STUDY, "--out", str(tmp_path))
    assert done.code == 0
    assert "4 trials" in done.out
    assert "19,864" in done.out  # parameters of the SN network
    assert "forecast" in done.out
    assert "- 1 replicate: no interval" in done.out
    assert re.search(r"disk: about \d+ kB; .* free", done.out)


def test_a_plan_of_thousands_of_cells_measures_some_of_them(command: Command, tmp_path: Path) -> None:
    many = [f"factors.learning_rate={[0.001 * number for number in range(1, 101)]}", "factors.epochs=[1, 2, 3, 4, 5]"]
    one = ["norm=bn", "depth=8", "batch_size=16", "initialization=he_normal", "replicates=2"]
    settings = [argument for setting in (*many, *one) for argument in ("--set", setting)]
    done = command("plan", *STUDY, *settings, "--out", str(tmp_path))
    assert done.code == 0, done.err
    assert "1000 trials: 500 cells x 2 replicates" in done.out
    assert "300 of these cells, chosen at random, are shown and measured" in done.out
    assert len(re.findall("^bn ", done.out, re.MULTILINE)) == 300
    assert "forecast from a few steps of each measured cell" in done.out


def test_the_plan_names_the_hash_of_the_analysis_and_what_differs_from_the_record(
    command: Command, tmp_path: Path
) -> None:
    study = load_study(NAME, "smoke")
    digest = hash_plan(resolve_analysis_plan(study))[:8]
    flags = ["--study", NAME, "--scale", "smoke", "--out", str(tmp_path)]
    done = command("plan", *flags)
    assert f"plan of the analysis: {digest}, which the first run records" in done.out
    write_study(study, StudyFolder(tmp_path / NAME), {})
    done = command("plan", *flags, "--set", "confidence=0.9")
    assert f"{digest} of " in done.out
    assert "records these changes with their date: confidence from 0.95 to 0.9" in done.out
    report = command("report", *flags, "--set", "confidence=0.9")
    assert "Not in the plan on record: confidence from 0.95 to 0.9" in report.out


def test_the_plan_of_a_search_is_its_space(command: Command, tmp_path: Path) -> None:
    done = command("plan", "--study", "learning_rates", "--scale", "smoke", "--out", str(tmp_path))
    assert "plan of the analysis: " in done.out
    assert done.code == 0
    assert "suggested by" in done.out
    assert "learning_rate:" in done.out


def test_status_of_a_study_that_never_ran(command: Command, tmp_path: Path) -> None:
    done = command("status", *STUDY, "--out", str(tmp_path))
    assert done.code == 0
    assert "0 of 4 trials" in done.out


@pytest.mark.slow
def test_a_detached_run_continues_and_the_same_command_collects(command: Command, tmp_path: Path) -> None:
    settings = ("norm=sn", "batch_size=16", "epochs=1", "tracking.mode=disabled")
    study = (*STUDY, *(part for setting in settings for part in ("--set", setting)), "--out", str(tmp_path))
    started = command(*study, "--detach")
    assert started.code == 0, started.err
    assert "`status` shows its progress" in started.out
    folder = StudyFolder(tmp_path / NAME)
    assert folder.is_locked()  # before the command returns
    assert "a detached driver is running" in command("status", *study).out
    twice = command(*study, "--detach")
    assert (twice.code, len(twice.err.splitlines())) == (2, 1)
    collected = command(*study)
    assert collected.code == 0, collected.err
    assert "waiting for it" in collected.out
    assert [trial.attempts()[0] for trial in folder.trials()] == [1]
    deadline = time.monotonic() + 60
    while "report:" not in folder.driver_log.read_text():  # the detached driver writes its own report
        assert time.monotonic() < deadline
        time.sleep(0.2)

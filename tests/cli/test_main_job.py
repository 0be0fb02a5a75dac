"""The main job through the command line: a study from plan to report, what it leaves, and every verb on it."""

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

from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.io import read_metrics
from study.record.layout import StudyFolder, TrialFolder
from study.training.cost_estimate import estimate_bytes, measure_cell
from tests.conftest import ROOT, Run

STUDY = ("--study", "depth_vs_batch", "--scale", "smoke")
COLUMNS = ["trial_id", "replicate", "epoch", "step", "layer", "layer_index", "depth_fraction", "stage", "role",
           "receptive_field", "statistic", "normalizer", "weight"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    """A finished smoke study and what the terminal said."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "run_study.py"), *STUDY, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return StudyFolder(out / "depth_vs_batch"), done.stdout


def cli(folder: StudyFolder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run_study.py"), *arguments, "--out", str(folder.path.parent)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def trial_of(folder: StudyFolder, norm: str, batch_size: int) -> TrialFolder:
    cell = f"{norm}-depth8-batch_size{batch_size}-"
    (found,) = [trial for trial in folder.trials() if trial.trial_id.startswith(cell)]
    return found


def test_every_planned_trial_has_a_whole_record(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    planned = plan_trials(load_study("depth_vs_batch", "smoke"))
    assert {trial.key for trial in folder.trials()} == {trial.key for trial in planned}
    for trial in folder.trials():
        assert trial.status() == ("done", "")
        assert trial.damaged_files() == []
        for file in (trial.trial, trial.metrics, trial.switch_weights, trial.last_checkpoint, trial.environment):
            assert file.is_file()


def test_switch_weights_have_the_contracts_columns_and_sum_to_one(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    trial = trial_of(folder, "sn", 2)
    table = pd.read_parquet(trial.switch_weights)
    assert list(table.columns) == COLUMNS
    assert len(table) == 3 * 9 * 2 * 3  # epochs 0 to 2, layers, statistics, normalizers
    sums = table.groupby(["epoch", "layer", "statistic"]).weight.sum()
    assert sums.sub(1).abs().max() < 1e-6
    start = table[table.epoch == 0].weight
    assert start.sub(1 / 3).abs().max() < 1e-6
    assert table[table.epoch == 2].weight.sub(1 / 3).abs().max() > 1e-4  # they have moved
    assert set(table.trial_id) == {trial.trial_id}


def test_a_single_norm_leaves_an_empty_table_of_the_same_columns(finished: tuple[StudyFolder, str]) -> None:
    table = pq.read_table(trial_of(finished[0], "bn", 16).switch_weights)
    assert (table.num_rows, table.column_names) == (0, COLUMNS)


def test_metrics_hold_every_epoch(finished: tuple[StudyFolder, str]) -> None:
    rows = read_metrics(trial_of(finished[0], "sn", 16).metrics)
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "switch/mean/bn"):
        assert [row["epoch"] for row in rows if row["name"] == name and row["epoch"]] == [1, 2]


def test_a_result_states_metrics_batches_and_sizes(finished: tuple[StudyFolder, str]) -> None:
    result = trial_of(finished[0], "sn", 2).read_result()
    assert result is not None
    assert (result["statistics_batch"], result["gradient_batch"], result["device_batch"]) == (2, 16, 16)
    assert (result["epochs"], result["steps"], result["norm_layers"]) == (2, 32, 9)
    metrics = result["metrics"]
    assert metrics["generalization_gap"] == pytest.approx(metrics["fit_accuracy"] - metrics["val_accuracy"])
    assert 0 <= metrics["test_accuracy"] <= 1


def test_a_checkpoint_holds_plain_values_and_tensors_only(finished: tuple[StudyFolder, str]) -> None:
    checkpoint = torch.load(trial_of(finished[0], "sn", 2).last_checkpoint, weights_only=True)
    assert checkpoint["epoch"] == 1  # counted from 0: the last


def test_a_run_says_how_it_was_made(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    written = yaml.safe_load(folder.config.read_text())
    assert written["study"]["base"]["epochs"] == 2
    assert "--study depth_vs_batch" in written["provenance"]["command"]
    assert written["provenance"]["versions"]["torch"]
    environment = json.loads(trial_of(folder, "sn", 2).environment.read_text())
    assert (environment["device"], environment["threads"], environment["norm_kernels"]) == ("cpu", 1, "fused")
    assert environment["wandb"] == {"mode": "offline", "url": None, "run": trial_of(folder, "sn", 2).key}


def test_every_trial_has_one_wandb_run_with_table_and_heat_map(finished: tuple[StudyFolder, str]) -> None:
    for trial in finished[0].trials():
        (run,) = trial.wandb.glob("offline-run-*")
        assert run.name.endswith(trial.key)
        if trial.trial_id.startswith("sn"):
            assert list(run.glob("files/media/table/switch_weights/*.json"))
            assert list(run.glob("files/media/plotly/switch_weights/*.json"))


def names_in(run: Path) -> tuple[set[str], set[str]]:
    """What a W&B run logs, epoch by epoch, and what it has last values of; files by their name."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    records = [json.loads(line) for line in found.splitlines()]
    logged = {name for record in records for name in record.get("history", {}).get("item", {})}
    last = {name for record in records for name in record.get("summary", {}).get("update", {})}
    files = {name.removesuffix("._type") for name in last if name.endswith("._type")}
    return logged | files, last | files


def test_a_study_has_one_summary_run_and_a_dashboard_of_what_is_logged(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    (before,) = folder.wandb.glob("offline-run-*-summary-depth_vs_batch")
    done = cli(folder, "dashboard", *STUDY)  # nobody is logged in
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"`wandb sync {folder.wandb}/offline-run-*`" in done.stderr
    (after,) = folder.wandb.glob("*summary*")
    assert after != before
    (trial,) = trial_of(folder, "sn", 16).wandb.glob("offline-run-*")
    found = [names_in(run) for run in (trial, after)]
    logged, last = (set[str]().union(*names) for names in zip(*found, strict=True))
    spec = json.loads((folder.report / "dashboard" / "workspace.json").read_text())["spec"]
    sections = spec["section"]["panelBankConfig"]["sections"]
    panels = [panel["config"] for section in sections for panel in section["panels"]]
    curves = {name for panel in panels for name in panel.get("metrics", [])}
    media = {name for panel in panels for name in panel.get("mediaKeys", [])}
    ends = {column["accessor"] for panel in panels for column in panel.get("columns", [])}
    assert len(curves) > 20  # by stage, too
    assert curves | media <= logged
    assert {name.removeprefix("summary:") for name in ends if name.startswith("summary:")} <= last
    assert {"useful/verdict", "impacts/verdict", "useful/effects", "coverage/cells"} <= last


def test_a_report_answers_and_needs_no_network(finished: tuple[StudyFolder, str]) -> None:
    folder, said = finished
    page = (folder.report / "report.html").read_text()
    answers = json.loads((folder.report / "answers.json").read_text())
    assert set(answers["questions"]) == {"useful", "impacts"}
    assert answers["questions"]["impacts"]["verdict"] in ("supported", "not supported", "not enough evidence")
    assert 'src="http' not in page
    assert str(folder.report / "report.html") in said


def test_the_same_command_again_trains_nothing_and_says_the_same(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    results = {trial.key: trial.result.stat().st_mtime_ns for trial in folder.trials()}
    answers = (folder.report / "answers.json").read_bytes()
    summaries = list(folder.wandb.glob("*summary*"))
    assert cli(folder, *STUDY).returncode == 0
    assert {trial.key: trial.result.stat().st_mtime_ns for trial in folder.trials()} == results
    assert (folder.report / "answers.json").read_bytes() == answers
    assert list(folder.wandb.glob("*summary*")) == summaries


def test_status_counts_every_cell(finished: tuple[StudyFolder, str]) -> None:
    done = cli(finished[0], "status", *STUDY)
    assert done.returncode == 0
    assert "4 of 4 trials have a result" in done.stdout


def test_diff_names_what_differs_and_nothing_else(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    keys = trial_of(folder, "sn", 2).key, trial_of(folder, "bn", 2).key
    said = cli(folder, "diff", *STUDY, *keys).stdout
    assert "config.norm" in said
    assert "result.metrics.val_accuracy" in said
    assert "config.epochs" not in said
    assert "no difference" in cli(folder, "diff", *STUDY, keys[0], keys[0]).stdout


def test_the_forecast_of_the_disk_is_near_what_the_trials_take(finished: tuple[StudyFolder, str]) -> None:
    for trial in plan_trials(load_study("depth_vs_batch", "smoke")):
        record = finished[0].trial(trial.trial_id, trial.replicate)
        taken = sum(file.stat().st_size for file in record.path.rglob("*") if not file.is_symlink() and file.is_file())
        every = 0.0 if record.previous_checkpoint.exists() else float("inf")
        forecast = estimate_bytes(trial, measure_cell(trial), checkpoint_seconds=every, wandb=True)
        assert 1 / 1.5 < forecast / taken < 1.5


def test_a_folder_planned_otherwise_is_refused_and_untouched(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    before = folder.config.read_bytes()
    for change, part in (("epochs=3", "epochs=2"), ("solver=adam", "solver=sgd")):
        done = cli(folder, *STUDY, "--set", change)
        assert done.returncode == 2
        assert part in done.stderr
        assert done.stderr.count("\n") == 1
    assert folder.config.read_bytes() == before


def test_a_damaged_record_is_named_set_aside_and_made_anew_with_the_same_numbers(
    finished: tuple[StudyFolder, str],
) -> None:
    folder, _ = finished
    trial = trial_of(folder, "sn", 16)
    table, rows = trial.switch_weights.read_bytes(), trial.metrics.read_bytes()
    other = trial_of(folder, "sn", 2)
    flipped = bytearray(other.metrics.read_bytes())
    flipped[100] ^= 1
    intact = other.metrics.read_bytes()
    trial.switch_weights.write_bytes(table[:-10])
    other.metrics.write_bytes(flipped)
    done = cli(folder, *STUDY)
    assert done.returncode == 0
    assert "damaged: switch_weights.parquet" in done.stdout
    assert "damaged: metrics.jsonl" in done.stdout
    assert list(trial.path.glob("switch_weights.parquet.damaged-*"))
    assert (trial.switch_weights.read_bytes(), trial.metrics.read_bytes()) == (table, rows)
    assert other.metrics.read_bytes() == intact


def test_a_second_driver_is_refused(finished: tuple[StudyFolder, str]) -> None:
    folder, _ = finished
    with folder.lock():
        done = cli(folder, *STUDY)
    assert done.returncode == 2
    assert "another driver" in done.stderr


def test_the_plan_names_cells_batches_and_sizes(run_study: Run) -> None:
    done = run_study("plan", *STUDY)
    assert done.returncode == 0
    assert "4 trials" in done.stdout
    assert "19,864" in done.stdout  # parameters of the SN network
    assert "forecast" in done.stdout
    assert "- 1 replicate: no interval" in done.stdout
    assert re.search(r"disk: about \d+ kB; .* free", done.stdout)


def test_without_arguments_studies_and_scales_are_listed() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "run_study.py")], capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("depth_vs_batch", "distinct", "smoke", "laptop", "workstation", "paper"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--study", "depth_vs_batc"), ["unknown study", "nearest: depth_vs_batch"]),
        (("--study", "distinct", "--scale", "laptp"), ["unknown scale", "nearest: laptop"]),
        ((*STUDY, "--set", "epocs=1"), ["unknown key", "nearest: epochs"]),
        ((*STUDY, "--set", "dataset=fashion_mnist", "--set", "data_root=nowhere"), ["nowhere", "no such folder"]),
        ((*STUDY, "--set", "batch_size=4096"), ["gradient batch 32768"]),
        (("--stdy", "x"), ["unknown flag", "nearest: --study"]),
        (("runn", "--study", "distinct"), ["unknown verb", "nearest: run"]),
        (("report", *STUDY), ["no study has been run"]),
        (("diff", *STUDY, "a", "b"), ["no such trial"]),
        (("plan",), ["--study is needed"]),
        (("plan", *STUDY, "--watch"), ["--watch: belongs to status, not to plan; nearest: status --watch"]),
        ((*STUDY, "--serve"), ["--serve: belongs to report, not to run; nearest: report --serve"]),
        (("report", *STUDY, "--serve"), ["no study has been run here"]),
        ((*STUDY, "--set", "precision=float16", "--set", "device=cpu"), ["float16", "CUDA"]),
        ((*STUDY, "--storage", "nonsense"), ["--storage nonsense", "cannot be opened"]),
        (("--study", "learning_rates", "--scale", "smoke", "--set", "batch_size=[4096]"), ["gradient batch 32768"]),
        ((*STUDY, "--workers", "0"), ["--workers 0"]),
        ((*STUDY, "--launcher", "slrm"), ["unknown launcher"]),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    run_study: Run, tmp_path: Path, arguments: tuple[str, ...], parts: list[str]
) -> None:
    done = run_study(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_heavy_import(run_study: Run) -> None:
    code = (
        "import sys, contextlib\nfrom study.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "assert not {'torch', 'pandas', 'optuna', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


FLAGS = [
    "--compare",
    "--detach",
    "--help",
    "--launcher",
    "--out",
    "--retry-failed",
    "--scale",
    "--serve",
    "--set",
    "--storage",
    "--study",
    "--version",
    "--watch",
    "--workers",
]


def test_the_command_line_is_a_frozen_set() -> None:
    from study.cli.main import VERBS, build_parser

    flags = {flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert sorted(flags) == FLAGS
    assert list(VERBS) == ["run", "plan", "status", "report", "dashboard", "diff", "bench"]


def test_status_of_a_study_that_never_ran(run_study: Run) -> None:
    started = time.monotonic()
    done = run_study("status", *STUDY)
    assert done.returncode == 0
    assert "0 of 4 trials" in done.stdout
    assert time.monotonic() - started < 30  # a guard against a heavy import, not a measurement


@pytest.mark.slow
def test_a_detached_run_goes_on_by_itself_and_the_same_command_collects(run_study: Run, tmp_path: Path) -> None:
    study = (*STUDY, "--set", "epochs=2", "--set", "norm=sn")
    started = run_study(*study, "--detach")
    assert started.returncode == 0, started.stderr
    assert "status shows how far" in started.stdout
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert folder.is_locked()  # it has signed before the command returns
    assert "a detached driver is at work" in run_study("status", *study).stdout
    twice = run_study(*study, "--detach")
    assert (twice.returncode, len(twice.stderr.splitlines())) == (2, 1)
    collected = run_study(*study)
    assert collected.returncode == 0, collected.stderr
    assert "waiting for it" in collected.stdout
    assert [trial.attempts()[0] for trial in folder.trials()] == [1, 1]
    deadline = time.monotonic() + 60
    while "report:" not in folder.driver_log.read_text():  # the first one still writes its own
        assert time.monotonic() < deadline
        time.sleep(0.2)

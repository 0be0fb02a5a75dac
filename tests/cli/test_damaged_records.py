"""Records that another person may have written: a file that holds what it cannot makes its own trial `damaged`, alone.

All cases are trials of one study, so that a single report, status and diff read them all.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.analysis.records import load_study_records
from study.analysis.report.report import Report
from study.bench.synthetic_records import Truth, write_study
from study.config.schema import StudyConfig
from study.config.seeds import MAX_REPLICATES
from study.plan.loading import load_study
from study.plan.trials import plan_trials
from study.record.contents import (
    DamagedFileError,
    Environment,
    Result,
    State,
    read_description,
    read_document,
    read_metrics,
)
from study.record.io import file_digest, read_json, write_json
from study.record.layout import StudyFolder, TrialFolder
from tests.cli.conftest import STUDY
from tests.conftest import Command

pytestmark = pytest.mark.bad_input

Damage = Callable[[TrialFolder], None]
DEEP, HUGE, NAN = "[" * 100_000, "1" + "0" * 400, float("nan")
CODE = {"url": "javascript:x"}
BOMB = "a: &a [1,1]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)},*{chr(97 + n)}]\n" for n in range(20))


def replace(name: str, content: str | bytes) -> Damage:
    """Replaces a file, with the digest in result.json that it then needs."""

    def damage(record: TrialFolder) -> None:
        (record.path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        result = read_json(record.result)
        if name != record.result.name and result is not None:
            result["files"][name] = file_digest(record.path / name)
            write_json(record.result, result)

    return damage


def change(name: str, **changes: Any) -> Damage:
    """Changes values of a JSON file."""
    return lambda record: replace(name, json.dumps({**(read_json(record.path / name) or {}), **changes}))(record)


def change_metrics(**changes: float) -> Damage:
    """Changes some of the metrics in result.json."""
    return lambda record: change(
        "result.json", metrics={**(read_json(record.result) or {}).get("metrics", {}), **changes}
    )(record)


def list_file(name: str) -> Damage:
    """Lists one more file in result.json."""
    return lambda record: change("result.json", files={name: {"bytes": 1, "sha256": "x"}})(record)


def cut_in_half(record: TrialFolder) -> None:
    replace("switch_weights.parquet", record.switch_weights.read_bytes()[: record.switch_weights.stat().st_size // 2])(
        record
    )


def edit_table(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    """Changes the switch weights, with the digest in result.json right."""

    def damage(record: TrialFolder) -> None:
        table = pq.read_table(record.switch_weights)
        edited = pa.Table.from_pandas(edit(table.to_pandas()), schema=table.schema, preserve_index=False)
        replace("switch_weights.parquet", _to_bytes(edited))(record)

    return damage


def retype(column: str, kind: pa.DataType) -> Damage:
    """Writes a column of the switch weights with another type."""

    def damage(record: TrialFolder) -> None:
        table = pq.read_table(record.switch_weights)
        index = table.schema.get_field_index(column)
        changed = table.set_column(index, column, pc.cast(table[column], kind, safe=False))
        replace("switch_weights.parquet", _to_bytes(changed))(record)

    return damage


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def append_metric(**values: Any) -> Damage:
    return lambda record: replace("metrics.jsonl", record.metrics.read_text() + row(**values) + "\n")(record)


def edit_config(**values: Any) -> Damage:
    def damage(record: TrialFolder) -> None:
        description = yaml.safe_load(record.trial.read_text())
        description["config"] |= values
        replace("trial.yaml", yaml.safe_dump(description))(record)

    return damage


def leave_state(content: str) -> Damage:
    """Removes the result, so that the state counts."""

    def damage(record: TrialFolder) -> None:
        record.result.unlink()
        record.state.write_text(content)

    return damage


def make_pipe(name: str) -> Damage:
    """Replaces a file by a named pipe; opening it for reading waits for a writer."""

    def damage(record: TrialFolder) -> None:
        (record.path / name).unlink()
        os.mkfifo(record.path / name)

    return damage


def make_folder(name: str) -> Damage:
    def damage(record: TrialFolder) -> None:
        (record.path / name).unlink()
        (record.path / name).mkdir()

    return damage


def leave_pipe(record: TrialFolder) -> None:
    record.result.unlink()
    make_pipe("state.json")(record)


def row(**values: Any) -> str:
    return json.dumps({"schema": 1, "epoch": 1, "step": 3, "name": "val_loss", "value": 0.5} | values)


CASES: dict[str, tuple[str, Damage]] = {
    "a command that contains itself": ("trial.yaml: line 1, column 14", replace("trial.yaml", "command: &a [*a]")),
    "a list as command": ("trial.yaml: command: expected text", replace("trial.yaml", "command: [x]")),
    "an alias as command": ("trial.yaml: line 2, column 4", replace("trial.yaml", "command: &a\n - *a")),
    "a deep command": ("trial.yaml: line 1, column 1009: not valid YAML", replace("trial.yaml", f"command: {DEEP}")),
    "no text": ("trial.yaml: not valid UTF-8", replace("trial.yaml", b"command: \xff\xfe")),
    "a reason that is no text": ("result.json: reason", change("result.json", reason={"a": 1})),
    "a status that there is not": ("result.json: status", change("result.json", status="fine")),
    "a status that is no text": ("result.json: status", change("result.json", status=["done"])),
    "a huge metric": ("result.json: metrics.val_loss", change("result.json", metrics={"val_loss": 10**400})),
    "a metric that is text": ("result.json: metrics.val_loss", change("result.json", metrics={"val_loss": "1"})),
    "a metric that is true": ("result.json: metrics.val_loss", change("result.json", metrics={"val_loss": True})),
    "a metric that is NaN": ("result.json: metrics.val_loss", change("result.json", metrics={"val_loss": NAN})),
    "seconds as text": ("result.json: seconds", change("result.json", seconds="x")),
    "negative parameters": ("result.json: parameters", change("result.json", parameters=-1)),
    "another schema": ("result.json: schema: has schema 2", change("result.json", schema=2)),
    "a NUL in a file's name": ("result.json: files", list_file("\0")),
    "a file elsewhere": ("result.json: files", list_file("../../../../../../etc/passwd")),
    "the trial's checkpoint": ("result.json: files", list_file("last.ckpt")),
    "a file without digest": ("result.json: files", change("result.json", files={"trial.yaml": None})),
    "files as a list": ("result.json: files", change("result.json", files=["trial.yaml"])),
    "a surrogate": ("result.json: not valid JSON", replace("result.json", '{"schema": 1, "files": {"\\ud800": 1}}')),
    "a deep result": ("result.json: not valid JSON", replace("result.json", DEEP)),
    "a list as result": ("result.json: ", replace("result.json", "[]")),
    "a large result": ("result.json: larger than 4 MiB", replace("result.json", " " * 2**22 + "{}")),
    "a device that is no text": ("environment.json: device", change("environment.json", device=["x"])),
    "an address that is code": ("environment.json: wandb.url", change("environment.json", wandb=CODE)),
    "W&B's run as text": ("environment.json: wandb", change("environment.json", wandb="x")),
    "a deep environment": ("environment.json: not valid JSON", replace("environment.json", DEEP)),
    "an epoch that is text": ("metrics.jsonl: line 1: 0.epoch", replace("metrics.jsonl", row(epoch="x"))),
    "a huge epoch": ("metrics.jsonl: line 1: 0.epoch", replace("metrics.jsonl", row(epoch=10**400))),
    "a name that is no text": ("metrics.jsonl: line 2: 0.name", replace("metrics.jsonl", f"{row()}\n{row(name=[])}")),
    "a huge value": ("metrics.jsonl: line 1: 0.value", replace("metrics.jsonl", row(value=10**400))),
    "half a table": ("switch_weights.parquet: unreadable", cut_in_half),
    "an empty table": ("switch_weights.parquet: unreadable", replace("switch_weights.parquet", b"")),
    "a deep state": ("state.json: not valid JSON", leave_state(DEEP)),
    "a state that is no text": ("state.json: state", leave_state('{"state": ["failed"]}')),
    "a state's reason": ("state.json: reason", leave_state('{"state": "failed", "reason": {"a": 1}}')),
    "a state's attempt": ("state.json: attempt", leave_state('{"state": "running", "attempt": "x"}')),
    "a state's huge start": ("state.json: started", leave_state(f'{{"state": "running", "started": {HUGE}}}')),
    **{f"a folder as {name}": (f"{name}: is a folder, not a file", make_folder(name))
       for name in ("trial.yaml", "result.json", "environment.json", "metrics.jsonl", "switch_weights.parquet")},
    **{f"a pipe as {name}": (f"{name}: is a named pipe, not a file", make_pipe(name))
       for name in ("trial.yaml", "result.json", "environment.json", "metrics.jsonl", "switch_weights.parquet")},
    "a pipe as state.json": ("state.json: is a named pipe, not a file", leave_pipe),
    "a result of another trial": ("result.json: is that of x-r7", change("result.json", trial_id="x", replicate=7)),
    "an accuracy above 1": ("result.json: metrics: val_accuracy", change("result.json", metrics={"val_accuracy": 7.0})),
    "a score that differs from its curve": (
        "result.json: val_accuracy is 0.25, but", change("result.json", metrics={"val_accuracy": 0.25})
    ),
    "a test accuracy that is not its score": ("result.json: test_score is", change_metrics(test_accuracy=0.25)),
    "a gap that is not that of its scores": (
        "result.json: generalization_gap is", change_metrics(generalization_gap=0.9)
    ),
    "too few epochs": ("result.json: epochs is 1", change("result.json", epochs=1)),
    "negative weights": (
        "switch_weights.parquet: weight: is not between 0 and 1",
        edit_table(lambda rows: rows.assign(weight=rows["weight"].where(rows["normalizer"].ne("in"), -1.0))),
    ),
    "no last epoch": (
        "switch_weights.parquet: the last epoch is", edit_table(lambda rows: rows[rows["epoch"] < rows["epoch"].max()])
    ),
    "no switch weights": ("switch_weights.parquet: holds no switch weights", edit_table(lambda rows: rows[:0])),
    "an epoch after the last": (
        "metrics.jsonl: the last epoch is 99, not", append_metric(epoch=99, name="val_loss", value=0.5)
    ),
    "the config of another trial": (
        "trial.yaml: config: learning_rate: not what the trial's id stands for", edit_config(learning_rate=0.123)
    ),
    **{f"{column} as {kind}": (f"switch_weights.parquet: {column}: {kind}, expected", retype(column, kind))
       for column, kind in (("weight", pa.string()), ("weight", pa.bool_()), ("epoch", pa.string()),
                            ("layer_index", pa.bool_()))},
    "a value that is true": ("metrics.jsonl: line 1: 0.value", replace("metrics.jsonl", row(value=True))),
    "a value that is text": ("metrics.jsonl: line 1: 0.value", replace("metrics.jsonl", row(value="0.5"))),
    "parameters as text": ("result.json: parameters", change("result.json", parameters="7")),
    "a lost epoch": ("switch_weights.parquet: epoch", edit_table(lambda rows: rows[rows["epoch"] != 1])),
}  # fmt: skip
INTACT = 2
SETTINGS = ("--set", f"replicates={len(CASES)}", "--set", "tracking.mode=disabled")


@pytest.fixture(scope="module")
def study() -> StudyConfig:
    assert len(CASES) < MAX_REPLICATES
    return load_study("depth_vs_batch", "smoke", [SETTINGS[1], SETTINGS[3]])


@pytest.fixture(scope="module")
def folder(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A replicate of one cell for each case, and intact trials of another cell."""
    folder = StudyFolder(tmp_path_factory.mktemp("damaged") / study.name)
    cell, other = list(dict.fromkeys(trial.trial_id for trial in plan_trials(study)))[:2]
    write_study(folder, study, Truth(), only=lambda trial: trial.trial_id == cell or (
        trial.trial_id == other and trial.replicate < INTACT))  # fmt: skip
    for replicate, (_, damage) in enumerate(CASES.values()):
        damage(folder.trial(cell, replicate))
    return folder


@pytest.fixture(scope="module")
def trials(folder: StudyFolder) -> pd.DataFrame:
    return load_study_records(folder).trials


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_file_damages_its_own_trial(trials: pd.DataFrame, case: str) -> None:
    trial = trials[trials["trial_id"].eq(trials["trial_id"][0])].iloc[list(CASES).index(case)]
    assert trial["state"] == "damaged"
    assert trial["reason"].startswith(CASES[case][0])
    assert len(trial["reason"]) < 300
    assert pd.isna(trial["val_loss"])


def test_a_result_of_no_epochs_does_not_hide_that_a_network_without_a_choice_was_trained(tmp_path: Path) -> None:
    study = load_study("depth_vs_batch", "smoke", ["norm=bn", "batch_size=2"])
    folder = StudyFolder(tmp_path / study.name)
    write_study(folder, study, Truth())
    change("result.json", epochs=0)(next(folder.trials()))
    assert load_study_records(folder).trials["reason"].tolist() == ["metrics.jsonl: the last epoch is 2, not 0"]


def test_other_trials_count(trials: pd.DataFrame) -> None:
    assert trials["state"].value_counts()[["damaged", "done"]].to_dict() == {"damaged": len(CASES), "done": INTACT}


def test_the_report_is_written(folder: StudyFolder) -> None:
    page = Report(folder).write().read_text("utf-8")
    assert f"{len(CASES)} damaged" in page
    assert "reason: Input should be a valid string" in page


def test_status_counts_and_names_them(folder: StudyFolder, command: Command) -> None:
    printed = command("status", *STUDY, *SETTINGS, "--out", str(folder.path.parent))
    assert printed.code == 0
    assert "result.json: reason: Input should be a valid string" in printed.out
    assert re.search(rf"^sn .* {len(CASES)} *$", printed.out, re.MULTILINE)  # as the report does


def test_diff_shows_any_two_trials(folder: StudyFolder, study: StudyConfig, command: Command) -> None:
    cell, other_cell = list(dict.fromkeys(trial.trial_id for trial in plan_trials(study)))[:2]
    intact = f"{other_cell}-r0"
    for other in [f"{other_cell}-r1", *(f"{cell}-r{replicate}" for replicate in range(len(CASES)))]:
        printed = command("diff", *STUDY, *SETTINGS, "--out", str(folder.path.parent), intact, other)
        assert (printed.code, printed.err) == (0, "")
        assert ("damaged" in printed.out) == (other != f"{other_cell}-r1")


def test_show_names_what_is_wrong(folder: StudyFolder, study: StudyConfig, command: Command) -> None:
    cell = plan_trials(study)[0].trial_id
    for name in ("half a table", "too few epochs", "a list as command"):
        number = list(CASES).index(name)
        printed = command("show", *STUDY, *SETTINGS, "--out", str(folder.path.parent), f"{cell}-r{number}")
        assert f"{cell}-r{number}: damaged: {CASES[name][0]}" in printed.out


def test_a_pipe_as_study_is_one_line(tmp_path: Path, command: Command) -> None:
    (tmp_path / "depth_vs_batch").mkdir()
    os.mkfifo(tmp_path / "depth_vs_batch" / "study.yaml")
    for verb in ("report", "status"):
        printed = command(verb, *STUDY, "--out", str(tmp_path))
        assert printed.code == 2
        assert "study.yaml: is a named pipe, not a file" in printed.err


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=20,
)  # fmt: skip
KEYS = [
    field.alias or name for contents in (Result, State, Environment) for name, field in contents.model_fields.items()
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(KEYS), ANY_JSON))
def test_any_values_are_read_or_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    file = tmp_path / "file"
    file.write_text(json.dumps(values), "utf-8")
    readers = [partial(read_document, contents=contents) for contents in (Result, State, Environment)]
    for read in (*readers, read_description, read_metrics):
        try:
            read(file)
        except DamagedFileError as error:
            message = str(error)
        else:
            continue
        assert message.startswith("file: ")
        assert "\n" not in message


@pytest.mark.parametrize(
    "text", [BOMB, "a: &a [*a]", f"a: {DEEP}", "- " * 50_000, "levels: {depth: !!python/object:os.system x}"]
)
def test_a_description_that_is_larger_than_its_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trial.yaml").write_text(text)
    with pytest.raises(DamagedFileError, match=r"^trial\.yaml: "):
        read_description(tmp_path / "trial.yaml")

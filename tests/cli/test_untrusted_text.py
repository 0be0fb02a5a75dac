"""What a study or a record says reaches the terminal as text only, and every mistake ends in one short line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from study.bench.synthetic_records import Truth, write_study
from study.cli.main import main
from study.config.errors import escape_controls
from study.config.schema import SECTIONS, StudyConfig, TrialConfig
from study.plan.trials import plan_trials
from study.record.io import read_json, write_json
from study.record.layout import StudyFolder
from tests.cli.conftest import NAME, STUDY, write_failed
from tests.conftest import Command

pytestmark = pytest.mark.bad_input

EVIL = "\x1b]0;owned\x07\x1b[2J\r\nsecond line\u202e\x9b1m"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\nsecond line\u202e\x9b1m"
FLAGS = (*STUDY, "--set", "replicates=2", "--set", "tracking.mode=disabled")


def test_no_verb_prints_control_characters_of_a_record(study: StudyConfig, tmp_path: Path, command: Command) -> None:
    folder = StudyFolder(tmp_path / NAME)
    write_study(folder, study, Truth(), only=lambda trial: trial.config.norm == "sn")
    first, second = [trial for trial in plan_trials(study) if trial.config.norm == "sn"][:2]
    for trial in plan_trials(study):
        if trial.config.norm == "bn":
            write_failed(folder.trial(trial.trial_id, trial.replicate), EVIL + "x" * 100_000)
    out = ("--out", str(tmp_path))
    for verb, shown in (
        (("status",), SHOWN), (("status", "--watch"), SHOWN.partition("second")[0]),
        (("diff", first.key, second.key), "second line"),
    ):  # fmt: skip
        if verb[0] == "diff":  # last, because it damages a record
            environment = folder.trial(first.trial_id, first.replicate).environment
            write_json(environment, {**(read_json(environment) or {}), "host": EVIL, EVIL: "x" * 100_000})
        printed = command(*verb, *FLAGS, *out).out
        assert printed.replace("\n", "").isprintable()
        assert shown in printed, printed[:3000]
        assert "\nsecond" not in printed
        assert len(printed) < 30_000


def test_no_verb_prints_control_characters_of_a_study(command: Command, tmp_path: Path) -> None:
    text = json.dumps(EVIL)  # as YAML writes it, too
    changes = [f"title={text}", f"question={text}", f"joint.size={{{text}: {{width: 0.5}}}}", f"factors.size=[{text}]",
                "factors.norm=[sn]", "factors.batch_size=[2]"]  # fmt: skip
    flags = [part for change in changes for part in ("--set", change)]
    for verb in ("plan", "status"):
        done = command(verb, *STUDY, *flags, "--out", str(tmp_path))
        assert done.code == 0, done.err
        assert done.out.replace("\n", "").isprintable()
        assert r"\x1b]0;owned\x07" in done.out
        assert "\nsecond" not in done.out


@pytest.mark.parametrize("flags", [("--out", "a\nb"), ("--out", "a\x1b[2J"), ("--study", "a\nb"), ("--compare", "a\r")])
def test_a_path_with_control_characters_is_refused(command: Command, flags: tuple[str, str]) -> None:
    done = command("report", *STUDY, *flags)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "a path with line breaks or control characters" in done.err


# ------------------------------------------------------------------------------------------- generated settings

KEYS = sorted({f"{section}.{field}" for section, model in SECTIONS.items() for field in model.model_fields}
              | {*StudyConfig.model_fields} | {f"factors.{field}" for field in TrialConfig.model_fields}
              | {"factors.size", "joint.size", "joint.norm.sn", "nothing", "", ".", "a.b.c"})  # fmt: skip
fragments = st.sampled_from(
    ["010", "1_0", "12:00:00", "yes", "null", "true", "-1", "0", "1", "3", "1e400", ".nan", "-.inf", "9" * 30, "sn",
     "[", "]", "{", "}", ": ", ", ", "*a ", "&a ", "<<", "!!set ", "!x ", "|", "low", "high", "log", "depth", "norm",
     "'", '"', "\\e[1m", "\\0", "\\ud800", "\x1b", "\u2028", "x" * 5000, "size", "init", "# "]
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["sn", "a"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
overrides = st.tuples(
    st.sampled_from(KEYS), st.lists(fragments, max_size=8).map("".join) | values.map(json.dumps) | st.text()
)


@given(changes=st.lists(overrides, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_any_setting_is_accepted_or_refused_in_one_short_line(
    changes: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for key, value in changes for part in ("--set", f"{key}={value}")]
    started = time.process_time()
    code = main(["status", *STUDY, *flags, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    error = printed.err
    assert code in (0, 2)
    assert printed.out.replace("\n", "").isprintable()
    if code == 2:
        assert error.endswith("\n")
        assert escape_controls(error[:-1]) == error[:-1]
        assert len(error) < 900
    assert time.process_time() - started < 2


# ---------------------------------------------------------------------------------- values beside those of the schema

BESIDE = st.one_of(
    st.sampled_from(["nan", ".nan", ".inf", "-.inf", "null", "true", "[]", "{}", "", "'", "\t", "\x1b[1m", "\u202e",
                     "1e308", "-1e308", "9" * 19, "9" * 400, "[[[[1]]]]", "{a: {b: [1]}}", "x" * 3000, "[1, x]",
                     "-0.0"]),
    st.integers().map(str), st.floats().map(repr), st.text(max_size=30),
)  # fmt: skip


def list_values(schema: dict[str, Any]) -> list[str]:
    """Values at the limits of a field and beyond them, and of its other kinds."""
    found = []
    for kind in schema.get("anyOf", [schema]):
        for limit in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if limit in kind:
                found += [str(kind[limit]), str(kind[limit] - 1), str(kind[limit] + 1), f"{kind[limit]}.5"]
        found += [f"{name}x" for name in kind.get("enum", [])]
    return found or ["x"]


FIELDS = {
    f"{section}.{name}": list_values(field)
    for section, model in SECTIONS.items()
    for name, field in model.model_json_schema()["properties"].items()
}
beside = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda key: st.tuples(
        st.sampled_from([key, key.partition(".")[2], f"factors.{key.partition('.')[2]}", f"{key}s", f"{key}.x"]),
        st.sampled_from(FIELDS[key]) | BESIDE,
    )
)


@given(changes=st.lists(beside, min_size=1, max_size=2), as_levels=st.booleans())
@settings(max_examples=500, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_values_beside_those_of_the_schema_are_one_short_line(
    changes: list[tuple[str, str]], as_levels: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [part for key, text in changes for part in ("--set", f"{key}={f'[{text}]' if as_levels else text}")]
    code = main(["status", *STUDY, *flags, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert code in (0, 2)
    assert escape_controls(printed.out, keep="\n") == printed.out
    if code == 2:
        (line,) = printed.err.splitlines()
        assert escape_controls(line) == line
        assert len(line) < 900

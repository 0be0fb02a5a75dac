"""Import of published networks as a study, and the reports that show them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from study.analysis.report.figure_index import draw_published
from study.analysis.report.report import write_report
from study.cli.import_published import main
from study.cli.main import main as run_study
from study.config.errors import UserError
from tests.analysis.conftest import GRID, build_study, write_study
from tests.norms.official_files import official_state, official_weights

FACTS = {"one": {}, "deep": {"depth": 101, "seed": 1}, "alone": {"bn": False}, "second": {"version": 2}}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    for name, facts in FACTS.items():
        torch.save({"state_dict": official_state(**facts)}, folder / f"{name}.pth")
    return folder


def test_the_report_shows_what_published_layers_chose(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    published = [f"8,32={files}/one.pth", f"8,32={files}/deep.pth", f"8,1={files}/alone.pth"]
    for _ in range(2):  # importing again changes nothing
        assert main([*published, "--out", str(out / "published")]) == 0
    assert run_study(["report", "--study", "published", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"To draw it: python run_study.py report --study published --out {out}" in printed
    assert "impacts: " in printed
    report = out / "published" / "report"
    trials = pd.read_parquet(report / "trials.parquet").query("state == 'done'")
    assert sorted(zip(trials["depth"], trials["batch_size"], trials["pool"], trials["norm_layers"], strict=True)) == [
        (50, 1, "in,ln", 53), (50, 32, "in,ln,bn", 53), (101, 32, "in,ln,bn", 104)
    ]  # fmt: skip
    assert trials["val_accuracy"].isna().all()
    weights = pd.read_parquet(report / "switch_weights.parquet")
    assert set(weights["place"]) == {"stem", "norm1", "norm2", "norm3", "shortcut"}
    deep = weights[weights["trial_id"].eq(trials.set_index("depth").loc[101, "trial_id"])]
    state = official_state(**FACTS["deep"])
    for layer, name in {"bn1": "sn1", "layer3.22.bn3": "layer3.22.sn3", "layer2.0.downsample.1": None}.items():
        for statistic, expected in official_weights(state, name or layer).items():
            rows = deep[deep["layer"].eq(layer) & deep["statistic"].eq(statistic)].set_index("normalizer")["weight"]
            np.testing.assert_array_equal(rows[["in", "ln", "bn"]], expected.numpy().astype(np.float32))
    assert "depth = 101" in (report / "report.html").read_text()


def test_the_report_of_another_study_shows_them_too(files: Path, tmp_path: Path) -> None:
    study = write_study(tmp_path / "mine", build_study(replicates=2, **GRID))
    assert list(draw_published(study)) == []
    main([f"8,32={files}/one.pth", "--out", str(tmp_path / "official")])
    assert write_report(study).read_text().count("What the papers&#39; own networks chose") == 1  # one depth


def test_a_record_names_its_file_and_has_no_metrics(files: Path, tmp_path: Path) -> None:
    main([f"8,32={files}/second.pth", "--out", str(tmp_path / "second")])
    (record,) = tmp_path.glob("second/trials/*/r0")
    assert "second.pth" in (record / "trial.yaml").read_text()
    result = json.loads((record / "result.json").read_text())
    assert set(result["metrics"].values()) == {None}
    assert "published" in result["notes"][0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one.pth"], "one.pth: expected G,B=FILE"),
        (["8,02=one.pth"], "8,02=one.pth: expected a whole number from 1 to 100000"),
        (["8,32=none.pth"], "none.pth: cannot be read"),
        (["8,1=one.pth"], "choose from in,ln,bn; expected at B = 1: in,ln"),
        (["8,2=alone.pth"], "choose from in,ln; expected at B = 2: in,ln,bn"),
        (["8,2=one.pth", "8,2=one.pth"], "one.pth has the same norm, depth and"),
        (["8,2=one.pth", "8,4=second.pth"], "a ResNet v2, and one.pth is a v1"),
    ],
)
def test_bad_input_is_one_line(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=message) as error:
        main([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_study_is_not_overwritten(files: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    main([f"8,32={files}/one.pth", *out])
    with pytest.raises(UserError, match="choose another folder"):
        main([f"8,16={files}/one.pth", *out])


def test_the_command_exits_with_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["study.cli.import_published", "8,32=nothing.pth"])
    monkeypatch.delitem(sys.modules, "study.cli.import_published")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("study.cli.import_published", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: nothing.pth: cannot be read")

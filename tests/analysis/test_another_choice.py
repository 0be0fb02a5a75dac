"""Layers may choose from something else than normalizers: here a switchable activation gets its records and its report.

A choice is a `ChoiceSpace`, a layer that follows the protocol of switch layers, and a function that builds the network;
`main` takes the first and the last. Nothing else in `study` knows of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor, nn

from study.analysis.report.report import write_report
from study.cli.main import main
from study.config.choice_space import Axis, ChoiceSpace, Member
from study.models import build_network
from study.plan.job import Job
from study.record.layout import StudyFolder
from tests.conftest import ROOT

ACTIVATIONS = ChoiceSpace(
    name="activation",
    noun="activation",
    members=(
        Member(name="relu", colour="#E69F00"),
        Member(name="tanh", colour="#009E73"),
        Member(name="identity", colour="#0072B2"),
    ),
    axes=(Axis(name="output", label="activation weights", target="outputs"),),
    tracked=("relu", "ReLU"),
)


class ActivationWeights(NamedTuple):
    """The weights (K,) of one layer, by the name of the axis."""

    pool: tuple[str, ...]
    output: Tensor


class SwitchActivation(nn.Module):
    """A weighted sum of activations; the weights are the softmax of three logits."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.ones(3))

    def switch_weights(self) -> ActivationWeights:
        return ActivationWeights(ACTIVATIONS.member_names, self.logits.detach().softmax(0))

    def switch_logits(self) -> tuple[nn.Parameter, ...]:
        return (self.logits,)

    def forward(self, x: Tensor) -> Tensor:
        relu, tanh, identity = self.logits.softmax(0)
        return relu * x.relu() + tanh * x.tanh() + identity * x


def build_activation_network(job: Job) -> nn.Module:
    """The network of the trial's config, with a switchable activation in place of every ReLU."""
    network = build_network(job.trial.config, job.trial.seeds["init"])
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(path, SwitchActivation())
    return network


PROGRAM = """import sys
from study.cli.main import main
from tests.analysis.test_another_choice import ACTIVATIONS, build_activation_network
if __name__ == "__main__":
    sys.exit(main(space=ACTIVATIONS, build_network=build_activation_network))
"""
SETTINGS = ("norm=[bn]", "depth=[8, 14]", "batch_size=[2, 8]", "initialization=[he_normal]", "replicates=2", "epochs=2",
            "train_samples=64", "analysis.questions=[impacts]", "logit_learning_rate=10",
            "tracking.mode=disabled")  # fmt: skip
COMMAND = ["--study", "depth_vs_batch", "--scale", "smoke", *(word for each in SETTINGS for word in ("--set", each))]


def run_program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a user's own program, which takes the place of run_study.py."""
    program = folder / "run_activations.py"
    program.write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(program), *COMMAND, "--out", str(folder), *arguments], capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """Eight trials: two depths, two replicates, two batch sizes."""
    folder = tmp_path_factory.mktemp("runs")
    done = run_program(folder)
    assert done.returncode == 0, done.stderr
    return StudyFolder(folder / "depth_vs_batch")


def test_what_layers_chose_is_in_the_record(study: StudyFolder) -> None:
    tables = [pd.read_parquet(record.switch_weights) for record in study.trials()]
    assert len(tables) == 8
    for table in tables:
        assert set(table["normalizer"]) == set(ACTIVATIONS.member_names)
        assert set(table["statistic"]) == {"output"}
        assert set(table["place"]) == {"relu"}  # the last component of the path
        last = table[table["epoch"].eq(table["epoch"].max())]
        assert last.groupby("layer")["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-5)
        assert last["weight"].std() > 0.001  # they have learned


def test_the_report_answers_for_the_other_choice(study: StudyFolder) -> None:
    page = write_report(study).read_text(encoding="utf-8")
    answer = json.loads((study.report / "answers.json").read_text())["questions"]["impacts"]
    effects = {(row["measure"], row["comparison"]): row["estimate"] for row in answer["effects"]}
    assert answer["n_done"] == answer["n_planned"] == 8
    assert effects["effect", "depth"] > 0
    assert effects["effect_output", "batch_size"] > 0
    assert ("relu_share", "B 8 - B 2") in effects
    assert "ReLU share" in answer["answer"]
    assert "activation weights" in page
    for word in ("mean weights", "BN share"):
        assert word not in answer["answer"]


def test_records_of_another_choice_are_read_by_their_own_space(study: StudyFolder) -> None:
    """A table with members that the study does not have is damaged, whatever other studies choose from."""
    from study.analysis.weight_tables import read_switch_weights

    record: Path = next(iter(study.trials())).switch_weights
    with pytest.raises(ValueError, match="unknown"):
        read_switch_weights(record)
    assert read_switch_weights(record, ACTIVATIONS).num_rows


def test_a_folder_is_not_continued_with_another_choice(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--out", str(study.path.parent)]) == 2
    assert "planned for layers that choose their activation, now their normalization" in capsys.readouterr().err


def test_a_detached_driver_and_the_recorded_command_are_of_the_same_program(study: StudyFolder) -> None:
    recorded = yaml.safe_load(next(iter(study.trials())).trial.read_text())
    assert recorded["command"].startswith(f"python {study.path.parent}/run_activations.py --study ")
    assert run_program(study.path.parent, "--detach").returncode == 0
    deadline = time.monotonic() + 120
    while "impacts: " not in study.driver_log.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "error" not in study.driver_log.read_text()
    assert "impacts: " in study.driver_log.read_text()

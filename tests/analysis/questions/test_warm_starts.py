"""Question 1 on synthetic records of trials that start from others: what is compared, what is said, what stays out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.analysis.questions.answers import Answer
from study.analysis.questions.impacts import answer_impacts
from study.analysis.questions.useful import answer_useful
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.report import write_report
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import Truth, build_study, write_study

Build = Callable[..., StudyRecords]
RULES = ["scratch", "fine_tune", "frozen", "argmax", "permute", "shared"]
DISTINCT: dict[str, Any] = {
    "norm": ["sn", "bn"], "batch_size": [2, 16], "start_rule": RULES,
    "blocks": [["norm", "batch_size"], ["start_rule", "batch_size"]],
}  # fmt: skip


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def write(truth: Truth, replicates: int = 3, start: Any = None, **study: Any) -> StudyRecords:
        which = {name: study.pop(name) for name in ("only", "diverged") if name in study}
        planned = build_study(replicates=replicates, start=start, **{**DISTINCT, **study})
        return load_study_records(write_study(tmp_path / "study", planned, truth, **which))

    return write


def _losing(**losses: float) -> Truth:
    """Accuracy of each start rule below 0.9; so little noise that any loss shows."""
    return Truth(accuracy=lambda trial: 0.9 - losses.get(trial.config.start_rule, 0.0), accuracy_noise=5e-4)


def _comparisons(answer: StudyRecords | Answer, measure: str = "val_accuracy") -> dict[str, Any]:
    answer = answer if isinstance(answer, Answer) else answer_useful(answer)
    return {item.comparison: item for item in answer.effects if item.measure.name == measure}


OWN, NOT_OWN, OWN_OPEN = (
    "it matters that each layer has its own choice",
    "it does not matter that each layer has its own choice",
    "it cannot be said yet whether it matters that each layer has its own choice",
)
MIX, NO_MIX, MIX_OPEN = (text.replace("each layer has its own choice", "layers mix normalizers")
                         for text in (OWN, NOT_OWN, OWN_OPEN))  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "own", "mix"),
    [
        ({"permute": 0.03, "shared": 0.03}, OWN, NO_MIX),
        ({"argmax": 0.03}, NOT_OWN, MIX),
        ({"permute": 0.03, "shared": 0.03, "argmax": 0.03}, OWN, MIX),
        ({"permute": 0.03}, NOT_OWN, NO_MIX),  # their mean does as well
        ({}, NOT_OWN, NO_MIX),
    ],
)
def test_what_an_intervention_costs_says_what_matters(build: Build, losses: Any, own: str, mix: str) -> None:
    answer = answer_useful(build(_losing(**losses)))
    assert f"With the choices of finished networks of sn, {own} and {mix}." in answer.answer
    assert "Warm starts are compared by the same rule and do not decide the verdict." in answer.rule
    disagree = set(losses) & {"permute", "shared"} and own == NOT_OWN
    assert ("Rules disagree on whether it matters that each layer has its own choice:" in answer.answer) == bool(
        disagree
    )


def test_a_planted_loss_is_measured_against_frozen_on_all_measures(build: Build) -> None:
    answer = answer_useful(build(_losing(permute=0.03)))
    for measure, factor in {"val_accuracy": 1, "train_loss": -2, "generalization_gap": -0.5}.items():
        effect = _comparisons(answer, measure)["frozen - permute"]
        assert effect.estimate.value == pytest.approx(factor * 0.03, abs=2e-3)
        assert (effect.n_pairs, effect.n_pairs_planned) == (6, 6)
    assert list(_comparisons(answer)) == ["sn - bn", *(f"frozen - {rule}" for rule in RULES[1:] if rule != "frozen")]
    assert "The training loss of frozen is lower than that of permute and not distinguished" in answer.answer


def test_starts_do_not_move_the_verdict(build: Build) -> None:
    truth = Truth(
        accuracy=lambda trial: 0.9 - 0.05 * (trial.config.norm == "bn" or trial.config.start_rule == "frozen")
    )
    assert answer_useful(build(truth)).verdict == "supported"


def test_norms_are_compared_from_scratch_alone(build: Build) -> None:
    """A network that is fine-tuned has trained twice as long."""
    gains = Truth(accuracy=lambda trial: 0.8 + 0.1 * (trial.key.startswith("sn-") and trial.waits_for is not None))
    effect = _comparisons(build(gains, start_rule=["scratch", "fine_tune"], blocks=[]))["sn - bn"]
    assert (effect.n_pairs, effect.n_pairs_planned) == (6, 6)
    assert effect.estimate.value == pytest.approx(0, abs=0.01)


def test_without_frozen_fine_tune_is_the_control(build: Build) -> None:
    records = build(_losing(permute=0.03), start_rule=["scratch", "fine_tune", "permute"])
    assert list(_comparisons(records)) == ["sn - bn", "fine_tune - permute"]
    assert OWN in answer_useful(records).answer


def test_weights_that_learn_before_they_are_frozen_are_no_control(build: Build) -> None:
    records = build(_losing(), start={"epoch": 2})
    assert "fine_tune - frozen" in _comparisons(records)
    assert "frozen - permute" not in _comparisons(records)


def test_newly_initialized_networks_are_compared_with_each_other(build: Build) -> None:
    transplant = build(_losing(transplant=0.03), start_rule=["scratch", "fine_tune", "frozen", "transplant"])
    assert list(_comparisons(transplant)) == ["sn - bn", "frozen - fine_tune", "scratch - transplant"]
    assert "Does it matter that" not in answer_useful(transplant).answer


def test_with_fresh_weights_frozen_is_the_control_of_fresh_ones(build: Build) -> None:
    records = build(
        _losing(shared=0.03), start={"fresh": True}, start_rule=["scratch", "fine_tune", "frozen", "shared"]
    )
    assert list(_comparisons(records)) == ["sn - bn", "frozen - scratch", "frozen - shared"]
    assert OWN in answer_useful(records).answer


def test_one_replicate_shows_numbers_and_says_nothing(build: Build) -> None:
    answer = answer_useful(build(_losing(permute=0.03, shared=0.03), replicates=1))
    assert f"{OWN_OPEN} and {MIX_OPEN}." in answer.answer
    assert "no interval from n = 1 replicate) against permute" in answer.answer


def test_a_part_of_the_starts_says_what_it_can(build: Build) -> None:
    def only(trial: PlannedTrial) -> bool:
        return trial.config.start_rule in ("scratch", "frozen", "argmax")

    answer = answer_useful(build(_losing(argmax=0.03), only=only))
    assert f"{OWN_OPEN} and {MIX}." in answer.answer
    assert "against permute" not in answer.answer


def test_before_any_start_has_finished_it_is_said(build: Build) -> None:
    answer = answer_useful(build(_losing(), only=lambda trial: trial.config.start_rule == "scratch"))
    assert answer.answer.endswith(
        "No run that starts from another one has finished together with the one it is compared with."
    )


def test_starts_that_diverged_are_no_proof_that_nothing_matters(build: Build) -> None:
    def diverged(trial: PlannedTrial) -> bool:
        return trial.config.start_rule in ("permute", "shared") and trial.replicate == 0

    records = build(_losing(), diverged=diverged)
    assert _comparisons(records)["frozen - permute"].missing == {"permute diverged": 2}
    assert f"{OWN_OPEN} and {NO_MIX}." in answer_useful(records).answer


def test_a_batch_of_one_is_a_cell_as_others(build: Build) -> None:
    records = build(_losing(permute=0.03, shared=0.03), batch_size=[1, 16])
    assert _comparisons(records)["frozen - permute"].n_pairs == 6
    assert OWN in answer_useful(records).answer


def test_what_a_rule_has_chosen_is_no_choice(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: 3.0 * (trial.config.start_rule != "scratch"))
    answer = answer_impacts(build(truth, norm=["sn"], blocks=[]))
    assert [item.comparison for item in answer.effects if item.measure.name == "effect"] == ["batch_size"]
    assert (answer.n_done, answer.n_planned) == (6, 6)
    assert "30 runs that start from others are left out." in answer.answer
    assert "runs at B = 1" not in answer.answer


def test_the_page_shows_starts_and_where_they_come_from(tmp_path: Path) -> None:
    study = build_study(replicates=2, questions=("useful",), **DISTINCT)
    folder = write_study(tmp_path, study, _losing(permute=0.03))
    page = write_report(folder).read_text(encoding="utf-8")
    trials = load_study_records(folder).trials
    (start,) = trials.query("start_rule == 'permute' and batch_size == 2 and replicate == 1")["start"]
    assert start.startswith("sn-batch_size2-scratch-")
    assert start.endswith("-r1")
    assert f"<dd><code>{start}</code></dd>" in page
    assert "and between how its networks start" in page

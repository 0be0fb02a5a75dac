"""Answers about studies in which runs are missing, levels lie between the ends, or trials have not ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from study.analysis.questions.level_comparisons import build_claim, compare_levels
from study.analysis.records import load_study_records
from study.analysis.report.registry import QUESTIONS, answer_questions
from study.analysis.report.report import write_report
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.plan.trials import PlannedTrial
from tests.analysis.conftest import GRID, build_study, write_study


def is_first_cell(trial: PlannedTrial) -> bool:
    return (trial.config.norm, trial.config.depth, trial.config.batch_size) == ("sn", 8, 2)


@pytest.mark.parametrize("lost", ["failed", "diverged", "only"], ids=["failed", "diverged", "not started"])
def test_a_study_with_a_cell_without_results_has_a_report(tmp_path: Path, lost: str) -> None:
    which = {lost: (lambda trial: not is_first_cell(trial)) if lost == "only" else is_first_cell}
    study = build_study(3, norm=["sn", "bn"], depth=[8, 14], batch_size=[2, 16])
    folder = write_study(tmp_path, study, Truth(bn_logit=lambda trial: float(trial.config.batch_size == 16)), **which)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "What impacts the choice?" in page
    answers = json.loads((folder.report / "answers.json").read_text())["questions"]
    assert answers["impacts"]["interim"] == (lost == "only")
    assert any(effect["measure"] == "effect_place" for effect in answers["impacts"]["effects"])
    compared = {effect["comparison"] for effect in answers["useful"]["effects"] if effect["measure"] == "val_accuracy"}
    assert compared == {"sn - bn" if lost == "diverged" else "sn - bn over 3 of 4 cells"}  # guesses where all diverge
    assert ("over 3 of 4 cells" in answers["useful"]["answer"]) == (lost == "failed")


def test_a_level_between_the_ends_can_move_the_choice() -> None:
    study = build_study(8, ("impacts",), norm=["sn"], batch_size=[2, 4, 16])
    truth = Truth(bn_logit=lambda trial: 3.0 * (trial.config.batch_size == 4))
    found = QUESTIONS["impacts"].judge(SyntheticStudy(study).draw_records(truth))
    assert found.factors == {"batch_size": "supported"}
    flat = QUESTIONS["impacts"].judge(SyntheticStudy(study).draw_records(Truth(logit_noise=0.02)))
    assert flat.factors == {"batch_size": "not supported"}


def test_interim_answers_have_numbers_and_no_words_that_give_the_verdict_away(tmp_path: Path) -> None:
    truth = Truth(
        accuracy=lambda trial: 0.93 if trial.config.norm == "sn" else 0.90,
        bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16),
    )
    folder = write_study(tmp_path, build_study(5, **GRID), truth, only=lambda trial: trial.replicate < 4)
    for answer in answer_questions(load_study_records(folder)).values():
        assert answer.interim
        assert answer.answer.startswith("Interim: ")
        assert answer.answer.count(".") == 1
        assert len(answer.needs) == 1
        assert set(answer.factors.values()) <= {"not enough evidence"}
        assert answer.effects


def test_divergence_is_compared_cell_by_cell(tmp_path: Path) -> None:
    """sn diverges at B = 2 and bn as often at B = 16: neither verdict may rest on the runs that are lost."""

    def diverged(trial: PlannedTrial) -> bool:
        cell = (trial.config.norm, trial.config.batch_size)
        return cell in (("sn", 2), ("bn", 16)) and trial.replicate == 0

    study = build_study(4, ("useful",), norm=["sn", "bn"], batch_size=[2, 16])
    records = load_study_records(write_study(tmp_path, study, diverged=diverged))
    item = compare_levels(
        records, records.trials, factor="norm", reference="sn", other="bn", metric="val_accuracy"
    )  # fmt: skip
    assert (item.reference_diverged, item.other_diverged) == (1, 1)
    claim = build_claim(item, 0.005)
    assert not claim.can_support
    assert not claim.can_refute

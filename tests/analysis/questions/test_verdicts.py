from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.analysis.questions.answers import Answer
from study.analysis.questions.impacts import answer_impacts
from study.analysis.questions.useful import answer_useful
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.statistics.intervals import Estimate
from study.analysis.wording import format_estimate, format_number
from study.plan.trials import PlannedTrial
from study.record.layout import StudyFolder
from tests.analysis.conftest import GRID, Truth, build_study, write_study

Build = Callable[..., StudyRecords]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    numbers = itertools.count()

    def write(
        truth: Truth, replicates: int = 5, only: Any = None, diverged: Any = None, **factors: Any
    ) -> StudyRecords:
        study = build_study(replicates=replicates, **factors)
        return load_study_records(
            write_study(
                tmp_path / str(next(numbers)),
                study,
                truth,
                only=only or (lambda _: True),
                diverged=diverged or (lambda _: False),
            )
        )

    return write


def _gain(**gains: float) -> Truth:
    """Accuracy of each norm above 0.9; so little noise that any gain shows."""
    return Truth(accuracy=lambda trial: 0.9 + gains.get(trial.config.norm.replace("-", "_"), 0.0), accuracy_noise=1e-3)


NORMS = {"norm": ["sn", "bn"], "batch_size": [2, 16]}

# ------------------------------------------------------------------------------------------------ useful


def test_a_planted_gain_is_supported(planted: StudyFolder) -> None:
    answer = answer_useful(load_study_records(planted))
    assert answer.verdict == "supported"
    effect = answer.effects[0]
    assert (effect.measure.name, effect.comparison, effect.estimate.n) == ("val_accuracy", "sn - bn", 4)
    assert effect.estimate.above(0.02)
    assert effect.estimate.below(0.04)
    assert (
        "minus that of the other: +0.028 (95 % interval 0.026 to 0.031, n = 4 replicates) against bn." in answer.answer
    )
    assert answer.needs == []


def test_numbers_lead_to_their_trials(planted: StudyFolder) -> None:
    records = load_study_records(planted)
    for effect in answer_useful(records).effects:
        rows = records.trials.loc[list(effect.trials)]
        assert set(rows["norm"]) == ({"sn"} if effect.measure.name.startswith("distinct") else {"sn", "bn"})
        n_cells = 1 if effect.measure.name == "cell_difference" else 8
        assert len(rows) == len(effect.trials) == n_cells * 4 * rows["norm"].nunique()


def test_a_better_norm_reaches_the_target_sooner(planted: StudyFolder) -> None:
    answer = answer_useful(load_study_records(planted))
    (effect,) = [item for item in answer.effects if item.measure.name == "epochs_to_target"]
    assert effect.estimate.below(0)
    assert effect.share_above is not None
    assert effect.share_above < 0.1
    assert "Its time to target is lower than that of bn." in answer.answer
    assert effect.censored == 0


def test_runs_that_never_reach_the_target_are_counted(build: Build) -> None:
    unlucky = Truth(accuracy=lambda trial: 0.5 if trial.config.norm == "bn" and trial.replicate == 0 else 0.9)
    answer = answer_useful(build(unlucky, **NORMS))
    assert "counted as one epoch more than they had: 2 in sn - bn." in answer.answer
    (effect,) = [item for item in answer.effects if item.measure.name == "epochs_to_target"]
    assert (effect.censored, effect.n_pairs) == (2, 10)


def test_layers_that_differ_in_depth_are_distinct(planted: StudyFolder) -> None:
    answer = answer_useful(load_study_records(planted))
    effects = [item for item in answer.effects if item.measure.name.startswith("distinctness")]
    assert [item.estimate.above(0) for item in effects] == [True] * 3
    assert [(item.n_pairs, item.n_pairs_planned) for item in effects] == [(48, 48)] * 3
    assert "replicates), so layers choose differently." in answer.answer


def test_no_gain_is_not_supported(build: Build) -> None:
    answer = answer_useful(build(_gain(), **NORMS))
    assert answer.verdict == "not supported"
    assert answer.answer.startswith(
        "No, in this study: there is no practical difference between sn and bn (less than 0.005 either way)."
    )
    assert answer_useful(build(_gain(sn=-0.05), **NORMS)).answer.startswith("No, in this study: sn is worse than bn.")


def test_a_gain_below_the_margin_is_no_support(build: Build) -> None:
    """However many replicates there are; the rule that asked for a gain above 0 reversed with more of them."""
    for replicates in (5, 40):
        answer = answer_useful(build(_gain(sn=0.003), replicates=replicates, **NORMS))
        assert answer.verdict == "not supported"


def test_a_gain_within_the_noise_is_not_enough_evidence(build: Build) -> None:
    noisy = Truth(accuracy=lambda trial: 0.91 if trial.config.norm == "sn" else 0.9, accuracy_noise=0.05)
    answer = answer_useful(build(noisy, **NORMS))
    assert answer.verdict == "not enough evidence"
    assert re.fullmatch(
        r"sn against bn: about \d+ more replicates of every cell .* probability of 8\d %, .*", answer.needs[0]
    )


def test_one_loss_against_a_control_refutes(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05, sn_uniform=0.05), norm=["sn", "bn", "sn-uniform"], batch_size=[2, 16]))
    assert answer.verdict == "not supported"
    assert "between sn and sn-uniform (" in answer.answer
    assert "between sn and bn" not in answer.answer


def test_a_norm_whose_layers_also_choose_does_not_decide(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05, ssn=0.05, sn_tied=0.05), norm=["sn", "bn", "ssn", "sn-tied"]))
    assert answer.verdict == "supported"
    assert "is better than bn." in answer.answer
    compared = {effect.comparison for effect in answer.effects if effect.measure.name == "val_accuracy"}
    assert compared == {"sn - bn", "sn - ssn", "sn - sn-tied", "ssn - bn"}
    assert "The same for ssn, which does not decide: " in answer.answer


def test_controls_alone_cannot_support(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05), norm=["sn", "sn-shared"], batch_size=[2, 16]))
    assert answer.verdict == "not enough evidence"
    assert "single normalizer" in answer.needs[0]


def test_one_replicate_is_not_enough(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05), replicates=1, **NORMS))
    assert answer.verdict == "not enough evidence"
    assert "no interval from n = 1 replicate)" in answer.answer
    assert "at least 1 more replicate of every cell" in answer.needs[0]


def test_runs_of_the_reference_that_diverged_bar_support(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05), diverged=_is("sn", 2, {0}), **NORMS))
    assert answer.verdict == "not enough evidence"
    assert "sn 1 diverged" in answer.answer
    assert "do not diverge" in answer.needs[0]


def test_runs_of_the_other_that_diverged_bar_refutation_only(build: Build) -> None:
    answer = answer_useful(build(_gain(), diverged=_is("bn", 2, {0}), **NORMS))
    assert answer.verdict == "not enough evidence"
    assert "Diverged runs: none of sn and 1 of bn, so sn is not called worse, nor without gain." in answer.answer
    assert "runs of bn that do not diverge" in answer.needs[0]
    assert answer_useful(build(_gain(sn=0.05), diverged=_is("bn", 2, {0}), **NORMS)).verdict == "supported"


def test_pairs_in_which_both_diverge_count_against_both(build: Build) -> None:
    """Both norms diverge once in the same pair: neither verdict is barred. One more run of sn bars its support."""
    both = answer_useful(build(_gain(sn=0.05), diverged=_any(_is("sn", 2, {0}), _is("bn", 2, {0})), **NORMS))
    assert both.verdict == "supported"
    assert both.effects[0].missing == {"sn diverged and bn diverged": 1}
    more = answer_useful(build(_gain(sn=0.05), diverged=_any(_is("sn", 2, {0, 1}), _is("bn", 2, {0})), **NORMS))
    assert more.verdict == "not enough evidence"


def test_a_diverged_run_counts_where_the_other_of_its_pair_failed(build: Build) -> None:
    records = build(_gain(sn=0.05), diverged=_is("sn", 2, {0}), **NORMS)
    partner = records.trials.eval("norm == 'bn' and batch_size == 2 and replicate == 0")
    records.trials.loc[partner, "state"] = "failed"
    answer = answer_useful(records)
    assert answer.effects[0].missing == {"sn diverged and bn failed": 1}
    assert answer.verdict == "not enough evidence"


def test_a_norm_that_always_diverges_in_a_cell_counts_with_chance_there(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05), diverged=_is("bn", 2, {0, 1, 2, 3, 4}), **NORMS))
    assert answer.verdict == "supported"
    assert answer.effects[0].missing == {}
    assert answer.effects[0].n_at_chance == 5
    assert answer.effects[0].estimate.value == pytest.approx((0.95 - 0.1 + 0.05) / 2, abs=0.01)
    assert "Every run of bn diverged at B = 2, so it counts there with the score of guessing." in answer.answer
    assert "bn 5 diverged" in answer.answer
    mirrored = answer_useful(build(_gain(sn=0.05), diverged=_is("sn", 2, {0, 1, 2, 3, 4}), **NORMS))
    assert mirrored.verdict == "not supported"


def test_one_failed_run_does_not_change_the_question(build: Build) -> None:
    """sn is worse by .06 at B = 2 and better by .012 at four other B; a run of the worst cell fails."""
    levels = [2, 4, 8, 12, 16]
    truth = Truth(
        accuracy=lambda trial: 0.9 + (trial.config.norm == "sn") * (-0.06 if trial.config.batch_size == 2 else 0.012),
        accuracy_noise=2e-3,
    )
    for failed in (set(), {0}):
        records = build(truth, replicates=4, norm=["sn", "bn"], batch_size=levels)
        row = records.trials.eval("norm == 'sn' and batch_size == 2") & records.trials["replicate"].isin(failed)
        records.trials.loc[row, "state"] = "failed"
        answer = answer_useful(records)
        assert answer.verdict == "not supported"
        assert answer.effects[0].estimate.value == pytest.approx(-0.0024, abs=2e-3)
        first = "sn is better than bn at B = 4, B = 8, B = 12 and 1 more cell and worse at B = 2; on average"
        assert answer.answer.startswith(first)


def test_effects_of_opposite_sign_are_the_first_sentence(build: Build) -> None:
    truth = Truth(
        accuracy=lambda trial: 0.9 + (trial.config.norm == "sn") * (0.05 if trial.config.batch_size == 2 else -0.05),
        accuracy_noise=1e-3,
    )
    answer = answer_useful(build(truth, **NORMS))
    assert answer.answer.startswith(
        "sn is better than bn at B = 2 and worse at B = 16; on average over all cells, the answer is no: there is no "
        "practical difference between sn and bn (less than 0.005 either way)."
    )
    assert "The difference between sn and bn is not the same in all cells (adjusted p = " in answer.answer
    cells = [item for item in answer.effects if item.measure.name == "cell_difference"]
    assert [item.comparison for item in cells] == ["sn - bn at B = 2", "sn - bn at B = 16"]
    assert [item.estimate.value for item in cells] == pytest.approx([0.05, -0.05], abs=5e-3)
    (interaction,) = [item for item in answer.effects if item.measure.name == "interaction"]
    assert interaction.p_value is not None
    assert interaction.p_value < 1e-4


def test_a_planned_cell_without_any_result_gives_no_verdict(build: Build) -> None:
    records = build(_gain(sn=0.05), **NORMS)
    records.trials.loc[records.trials.eval("norm == 'bn' and batch_size == 16"), "state"] = "failed"
    answer = answer_useful(records)
    assert answer.verdict == "not enough evidence"
    assert answer.answer.startswith(
        "It cannot be said yet whether sn is better than bn: no replicate has a result of both sn and bn at B = 16."
    )
    assert answer.needs == ["sn against bn: results of 5 more replicates at B = 16 (missing pairs: 5 bn failed)"]


def test_an_empty_cell_that_could_change_nothing_does_not_bar_the_verdict(build: Build) -> None:
    far = Truth(accuracy=lambda trial: 0.9 if trial.config.norm == "sn" else 0.2, accuracy_noise=1e-3)
    records = build(far, norm=["sn", "bn"], batch_size=[2, 8, 16])
    records.trials.loc[records.trials.eval("norm == 'bn' and batch_size == 16"), "state"] = "failed"
    answer = answer_useful(records)
    assert answer.verdict == "supported"
    assert answer.answer.startswith(
        "Yes, in this study: sn is better than bn, although no replicate has a result of both sn and bn at B = 16 "
        "(no score there could change this)."
    )


def test_missing_cells_are_not_enough(build: Build) -> None:
    answer = answer_useful(build(_gain(sn=0.05), only=lambda trial: trial.config.batch_size == 2, **NORMS))
    assert answer.verdict == "not enough evidence"
    assert "results of 5 more replicates at B = 16 (missing pairs: 5 sn planned and bn planned)" in answer.needs[0]
    assert (answer.n_done, answer.n_planned) == (10, 20)


@pytest.mark.parametrize("norms", [["bn", "gn"], ["sn"]])
def test_nothing_to_compare(build: Build, norms: list[str]) -> None:
    answer = answer_useful(build(_gain(), replicates=2, norm=norms))
    assert answer.verdict == "not enough evidence"
    assert "does not compare" in answer.answer


def _any(*chosen: Callable[[PlannedTrial], bool]) -> Callable[[PlannedTrial], bool]:
    return lambda trial: any(each(trial) for each in chosen)


def _is(norm: str, batch_size: int, replicates: set[int]) -> Callable[[PlannedTrial], bool]:
    return lambda trial: (
        trial.config.norm == norm and trial.config.batch_size == batch_size and trial.replicate in replicates
    )


# ----------------------------------------------------------------------------------------------- impacts

CHOICES = {name: levels for name, levels in GRID.items() if name != "norm"}


def test_the_papers_claim_is_found_where_it_holds(planted: StudyFolder) -> None:
    answer = answer_impacts(load_study_records(planted))
    assert answer.verdict == "supported"
    assert "each move the choice further than initialization (decay and solver were not varied)." in answer.answer
    assert [name for name, verdict in answer.factors.items() if verdict == "supported"] == ["batch_size", "depth"]
    (share,) = [item for item in answer.effects if item.measure.name == "bn_share"]
    assert share.comparison == "B 16 - B 2"
    assert share.estimate.above(0.2)
    assert "The BN share changes by +0.3" in answer.answer
    assert (answer.n_done, answer.n_planned) == (32, 32)


def test_ranking_is_by_effect(planted: StudyFolder) -> None:
    effects = [item for item in answer_impacts(load_study_records(planted)).effects if item.measure.name == "effect"]
    assert [item.comparison for item in effects] == ["batch_size", "depth", "initialization"]
    assert [item.n_pairs for item in effects] == [4, 4, 4]


def test_without_any_effect_the_claim_is_not_supported(build: Build) -> None:
    answer = answer_impacts(build(Truth(), replicates=3, **CHOICES))
    assert answer.verdict != "supported"
    assert "supported" not in answer.factors.values()


def test_a_strong_initialization_refutes(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: 2.0 * (trial.config.initialization == "he_normal"))
    answer = answer_impacts(build(truth, replicates=3, **CHOICES))
    assert answer.verdict == "not supported"
    assert "does not hold for depth against initialization and batch_size against initialization: " in answer.answer
    assert answer.factors["initialization"] == "supported"


def test_two_replicates_give_no_interval(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: trial.config.batch_size / 4)
    answer = answer_impacts(build(truth, replicates=2, **CHOICES))
    assert answer.verdict == "not enough evidence"
    assert any("at least 3 replicates" in need for need in answer.needs)


def test_one_replicate_has_no_seeds_to_compare_with(build: Build) -> None:
    answer = answer_impacts(build(Truth(), replicates=1, **CHOICES))
    assert answer.answer.startswith("It cannot be said yet whether depth and batch_size")
    assert any("at least 3 replicates" in need for need in answer.needs)
    assert all(item.estimate.low is None for item in answer.effects)


def test_a_single_cell_has_nothing_to_rank(build: Build) -> None:
    answer = answer_impacts(build(Truth(), replicates=2, norm=["sn", "bn"]))
    assert (answer.n_done, answer.n_planned) == (2, 2)
    assert not [item for item in answer.effects if item.measure.name.startswith(("bn_share", "trend_batch"))]
    assert {item.measure.name for item in answer.effects if item.measure.name.startswith("effect")} == {"effect_place"}
    assert "There is no trend with B: finished runs have one B." in answer.answer


def test_a_study_without_weak_factors_cannot_compare(build: Build) -> None:
    """Then the claim is that any of its factors moves the choice."""
    truth = Truth(bn_logit=lambda trial: 1.5 * (trial.config.depth == 14))
    answer = answer_impacts(build(truth, replicates=4, depth=[8, 14], batch_size=[2, 16]))
    assert answer.claim.startswith("at least one of depth and batch_size")
    assert answer.verdict == "supported"
    assert answer.answer.startswith("In this study, depth moves the choice.")


def test_a_batch_of_one_is_no_choice(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: 0.5)
    answer = answer_impacts(build(truth, replicates=3, batch_size=[1, 2, 16]))
    shares = [item for item in answer.effects if item.measure.name == "bn_share"]
    assert [item.comparison for item in shares] == ["B 16 - B 2"]
    assert "3 runs at B = 1 are left out" in answer.answer
    assert answer.n_planned == 6


def test_runs_that_diverged_are_counted(build: Build) -> None:
    answer = answer_impacts(build(Truth(), replicates=3, diverged=lambda trial: trial.replicate == 0, **CHOICES))
    assert "8 diverged" in answer.answer
    assert answer.n_done == 16


def test_no_switch_norm(build: Build) -> None:
    answer = answer_impacts(build(Truth(), replicates=1, norm=["bn"], batch_size=[2, 16]))
    assert answer.verdict == "not enough evidence"
    assert "no switch norm" in answer.answer


@pytest.mark.parametrize("ask", [answer_useful, answer_impacts])
def test_an_empty_study_answers(build: Build, ask: Callable[[StudyRecords], Answer]) -> None:
    answer = ask(build(Truth(), only=lambda _: False, **GRID))
    assert answer.verdict == "not enough evidence"
    assert answer.n_done == 0
    assert answer.needs


# ------------------------------------------------------------------------------------------------ blocks

ALONE = {**CHOICES, "decay": ["cosine", "step"],
         "blocks": [["depth", "batch_size"], ["initialization", "batch_size"], ["decay"]]}  # fmt: skip


def test_in_blocks_a_factor_is_measured_where_it_varies_alone(build: Build) -> None:
    truth = Truth(bn_logit=lambda trial: 1.5 * (trial.config.batch_size == 16) + (trial.config.depth == 14))
    answer = answer_impacts(build(truth, replicates=4, **ALONE))
    # Cells: 2 depths x 2 B, the other initialization at 2 B, the other decay at the base's B, 16.
    pairs = {item.comparison: item.n_pairs for item in answer.effects if item.measure.name == "effect"}
    assert pairs == {"batch_size": 3, "depth": 2, "initialization": 2, "decay": 1}
    assert (answer.n_done, answer.n_planned) == (28, 28)
    assert answer.verdict == "supported"


def test_in_blocks_norms_are_compared_where_both_are_planned(build: Build) -> None:
    blocks = [["norm", "batch_size"], ["initialization", "batch_size"]]
    study = {**NORMS, "initialization": ["he_normal", "orthogonal"], "blocks": blocks}
    truth = Truth(accuracy=lambda trial: 0.5 + 0.1 * (trial.config.norm == "sn"), accuracy_noise=1e-3)
    effect = answer_useful(build(truth, replicates=3, **study)).effects[0]
    assert (effect.n_pairs, effect.n_pairs_planned, effect.missing) == (6, 6, {})
    assert effect.estimate.value == pytest.approx(0.1, abs=0.005)


def test_in_blocks_means_over_other_factors_compare_like_with_like(build: Build) -> None:
    records = build(Truth(), replicates=1, only=lambda _: False, **ALONE)
    assert len(records.balanced_subset(records.trials, "depth", "batch_size")) == 4
    assert len(records.balanced_subset(records.trials, "batch_size", "initialization")) == 4
    assert len(records.balanced_subset(records.trials, "decay")) == 2


def test_what_else_changes_with_a_level_is_said(build: Build) -> None:
    joint = {"solver": {"adamw": {"learning_rate": 0.01, "epochs": 4}}}  # the base has 4 epochs, too
    answer = answer_impacts(build(Truth(), replicates=2, solver=["sgd", "adamw"], joint=joint))
    assert answer.claim.startswith("solver (with ")
    assert "learning rate" in answer.claim


# ------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(value=0.0123, low=0.004, high=0.02, n=5), "+0.012 (90 % interval 0.004 to 0.020, n = 5 replicates)"),
        (Estimate(value=-0.5, low=-1, high=-0.0001, n=2), "-0.500 (90 % interval -1.000 to 0.000, n = 2 replicates)"),
        (Estimate(value=0.2, n=1), "+0.200 (no interval from n = 1 replicate)"),
        (Estimate(), "not measured"),
    ],
)
def test_estimates_in_words(estimate: Estimate, text: str) -> None:
    assert format_estimate(estimate, 0.9, sign=True) == text


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    assert format_number(-0.0001) == "0.000"

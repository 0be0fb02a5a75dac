"""The benchmark of verdicts counts what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

import pandas as pd
import pytest

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.bench.synthetic_records import SyntheticStudy
from study.bench.synthetic_records.contents import build_norm_layers
from study.bench.synthetic_records.truth import simulate_run
from study.bench.verdicts import campaign
from study.bench.verdicts.campaign import measure, select_scenarios
from study.bench.verdicts.counts import Counts
from study.bench.verdicts.draws import compute_true_values, count_draws, find_advised_replicates, take_look
from study.bench.verdicts.scenarios import NO_EFFECT, Scenario, build_scenarios
from study.config.errors import UserError
from study.config.schema import MarginConfig
from study.plan.trials import plan_trials

SCENARIOS = {scenario.name: scenario for scenario in build_scenarios()}


VERDICTS = get_args(Verdict)


def build_answer(
    verdict: Verdict, effects: Sequence[Effect] = (), factors: Mapping[str, Verdict] | None = None
) -> Answer:  # fmt: skip
    return Answer(
        title="", verdict=verdict, answer="", rule="", effects=effects, n_done=1, n_planned=1, needs=[],
        factors=factors or {},
    )  # fmt: skip


def test_counts_are_of_sides_and_false_alarms() -> None:
    def effect(comparison: str, low: float, high: float, p_value: float | None) -> Effect:
        return Effect(
            measure=build_measures()["val_accuracy"], comparison=comparison,
            n_pairs=1, n_pairs_planned=1, p_value=p_value,
            estimate=Estimate(value=(low + high) / 2, low=low, high=high, n=3), bootstrap=(low, high),
        )  # fmt: skip

    counts = Counts()
    for p_value in (0.01, 0.2):
        effects = [effect("sn - bn", -0.1, 0.1, p_value), effect("sn - gn", 0.1, 0.2, 0.001)]
        counts.add(
            [build_answer("supported", effects)],
            ["not supported"],
            {("val_accuracy", "sn - bn"): 0.0, ("val_accuracy", "sn - gn"): 0.05},
            ["sn - bn"],
        )
    assert (counts.draws, counts.verdicts, counts.alarms) == (2, Counter(supported=2), Counter(val_accuracy=1))
    assert counts.false == 0
    assert counts.sides == counts.bootstrap
    assert counts.sides == {("val_accuracy", "sn - bn"): {"holds": 2}, ("val_accuracy", "sn - gn"): {"above": 2}}


def test_true_values_are_computed_from_many_replicates() -> None:
    values = compute_true_values(SCENARIOS["task moves"], 5)
    assert values["effect", "dataset"] == NO_EFFECT
    assert values["effect", "task"] > 0.2


def test_verdicts_on_factors_are_false_on_the_other_side_of_the_margin() -> None:
    displacements = {"depth": 0.2, "batch_size": 0.05, "solver": NO_EFFECT}
    true_values = {("effect", name): value for name, value in displacements.items()}
    supported, against, undecided = (dict.fromkeys(displacements, verdict) for verdict in VERDICTS)
    counts = Counts()
    for factors in (supported, against, undecided):
        counts.add([build_answer("not enough evidence", factors=factors)], [], true_values, margin=0.05)
    assert counts.false_factors == {"depth": 1, "batch_size": 2, "solver": 1}
    assert (counts.false, counts.false_any_factor) == (0, 2)
    assert counts.factors["depth"] == dict.fromkeys(VERDICTS, 1)


def test_differences_of_displacements_are_those_of_the_true_values() -> None:
    values = compute_true_values(SCENARIOS["the claim, 3 replicates"], 3)
    assert values["effect_difference", "depth - initialization"] == values["effect", "depth"] > 0.1


def test_logits_at_the_margin_move_weights_by_the_margin() -> None:
    values = compute_true_values(SCENARIOS["depth and B at the margin, 5 replicates"], 10)
    moved = [values["effect", factor] for factor in ("depth", "batch_size")]
    assert sum(moved) / 2 == pytest.approx(MarginConfig().displacement, abs=0.01)


def test_later_looks_have_more_replicates_and_a_higher_confidence() -> None:
    scenario = SCENARIOS["null, looks at 3 to 20"]
    records = SyntheticStudy(scenario.build_study(5)).draw_records(scenario.truth)
    looks = [take_look(scenario, records, numbers) for numbers in ([3], [3, 4], [3, 4, 5])]
    assert [look.confidence for look in looks] == pytest.approx([0.95, 0.975, 0.9875])
    assert [look.trials["replicate"].nunique() for look in looks] == [3, 4, 5]
    assert {look.is_interim for look in looks} == {False}
    again = SyntheticStudy(scenario.build_study(3)).draw_records(scenario.truth)
    pd.testing.assert_frame_equal(looks[0].trials, again.trials)


def test_an_interim_study_has_no_verdict() -> None:
    counts = count_draws(SCENARIOS["interim, the claim"], 1, {})
    assert counts.verdicts == {"not enough evidence": 1}
    assert {verdict for found in counts.factors.values() for verdict in found} == {"not enough evidence"}


def test_advice_is_read_from_the_needs_of_an_answer() -> None:
    needs = ["sn against bn: about 3 more replicates of every cell (7 in all) would settle it", "more (12 in all)"]
    assert find_advised_replicates(replace(build_answer("not enough evidence"), needs=needs)) == 12
    assert find_advised_replicates(build_answer("not enough evidence")) == 0


def test_every_scenario_has_a_row_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["null", "task moves, 3 replicates"]
    monkeypatch.setattr(campaign, "build_scenarios", lambda: [SCENARIOS[name] for name in names])
    monkeypatch.setattr(campaign, "DRAWS", 2)
    monkeypatch.setattr(campaign, "MANY_REPLICATES", 3)
    result = measure(quick=False, threads=1, device="cpu")
    assert [row["scenario"] for row in result.rows] == names
    for row in result.rows:
        assert row["supported"] + row["not supported"] + row["not enough evidence"] == pytest.approx(1)
    others, ends = ("bn", "gn", "sn-uniform"), ("high", "low")
    assert [figure.name for figure in result.figures] == [
        "null: false verdicts, high end",
        "null: p values of val_accuracy, low end",
        *(f"null: intervals of val_accuracy of sn - {other} cover, {end} end" for other in others for end in ends),
        "task moves, 3 replicates: false verdicts, high end",
        "task moves, 3 replicates: found",
        "task moves, 3 replicates: false verdicts on a factor, high end",
        "task moves, 3 replicates: p values of effect, low end",
        "task moves, 3 replicates: intervals of effect of task cover, high end",
        "task moves, 3 replicates: intervals of effect of task cover, low end",
        "task moves, 3 replicates: intervals of effect of dataset cover, high end",
    ]


def test_scenarios_have_names_of_their_own_and_are_selected_by_a_part_of_them() -> None:
    assert len(SCENARIOS) == len(build_scenarios())
    assert {scenario.name for scenario in select_scenarios("Levels of B")} == {
        "the claim, 2 levels of B", "the claim, 4 levels of B", "the claim, 8 levels of B",
    }  # fmt: skip
    with pytest.raises(UserError, match="--scenario levles"):
        select_scenarios("levles")


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    one, two = (
        measure(quick=True, threads=threads, device="cpu", scenario="planted, 2 replicates") for threads in (1, 2)
    )  # fmt: skip
    assert one.rows == two.rows


def test_a_verdict_at_any_look_counts_once() -> None:
    counts = Counts()
    verdicts: list[Verdict] = ["not enough evidence", "supported", "supported", "not enough evidence"]
    counts.add([build_answer(verdict) for verdict in verdicts], ["supported"], {})
    assert counts.false == 1
    assert counts.verdicts == Counter({"not enough evidence": 1, "supported": 1})


@pytest.mark.parametrize("scenario", build_scenarios(), ids=lambda scenario: scenario.name)
def test_the_study_of_every_scenario_can_be_drawn(scenario: Scenario) -> None:
    for trial in plan_trials(scenario.build_study(1)):
        run = simulate_run(trial, build_norm_layers(trial.config), scenario.truth)
        assert 0 < run.accuracy < 1.1
        assert run.history.sum(axis=-1) == pytest.approx(1, abs=1e-5)


def test_one_run_changes_the_mean_over_cells_that_remain() -> None:
    """The truth of the scenarios of a worst cell: sn is worse, but better in all other cells."""
    values = SCENARIOS["worst cell, 1 run failed"].compute_known_values()
    assert values["val_accuracy", "sn - bn"] == pytest.approx(-0.0024)


def test_the_bar_of_looks_is_for_each_kind_of_false_verdict_and_that_of_advice_for_each_comparison() -> None:
    def read(name: str, counts: Counts) -> dict[str, tuple[float, float]]:
        figures = campaign._build_figures(SCENARIOS[name], counts)
        return {figure.name.removeprefix(f"{name}: "): (figure.value, figure.bar or 0.0) for figure in figures}

    looks = Counts(draws=400, verdicts=Counter({"supported": 16, "not supported": 12}), false=28)
    found = read("at the margin, looks at 3 to 20", looks)["false verdicts, high end"]
    assert found[0] == campaign._wilson_interval(16, 400)[1]
    assert read("at the margin", looks)["false verdicts, high end"][0] == campaign._wilson_interval(28, 400)[1]
    advice = Counts(draws=400, advised=100, settled=70)
    for number, name in ((0, "advice followed, null"), (2, "advice followed, small effects")):
        advice.sides = {("effect_difference", f"{n} - x"): Counter(holds=1) for n in range(number)}
        assert read(name, advice)["settled as advised, high end"][1] == pytest.approx(0.8 ** max(1, number))

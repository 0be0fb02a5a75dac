"""The benchmark of verdicts counts what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.bench.synthetic_records.contents import build_norm_layers
from study.bench.synthetic_records.truth import simulate_run
from study.bench.verdicts import campaign
from study.bench.verdicts.campaign import Counts, compute_true_values, measure, select_scenarios
from study.bench.verdicts.scenarios import NO_EFFECT, Scenario, build_scenarios
from study.config.errors import UserError
from study.plan.trials import plan_trials

SCENARIOS = {scenario.name: scenario for scenario in build_scenarios()}


def build_answer(verdict: Verdict, effects: Sequence[Effect] = ()) -> Answer:
    return Answer(title="", verdict=verdict, answer="", rule="", effects=effects, n_done=1, n_planned=1, needs=[])


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
            {("val_accuracy", "sn - bn"): 0.0, ("val_accuracy", "sn - gn"): 0.05},
            ["sn - bn"],
        )
    assert (counts.draws, counts.verdicts, counts.alarms) == (2, Counter(supported=2), Counter(val_accuracy=1))
    assert counts.sides == counts.bootstrap
    assert counts.sides == {("val_accuracy", "sn - bn"): {"holds": 2}, ("val_accuracy", "sn - gn"): {"above": 2}}


def test_true_values_are_computed_from_many_replicates() -> None:
    values = compute_true_values(SCENARIOS["task moves"], 8)
    assert values["effect", "dataset"] == NO_EFFECT
    assert values["effect", "task"] > 2


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
        *(f"task moves, 3 replicates: p values of {name}, low end" for name in ("effect", "share_of_variance")),
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
        measure(quick=True, threads=threads, device="cpu", scenario="neither moves, 3") for threads in (1, 2)
    )  # fmt: skip
    assert one.rows == two.rows


def test_a_verdict_at_any_look_counts_once() -> None:
    counts = Counts()
    verdicts: list[Verdict] = ["not enough evidence", "supported", "supported", "not enough evidence"]
    counts.add([build_answer(verdict) for verdict in verdicts], {}, [])
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

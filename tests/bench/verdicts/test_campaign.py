"""The benchmark of verdicts counts what it says."""

from __future__ import annotations

import pytest

from study.analysis.questions.answers import Answer, Effect
from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.measures import build_measures
from study.bench.verdicts import campaign
from study.bench.verdicts.campaign import Counts, compute_true_values, measure
from study.bench.verdicts.scenarios import build_scenarios

SCENARIOS = {scenario.name: scenario for scenario in build_scenarios()}


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
        answer = Answer(title="", verdict="supported", answer="", rule="", effects=effects, n_done=1, n_planned=1,
                        needs=[])  # fmt: skip
        counts.add(answer, {("val_accuracy", "sn - bn"): 0.0, ("val_accuracy", "sn - gn"): 0.05}, ["sn - bn"])
    assert (counts.draws, counts.verdicts, counts.alarms) == (2, {"supported": 2}, 1)
    assert counts.sides == counts.bootstrap
    assert counts.sides == {("val_accuracy", "sn - bn"): {"holds": 2}, ("val_accuracy", "sn - gn"): {"above": 2}}


def test_true_values_are_computed_from_many_replicates() -> None:
    values = compute_true_values(SCENARIOS["task moves"], 8)
    assert values["effect", "dataset"] == 1.0
    assert values["effect", "task"] > 2


def test_every_scenario_has_a_row_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["null", "task moves, 3 replicates"]
    monkeypatch.setattr(campaign, "build_scenarios", lambda: [SCENARIOS[name] for name in names])
    monkeypatch.setattr(campaign, "DRAWS", 2)
    monkeypatch.setattr(campaign, "MANY_REPLICATES", 3)
    result = measure(quick=False, threads=None, device="cpu")
    assert [row["scenario"] for row in result.rows] == names
    for row in result.rows:
        assert row["supported"] + row["not supported"] + row["not enough evidence"] == pytest.approx(1)
    assert [figure.name for figure in result.figures] == [
        "null: false verdicts, low end",
        "null: intervals of val_accuracy cover, high end",
        "task moves, 3 replicates: false verdicts, low end",
        "task moves, 3 replicates: found, high end",
        "task moves, 3 replicates: intervals of effect cover, high end",
    ]

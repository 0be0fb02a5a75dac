"""How often the answers are wrong: a simulation of hundreds of studies per scenario, with a known truth.

In every scenario some verdict would be false, and a rule that errs in 5 % of studies gives it in 5 % of the draws.
Intervals are compared with the true value of what they estimate: a planted difference, or, where there is no closed
form, the mean of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from scipy import stats

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.verdicts import Verdict
from study.analysis.report.registry import QUESTIONS
from study.bench.result import Figure, Result
from study.bench.synthetic_records import SyntheticStudy
from study.bench.verdicts.scenarios import NumberKey, Scenario, build_scenarios

DRAWS, QUICK_DRAWS = 200, 4
FALSE_BAR, FOUND_BAR, COVERS_BAR = 0.05, 0.8, 0.95
MANY_REPLICATES, QUICK_MANY_REPLICATES = 24, 3  # of the studies that true values are computed from
FIRST_SEED_OF_TRUE_VALUES = 1_000_000  # no draw has it

Sides = dict[NumberKey, Counter[str]]  # for each number, how many intervals hold the truth, or lie above or below it


@dataclass(kw_only=True)
class Counts:
    """Counts over the draws of a scenario: verdicts, and on which side of the truth each interval lies.

    alarms: draws in which a headline number without an effect has an adjusted p value below 5 %.
    """

    draws: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    sides: Sides = field(default_factory=lambda: defaultdict(Counter))
    bootstrap: Sides = field(default_factory=lambda: defaultdict(Counter))
    alarms: int = 0

    def add(self, answer: Answer, true_values: Mapping[NumberKey, float], null: Collection[str]) -> None:
        """Counts one draw. `null`: the comparisons without an effect."""
        self.draws += 1
        self.verdicts[answer.verdict] += 1
        headline = [effect for effect in answer.effects if effect.measure.headline]
        self.alarms += any(
            effect.p_value is not None and effect.p_value < FALSE_BAR
            for effect in headline if effect.comparison in null
        )  # fmt: skip
        for effect in headline:
            key, low, high = _key(effect), effect.estimate.low, effect.estimate.high
            if key not in true_values:
                continue
            if low is not None and high is not None:
                self.sides[key][_find_side(low, high, true_values[key])] += 1
            if effect.bootstrap is not None:
                self.bootstrap[key][_find_side(*effect.bootstrap, true_values[key])] += 1


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Draws studies of every scenario and counts. Trains nothing, so `threads` and `device` have no effect."""
    draws = QUICK_DRAWS if quick else DRAWS
    result = Result("verdicts")
    for scenario in build_scenarios():
        true_values = compute_true_values(scenario, QUICK_MANY_REPLICATES if quick else MANY_REPLICATES)
        counts = count_draws(scenario, draws, true_values)
        result.rows.append(_build_row(scenario, counts))
        result.figures += [] if quick else _build_figures(scenario, counts)
    result.notes.append(
        f"{draws} draws of each scenario. false: share of the draws with a verdict that is wrong there, with its 95 % "
        "Wilson interval. covers: share of the intervals of headline numbers that hold the true value; in parentheses, "
        "of those that lie wholly above and below it. family p: share of draws in which any number without an effect "
        f"has an adjusted p value below 5 %. The bars are {FALSE_BAR:g} for false verdicts, {FOUND_BAR:g} for expected "
        f"verdicts and {COVERS_BAR:g} for intervals that hold the true value; a share misses its bar only if its whole "
        "interval does."
    )
    return result


def count_draws(
    scenario: Scenario,
    draws: int,
    true_values: Mapping[NumberKey, float],
    is_enough: Callable[[Counts], bool] = lambda counts: False,
) -> Counts:
    """Answers the scenario's question on that many studies, each with its own seed; stops early if `is_enough`."""
    study, counts = SyntheticStudy(scenario.build_study(scenario.replicates)), Counts()
    null = [comparison for (_, comparison), value in scenario.compute_known_values().items() if value in (0.0, 1.0)]
    for seed in range(draws):
        records = study.draw_records(replace(scenario.truth, seed=seed))
        counts.add(QUESTIONS[scenario.question].answer(records), true_values, null)
        if is_enough(counts):
            break
    return counts


def compute_true_values(scenario: Scenario, replicates: int) -> dict[NumberKey, float]:
    """True values of a scenario's numbers: known ones, and others from studies with that many replicates."""
    known = scenario.compute_known_values()
    if scenario.question == "useful":
        return known
    study = SyntheticStudy(scenario.build_study(replicates))
    truth = replace(scenario.truth, diverges=lambda trial, accuracy: 0.0)
    estimates: dict[NumberKey, list[float]] = defaultdict(list)
    for seed in range(FIRST_SEED_OF_TRUE_VALUES, FIRST_SEED_OF_TRUE_VALUES + 3):
        for effect in QUESTIONS[scenario.question].answer(study.draw_records(replace(truth, seed=seed))).effects:
            if effect.estimate.value is not None and effect.measure.headline:
                estimates[_key(effect)].append(effect.estimate.value)
    return {key: float(np.mean(values)) for key, values in estimates.items()} | known


def _build_row(scenario: Scenario, counts: Counts) -> dict[str, Any]:
    false = counts.verdicts[scenario.wrong]
    low, high = _wilson_interval(false, counts.draws)
    return {
        "scenario": scenario.name, "question": scenario.question, "n": scenario.replicates,
        "truth": scenario.description,
        **{verdict: counts.verdicts[verdict] / counts.draws for verdict in get_args(Verdict)},
        "false": f"{false / counts.draws:.3f} ({low:.3f} to {high:.3f})",
        "covers": _format_sides(counts.sides), "bootstrap covers": _format_sides(counts.bootstrap),
        "family p": counts.alarms / counts.draws,
    }  # fmt: skip


def _format_sides(sides: Sides) -> str:
    """`effect 0.95 (above 0.03, below 0.02)`, for each measure."""
    parts = []
    for measure, count in _sum_by_measure(sides).items():
        holds, above, below = (count[side] / count.total() for side in ("holds", "above", "below"))
        parts.append(f"{measure} {holds:.3f} (above {above:.3f}, below {below:.3f})")
    return "; ".join(parts)


def _build_figures(scenario: Scenario, counts: Counts) -> list[Figure]:
    """The end of each share's interval that is nearer to the bar: chance alone rarely makes it miss."""
    low, _ = _wilson_interval(counts.verdicts[scenario.wrong], counts.draws)
    figures = [Figure(f"{scenario.name}: false verdicts, low end", low, FALSE_BAR)]
    if scenario.expected:
        _, high = _wilson_interval(counts.verdicts[scenario.expected], counts.draws)
        figures.append(Figure(f"{scenario.name}: found, high end", high, FOUND_BAR, at_least=True))
    for measure, count in _sum_by_measure(counts.sides).items():
        # The intervals of one draw are correlated, so each draw counts once.
        _, high = _wilson_interval(round(count["holds"] / count.total() * counts.draws), counts.draws)
        figures.append(
            Figure(f"{scenario.name}: intervals of {measure} cover, high end", high, COVERS_BAR, at_least=True)
        )
    return figures


def _sum_by_measure(sides: Sides) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (measure, _), count in sides.items():
        counts[measure] += count
    return counts


def _wilson_interval(count: int, draws: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    interval = stats.binomtest(count, draws).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def _find_side(low: float, high: float, true_value: float) -> str:
    """Where an interval lies: above or below the true value, or around it."""
    return "above" if low > true_value else "below" if high < true_value else "holds"


def _key(effect: Effect) -> NumberKey:
    return effect.measure.name, effect.comparison

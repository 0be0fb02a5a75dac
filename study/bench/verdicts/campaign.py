"""How often the answers are wrong: a simulation of hundreds of studies per scenario, with a known truth.

In every scenario some verdict would be false, and a rule that errs in 5 % of studies gives it in 5 % of the draws.
Intervals are compared with the true value of what they estimate: a planted difference, or, where there is no closed
form, the mean of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, get_args

import numpy as np
from scipy import stats

from study.analysis.questions.answers import Answer, Effect
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.report.registry import QUESTIONS
from study.bench.result import Figure, Result
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.bench.verdicts.scenarios import NO_EFFECT, NumberKey, Scenario, build_scenarios
from study.config.errors import UserError, allowed_names
from study.plan.trials import PlannedTrial

DRAWS, QUICK_DRAWS = 400, 4
SIGNIFICANCE, FALSE_BAR, FOUND_BAR = 0.05, 0.08, 0.8
LEAST_COVERED, MOST_COVERED = 0.93, 0.97
MIN_REPLICATES_TO_COVER = 3
MANY_REPLICATES, QUICK_MANY_REPLICATES = 24, 3  # of the studies that true values are computed from
FIRST_SEED_OF_TRUE_VALUES = 1_000_000  # no draw has it

TESTED = ("share_of_variance",)  # the measures beside the headline ones whose p values are counted

Sides = dict[NumberKey, Counter[str]]  # for each number, how many intervals hold the truth, or lie above or below it


@dataclass(kw_only=True)
class Counts:
    """Counts over the draws of a scenario: verdicts, and on which side of the truth each interval lies.

    alarms: for each measure, draws in which a number without an effect has an adjusted p value below 5 %.
    """

    draws: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    sides: Sides = field(default_factory=lambda: defaultdict(Counter))
    bootstrap: Sides = field(default_factory=lambda: defaultdict(Counter))
    alarms: Counter[str] = field(default_factory=Counter)

    def add(self, answers: Sequence[Answer], true_values: Mapping[NumberKey, float], null: Collection[str]) -> None:
        """Counts one draw: the answers at its looks. A verdict counts once; numbers are those of the last look.

        null: the comparisons without an effect.
        """
        self.draws += 1
        self.verdicts.update({answer.verdict for answer in answers})
        effects = answers[-1].effects
        tested = [effect for effect in effects if effect.measure.name in TESTED or _is_main(effect)]
        p_values: dict[str, list[float]] = defaultdict(list)
        for effect in tested:
            if effect.comparison in null and effect.p_value is not None:
                p_values[effect.measure.name].append(effect.p_value)
        for measure, found in p_values.items():
            self.alarms[measure] += min(found) < SIGNIFICANCE
        for effect in filter(_is_main, effects):
            key, low, high = _key(effect), effect.estimate.low, effect.estimate.high
            if key not in true_values:
                continue
            if low is not None and high is not None:
                self.sides[key][_find_side(low, high, true_values[key])] += 1
            if effect.bootstrap is not None:
                self.bootstrap[key][_find_side(*effect.bootstrap, true_values[key])] += 1


def measure(*, quick: bool, threads: int | None, device: str, scenario: str | None = None) -> Result:
    """Draws studies of every scenario and counts. Trains nothing, so `device` has no effect.

    threads: number of processes; results do not depend on it. scenario: part of the names of the scenarios to draw.
    """
    draws = QUICK_DRAWS if quick else DRAWS
    result = Result("verdicts")
    for found, counts in _count_all(select_scenarios(scenario), quick, threads or 1):
        result.rows.append(_build_row(found, counts))
        result.figures += [] if quick else _build_figures(found, counts)
    result.notes.append(
        f"{draws} draws of each scenario. false: share of the draws with a verdict that is wrong there, with its 95 % "
        "Wilson interval; where a study is answered at several numbers of replicates, a verdict at any of them counts. "
        "covers: share of the intervals of headline numbers that hold the true value; in parentheses, of those that "
        f"lie wholly above and below it. p below {SIGNIFICANCE:g}: share of draws in which any number without an "
        f"effect has an adjusted p value below {SIGNIFICANCE:g}. False verdicts may be 5 % of the draws, and miss the "
        f"bar if their interval ends above {FALSE_BAR:g}. Expected verdicts must be found in {FOUND_BAR:g} of the "
        f"draws. Of 95 % intervals, {LEAST_COVERED:g} to {MOST_COVERED:g} must hold the true value; that bar is missed "
        "only if the share's whole interval lies outside, and those of factors without an effect may hold it more "
        "often."
    )
    return result


def select_scenarios(text: str | None) -> list[Scenario]:
    """The scenarios whose name contains a text, of any case; all of them without one.

    Raises `UserError` where there is none.
    """
    scenarios = build_scenarios()
    found = [scenario for scenario in scenarios if (text or "").lower() in scenario.name.lower()]
    if not found:
        raise UserError(f"--scenario {text}: {allowed_names(text or '', [scenario.name for scenario in scenarios])}")
    return found


def count_draws(
    scenario: Scenario,
    draws: int,
    true_values: Mapping[NumberKey, float],
    is_enough: Callable[[Counts], bool] = lambda counts: False,
) -> Counts:
    """Answers the scenario's question on that many studies, each with its own seed; stops early if `is_enough`."""
    looks = [SyntheticStudy(scenario.build_study(number)) for number in scenario.looks or [scenario.replicates]]
    values, counts = scenario.compute_known_values(), Counts()
    null = [comparison for (measure, comparison), value in values.items() if value == _find_null_value(measure)]
    for seed in range(draws):
        truth = replace(scenario.truth, seed=seed)
        answers = [
            QUESTIONS[scenario.question].answer(_draw_look(study, truth, look))
            for look, study in enumerate(looks, start=1)
        ]
        counts.add(answers, true_values, null)
        if is_enough(counts):
            break
    return counts


def _draw_look(study: SyntheticStudy, truth: Truth, look: int) -> StudyRecords:
    """The records at a look, the first being the planned one. Their replicates are those of earlier looks and more."""
    return study.draw_records(truth)


def _count_all(scenarios: Sequence[Scenario], quick: bool, processes: int) -> Iterator[tuple[Scenario, Counts]]:
    """The counts of every scenario, in order. Other processes find scenarios by name: functions cannot be sent."""
    names = [scenario.name for scenario in scenarios]
    if processes == 1:
        counts = [count_scenario(name, quick) for name in names]
        return zip(scenarios, counts, strict=True)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return zip(scenarios, list(pool.map(count_scenario, names, [quick] * len(names))), strict=True)


def count_scenario(name: str, quick: bool) -> Counts:
    """Counts the draws of one scenario, in this process."""
    (scenario,) = (scenario for scenario in build_scenarios() if scenario.name == name)
    true_values = {} if scenario.looks else compute_true_values(
        scenario, QUICK_MANY_REPLICATES if quick else MANY_REPLICATES
    )  # fmt: skip
    return count_draws(scenario, QUICK_DRAWS if quick else DRAWS, true_values)


def compute_true_values(scenario: Scenario, replicates: int) -> dict[NumberKey, float]:
    """True values of a scenario's numbers: known ones, and others from studies with that many replicates."""
    known = scenario.compute_known_values()
    if scenario.question == "useful":
        return known
    study = SyntheticStudy(scenario.build_study(replicates))
    truth = replace(scenario.truth, diverges=_never, fails=_never, repeats={})
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
        f"p below {SIGNIFICANCE:g}": _format_alarms(counts),
    }  # fmt: skip


def _format_sides(sides: Sides) -> str:
    """`effect 0.95 (above 0.03, below 0.02)`, for each measure."""
    parts = []
    for measure, count in _sum_by_measure(sides).items():
        holds, above, below = (count[side] / count.total() for side in ("holds", "above", "below"))
        parts.append(f"{measure} {holds:.3f} (above {above:.3f}, below {below:.3f})")
    return "; ".join(parts)


def _format_alarms(counts: Counts) -> str:
    """`effect 0.04; share_of_variance 0.05`."""
    return "; ".join(f"{measure} {count / counts.draws:.3f}" for measure, count in sorted(counts.alarms.items()))


def _build_figures(scenario: Scenario, counts: Counts) -> list[Figure]:
    """The shares with bars; of coverage and p values, the end of the interval that chance rarely makes miss."""
    _, high = _wilson_interval(counts.verdicts[scenario.wrong], counts.draws)
    figures = [Figure(f"{scenario.name}: false verdicts, high end", high, FALSE_BAR)]
    if scenario.expected:
        found = counts.verdicts[scenario.expected] / counts.draws
        figures.append(Figure(f"{scenario.name}: found", found, FOUND_BAR, at_least=True))
    for measure, alarms in counts.alarms.items():
        low, _ = _wilson_interval(alarms, counts.draws)
        figures.append(Figure(f"{scenario.name}: p values of {measure}, low end", low, SIGNIFICANCE))
    if scenario.replicates < MIN_REPLICATES_TO_COVER:
        return figures
    for (measure, comparison), count in counts.sides.items():
        low, high = _wilson_interval(count["holds"], count.total())
        name = f"{scenario.name}: intervals of {measure} of {comparison} cover"
        figures.append(Figure(f"{name}, high end", high, LEAST_COVERED, at_least=True))
        if comparison not in scenario.null_factors:  # a displacement of 0 is the lowest that there is
            figures.append(Figure(f"{name}, low end", low, MOST_COVERED))
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


def _never(trial: PlannedTrial, accuracy: float) -> float:
    return 0.0


def _is_main(effect: Effect) -> bool:
    return effect.measure.headline


def _find_null_value(measure: str) -> float:
    """The value of a number without an effect."""
    return NO_EFFECT if measure == "effect" else 0.0

"""How often the answers are wrong: a simulation of hundreds of studies per scenario, with a known truth.

In every scenario some verdict would be false, and a rule that errs in 5 % of studies gives it in 5 % of the draws.
Intervals are compared with the true value of what they estimate: a planted difference, or, where there is no closed
form, the mean of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, get_args

from rich.console import Console
from scipy import stats

from study.analysis.questions.verdicts import Verdict
from study.bench.result import Figure, Result
from study.bench.verdicts.counts import SIGNIFICANCE, Counts, Sides
from study.bench.verdicts.draws import compute_true_values, count_draws
from study.bench.verdicts.scenarios import Scenario, build_scenarios
from study.config.errors import UserError, allowed_names

DRAWS, QUICK_DRAWS = 400, 4
FALSE_BAR, FOUND_BAR = 0.08, 0.8
LEAST_COVERED, MOST_COVERED = 0.93, 0.97
MIN_REPLICATES_TO_COVER = 3
MANY_REPLICATES, QUICK_MANY_REPLICATES = 40, 3  # of the studies that true values are computed from


def measure(*, quick: bool, threads: int | None, device: str, scenario: str | None = None) -> Result:
    """Draws studies of every scenario and counts. Trains nothing, so `device` has no effect.

    threads: number of processes; results do not depend on it. scenario: part of the names of the scenarios to draw.
    """
    draws = QUICK_DRAWS if quick else DRAWS
    result = Result("verdicts")
    scenarios, console = select_scenarios(scenario), Console(stderr=True, highlight=False)
    for found, counts in _count_all(scenarios, quick, threads or 1):
        result.rows.append(_build_row(found, counts))
        console.print(f"{len(result.rows)} of {len(scenarios)}: {found.name}")
        result.figures += [] if quick else _build_figures(found, counts)
    result.notes.append(
        f"{draws} draws of each scenario. false: share of the draws with a verdict that is wrong there, with its 95 % "
        "Wilson interval; where a study is answered at several numbers of replicates, a verdict at any of them counts, "
        "and the bar is for each kind of false verdict. false of any factor: the same for the verdicts on single "
        "factors. settled as advised: share of the draws without a verdict that have one after the advised replicates "
        "were added. covers: share of the intervals of the numbers that decide that hold the true value; in "
        "parentheses, of those that lie wholly above and below it; numbers that count a norm with the score of "
        f"guessing are left out. p below {SIGNIFICANCE:g}: share of draws in which "
        f"any number without an effect has an adjusted p value below {SIGNIFICANCE:g}. False verdicts may be 5 % of "
        f"the draws, and miss the bar if their interval ends above {FALSE_BAR:g}; of factors, those of any one factor. "
        f"Expected verdicts must be found in {FOUND_BAR:g} of the draws, and advice settle as many of every comparison "
        f"that decides, unless the truth is at the margin. Of 95 % intervals, {LEAST_COVERED:g} to {MOST_COVERED:g} "
        "must hold the true value; that bar is missed only if the share's whole interval lies outside, and those of "
        "factors without an effect may hold it more often."
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


def _count_all(scenarios: Sequence[Scenario], quick: bool, processes: int) -> Iterator[tuple[Scenario, Counts]]:
    """The counts of every scenario, in order. Other processes find scenarios by name: functions cannot be sent."""
    names = [scenario.name for scenario in scenarios]
    if processes == 1:
        yield from zip(scenarios, (count_scenario(name, quick) for name in names), strict=True)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from zip(scenarios, pool.map(count_scenario, names, [quick] * len(names)), strict=True)


def count_scenario(name: str, quick: bool) -> Counts:
    """Counts the draws of one scenario, in this process."""
    (scenario,) = (scenario for scenario in build_scenarios() if scenario.name == name)
    true_values = compute_true_values(scenario, QUICK_MANY_REPLICATES if quick else MANY_REPLICATES)
    return count_draws(scenario, QUICK_DRAWS if quick else DRAWS, true_values)


def _build_row(scenario: Scenario, counts: Counts) -> dict[str, Any]:
    return {
        "scenario": scenario.name, "question": scenario.question, "n": scenario.replicates,
        "truth": scenario.description,
        **{verdict: counts.verdicts[verdict] / counts.draws for verdict in get_args(Verdict)},
        "false": _format_share(counts.false, counts.draws),
        "false of any factor": _format_share(counts.false_any_factor, counts.draws) if counts.factors else "",
        "factors supported": "; ".join(
            f"{name} {found['supported'] / counts.draws:.3f}" for name, found in counts.factors.items()
        ),
        "settled as advised": _format_share(counts.settled, counts.advised) if counts.advised else "",
        "covers": _format_sides(counts.sides), "bootstrap covers": _format_sides(counts.bootstrap),
        f"p below {SIGNIFICANCE:g}": _format_alarms(counts),
    }  # fmt: skip


def _format_share(count: int, total: int) -> str:
    """`0.025 (0.012 to 0.049)`."""
    low, high = _wilson_interval(count, total)
    return f"{count / total:.3f} ({low:.3f} to {high:.3f})"


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
    _, high = _wilson_interval(_count_false(scenario, counts), counts.draws)
    figures = [Figure(f"{scenario.name}: false verdicts, high end", high, FALSE_BAR)]
    if scenario.expected:
        found = counts.verdicts[scenario.expected] / counts.draws
        figures.append(Figure(f"{scenario.name}: found", found, FOUND_BAR, at_least=True))
    if counts.factors:
        _, high = _wilson_interval(max(counts.false_factors.values(), default=0), counts.draws)
        figures.append(Figure(f"{scenario.name}: false verdicts on a factor, high end", high, FALSE_BAR))
    if counts.advised and len(scenario.wrong) == 1:
        _, high = _wilson_interval(counts.settled, counts.advised)
        comparisons = max(1, sum(measure == "effect_difference" for measure, _ in counts.sides))  # of factors
        bar = FOUND_BAR**comparisons  # the advice gives each of them this probability
        figures.append(Figure(f"{scenario.name}: settled as advised, high end", high, bar, at_least=True))
    for measure, alarms in counts.alarms.items():
        low, _ = _wilson_interval(alarms, counts.draws)
        figures.append(Figure(f"{scenario.name}: p values of {measure}, low end", low, SIGNIFICANCE))
    if scenario.replicates < MIN_REPLICATES_TO_COVER:
        return figures
    for (measure, comparison), count in counts.sides.items():
        low, high = _wilson_interval(count["holds"], count.total())
        name = f"{scenario.name}: intervals of {measure} of {comparison} cover"
        figures.append(Figure(f"{name}, high end", high, LEAST_COVERED, at_least=True))
        # A displacement of 0 is the lowest that there is, so intervals of it, and of differences from it, are too wide.
        # So are those of norms at the best of equal levels, and those of later looks, which have a higher confidence.
        is_wide = {*scenario.null_factors} & {*comparison.split(" - ")} or measure == "tuned_difference"
        if not is_wide and not scenario.looks:
            figures.append(Figure(f"{name}, low end", low, MOST_COVERED))
    return figures


def _count_false(scenario: Scenario, counts: Counts) -> int:
    """Draws with a false verdict; at several looks, those with the more frequent kind of false verdict.

    All looks together give each kind in at most 5 % of studies (docs/plan.md). At the margin itself both are false.
    """
    if scenario.looks or scenario.advised_up_to:
        return max(counts.verdicts[verdict] for verdict in scenario.wrong)
    return counts.false


def _sum_by_measure(sides: Sides) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (measure, _), count in sides.items():
        counts[measure] += count
    return counts


def _wilson_interval(count: int, draws: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    interval = stats.binomtest(count, draws).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)

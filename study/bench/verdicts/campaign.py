"""How often the answers are wrong: a simulation of hundreds of studies per scenario, with a known truth.

In every scenario some verdict would be false, and a rule that errs in 5 % of studies gives it in 5 % of the draws.
Intervals are compared with the true value of what they estimate: a planted difference, or, where there is no closed
form, the mean of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, get_args

import numpy as np
import pyarrow.compute as pc
from scipy import stats

from study.analysis.questions.answers import Answer, Effect, Judgement
from study.analysis.questions.verdicts import AGAINST, OPEN, SUPPORTED, Verdict
from study.analysis.records import StudyRecords
from study.analysis.report.registry import QUESTIONS, answer_questions
from study.bench.result import Figure, Result
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.bench.verdicts.scenarios import NO_EFFECT, NumberKey, Scenario, build_scenarios
from study.config.errors import UserError, allowed_names
from study.config.schema import StudyConfig
from study.plan.analysis_plan import amend_plan, record_plan, resolve_analysis_plan
from study.plan.trials import PlannedTrial

DRAWS, QUICK_DRAWS = 400, 4
SIGNIFICANCE, FALSE_BAR, FOUND_BAR = 0.05, 0.08, 0.8
LEAST_COVERED, MOST_COVERED = 0.93, 0.97
MIN_REPLICATES_TO_COVER = 3
MANY_REPLICATES, QUICK_MANY_REPLICATES = 40, 3  # of the studies that true values are computed from
STUDIES_OF_TRUE_VALUES = 6
FIRST_SEED_OF_TRUE_VALUES = 1_000_000  # no draw has it

TESTED = ("share_of_variance", "effect_layer")  # measures whose p values are counted where `counts_p_values`
ROUNDING = 1e-9  # where seeds change nothing, an interval is a single point
AT_MARGIN = 0.002  # a displacement this close to its margin may be called neither larger nor smaller

Judged = Answer | Judgement
Sides = dict[NumberKey, Counter[str]]  # for each number, how many intervals hold the truth, or lie above or below it


@dataclass(kw_only=True)
class Counts:
    """Counts over the draws of a scenario: verdicts, and on which side of the truth each interval lies.

    false: draws with a false verdict on the claim, at any look. factors: for each factor, its verdicts at all looks.
    false_factors: the draws with a false verdict on each factor. false_any_factor: those with one on any factor.
    advised, settled: draws in which the advice on replicates was followed, and of these, the draws with a verdict.
    alarms: for each measure, draws in which a number without an effect has an adjusted p value below 5 %.
    """

    draws: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    false: int = 0
    factors: dict[str, Counter[Verdict]] = field(default_factory=lambda: defaultdict(Counter))
    false_factors: Counter[str] = field(default_factory=Counter)
    false_any_factor: int = 0
    advised: int = 0
    settled: int = 0
    sides: Sides = field(default_factory=lambda: defaultdict(Counter))
    bootstrap: Sides = field(default_factory=lambda: defaultdict(Counter))
    alarms: Counter[str] = field(default_factory=Counter)

    def add(
        self, answers: Sequence[Judged], wrong: Collection[Verdict], true_values: Mapping[NumberKey, float],
        null: Collection[str] = (), margin: float = 0.0,
    ) -> None:  # fmt: skip
        """Counts one draw: the answers at its looks. A verdict counts once; numbers are those of the last look.

        null: the comparisons without an effect. margin: that of displacements.
        """
        self.draws += 1
        found = {answer.verdict for answer in answers}
        self.verdicts.update(found)
        self.false += bool(found & {*wrong})
        self._add_factors(answers, true_values, margin)
        self._add_numbers(answers[-1].effects, true_values, null)

    def _add_factors(self, answers: Sequence[Judged], true_values: Mapping[NumberKey, float], margin: float) -> None:
        false = set()
        for name in dict.fromkeys(name for answer in answers for name in answer.factors):
            found = {answer.factors[name] for answer in answers if name in answer.factors}
            self.factors[name].update(found)
            if ("effect", name) in true_values and found & find_false_verdicts(true_values["effect", name], margin):
                false.add(name)
        self.false_factors.update(false)
        self.false_any_factor += bool(false)

    def _add_numbers(
        self, effects: Sequence[Effect], true_values: Mapping[NumberKey, float], null: Collection[str]
    ) -> None:
        p_values: dict[str, list[float]] = defaultdict(list)
        for effect in effects:
            key, low, high, measure = _key(effect), effect.estimate.low, effect.estimate.high, effect.measure.name
            is_null = true_values[key] == NO_EFFECT if key in true_values else measure in TESTED
            if is_null and effect.p_value is not None and effect.comparison.partition(",")[0] in null:
                p_values[measure].append(effect.p_value)
            if key not in true_values:
                continue
            if low is not None and high is not None:
                self.sides[key][_find_side(low, high, true_values[key])] += 1
            if effect.bootstrap is not None:
                self.bootstrap[key][_find_side(*effect.bootstrap, true_values[key])] += 1
        for measure, found in p_values.items():
            self.alarms[measure] += min(found) < SIGNIFICANCE


def find_false_verdicts(displacement: float, margin: float) -> set[Verdict]:
    """The verdicts on a factor that its true displacement makes false; at the margin, both."""
    false: set[Verdict] = set()
    if displacement < margin + AT_MARGIN:
        false.add(SUPPORTED)
    if displacement > margin - AT_MARGIN:
        false.add(AGAINST)
    return false


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
        "false of any factor: the same for the verdicts on single factors. settled as advised: share of the draws "
        "without a verdict that have one after the advised replicates were added. covers: share of the intervals of "
        "the numbers that decide that hold the true value; in parentheses, of those that lie wholly above and below "
        f"it. p below {SIGNIFICANCE:g}: share of draws in which any number without an effect has an adjusted p value "
        f"below {SIGNIFICANCE:g}. False verdicts may be 5 % of the draws, and miss the bar if their interval ends "
        f"above {FALSE_BAR:g}; of factors, those of any one factor. Expected verdicts must be found in {FOUND_BAR:g} "
        f"of the draws, and advice settle as many, unless the truth is at the margin. Of 95 % intervals, "
        f"{LEAST_COVERED:g} to {MOST_COVERED:g} must hold the true value; that bar is missed only if the share's whole "
        "interval lies outside, and those of factors without an effect may hold it more often."
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
    first: int = 0,
) -> Counts:
    """Answers the scenario's question on that many studies, each with its own seed; stops early if `is_enough`.

    first: the seed of the first study.
    """
    values, counts = scenario.compute_known_values(), Counts()
    null = [comparison for (_, comparison), value in values.items() if value == NO_EFFECT]
    margin = scenario.build_study(1).analysis.margins.displacement
    for seed in range(first, first + draws):
        truth = replace(scenario.truth, seed=seed)
        answers = _answer_advised(scenario, truth, counts) if scenario.advised_up_to else _answer_looks(scenario, truth)
        counts.add(answers, scenario.wrong, true_values, null, margin)
        if is_enough(counts):
            break
    return counts


def _answer_looks(scenario: Scenario, truth: Truth) -> list[Judged]:
    """The answers to one study at each of its looks."""
    numbers = [*scenario.looks] or [scenario.replicates]
    largest = _get_synthetic_study(scenario, numbers[-1]).draw_records(truth, only=scenario.ended or _always)
    return [_judge(scenario, take_look(scenario, largest, numbers[: look + 1])) for look in range(len(numbers))]


def _answer_advised(scenario: Scenario, truth: Truth, counts: Counts) -> list[Judged]:
    """The answer to one study and, if it has no verdict, that after the replicates have been added that it advises."""
    planned = scenario.replicates
    records = _get_synthetic_study(scenario, planned).draw_records(truth)
    answer = QUESTIONS[scenario.question].answer(records)
    advised = find_advised_replicates(answer)
    if answer.verdict != OPEN or not planned < advised <= scenario.advised_up_to:
        return [answer]
    largest = _get_synthetic_study(scenario, advised).draw_records(truth)
    second = _judge(scenario, take_look(scenario, largest, [planned, advised]))
    counts.advised += 1
    counts.settled += second.verdict != OPEN
    return [answer, second]


def find_advised_replicates(answer: Answer) -> int:
    """The largest number of replicates that the answer says would settle it; 0 if it names none."""
    return max((int(number) for need in answer.needs for number in re.findall(r"\((\d+) in all\)", need)), default=0)


def take_look(scenario: Scenario, records: StudyRecords, numbers: Sequence[int]) -> StudyRecords:
    """The records when the study had the last of these numbers of replicates, after looks at the others.

    The first number is the planned one, and each later one an amendment of the plan after there were results.
    """
    studies = [scenario.build_study(number) for number in numbers]
    plan = record_plan(resolve_analysis_plan(studies[0]), "2026-01-01", results=0)
    for study in studies[1:]:
        plan = amend_plan(plan, resolve_analysis_plan(study), "2026-01-01", results=1)
    trials = records.trials[records.trials["replicate"] < numbers[-1]].reset_index(drop=True)
    if len(trials) == len(records.trials):
        return replace(records, plan=plan)
    frames = {name: getattr(records, name) for name in ("switch", "heads", "switch_epochs", "curves")}
    kept = {name: frame[frame["key"].isin(trials["key"])].reset_index(drop=True) for name, frame in frames.items()}
    weights = records.weights.filter(pc.less(records.weights["replicate"], numbers[-1]))
    return replace(records, study=studies[-1], plan=plan, trials=trials, weights=weights, **kept)


def _judge(scenario: Scenario, records: StudyRecords) -> Judged:
    """The verdicts; the whole answer where more of it is counted, or where it may withhold them."""
    if scenario.counts_p_values or scenario.tuned or records.is_interim:
        return answer_questions(records)[scenario.question]
    return QUESTIONS[scenario.question].judge(records)


def _get_synthetic_study(scenario: Scenario, replicates: int) -> SyntheticStudy:
    return _build_synthetic_study(scenario.build_study(replicates).model_dump_json())


@lru_cache(maxsize=64)
def _build_synthetic_study(study: str) -> SyntheticStudy:
    """One for all scenarios whose studies are equal."""
    return SyntheticStudy(StudyConfig.model_validate_json(study))


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
    true_values = compute_true_values(scenario, QUICK_MANY_REPLICATES if quick else MANY_REPLICATES)
    return count_draws(scenario, QUICK_DRAWS if quick else DRAWS, true_values)


def compute_true_values(scenario: Scenario, replicates: int) -> dict[NumberKey, float]:
    """True values of a scenario's numbers: known ones, and displacements from studies with that many replicates.

    Squared displacements are averaged, which are not biased, and differences are those of the averages.
    """
    known = scenario.compute_known_values()
    if scenario.question == "useful":
        return known
    study = _get_synthetic_study(scenario, replicates)
    truth = replace(scenario.truth, diverges=_never, fails=_never, repeats={})
    squares: dict[NumberKey, list[float]] = defaultdict(list)
    differences: set[NumberKey] = set()
    for seed in range(FIRST_SEED_OF_TRUE_VALUES, FIRST_SEED_OF_TRUE_VALUES + STUDIES_OF_TRUE_VALUES):
        for effect in QUESTIONS[scenario.question].judge(study.draw_records(replace(truth, seed=seed))).effects:
            value = effect.estimate.value
            if effect.measure.name == "effect" and value is not None:
                squares[_key(effect)].append(value * abs(value))
            elif effect.measure.name == "effect_difference":
                differences.add(_key(effect))
    means = {key: float(np.mean(values)) for key, values in squares.items()}
    found = {key: float(np.sign(mean) * np.sqrt(abs(mean))) for key, mean in means.items()} | known
    for measure, comparison in differences:
        first, second = comparison.split(" - ")
        found[measure, comparison] = found["effect", first] - found["effect", second]
    return found


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
    _, high = _wilson_interval(counts.false, counts.draws)
    figures = [Figure(f"{scenario.name}: false verdicts, high end", high, FALSE_BAR)]
    if scenario.expected:
        found = counts.verdicts[scenario.expected] / counts.draws
        figures.append(Figure(f"{scenario.name}: found", found, FOUND_BAR, at_least=True))
    if counts.factors:
        _, high = _wilson_interval(max(counts.false_factors.values(), default=0), counts.draws)
        figures.append(Figure(f"{scenario.name}: false verdicts on a factor, high end", high, FALSE_BAR))
    if counts.advised and len(scenario.wrong) == 1:
        _, high = _wilson_interval(counts.settled, counts.advised)
        figures.append(Figure(f"{scenario.name}: settled as advised, high end", high, FOUND_BAR, at_least=True))
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
        if not {*scenario.null_factors} & {*comparison.split(" - ")}:
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
    return "above" if low > true_value + ROUNDING else "below" if high < true_value - ROUNDING else "holds"


def _key(effect: Effect) -> NumberKey:
    return effect.measure.name, effect.comparison


def _never(trial: PlannedTrial, accuracy: float) -> float:
    return 0.0


def _always(trial: PlannedTrial) -> bool:
    return True

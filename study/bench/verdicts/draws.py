"""Draws studies of a scenario, answers them as a user would, and computes the truth that answers are compared with."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow.compute as pc

from study.analysis.questions.answers import Answer
from study.analysis.questions.verdicts import OPEN
from study.analysis.records import StudyRecords
from study.analysis.report.registry import QUESTIONS, answer_questions
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.bench.verdicts.counts import FACTOR_NUMBERS, Counts, Judged, build_key
from study.bench.verdicts.scenarios import NO_EFFECT, NumberKey, Scenario
from study.config.schema import StudyConfig
from study.plan.analysis_plan import amend_plan, record_plan, resolve_analysis_plan
from study.plan.trials import PlannedTrial

STUDIES_OF_TRUE_VALUES = 6
FIRST_SEED_OF_TRUE_VALUES = 1_000_000  # no draw has it


def count_draws(
    scenario: Scenario,
    draws: int,
    true_values: Mapping[NumberKey, float],
    is_enough: Callable[[Counts], bool] = lambda counts: False,
) -> Counts:
    """Answers the scenario's question on that many studies, each with its own seed; stops early if `is_enough`."""
    values, counts = scenario.compute_known_values(), Counts()
    null = [comparison for (_, comparison), value in values.items() if value == NO_EFFECT]
    margin = scenario.build_study(1).analysis.margins.displacement
    for seed in range(draws):
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
            if effect.measure.name in FACTOR_NUMBERS and value is not None:
                factor = effect.comparison.partition(":")[0]  # without the names of the pair that is widest
                squares[effect.measure.name, factor].append(value * abs(value))
            elif effect.measure.name == "effect_difference":
                differences.add(build_key(effect))
    means = {key: float(np.mean(values)) for key, values in squares.items()}
    found = {key: float(np.sign(mean) * np.sqrt(abs(mean))) for key, mean in means.items()} | known
    for measure, comparison in differences:
        first, second = comparison.split(" - ")
        found[measure, comparison] = found["effect", first] - found["effect", second]
    return found


def _never(trial: PlannedTrial, accuracy: float) -> float:
    return 0.0


def _always(trial: PlannedTrial) -> bool:
    return True

"""The scenarios: studies with a known truth, and for each the verdict that would be wrong and the one to be found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Floats
from study.bench.synthetic_records import Truth
from study.config.schema import SCORE_MARGIN, StudyConfig
from study.plan.loading import study_from_dict
from study.plan.trials import PlannedTrial, plan_trials

Factors = Mapping[str, list[Any]]
NumberKey = tuple[str, str]  # a measure and a comparison, such as ("val_accuracy", "sn - bn")
YES: Verdict = "supported"
NO: Verdict = "not supported"

NORMS: Factors = {"norm": ["sn", "bn", "gn", "sn-uniform"], "batch_size": [2, 16]}
CONTROLS = ["sn-uniform", "sn-random", "sn-shared", "sn-stage"]
ALL_NORMS: Factors = {"norm": ["sn", "bn", "gn", "in", "ln", *CONTROLS], "batch_size": [2, 16]}
FACTORS: Factors = {
    "depth": [8, 14],
    "batch_size": [2, 16],
    "initialization": ["he_normal", "xavier_uniform"],
}
TASKS: Factors = {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A study and the truth that its records are drawn from.

    wrong: the verdict that would be false. expected: the verdict that should be found, where there is one.
    null_factors: factors without an effect on the choice of normalizers.
    """

    name: str
    question: str
    description: str
    truth: Truth
    factors: Factors
    replicates: int
    wrong: Verdict
    expected: Verdict | None = None
    null_factors: Sequence[str] = ()

    def build_study(self, replicates: int) -> StudyConfig:
        """The study, at a number of replicates."""
        return study_from_dict({
            "name": "scenario", "scale": "synthetic", "title": self.name, "question": self.description,
            "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
            "factors": dict(self.factors), "analysis": {"questions": [self.question]},
        }, "bench verdicts")  # fmt: skip

    def compute_known_values(self) -> dict[NumberKey, float]:
        """True values that follow from the truth: the gains of sn, or 1 for the effect of factors without one."""
        if self.question == "useful":
            return self._compute_planted_gains()
        return {("effect", factor): 1.0 for factor in self.null_factors}

    def _compute_planted_gains(self) -> dict[NumberKey, float]:
        """The difference in mean accuracy between sn and every other norm, over all cells."""
        accuracies: dict[str, list[float]] = defaultdict(list)
        for trial in plan_trials(self.build_study(1)):
            accuracies[trial.config.norm].append(self.truth.accuracy(trial))
        return {
            ("val_accuracy", f"sn - {norm}"): float(np.mean(accuracies["sn"]) - np.mean(accuracies[norm]))
            for norm in accuracies
            if norm != "sn"
        }


def build_scenarios() -> list[Scenario]:
    """All scenarios, question by question."""
    return [*_useful_scenarios(), *_impacts_scenarios(), *_tasks_scenarios()]


def _useful_scenarios() -> Iterator[Scenario]:
    def all_but_sn(gain: float, factors: Factors = NORMS) -> dict[str, float]:
        return {norm: gain for norm in factors["norm"] if norm != "sn"}

    build, equal, clear = _build_accuracy_scenario, "sn equals all others", all_but_sn(0.03)
    yield build("null", equal, {})
    yield build("null, 3 replicates", equal, {}, replicates=3)
    yield build("null, 8 replicates", equal, {}, replicates=8)
    yield build("null, heavy tails", equal, {}, draw=draw_student_t)
    yield build("null, unequal variances", equal, {}, accuracy_noise=_large_at_small_batch)
    yield build("one equal", "0.03 over all but gn", {"bn": 0.03, "sn-uniform": 0.03}, expected=NO)
    mixed = {"bn": -0.02, "gn": 0.03, "sn-uniform": 0.03}
    yield build("bn better", "-0.02 against bn, else 0.03", mixed, expected=NO)
    margin, gain = f"{SCORE_MARGIN:g} over all", all_but_sn(SCORE_MARGIN)
    yield build("at the margin", margin, gain, wrong=NO)
    yield build("at the margin, 3 replicates", margin, gain, replicates=3, wrong=NO)
    yield build("at the margin, 8 norms", margin, all_but_sn(SCORE_MARGIN, ALL_NORMS), factors=ALL_NORMS, wrong=NO)
    yield build("above the margin", "0.008 over all", all_but_sn(0.008), wrong=NO)
    yield build("planted", "0.03 over all", clear, wrong=NO, expected=YES)
    yield build("planted, 3 replicates", "0.03 over all", clear, replicates=3, wrong=NO, expected=YES)
    yield build("null, 10 % diverge", equal, {}, diverges=_one_in_ten)
    yield build("planted, 10 % diverge", "0.03 over all", clear, wrong=NO, expected=YES, diverges=_one_in_ten)
    yield build("null, bn diverges at B = 2", equal, {}, diverges=_bn_at_2)
    yield build("planted, bn diverges at B = 2", "0.03 over all", clear, wrong=NO, expected=YES, diverges=_bn_at_2)
    yield build("null, the worst diverge", equal, {}, diverges=lambda trial, accuracy: float(accuracy < 0.89))


def _impacts_scenarios() -> Iterator[Scenario]:
    build = partial(_build_choice_scenario, "impacts", FACTORS)
    none, all_factors = "no factor moves the choice", {"depth": 1.0, "batch_size": 1.0, "initialization": 1.0}
    yield build("none moves", none, {})
    yield build("none moves, 3 replicates", none, {}, replicates=3)
    yield build("none moves, 8 replicates", none, {}, replicates=8)
    yield build("none moves, heavy tails", none, {}, draw=draw_student_t)
    yield build("none moves, seeds in common", none, {}, shared_logits={(): 0.3, ("batch_size",): 0.2})
    # Clouds of unequal width around one centre: mean distances would differ between them, root mean squares do not.
    yield build(
        "none moves, unequal variances", none, {}, null_factors=["initialization"], logit_noise=_large_in_one_cell
    )  # fmt: skip
    yield build("none moves, 10 % diverge", none, {}, diverges=_one_in_ten)
    yield build("all move alike", "three factors alike", all_factors)
    yield build("all move alike, 3 replicates", "three factors alike", all_factors, replicates=3)
    claim = {"depth": 1.0, "batch_size": 1.5}
    build_claim = partial(build, description="depth and B alone", moves=claim, wrong=NO, expected=YES)
    for replicates in (3, 4, 5, 8):
        yield build_claim(f"the claim, {replicates} replicates", replicates=replicates)
    yield build_claim("the claim, heavy tails", draw=draw_student_t)
    yield build_claim("the claim, 10 % diverge", diverges=_one_in_ten)
    yield build("the contrary", "initialization alone", {"initialization": 2.0}, expected=NO)
    yield build("half the claim", "B alone", {"batch_size": 1.5}, expected=NO)
    yield build("half the claim, 3 replicates", "B alone", {"batch_size": 1.5}, replicates=3)


def _tasks_scenarios() -> Iterator[Scenario]:
    build = partial(_build_choice_scenario, "tasks", TASKS)
    neither, task = "neither moves the choice", {"task": 1.5}
    yield build("neither moves", neither, {})
    yield build("neither moves, 3 replicates", neither, {}, replicates=3)
    yield build("neither moves, 8 replicates", neither, {}, replicates=8)
    yield build("neither moves, heavy tails", neither, {}, draw=draw_student_t)
    yield build("task moves", "task alone", task, wrong=NO, expected=YES)
    yield build("task moves, 3 replicates", "task alone", task, replicates=3, wrong=NO, expected=YES)


def _build_accuracy_scenario(
    name: str, description: str, gains: Mapping[str, float], *, factors: Factors = NORMS, replicates: int = 5,
    wrong: Verdict = YES, expected: Verdict | None = None, **truth: Any,
) -> Scenario:  # fmt: skip
    """A scenario in which sn has a gain in accuracy over some norms, and none over the others.

    The cells of a replicate are not independent: a norm's accuracy varies with the seeds, alike in all of its cells.
    """
    planted = Truth(
        accuracy=lambda trial: 0.9 - gains.get(trial.config.norm, 0.0),
        **{"shared": {(): 0.01, ("norm",): 0.003}, **truth},
    )
    return Scenario(
        name=name, question="useful", description=description, truth=planted, factors=factors, replicates=replicates,
        wrong=wrong, expected=expected,
    )  # fmt: skip


def _build_choice_scenario(
    question: str, factors: Factors, name: str, description: str, moves: Mapping[str, float], *, replicates: int = 5,
    wrong: Verdict = YES, expected: Verdict | None = None, null_factors: Sequence[str] | None = None, **truth: Any,
) -> Scenario:  # fmt: skip
    """A scenario in which the second level of some factors adds to the logit of bn, by the numbers in `moves`."""

    def bn_logit(trial: PlannedTrial) -> float:
        return sum(move for name, move in moves.items() if getattr(trial.config, name) == factors[name][1])

    if null_factors is None:
        null_factors = [factor for factor in factors if factor not in moves]
    return Scenario(
        name=name, question=question, description=description, truth=Truth(bn_logit=bn_logit, **truth),
        factors=factors, replicates=replicates, wrong=wrong, expected=expected, null_factors=null_factors,
    )  # fmt: skip


def _large_at_small_batch(trial: PlannedTrial) -> float:
    return 0.03 if trial.config.batch_size == 2 else 0.001


def _large_in_one_cell(trial: PlannedTrial) -> float:
    return 0.4 if trial.config.batch_size == 2 and trial.config.depth == 8 else 0.1


def _one_in_ten(trial: PlannedTrial, accuracy: float) -> float:
    return 0.1


def _bn_at_2(trial: PlannedTrial, accuracy: float) -> float:
    return 0.6 if trial.config.norm == "bn" and trial.config.batch_size == 2 else 0.0


def draw_student_t(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise with heavy tails: Student's t with 3 degrees of freedom, scaled to a standard deviation of 1."""
    return np.asarray(random.standard_t(3, shape) / np.sqrt(3))

"""The scenarios: studies with a known truth, and for each the verdict that would be wrong and the one to be found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd

from study.analysis.questions.verdicts import Verdict
from study.analysis.statistics.intervals import Floats
from study.bench.synthetic_records import Truth
from study.bench.synthetic_records.files import TrialFilter
from study.config.schema import MarginConfig, StudyConfig
from study.plan.loading import study_from_dict
from study.plan.trials import PlannedTrial, plan_trials

Factors = Mapping[str, list[Any]]
NumberKey = tuple[str, str]  # a measure and a comparison, such as ("val_accuracy", "sn - bn")
YES: Verdict = "supported"
NO: Verdict = "not supported"

NO_EFFECT = 0.0  # the displacement of a factor that changes nothing
MARGIN = MarginConfig().accuracy

NORMS: Factors = {"norm": ["sn", "bn", "gn", "sn-uniform"], "batch_size": [2, 16]}
CONTROLS = ["sn-uniform", "sn-random", "sn-shared", "sn-stage"]
ALL_NORMS: Factors = {"norm": ["sn", "bn", "gn", "in", "ln", *CONTROLS], "batch_size": [2, 16]}
PAIR: Factors = {"norm": ["sn", "bn"], "batch_size": [2, 16]}
RATES = [0.05, 0.1, 0.2, 0.4]
FIVE_BATCHES: Factors = {"norm": ["sn", "bn", "gn", "sn-uniform"], "batch_size": [2, 4, 8, 16, 32]}
FACTORS: Factors = {
    "depth": [8, 14],
    "batch_size": [2, 16],
    "initialization": ["he_normal", "xavier_uniform"],
}
SOLVERS: Factors = {"depth": [8, 14], "batch_size": [2, 16], "solver": ["sgd", "adamw"]}
BATCH_LEVELS = ([2, 16], [2, 4, 8, 16], [2, 3, 4, 6, 8, 10, 12, 16])
TASKS: Factors = {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}

PLACE_LOGITS = {"stem": -2.0, "norm1": -0.3, "norm2": 0.3, "shortcut": 2.0}
LOGIT_AT_MARGIN = 0.247  # moves weights by the margin of displacements
LOGIT_WEAKER_BY_MARGIN = 0.72  # moves weights by that margin less than a logit of 1 does
ONE_HOT: Mapping[str, Any] = {"one_hot": True, "logit_noise": 0.0}
SHARED_BY_CELL = {(): 0.01, ("norm",): 0.003, ("norm", "batch_size"): 0.003}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A study and the truth that its records are drawn from.

    wrong: the verdicts that would be false. expected: the verdict that should be found, where there is one.
    null_factors: factors without an effect on the choice of normalizers.
    looks: the numbers of replicates at which the study is answered in turn, each after the first by an amendment;
        empty for one answer at `replicates`. A verdict that is given at any of them counts.
    advised_up_to: the largest number of replicates that is added as an answer without a verdict advises; 0 where the
        advice is not followed.
    ended: which trials have ended; the others are still planned.
    tuned: factors whose best level is taken for each norm; then gains at each norm's own best are counted.
    counts_p_values: whether p values of shares of variance and of single layers are counted, which take ten times as
        long as verdicts.
    """

    name: str
    question: str
    description: str
    truth: Truth
    factors: Factors
    replicates: int
    wrong: tuple[Verdict, ...]
    expected: Verdict | None = None
    null_factors: Sequence[str] = ()
    looks: Sequence[int] = ()
    advised_up_to: int = 0
    ended: TrialFilter | None = None
    tuned: Sequence[str] = ()
    counts_p_values: bool = False

    def build_study(self, replicates: int) -> StudyConfig:
        """The study, at a number of replicates."""
        return _build_study(json.dumps(dict(self.factors)), self.question, replicates, tuple(self.tuned))

    def compute_known_values(self) -> dict[NumberKey, float]:
        """True values that follow from the truth: the gains of sn, or the effect of factors without one."""
        if self.question == "useful":
            return self._compute_planted_gains()
        return {("effect", factor): NO_EFFECT for factor in self.null_factors}

    def _compute_planted_gains(self) -> dict[NumberKey, float]:
        """The difference in mean accuracy between sn and every other norm, over all cells; also at each norm's best."""
        plan = plan_trials(self.build_study(1))
        accuracies = pd.DataFrame({
            **{factor: [getattr(trial.config, factor) for trial in plan] for factor in self.factors},
            "accuracy": [self.truth.accuracy(trial) for trial in plan],
        })  # fmt: skip
        means = {"val_accuracy": accuracies.groupby("norm")["accuracy"].mean()}
        if self.tuned:
            cells = [factor for factor in self.factors if factor not in self.tuned]
            means["tuned_difference"] = accuracies.groupby(cells)["accuracy"].max().groupby("norm").mean()
        return {
            (measure, f"sn - {norm}"): float(found["sn"] - found[norm])
            for measure, found in means.items() for norm in found.index if norm != "sn"
        }  # fmt: skip


@lru_cache(maxsize=256)
def _build_study(factors: str, question: str, replicates: int, tuned: Sequence[str]) -> StudyConfig:
    """factors: as JSON."""
    return study_from_dict({
        "name": "scenario", "scale": "synthetic", "title": "A scenario", "question": "How often are answers wrong?",
        "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
        "factors": json.loads(factors), "analysis": {"questions": [question], "tuned": list(tuned)},
    }, "bench verdicts")  # fmt: skip


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
    but_one = {"bn": 0.03, "sn-uniform": 0.03}
    yield build("one equal", "0.03 over all but gn", but_one)
    yield build("one equal, 20 replicates", "0.03 over all but gn", but_one, replicates=20, expected=NO)
    mixed = {"bn": -0.02, "gn": 0.03, "sn-uniform": 0.03}
    yield build("bn better", "-0.02 against bn, else 0.03", mixed, expected=NO)
    margin, gain = f"{MARGIN:g} over all", all_but_sn(MARGIN)
    yield build("at the margin", margin, gain, wrong=(YES, NO))
    yield build("at the margin, 3 replicates", margin, gain, replicates=3, wrong=(YES, NO))
    at_margin = all_but_sn(MARGIN, ALL_NORMS)
    yield build("at the margin, 8 norms", margin, at_margin, factors=ALL_NORMS, wrong=(YES, NO))
    yield build("above the margin", "0.008 over all", all_but_sn(0.008), wrong=(NO,))
    yield build("planted", "0.03 over all", clear, wrong=(NO,), expected=YES)
    yield build("planted, 3 replicates", "0.03 over all", clear, replicates=3, wrong=(NO,), expected=YES)
    yield build("null, 10 % diverge", equal, {}, diverges=_one_in_ten)
    # Not expected to be found: the switch norm often diverges more often than one of the others, by chance.
    yield build("planted, 10 % diverge", "0.03 over all", clear, wrong=(NO,), diverges=_one_in_ten)
    yield build("null, bn diverges at B = 2", equal, {}, diverges=_bn_at_2)
    # Not expected to be found: with 5 replicates, the cell often keeps one pair or none, and then there is no verdict.
    yield build("planted, bn diverges at B = 2", "0.03 over all", clear, wrong=(NO,), diverges=_bn_at_2)
    yield build("null, the worst diverge", equal, {}, diverges=lambda trial, accuracy: float(accuracy < 0.89))
    hard: dict[str, Any] = {"draw": draw_student_t, "accuracy_noise": _large_at_small_batch, "shared": SHARED_BY_CELL}
    yield build("null, hard noise", f"{equal}; heteroscedastic, heavy tails, shared", {}, **hard)
    yield build("at the margin, hard noise", f"{margin}; the same noise", gain, wrong=(YES, NO), **hard)
    yield build("null, 2 replicates", equal, {}, replicates=2)
    yield build("planted, 2 replicates", "0.03 over all", clear, replicates=2, wrong=(NO,))
    yield build("null, 4 replicates are 2 twice", equal, {}, replicates=4, factors=PAIR, repeats={2: 0, 3: 1})
    yield build(
        "opposite signs", "+0.02 at B = 2, -0.02 at B = 16", {}, factors=PAIR, replicates=8,
        accuracy=lambda trial: 0.9 + (0.02 if trial.config.batch_size == 2 else -0.02) * (trial.config.norm == "sn"),
    )  # fmt: skip
    for replicates in (4, 16, 32, 64):
        name = f"below the margin, {replicates} replicates"
        yield build(name, "0.003 over bn", {"bn": 0.003}, factors=PAIR, replicates=replicates)
    build_looks = partial(build, factors=PAIR, replicates=20, options={"looks": range(3, 21)})
    yield build_looks("null, looks at 3 to 20", equal, {})
    yield build_looks("at the margin, looks at 3 to 20", margin, {"bn": MARGIN}, wrong=(YES, NO))
    advice: dict[str, Any] = {"factors": PAIR, "replicates": 4, "options": {"advised_up_to": 60}}
    yield build("advice followed, planted", "0.015 over bn", {"bn": 0.015}, wrong=(NO,), **advice)
    yield build("advice followed, at the margin", margin, {"bn": MARGIN}, wrong=(YES, NO), **advice)
    yield build("advice followed, null", equal, {}, **advice)
    interim = {"ended": lambda trial: trial.replicate < 4}
    yield build("interim, planted", "0.03 over all; 4 of 5 replicates", clear, wrong=(YES, NO), options=interim)
    yield build(
        "sn diverges at B = 2", "chance level at B = 2, +0.03 at B = 16", {}, factors=PAIR,
        accuracy=lambda trial: 0.1 if _is_worst(trial, "sn") else 0.87 + 0.03 * (trial.config.norm == "sn"),
        diverges=lambda trial, accuracy: float(_is_worst(trial, "sn")),
    )  # fmt: skip
    yield build(
        "null, both diverge at B = 2", f"{equal}; half of the runs of both diverge", {}, factors=PAIR, replicates=8,
        diverges=lambda trial, accuracy: 0.5 * (trial.config.batch_size == 2),
    )  # fmt: skip
    yield build(
        "at the margin, the noisiest cell loses half", f"{margin}; noise is large at B = 2, where half the runs fail",
        {"bn": MARGIN}, factors={"norm": ["sn", "bn"], "batch_size": [2, 4, 8, 16]}, wrong=(YES, NO),
        accuracy_noise=_large_at_small_batch, fails=lambda trial, accuracy: 0.5 * (trial.config.batch_size == 2),
    )  # fmt: skip
    yield build(
        "bn better or diverged, 2 replicates", "-0.02 against bn, half of whose runs diverge at B = 2", {"bn": -0.02},
        factors=PAIR, replicates=2, diverges=lambda trial, accuracy: 0.5 * _is_worst(trial, "bn"),
    )  # fmt: skip
    yield from _worst_cell_scenarios()
    yield build(
        "tuned, equal at their best", "sn alike at four rates; bn equal at one, 0.1 below at the others", {},
        factors={**PAIR, "learning_rate": RATES}, wrong=(NO,), options={"tuned": ["learning_rate"]},
        accuracy_noise=0.01,
        accuracy=lambda trial: 0.9 - 0.1 * (trial.config.norm == "bn" and trial.config.learning_rate != RATES[0]),
    )  # fmt: skip


def _worst_cell_scenarios() -> Iterator[Scenario]:
    """The switch norm is worse on average because of one cell, where runs are missing; elsewhere it is better."""

    def accuracy(trial: PlannedTrial) -> float:
        gain = -0.06 if trial.config.batch_size == 2 else 0.012
        return 0.9 + gain * (trial.config.norm == "sn")

    def is_run(norm: str) -> Callable[[PlannedTrial, float], float]:
        return lambda trial, accuracy: float(_is_worst(trial, norm) and trial.replicate == 0)

    truth = "sn -0.06 at B = 2, +0.012 at B = 4 to 32"
    build = partial(
        _build_accuracy_scenario, description=truth, gains={}, factors=FIVE_BATCHES, replicates=4, accuracy=accuracy
    )
    yield build("worst cell, complete")
    yield build("worst cell, 1 run failed", fails=is_run("sn"))
    yield build("worst cell, 1 run failed, 8 replicates", replicates=8, fails=is_run("sn"))
    yield build("worst cell, 1 run diverged", diverges=is_run("sn"))
    of_pair = {**FIVE_BATCHES, "norm": ["sn", "bn"]}
    yield build("worst cell, 1 run of bn failed", factors=of_pair, fails=is_run("bn"))
    yield build("worst cell, 1 run of bn diverged", factors=of_pair, diverges=is_run("bn"))
    yield build(
        "worst cell, sn diverged and bn failed", factors=of_pair, diverges=is_run("sn"), fails=is_run("bn")
    )  # fmt: skip
    yield build("worst cell, 10 % failed", replicates=8, fails=_one_in_ten)
    yield build("worst cell, all runs failed", fails=lambda trial, accuracy: float(_is_worst(trial, "sn")))


def _impacts_scenarios() -> Iterator[Scenario]:
    build = partial(_build_choice_scenario, "impacts", FACTORS)
    none, all_factors = "no factor moves the choice", {"depth": 1.0, "batch_size": 1.0, "initialization": 1.0}
    yield build("none moves", none, {})
    yield build("none moves, 3 replicates", none, {}, replicates=3)
    yield build("none moves, 8 replicates", none, {}, replicates=8, options={"counts_p_values": True})
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
    build_claim = partial(build, description="depth and B alone", moves=claim, wrong=(NO,), expected=YES)
    for replicates in (3, 4, 5, 8):
        yield build_claim(f"the claim, {replicates} replicates", replicates=replicates)
    yield build_claim("the claim, heavy tails", draw=draw_student_t)
    yield build_claim("the claim, 10 % diverge", diverges=_one_in_ten)
    yield build("the contrary", "initialization alone", {"initialization": 2.0}, expected=NO)
    yield build("half the claim", "B alone", {"batch_size": 1.5})
    yield build("half the claim, 16 replicates", "B alone", {"batch_size": 1.5}, replicates=16, expected=NO)
    yield build("half the claim, 3 replicates", "B alone", {"batch_size": 1.5}, replicates=3)
    pattern, by_place = "the same pattern by place at both depths", partial(build, layer_logits=_add_place_logits)
    yield by_place("places in the block, none moves", pattern, {})
    yield build(
        "places and stages, none moves", f"{pattern}, and a trend over stages", {}, layer_logits=_add_stage_logits
    )  # fmt: skip
    yield build(
        "first blocks, none moves", "first blocks of stages choose more bn, alike at both depths", {}, replicates=8,
        layer_logits=_add_first_block_logits,
    )  # fmt: skip
    yield by_place("places in the block, B moves", f"B alone; {pattern}", {"batch_size": 1.5})
    shared_by_batch = {("batch_size",): 0.3}
    yield build(
        "none moves, hard noise", f"{none}; heteroscedastic, heavy tails, shared seed x B", {},
        null_factors=["initialization"], logit_noise=_large_in_one_cell, draw=draw_student_t,
        shared_logits=shared_by_batch,
    )  # fmt: skip
    yield build(
        "none moves, shared seed x B", none, {}, shared_logits={("batch_size",): 0.3}, options={"counts_p_values": True}
    )
    yield _build_choice_scenario(
        "impacts", SOLVERS, "none moves, noisier under adamw", f"{none}; seeds are noisier under adamw", {},
        null_factors=["depth", "batch_size"],
        logit_noise=lambda trial: 0.4 if trial.config.solver == "adamw" else 0.1,
    )  # fmt: skip
    yield build(
        "opposite directions", "B and depth, in opposite directions at the other's levels", {},
        wrong=(NO,), expected=YES, null_factors=["initialization"],
        bn_logit=lambda trial: 0.75 * (-1) ** ((trial.config.batch_size == 2) + (trial.config.depth == 8)),
    )  # fmt: skip
    yield from _level_scenarios()
    yield from _margin_scenarios()
    many_seeds = partial(build, replicates=16, wrong=(NO,), logit_noise=0.5)
    third, half = {"depth": 0.6, "batch_size": 0.6}, {"depth": 1.0, "batch_size": 1.0}
    yield many_seeds("small effects, 16 replicates", "depth and B alone, a third of a seed distance", third)
    yield many_seeds(
        "medium effects, 16 replicates", "depth and B alone, half a seed distance", half, expected=YES
    )  # fmt: skip
    yield build("none moves, 2 replicates", none, {}, replicates=2)
    yield build("none moves, 4 replicates are 2 twice", none, {}, replicates=4, repeats={2: 0, 3: 1})
    yield build("none moves, 10 % failed", none, {}, fails=_one_in_ten)
    yield build_claim("the claim, 10 % failed", fails=_one_in_ten)
    yield build("none moves, a cell failed", none, {}, fails=lambda trial, accuracy: float(_is_first_cell(trial)))
    yield build("no seeds, none moves", f"{none}, nor do seeds: one-hot weights", {}, **ONE_HOT)
    yield build(
        "no seeds, the claim", "depth and B alone; one-hot weights", {}, wrong=(NO,), expected=YES,
        null_factors=["initialization"],
        bn_logit=lambda trial: 5.0 if trial.config.batch_size == 16 or trial.config.depth == 14 else -5.0, **ONE_HOT,
    )  # fmt: skip
    yield build("half the claim, 10 % failed", "B alone", {"batch_size": 1.5}, fails=_one_in_ten)


def _margin_scenarios() -> Iterator[Scenario]:
    """Displacements, and differences of displacements, at the margin and just above it; a study that follows advice."""
    build = partial(_build_choice_scenario, "impacts", FACTORS)
    for replicates in (5, 16):
        yield build(
            f"depth and B at the margin, {replicates} replicates", "depth and B moved by the margin",
            {"depth": LOGIT_AT_MARGIN, "batch_size": LOGIT_AT_MARGIN}, replicates=replicates, wrong=(YES, NO),
        )  # fmt: skip
    weaker = {"depth": 1.0, "batch_size": 1.0, "initialization": LOGIT_WEAKER_BY_MARGIN}
    yield build("initialization less by the margin", "less than depth and B by the margin", weaker, wrong=(YES, NO))
    yield build(
        "initialization less by the margin, noise against", "the same; noise is large in the cell of only depth",
        weaker, replicates=8, wrong=(YES, NO), logit_noise=_large_where_depth_alone_is_high,
    )  # fmt: skip
    above = {"depth": 0.35, "batch_size": 0.35}
    yield build("just above the margin, 16 replicates", "depth and B alone", above, replicates=16, wrong=(NO,))
    claim = {"depth": 1.0, "batch_size": 1.5}
    interim = {"ended": lambda trial: trial.replicate < 4}
    yield build("interim, the claim", "the claim; 4 of 5 replicates", claim, wrong=(YES, NO), options=interim)
    yield build(
        "advice followed, small effects", "depth and B alone, a third of a seed distance",
        {"depth": 0.6, "batch_size": 0.6}, logit_noise=0.5, wrong=(NO,), options={"advised_up_to": 40},
    )  # fmt: skip


def _level_scenarios() -> Iterator[Scenario]:
    """The claim with 2, 4 and 8 levels of B, from 2 to 16; the effect of B is linear in log2 B."""
    for levels in BATCH_LEVELS:
        yield _build_choice_scenario(
            "impacts", {**FACTORS, "batch_size": levels}, f"the claim, {len(levels)} levels of B",
            "depth 1.7, B 1.7 from 2 to 16, initialization 1.1", {"depth": 1.7, "initialization": 1.1},
            replicates=8, wrong=(NO,), expected=YES, null_factors=[], layer_logits=_rise_with_log_batch,
        )  # fmt: skip
    yield _build_choice_scenario(
        "impacts", {**FACTORS, "batch_size": BATCH_LEVELS[1]}, "the claim, B between its ends",
        "depth 1.5; B 1.5 at B = 8 alone", {}, replicates=8, wrong=(NO,), expected=YES, null_factors=["initialization"],
        bn_logit=lambda trial: 1.5 * ((trial.config.batch_size == 8) + (trial.config.depth == 14)),
    )  # fmt: skip
    names = ["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal"]
    # Not expected to be found: so little above the margin, the largest of ten pairs is found in 0.68 of the draws.
    yield _build_choice_scenario(
        "impacts", {"initialization": names}, "one of five names",
        "orthogonal 0.33, more than the margin from the others; the mean over pairs is less than it", {},
        replicates=8, wrong=(NO,), null_factors=[], logit_noise=0.05,
        bn_logit=lambda trial: 0.33 * (trial.config.initialization == "orthogonal"),
    )  # fmt: skip


def _tasks_scenarios() -> Iterator[Scenario]:
    build = partial(_build_choice_scenario, "tasks", TASKS)
    neither, task = "neither moves the choice", {"task": 1.5}
    yield build("neither moves", neither, {})
    yield build("neither moves, 3 replicates", neither, {}, replicates=3, options={"counts_p_values": True})
    yield build("neither moves, 8 replicates", neither, {}, replicates=8)
    yield build("neither moves, heavy tails", neither, {}, draw=draw_student_t)
    yield build("task moves", "task alone", task, wrong=(NO,), expected=YES)
    yield build("task moves, 3 replicates", "task alone", task, replicates=3, wrong=(NO,), expected=YES)
    yield build("neither moves, 2 replicates", neither, {}, replicates=2)
    yield build("neither moves, 4 replicates are 2 twice", neither, {}, replicates=4, repeats={2: 0, 3: 1})
    yield build("neither moves, looks at 3 to 20", neither, {}, replicates=20, options={"looks": range(3, 21)})
    yield build("neither moves, 10 % failed", neither, {}, fails=_one_in_ten)
    yield build("no seeds, neither moves", f"{neither}, nor do seeds: one-hot weights", {}, **ONE_HOT)
    yield build(
        "no seeds, task moves", "task alone; one-hot weights", {}, wrong=(NO,), expected=YES, null_factors=["dataset"],
        bn_logit=lambda trial: 5.0 if trial.config.task == "segmentation" else -5.0, **ONE_HOT,
    )  # fmt: skip


def _build_accuracy_scenario(
    name: str, description: str, gains: Mapping[str, float], *, factors: Factors = NORMS, replicates: int = 5,
    wrong: tuple[Verdict, ...] = (YES,), expected: Verdict | None = None, options: Mapping[str, Any] | None = None,
    **truth: Any,
) -> Scenario:  # fmt: skip
    """A scenario in which sn has a gain in accuracy over some norms, and none over the others.

    The cells of a replicate are not independent: a norm's accuracy varies with the seeds, alike in all of its cells.
    """
    accuracy = partial(_lose, gains)
    planted = Truth(**{"accuracy": accuracy, "shared": {(): 0.01, ("norm",): 0.003}, **truth})
    return Scenario(
        name=name, question="useful", description=description, truth=planted, factors=factors, replicates=replicates,
        wrong=wrong, expected=expected, **(options or {}),
    )  # fmt: skip


def _build_choice_scenario(
    question: str, factors: Factors, name: str, description: str, moves: Mapping[str, float], *, replicates: int = 5,
    wrong: tuple[Verdict, ...] = (YES,), expected: Verdict | None = None, null_factors: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None, **truth: Any,
) -> Scenario:  # fmt: skip
    """A scenario in which the second level of some factors adds to the logit of bn, by the numbers in `moves`.

    Weights do not depend on relative depth (`ln_slope`): then depth has no effect however layers are aligned.
    """

    def bn_logit(trial: PlannedTrial) -> float:
        return sum(move for name, move in moves.items() if getattr(trial.config, name) == factors[name][1])

    if null_factors is None:
        null_factors = [factor for factor in factors if factor not in moves]
    return Scenario(
        name=name, question=question, description=description,
        truth=Truth(**{"bn_logit": bn_logit, "ln_slope": 0.0, **truth}),
        factors=factors, replicates=replicates, wrong=wrong, expected=expected, null_factors=null_factors,
        **(options or {}),
    )  # fmt: skip


def _lose(gains: Mapping[str, float], trial: PlannedTrial) -> float:
    return 0.9 - gains.get(trial.config.norm, 0.0)


def _large_at_small_batch(trial: PlannedTrial) -> float:
    return 0.03 if trial.config.batch_size == 2 else 0.001


def _large_in_one_cell(trial: PlannedTrial) -> float:
    return 0.4 if trial.config.batch_size == 2 and trial.config.depth == 8 else 0.1


def _large_where_depth_alone_is_high(trial: PlannedTrial) -> float:
    return 0.4 if (trial.config.depth, trial.config.initialization) == (14, "he_normal") else 0.1


def _one_in_ten(trial: PlannedTrial, accuracy: float) -> float:
    return 0.1


def _bn_at_2(trial: PlannedTrial, accuracy: float) -> float:
    return 0.6 if trial.config.norm == "bn" and trial.config.batch_size == 2 else 0.0


def _is_worst(trial: PlannedTrial, norm: str) -> bool:
    return trial.config.norm == norm and trial.config.batch_size == 2


def _is_first_cell(trial: PlannedTrial) -> bool:
    return (trial.config.depth, trial.config.batch_size, trial.config.initialization) == (8, 2, "he_normal")


def _rise_with_log_batch(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    return np.array([1.0, 2.0]) / 1.5 * 1.7 * float(np.log2(trial.config.batch_size / 2)) / 3


def _add_place_logits(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    """Logits of bn that depend on the layer's place in the block: twice as much for variances, as in `bn_logit`."""
    return np.outer([PLACE_LOGITS[layer.place] for layer in layers], [1.0, 2.0])


def _add_first_block_logits(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    """A logit of bn of 1 in the stem and in the first block of each stage."""
    return np.array([[float(layer.stage == 0 or ".0." in layer.layer)] for layer in layers])


def _add_stage_logits(trial: PlannedTrial, layers: Sequence[Any]) -> Floats:
    """`_add_place_logits` and a trend over stages."""
    trend: Floats = np.outer([0.5 * layer.stage for layer in layers], [1.0, 2.0])
    return _add_place_logits(trial, layers) + trend


def draw_student_t(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise with heavy tails: Student's t with 3 degrees of freedom, scaled to a standard deviation of 1."""
    return np.asarray(random.standard_t(3, shape) / np.sqrt(3))

"""How often the answers are wrong: they are asked of hundreds of synthetic studies of which the truth is known.

A world is a study and a truth. In each, some verdicts would be false: `World.false` says which, and a rule that errs in
5 % of studies gives them in 5 % of the draws. Intervals are held against what they estimate: a planted difference, or,
where a number has no closed form, the same number of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from scipy import stats

from study.analysis.questions.answers import Answer, Effect, Verdict
from study.analysis.questions.impacts import answer_impacts
from study.analysis.questions.tasks import answer_tasks
from study.analysis.questions.useful import answer_useful
from study.analysis.records import StudyRecords
from study.analysis.statistics.intervals import Floats
from study.bench.result import Figure, Result
from study.bench.synthetic_records import SyntheticStudy, Truth
from study.config.schema import SCORE_MARGIN, StudyConfig
from study.plan.loading import study_from_dict
from study.plan.trials import PlannedTrial, plan_trials

DRAWS, QUICK_DRAWS = 200, 4
FALSE_BAR, FOUND_BAR, COVERS_BAR = 0.05, 0.8, 0.95
MANY = 24  # replicates of the studies that say what an interval should hold
ASK: dict[str, Callable[[StudyRecords], Answer]] = {
    "useful": answer_useful, "impacts": answer_impacts, "tasks": answer_tasks,
}  # fmt: skip
YES: Verdict = "supported"
NO: Verdict = "not supported"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Name = tuple[str, str]  # of a number: its measure and its comparison


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A study and its truth. `false` is the verdict that would be wrong; `found` the one that should be reached.

    null: the factors that move no choice. What sn gains over other norms is read off the truth.
    """

    name: str
    question: str
    said: str
    truth: Truth
    factors: Mapping[str, Any]
    replicates: int
    false: Verdict
    found: Verdict | None = None
    null: Sequence[str] = ()

    def study(self, replicates: int) -> StudyConfig:
        """Its study at so many replicates."""
        return study_from_dict({
            "name": "world", "scale": "synthetic", "title": self.name, "question": self.said,
            "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
            "factors": dict(self.factors), "analysis": {"questions": [self.question]},
        }, "bench verdicts")  # fmt: skip


@dataclass(kw_only=True)
class Counts:
    """What the draws of a world came to: verdicts, and on which side of the truth the intervals of each number lay.

    alarms: draws in which any headline number without an effect has an adjusted p below 5 %.
    """

    draws: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    sides: dict[Name, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bootstrap: dict[Name, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    alarms: int = 0

    def add(self, answer: Answer, truths: Mapping[Name, float], null: Collection[str]) -> None:
        """Counts one draw. `truths` are what intervals should hold; `null` the comparisons without an effect."""
        self.draws += 1
        self.verdicts[answer.verdict] += 1
        headline = [effect for effect in answer.effects if effect.measure.headline]
        self.alarms += any(effect.p_value is not None and effect.p_value < FALSE_BAR
                           for effect in headline if effect.comparison in null)  # fmt: skip
        for effect in headline:
            truth, name = truths.get(_name(effect)), _name(effect)
            if truth is not None and effect.estimate.low is not None and effect.estimate.high is not None:
                self.sides[name][_side(effect.estimate.low, effect.estimate.high, truth)] += 1
            if truth is not None and effect.bootstrap is not None:
                self.bootstrap[name][_side(*effect.bootstrap, truth)] += 1


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Draws every world and counts. Trains nothing: threads and device do not act."""
    draws = QUICK_DRAWS if quick else DRAWS
    result = Result("verdicts")
    for scenario in scenarios():
        tally = draw(scenario, draws, true_values(scenario, 3 if quick else MANY))
        result.rows.append(_row(scenario, tally))
        result.figures += [] if quick else _figures(scenario, tally)
    result.notes.append(
        f"{draws} draws of each world. false: share of the draws with a verdict that is wrong there, with its 95 % "
        "Wilson interval. covers: share of the intervals of headline numbers that hold the truth, and of those that "
        "lie wholly above and below it. family p: share of draws in which any number without an effect has an adjusted "
        f"p below 5 %. The bar on a share is missed where its whole interval lies beyond; found: {FOUND_BAR:g}."
    )
    return result


def draw(
    scenario: Scenario, draws: int, truths: Mapping[Name, float], enough: Callable[[Counts], bool] = lambda tally: False
) -> Counts:
    """Asks a world's question of that many studies, each with seeds of its own, or of fewer where they are `enough`."""
    study, tally = SyntheticStudy(scenario.study(scenario.replicates)), Counts()
    null = [comparison for (_, comparison), value in known_values(scenario).items() if value in (0.0, 1.0)]
    for seed in range(draws):
        tally.add(ASK[scenario.question](study.records(replace(scenario.truth, seed=seed))), truths, null)
        if enough(tally):
            break
    return tally


def true_values(scenario: Scenario, many: int) -> dict[Name, float]:
    """What the intervals of a world should hold: what is known, and other numbers as of `many` replicates."""
    known = known_values(scenario)
    if scenario.question == "useful":
        return known
    study = SyntheticStudy(scenario.study(many))
    calm = replace(scenario.truth, diverges=lambda trial, accuracy: 0.0)
    answers = [ASK[scenario.question](study.records(replace(calm, seed=1_000_000 + seed))) for seed in range(3)]
    found: dict[Name, list[float]] = defaultdict(list)
    for effect in (effect for answer in answers for effect in answer.effects):
        if effect.estimate.value is not None and effect.measure.headline:
            found[_name(effect)].append(effect.estimate.value)
    return {name: float(np.mean(values)) for name, values in found.items()} | known


def known_values(scenario: Scenario) -> dict[Name, float]:
    """What sn gains over each norm, as planted, or the effect of factors that move no choice."""
    if scenario.question == "useful":
        return dict(_planted_gains(scenario))
    return {("effect", factor): 1.0 for factor in scenario.null}


def _planted_gains(scenario: Scenario) -> Iterator[tuple[Name, float]]:
    """The difference in accuracy that is planted between sn and every other norm, a mean over cells."""
    means: dict[str, list[float]] = defaultdict(list)
    for trial in plan_trials(scenario.study(1)):
        means[trial.config.norm].append(scenario.truth.accuracy(trial))
    for norm in means.keys() - {"sn"}:
        yield ("val_accuracy", f"sn - {norm}"), float(np.mean(means["sn"]) - np.mean(means[norm]))


def binomial_interval(count: int, draws: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share."""
    found = stats.binomtest(count, draws).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _row(scenario: Scenario, tally: Counts) -> dict[str, Any]:
    false = tally.verdicts[scenario.false]
    low, high = binomial_interval(false, tally.draws)
    return {
        "world": scenario.name, "question": scenario.question, "n": scenario.replicates, "truth": scenario.said,
        **{verdict: tally.verdicts[verdict] / tally.draws for verdict in VERDICTS},
        "false": f"{false / tally.draws:.3f} ({low:.3f} to {high:.3f})",
        "covers": _say_sides(tally.sides), "bootstrap covers": _say_sides(tally.bootstrap),
        "family p": tally.alarms / tally.draws,
    }  # fmt: skip


def _by_measure(sides: Mapping[Name, Counter[str]]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for (name, _), count in sides.items():
        counts[name] += count
    return counts


def _say_sides(sides: Mapping[Name, Counter[str]]) -> str:
    """`effect 0.95 (above 0.03, below 0.02)`, by measure."""
    shares = {measure: {side: count[side] / count.total() for side in ("holds", "above", "below")}
              for measure, count in _by_measure(sides).items()}  # fmt: skip
    return "; ".join(f"{measure} {share['holds']:.3f} (above {share['above']:.3f}, below {share['below']:.3f})"
                     for measure, share in shares.items())  # fmt: skip


def _figures(scenario: Scenario, tally: Counts) -> list[Figure]:
    """Shares that miss their bars by more than the number of draws explains."""
    low, _ = binomial_interval(tally.verdicts[scenario.false], tally.draws)
    figures = [Figure(f"{scenario.name}: false verdicts, low end", low, FALSE_BAR)]
    if scenario.found:
        _, high = binomial_interval(tally.verdicts[scenario.found], tally.draws)
        figures.append(Figure(f"{scenario.name}: found, high end", high, FOUND_BAR, at_least=True))
    for measure, count in _by_measure(tally.sides).items():
        # The intervals of one draw are of one kind of noise: they count as one.
        _, high = binomial_interval(round(count["holds"] / count.total() * tally.draws), tally.draws)
        figures.append(
            Figure(f"{scenario.name}: intervals of {measure} cover, high end", high, COVERS_BAR, at_least=True)
        )
    return figures


def _side(low: float, high: float, truth: float) -> str:
    """Where an interval lies."""
    return "above" if low > truth else "below" if high < truth else "holds"


def _name(effect: Effect) -> Name:
    return effect.measure.name, effect.comparison


# ------------------------------------------------------------------------------------------------ worlds

NORMS: dict[str, list[Any]] = {"norm": ["sn", "bn", "gn", "sn-uniform"], "batch_size": [2, 16]}
CONTROLS = ["sn-uniform", "sn-random", "sn-shared", "sn-stage"]
ALL_NORMS: dict[str, list[Any]] = {"norm": ["sn", "bn", "gn", "in", "ln", *CONTROLS], "batch_size": [2, 16]}
FACTORS: dict[str, list[Any]] = {
    "depth": [8, 14],
    "batch_size": [2, 16],
    "initialization": ["he_normal", "xavier_uniform"],
}
TASKS: dict[str, list[Any]] = {"task": ["classification", "segmentation"], "dataset": ["scenes", "scenes_fashion"]}


def scenarios() -> list[Scenario]:
    """Every world, question by question."""
    return [*_useful_worlds(), *_impacts_worlds(), *_tasks_worlds()]


def _useful_worlds() -> Iterator[Scenario]:
    def scenario(name: str, said: str, gains: Mapping[str, float], factors: Any = NORMS, replicates: int = 5,
              false: Verdict = YES, found: Verdict | None = None, **truth: Any) -> Scenario:  # fmt: skip
        return Scenario(name=name, question="useful", said=said, truth=_accuracy(gains, **truth), factors=factors,
                     replicates=replicates, false=false, found=found)  # fmt: skip

    def over_all(gain: float, norms: Sequence[str] = NORMS["norm"]) -> dict[str, float]:
        return {norm: gain for norm in norms if norm != "sn"}

    equal = "sn equals all others"
    yield scenario("null", equal, {})
    yield scenario("null, 3 replicates", equal, {}, replicates=3)
    yield scenario("null, 8 replicates", equal, {}, replicates=8)
    yield scenario("null, heavy tails", equal, {}, draw=student)
    yield scenario("null, unequal variances", equal, {}, accuracy_noise=_wild_where_b_is_small)
    yield scenario("one equal", "0.03 over all but gn", {"bn": 0.03, "sn-uniform": 0.03}, found=NO)
    yield scenario("bn better", "-0.02 against bn, else 0.03", {"bn": -0.02, "gn": 0.03, "sn-uniform": 0.03}, found=NO)
    at = f"{SCORE_MARGIN:g} over all"
    yield scenario("at the margin", at, over_all(SCORE_MARGIN), false=NO)
    yield scenario("at the margin, 3 replicates", at, over_all(SCORE_MARGIN), replicates=3, false=NO)
    yield scenario("at the margin, 8 norms", at, over_all(SCORE_MARGIN, ALL_NORMS["norm"]), ALL_NORMS, false=NO)
    yield scenario("above the margin", "0.008 over all", over_all(0.008), false=NO)
    yield scenario("planted", "0.03 over all", over_all(0.03), false=NO, found=YES)
    yield scenario("planted, 3 replicates", "0.03 over all", over_all(0.03), replicates=3, false=NO, found=YES)
    yield scenario("null, 10 % diverge", equal, {}, diverges=_one_in_ten)
    yield scenario("planted, 10 % diverge", "0.03 over all", over_all(0.03), false=NO, found=YES, diverges=_one_in_ten)
    yield scenario("null, bn diverges at B = 2", equal, {}, diverges=_bn_at_2)
    yield scenario("planted, bn diverges at B = 2", "0.03 over all", over_all(0.03), false=NO, found=YES,
                diverges=_bn_at_2)  # fmt: skip
    yield scenario("null, the worst diverge", equal, {}, diverges=lambda trial, accuracy: float(accuracy < 0.89))


def _impacts_worlds() -> Iterator[Scenario]:
    def scenario(name: str, said: str, moves: Mapping[str, float], replicates: int = 5, false: Verdict = YES,
              found: Verdict | None = None, null: Sequence[str] | None = None, **truth: Any) -> Scenario:  # fmt: skip
        return Scenario(name=name, question="impacts", said=said, truth=_choice(moves, **truth), factors=FACTORS,
                     replicates=replicates, false=false, found=found,
                     null=[factor for factor in FACTORS if factor not in moves] if null is None else null)  # fmt: skip

    none, alike = "no factor moves the choice", {"depth": 1.0, "batch_size": 1.0, "initialization": 1.0}
    yield scenario("none moves", none, {})
    yield scenario("none moves, 3 replicates", none, {}, replicates=3)
    yield scenario("none moves, 8 replicates", none, {}, replicates=8)
    yield scenario("none moves, heavy tails", none, {}, draw=student)
    yield scenario("none moves, seeds in common", none, {}, shared_logits={(): 0.3, ("batch_size",): 0.2})
    # Clouds of unequal width with one centre: mean distances would tell them apart, root mean squares do not.
    yield scenario("none moves, unequal variances", none, {}, null=["initialization"], logit_noise=_wild_in_one_corner)
    yield scenario("none moves, 10 % diverge", none, {}, diverges=_one_in_ten)
    yield scenario("all move alike", "three factors alike", alike)
    yield scenario("all move alike, 3 replicates", "three factors alike", alike, replicates=3)
    said, claim = "depth and B alone", {"depth": 1.0, "batch_size": 1.5}
    for replicates in (3, 4, 5, 8):
        yield scenario(f"the claim, {replicates} replicates", said, claim, replicates, NO, YES)
    yield scenario("the claim, heavy tails", said, claim, false=NO, found=YES, draw=student)
    yield scenario("the claim, 10 % diverge", said, claim, false=NO, found=YES,
                diverges=_one_in_ten)  # fmt: skip
    yield scenario("the contrary", "initialization alone", {"initialization": 2.0}, found=NO)
    yield scenario("half the claim", "B alone", {"batch_size": 1.5}, found=NO)
    yield scenario("half the claim, 3 replicates", "B alone", {"batch_size": 1.5}, replicates=3)


def _tasks_worlds() -> Iterator[Scenario]:
    def scenario(name: str, said: str, moves: Mapping[str, float], replicates: int = 5, false: Verdict = YES,
              found: Verdict | None = None, **truth: Any) -> Scenario:  # fmt: skip
        return Scenario(name=name, question="tasks", said=said, truth=_choice(moves, **truth), factors=TASKS,
                     replicates=replicates, false=false, found=found,
                     null=[factor for factor in TASKS if factor not in moves])  # fmt: skip

    yield scenario("neither moves", "neither moves the choice", {})
    yield scenario("neither moves, 3 replicates", "neither moves the choice", {}, replicates=3)
    yield scenario("neither moves, 8 replicates", "neither moves the choice", {}, replicates=8)
    yield scenario("neither moves, heavy tails", "neither moves the choice", {}, draw=student)
    yield scenario("task moves", "task alone", {"task": 1.5}, 5, NO, YES)
    yield scenario("task moves, 3 replicates", "task alone", {"task": 1.5}, 3, NO, YES)


def _accuracy(gains: Mapping[str, float], **changes: Any) -> Truth:
    """The norm sn gains so much over these norms, and nothing over others.

    Norms answer to seeds in ways of their own, the same in every cell: the cells of a replicate are no replicates.
    """
    usual = {"shared": {(): 0.01, ("norm",): 0.003}, "accuracy": lambda trial: 0.9 - gains.get(trial.config.norm, 0.0)}
    return Truth(**{**usual, **changes})


def _choice(moves: Mapping[str, float], **changes: Any) -> Truth:
    """The second level of these factors moves the logit of bn so far."""
    second = {name: levels[1] for name, levels in {**FACTORS, **TASKS}.items()}

    def logit(trial: PlannedTrial) -> float:
        return sum(move for name, move in moves.items() if getattr(trial.config, name) == second[name])

    return Truth(**{"bn_logit": logit, **changes})


def _wild_where_b_is_small(trial: PlannedTrial) -> float:
    return 0.03 if trial.config.batch_size == 2 else 0.001


def _wild_in_one_corner(trial: PlannedTrial) -> float:
    return 0.4 if trial.config.batch_size == 2 and trial.config.depth == 8 else 0.1


def _one_in_ten(trial: PlannedTrial, accuracy: float) -> float:
    return 0.1


def _bn_at_2(trial: PlannedTrial, accuracy: float) -> float:
    return 0.6 if trial.config.norm == "bn" and trial.config.batch_size == 2 else 0.0


def student(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise with heavy tails: Student t of 3 degrees of freedom, at a standard deviation of 1."""
    return np.asarray(random.standard_t(3, shape) / np.sqrt(3))

"""How often the answers are wrong: they are asked of hundreds of synthetic studies of which the truth is known.

A world is a study and a truth. In each, some verdicts would be false: `World.false` says which, and a rule that errs in
5 % of studies gives them in 5 % of the draws. Intervals are held against what they estimate: a planted difference, or,
where a number has no closed form, the same number of studies with many replicates in which nothing diverges.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from scipy import stats

from study.analysis.answers import MARGIN, Answer, Effect, Verdict
from study.analysis.impacts import answer_impacts
from study.analysis.measures import MEASURES
from study.analysis.records import StudyRecords
from study.analysis.statistics import Floats
from study.analysis.tasks import answer_tasks
from study.analysis.useful import answer_useful
from study.bench.result import Figure, Result
from study.bench.synthetic import SyntheticStudy, Truth
from study.config import StudyConfig, study_from_dict
from study.plan import plan_trials

DRAWS, QUICK_DRAWS = 200, 4
FALSE_BAR, FOUND_BAR, COVERS_BAR = 0.05, 0.8, 0.95
MANY = 24  # replicates of the studies that say what an interval should hold
ASK: dict[str, Callable[[StudyRecords], Answer]] = {
    "useful": answer_useful, "impacts": answer_impacts, "tasks": answer_tasks,
}  # fmt: skip
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Name = tuple[str, str]  # of a number: its measure and its comparison


@dataclass(frozen=True, kw_only=True)
class World:
    """A study and its truth. `false` are the verdicts that would be wrong; `found` the one that should be reached."""

    name: str
    question: str
    said: str
    truth: Truth
    factors: Mapping[str, Any]
    replicates: int = 5
    false: Sequence[Verdict] = ()
    found: Verdict | None = None

    def study(self, replicates: int) -> StudyConfig:
        """Its study at so many replicates."""
        return study_from_dict({
            "name": "world", "scale": "synthetic", "title": self.name, "question": self.said,
            "base": {"epochs": 4, "depth": 8, "chunks": 2, "batch_size": 16}, "replicates": replicates,
            "factors": dict(self.factors), "analysis": {"questions": [self.question]},
        }, "bench verdicts")  # fmt: skip


@dataclass(kw_only=True)
class Tally:
    """What the draws of a world came to: verdicts, and by measure on which side of the truth its intervals lay."""

    draws: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    sides: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bootstrap: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    significant: int = 0  # draws in which a number without an effect has an adjusted p below 5 %

    def add(self, answer: Answer, truths: Mapping[Name, float]) -> None:
        """Counts one draw."""
        self.draws += 1
        self.verdicts[answer.verdict] += 1
        alarm = False
        for effect in answer.effects:
            truth = truths.get((effect.measure, effect.comparison))
            if truth is None or not MEASURES[effect.measure].headline:
                continue
            if effect.estimate.low is not None and effect.estimate.high is not None:
                self.sides[effect.measure][_side(effect.estimate.low, effect.estimate.high, truth)] += 1
            if effect.bootstrap is not None:
                self.bootstrap[effect.measure][_side(*effect.bootstrap, truth)] += 1
            null = abs(truth - MEASURES[effect.measure].line) < 1e-12
            alarm |= null and effect.p_value is not None and effect.p_value < 0.05
        self.significant += alarm

    def share(self, verdicts: Sequence[Verdict]) -> float:
        """Of the draws, those with one of these verdicts."""
        return sum(self.verdicts[verdict] for verdict in verdicts) / self.draws


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Draws every world and counts. Trains nothing: threads and device do not act."""
    draws = QUICK_DRAWS if quick else DRAWS
    result = Result("verdicts")
    for world in worlds():
        tally = draw(world, draws, true_values(world, 3 if quick else MANY))
        result.rows.append(_row(world, tally))
        result.figures += [] if quick else _figures(world, tally)
    result.notes.append(
        f"{draws} draws of each world. false: share of the draws with a verdict that is wrong there, with its 95 % "
        "Wilson interval. covers: share of the intervals of headline numbers that hold the truth, and of those that "
        "lie wholly above and below it. family p: share of draws in which any number without an effect has an adjusted "
        f"p below 5 %. The bar on a share is missed where its whole interval lies beyond; found: {FOUND_BAR:g}."
    )
    return result


def draw(world: World, draws: int, truths: Mapping[Name, float]) -> Tally:
    """Asks a world's question of that many studies, each with seeds of its own."""
    study, tally = SyntheticStudy(world.study(world.replicates)), Tally()
    for seed in range(draws):
        tally.add(ASK[world.question](study.records(replace(world.truth, seed=seed))), truths)
    return tally


def true_values(world: World, many: int) -> dict[Name, float]:
    """What the intervals of a world should hold: differences as planted, other numbers as of `many` replicates."""
    if world.question == "useful":
        return dict(_planted_gains(world))
    study = SyntheticStudy(world.study(many))
    calm = replace(world.truth, diverges=lambda trial, accuracy: 0.0)
    answers = [ASK[world.question](study.records(replace(calm, seed=1_000_000 + seed))) for seed in range(3)]
    found: dict[Name, list[float]] = defaultdict(list)
    for effect in (effect for answer in answers for effect in answer.effects):
        if effect.estimate.value is not None and MEASURES[effect.measure].headline:
            found[_name(effect)].append(effect.estimate.value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _planted_gains(world: World) -> Iterator[tuple[Name, float]]:
    """The difference in accuracy that is planted between sn and every other norm, a mean over cells."""
    means: dict[str, list[float]] = defaultdict(list)
    for trial in plan_trials(world.study(1)):
        means[trial.config.norm].append(world.truth.accuracy(trial))
    for norm in means.keys() - {"sn"}:
        yield ("val_accuracy", f"sn - {norm}"), float(np.mean(means["sn"]) - np.mean(means[norm]))


def binomial_interval(count: int, draws: int) -> tuple[float, float]:
    """The Wilson 95 % interval of a share."""
    found = stats.binomtest(count, draws).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _row(world: World, tally: Tally) -> dict[str, Any]:
    false = round(tally.share(world.false) * tally.draws)
    low, high = binomial_interval(false, tally.draws)
    return {
        "world": world.name, "question": world.question, "n": world.replicates, "truth": world.said,
        **{verdict: tally.share([verdict]) for verdict in VERDICTS},
        "false": f"{false / tally.draws:.3f} ({low:.3f} to {high:.3f})" if world.false else "",
        "covers": _say_sides(tally.sides), "bootstrap covers": _say_sides(tally.bootstrap),
        "family p": tally.significant / tally.draws,
    }  # fmt: skip


def _say_sides(sides: Mapping[str, Counter[str]]) -> str:
    """`effect 0.95 (above 0.03, below 0.02)`, by measure."""
    shares = {measure: {side: count[side] / count.total() for side in ("holds", "above", "below")}
              for measure, count in sides.items()}  # fmt: skip
    return "; ".join(f"{measure} {share['holds']:.3f} (above {share['above']:.3f}, below {share['below']:.3f})"
                     for measure, share in shares.items())  # fmt: skip


def _figures(world: World, tally: Tally) -> list[Figure]:
    """Shares that miss their bars by more than the number of draws explains."""
    figures = []
    if world.false:
        low, _ = binomial_interval(round(tally.share(world.false) * tally.draws), tally.draws)
        figures.append(Figure(f"{world.name}: false verdicts, low end", low, FALSE_BAR))
    if world.found:
        _, high = binomial_interval(tally.verdicts[world.found], tally.draws)
        figures.append(Figure(f"{world.name}: found, high end", high, FOUND_BAR, at_least=True))
    for measure, count in tally.sides.items():
        _, high = binomial_interval(count["holds"], count.total())
        figures.append(Figure(f"{world.name}: intervals of {measure} cover, high end", high, COVERS_BAR, at_least=True))
    return figures


def _side(low: float, high: float, truth: float) -> str:
    """Where an interval lies."""
    return "above" if low > truth else "below" if high < truth else "holds"


def _name(effect: Effect) -> Name:
    return effect.measure, effect.comparison


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


def worlds() -> list[World]:
    """Every world, question by question."""
    return [*_useful_worlds(), *_impacts_worlds(), *_tasks_worlds()]


def _useful_worlds() -> Iterator[World]:
    def world(name: str, said: str, truth: Truth, **more: Any) -> World:
        return World(**{"name": name, "question": "useful", "said": said, "truth": truth, "factors": NORMS, **more})

    yes, no = {"false": ["not supported"]}, {"false": ["supported"]}
    equal = "sn equals all others"
    yield world("null", equal, _accuracy(), **no)
    yield world("null, 3 replicates", equal, _accuracy(), replicates=3, **no)
    yield world("null, 8 replicates", equal, _accuracy(), replicates=8, **no)
    yield world("null, heavy tails", equal, _accuracy(draw=student), **no)
    unequal = _accuracy(accuracy_noise=lambda trial: 0.03 if trial.config.batch_size == 2 else 0.001)
    yield world("null, unequal variances", equal, unequal, **no)
    yield world("one equal", "0.03 over all but gn", _accuracy(bn=0.03, sn_uniform=0.03), found="not supported", **no)
    yield world("bn better", "-0.02 against bn, else 0.03",
                _accuracy(bn=-0.02, gn=0.03, sn_uniform=0.03), found="not supported", **no)  # fmt: skip
    at = dict.fromkeys(["bn", "gn", "sn_uniform"], MARGIN)
    yield world("at the margin", f"{MARGIN:g} over all", _accuracy(**at), **yes)
    yield world("at the margin, 3 replicates", f"{MARGIN:g} over all", _accuracy(**at), replicates=3, **yes)
    all_at = {norm.replace("-", "_"): MARGIN for norm in ALL_NORMS["norm"][1:]}
    yield world("at the margin, 8 norms", f"{MARGIN:g} over all", _accuracy(**all_at), factors=ALL_NORMS, **yes)
    above = dict.fromkeys(["bn", "gn", "sn_uniform"], 0.008)
    yield world("above the margin", "0.008 over all", _accuracy(**above), **yes)
    gain = dict.fromkeys(["bn", "gn", "sn_uniform"], 0.03)
    yield world("planted", "0.03 over all", _accuracy(**gain), found="supported", **yes)
    yield world("planted, 3 replicates", "0.03 over all", _accuracy(**gain), replicates=3, found="supported", **yes)
    tenth = {"diverges": lambda trial, accuracy: 0.1}
    yield world("null, 10 % diverge", equal, _accuracy(**tenth), **no)
    yield world("planted, 10 % diverge", "0.03 over all", _accuracy(**tenth, **gain), found="supported", **yes)
    fragile = {"diverges": lambda trial, _: 0.6 * (trial.config.norm == "bn" and trial.config.batch_size == 2)}
    yield world("null, bn diverges at B = 2", equal, _accuracy(**fragile), **no)
    yield world(
        "planted, bn diverges at B = 2", "0.03 over all", _accuracy(**fragile, **gain), found="supported", **yes
    )
    worst = {"diverges": lambda trial, accuracy: float(accuracy < 0.89)}
    yield world("null, the worst diverge", equal, _accuracy(**worst), **no)


def _impacts_worlds() -> Iterator[World]:
    def world(name: str, said: str, truth: Truth, **more: Any) -> World:
        return World(**{"name": name, "question": "impacts", "said": said, "truth": truth, "factors": FACTORS, **more})

    yes, no = {"false": ["not supported"]}, {"false": ["supported"]}
    none = "no factor moves the choice"
    yield world("none moves", none, _choice(), **no)
    yield world("none moves, 3 replicates", none, _choice(), replicates=3, **no)
    yield world("none moves, 8 replicates", none, _choice(), replicates=8, **no)
    yield world("none moves, heavy tails", none, _choice(draw=student), **no)
    yield world("none moves, seeds in common", none, _choice(shared_logits={(): 0.3, ("batch_size",): 0.2}), **no)
    unequal = {"logit_noise": lambda trial: 0.4 if trial.config.batch_size == 2 and trial.config.depth == 8 else 0.1}
    yield world("none moves, unequal variances", none, _choice(**unequal), **no)
    yield world("none moves, 10 % diverge", none, _choice(diverges=lambda trial, accuracy: 0.1), **no)
    yield world("all move alike", "three factors alike", _choice(depth=1, batch_size=1, initialization=1), **no)
    yield world("all move alike, 3 replicates", "three factors alike",
                _choice(depth=1, batch_size=1, initialization=1), replicates=3, **no)  # fmt: skip
    claim = {"depth": 1, "batch_size": 1.5}
    for replicates in (3, 4, 5, 8):
        yield world(f"the claim, {replicates} replicates", "depth and B alone", _choice(**claim),
                    replicates=replicates, found="supported", **yes)  # fmt: skip
    yield world("the claim, heavy tails", "depth and B alone", _choice(draw=student, **claim), found="supported", **yes)
    yield world("the claim, 10 % diverge", "depth and B alone",
                _choice(diverges=lambda trial, accuracy: 0.1, **claim), found="supported", **yes)  # fmt: skip
    yield world("the contrary", "initialization alone", _choice(initialization=2), found="not supported", **no)
    yield world("half the claim", "B alone", _choice(batch_size=1.5), found="not supported", **no)


def _tasks_worlds() -> Iterator[World]:
    def world(name: str, said: str, truth: Truth, **more: Any) -> World:
        return World(**{"name": name, "question": "tasks", "said": said, "truth": truth, "factors": TASKS, **more})

    yes, no = {"false": ["not supported"]}, {"false": ["supported"]}
    neither = "neither moves the choice"
    yield world("neither moves", neither, _choice(), **no)
    yield world("neither moves, 3 replicates", neither, _choice(), replicates=3, **no)
    yield world("neither moves, 8 replicates", neither, _choice(), replicates=8, **no)
    yield world("neither moves, heavy tails", neither, _choice(draw=student), **no)
    yield world("task moves", "task alone", _choice(task=1.5), found="supported", **yes)
    yield world("task moves, 3 replicates", "task alone", _choice(task=1.5), replicates=3, found="supported", **yes)


def _accuracy(**changes: Any) -> Truth:
    """Norms by how much sn gains over them (`sn_uniform=0.03`), and changes of the truth.

    Norms answer to seeds in ways of their own, the same in every cell: cells of a replicate are no replicates.
    """
    fields = {name for name in changes if hasattr(Truth(), name)}
    gains = {name.replace("_", "-"): gain for name, gain in changes.items() if name not in fields}
    usual = {"shared": {(): 0.01, ("norm",): 0.003}, "accuracy": lambda trial: 0.9 - gains.get(trial.config.norm, 0.0)}
    return Truth(**{**usual, **{name: changes[name] for name in fields}})


def _choice(**changes: Any) -> Truth:
    """Factors by how far their second level moves the logit of bn (`depth=1`), and changes of the truth."""
    fields = {name for name in changes if hasattr(Truth(), name)}
    moves = {name: move for name, move in changes.items() if name not in fields}
    second = {name: levels[1] for name, levels in {**FACTORS, **TASKS}.items()}
    usual = {"bn_logit": lambda trial: sum(move * (getattr(trial.config, name) == second[name])
                                           for name, move in moves.items())}  # fmt: skip
    return Truth(**{**usual, **{name: changes[name] for name in fields}})


def student(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise with heavy tails: Student t of 3 degrees of freedom, at a standard deviation of 1."""
    return np.asarray(random.standard_t(3, shape) / np.sqrt(3))

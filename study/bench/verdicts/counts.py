"""Counts over the draws of a scenario: false verdicts, and how often intervals hold the truth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from study.analysis.questions.answers import Answer, Effect, Judgement
from study.analysis.questions.verdicts import AGAINST, SUPPORTED, Verdict
from study.bench.verdicts.scenarios import NO_EFFECT, NumberKey

SIGNIFICANCE = 0.05
TESTED = ("share_of_variance", "effect_layer")  # measures whose p values are counted where `counts_p_values`
# Measures of which the largest one says whether a factor moves.
FACTOR_NUMBERS = ("effect", "effect_all_levels", "effect_widest_pair")
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
            values = [true_values[measure, name] for measure in FACTOR_NUMBERS if (measure, name) in true_values]
            if values and found & find_false_verdicts(max(values), margin):
                false.add(name)
        self.false_factors.update(false)
        self.false_any_factor += bool(false)

    def _add_numbers(
        self, effects: Sequence[Effect], true_values: Mapping[NumberKey, float], null: Collection[str]
    ) -> None:
        p_values: dict[str, list[float]] = defaultdict(list)
        for effect in effects:
            if effect.n_at_chance:
                continue  # it estimates a difference to the score of guessing, which was not planted
            key, low, high, measure = build_key(effect), effect.estimate.low, effect.estimate.high, effect.measure.name
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


def build_key(effect: Effect) -> NumberKey:
    """Names a number: its measure, and what it compares."""
    return effect.measure.name, effect.comparison


def _find_side(low: float, high: float, true_value: float) -> str:
    """Where an interval lies: above or below the true value, or around it."""
    return "above" if low > true_value + ROUNDING else "below" if high < true_value - ROUNDING else "holds"

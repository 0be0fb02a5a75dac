"""Effects of factors on what networks chose: how far the levels of a factor move it, free of the noise of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from study.analysis.questions.choices import Choices
from study.analysis.questions.verdicts import Claim, Verdict, judge
from study.analysis.statistics.displacement import displacement, relative_displacement
from study.analysis.statistics.distances import JENSEN_SHANNON, Distance, convert_margin
from study.analysis.statistics.intervals import Estimate, Floats, adjust_holm, one_sided_p_value
from study.analysis.statistics.moments import CellDistances, Moments, measure_contrasts


@dataclass(frozen=True, kw_only=True)
class WidestPair:
    """The two levels of a factor that lie furthest apart.

    confidence: of the interval, such that those of all pairs of levels together have the stated one (Bonferroni).
    """

    levels: tuple[str, str]
    estimate: Estimate
    confidence: float


@dataclass(frozen=True, kw_only=True)
class ChoiceDistances:
    """The displacements of all factors, by one distance. squared: as `Choices.measure` returns it."""

    choices: Choices
    distance: Distance
    squared: Floats
    moments: Mapping[str, Moments]
    margin: float

    @cached_property
    def cells(self) -> CellDistances:
        """Mean squared distances between cells."""
        return CellDistances(self.squared)

    @cached_property
    def between(self) -> dict[str, Moments]:
        """The mean over all pairs of levels, of factors with numeric levels between the ends that are compared."""
        return {name: measure_contrasts(self.cells, each) for name, each in self.choices.between.items()}

    @cached_property
    def pairs(self) -> dict[str, dict[tuple[str, str], Moments]]:
        """Every two levels, of factors with more than two levels that are not numbers."""
        return {
            name: {pair: measure_contrasts(self.cells, contrasts) for pair, contrasts in each.items()}
            for name, each in self.choices.pairs.items()
        }  # fmt: skip

    def find_widest_pairs(self, confidence: float) -> dict[str, WidestPair]:
        """The two levels of each factor of `pairs` that lie furthest apart."""
        found = {}
        for name, each in self.pairs.items():
            at = 1 - (1 - confidence) / len(each)
            measured = {pair: displacement(moments, at) for pair, moments in each.items()}
            known = {pair: estimate for pair, estimate in measured.items() if estimate.value is not None}
            if known:
                widest = max(known, key=lambda pair: known[pair].value or 0.0)
                found[name] = WidestPair(levels=widest, estimate=known[widest], confidence=at)
        return found

    def select_axis(self, axis: int) -> ChoiceDistances:
        """The same by the weights of one axis alone."""
        return ChoiceDistances(
            choices=self.choices, distance=self.distance, squared=self.squared[..., [axis]],
            moments={name: each.select_axis(axis) for name, each in self.moments.items()}, margin=self.margin,
        )  # fmt: skip

    def estimate(self, confidence: float, axis: int | None = None) -> dict[str, Estimate]:
        """The displacement of every factor, the largest first; `axis`: the number of the one axis to measure."""
        found = {name: displacement(each, confidence, axis) for name, each in self.moments.items()}
        return rank_estimates({name: each for name, each in found.items() if each.value is not None})

    def relative(self, confidence: float) -> dict[str, Estimate]:
        """Displacements in units of the distance between seeds."""
        return {name: relative_displacement(each, confidence) for name, each in self.moments.items()}

    def claims(self, confidence: float) -> dict[str, Claim]:
        """That each factor moves the choice by more than the margin.

        A contrast without results may lie anywhere: the factor can only be said to move the choice if it does even
        where the missing contrasts have no displacement, and cannot be said not to. A factor with levels between its
        ends moves the choice if the ends lie apart, or all levels on average; one with more than two names, if its
        levels lie apart on average, or any two of them. A factor without any result is a claim without a value, which
        comes last.
        """
        found, measured = {}, self.estimate(confidence)
        others = {
            **{name: [each] for name, each in self.between.items()},
            **{name: list(each.values()) for name, each in self.pairs.items()},
        }
        for name in [*measured, *(name for name in self.moments if name not in measured)]:
            estimate = measured.get(name, Estimate())
            moments = self.moments[name]
            share = moments.n_contrasts / moments.n_planned
            low = estimate.low is not None and estimate.low * share**0.5 > self.margin
            found[name] = Claim(
                estimate=estimate, margin=self.margin, can_support=low or share == 1, can_refute=share == 1,
                others=[displacement(other, confidence) for other in others.get(name, ())],
            )  # fmt: skip
        return found


def measure_distances(choices: Choices, margin: float, distance: Distance = JENSEN_SHANNON) -> ChoiceDistances:
    """The displacement of every factor. margin: in Jensen-Shannon distance, converted to the unit of the distance."""
    squared = choices.measure(distance)
    cells = CellDistances(squared)
    moments = {name: measure_contrasts(cells, each) for name, each in choices.contrasts.items()}
    margin = convert_margin(margin, distance, len(choices.space.members))
    return ChoiceDistances(choices=choices, distance=distance, squared=squared, moments=moments, margin=margin)


def judge_factors(claims: Mapping[str, Claim], confidence: float) -> dict[str, Verdict]:
    """The verdict on each factor, a question of its own: whether it moves the choice by more than the margin."""
    return {name: judge(claim, confidence) for name, claim in claims.items()}


def adjust_p_values(claims: Mapping[str, Claim], confidence: float) -> dict[str, float | None]:
    """One-sided p values that each number is no larger than its margin, adjusted for their number by Holm."""
    raw = [one_sided_p_value(claim.estimate, claim.margin, confidence) for claim in claims.values()]
    return dict(zip(claims, adjust_holm(raw), strict=True))


def rank_estimates(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The estimates of all factors, the largest first."""
    return dict(sorted(estimates.items(), key=lambda pair: -(pair[1].value or 0)))

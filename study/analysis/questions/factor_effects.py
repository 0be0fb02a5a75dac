"""Effects of factors on what networks chose: how far the levels of a factor move it, free of the noise of seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.analysis.questions.answers import Effect
from study.analysis.questions.verdicts import Claim, Verdict, judge
from study.analysis.records import StudyRecords
from study.analysis.statistics.contrasts import Contrast, find_contrasts, find_ends, find_slope_contrasts
from study.analysis.statistics.displacement import (
    displacement,
    probability_strongest,
    relative_displacement,
    seed_distance,
)
from study.analysis.statistics.distances import (
    AITCHISON,
    JENSEN_SHANNON,
    TOTAL_VARIATION,
    Distance,
    convert_margin,
    log_ratios,
)
from study.analysis.statistics.intervals import Estimate, Floats, Numbers, adjust_holm, cell_numbers, one_sided_p_value
from study.analysis.statistics.measures import build_measures
from study.analysis.statistics.moments import CellDistances, Moments, measure_contrasts
from study.analysis.statistics.permanova import REPLICATE, RESIDUAL, permutation_p_value, variance_shares
from study.analysis.statistics.profiles import Profiles
from study.config.choice_space import ChoiceSpace

SEEDS = "another seed"  # the comparison of the row that shows the distance between replicates


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the networks of a plan chose: every planned cell and replicate, with whatever is missing.

    cells: one row per planned cell, one column per factor. replicates: their numbers.
    values: (cell, replicate, axis, position, member), NaN for a network without a result.
    rows: rows of the trial table (cell, replicate), -1 where no trial is planned. states: those of the trials, alike.
    """

    space: ChoiceSpace
    profiles: Profiles
    cells: pd.DataFrame
    replicates: tuple[int, ...]
    values: Floats
    rows: Numbers
    states: pd.DataFrame

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each network has a result: (cell, replicate)."""
        return np.asarray(np.isfinite(self.values).all(axis=(2, 3, 4)) & (self.values.shape[3] > 0), dtype=bool)

    @property
    def n_replicates(self) -> int:
        return int(self.present.any(axis=0).sum())

    @property
    def factors(self) -> list[str]:
        """The factors that vary."""
        return [str(name) for name in self.cells if self.cells[name].map(repr).nunique() > 1]

    @cached_property
    def contrasts(self) -> dict[str, list[Contrast]]:
        """The comparisons of cells that differ in a factor alone, for each factor that has any."""
        found = {name: find_contrasts(self.cells, name) for name in self.factors}
        return {name: each for name, each in found.items() if each}

    @cached_property
    def networks(self) -> Floats:
        """The networks with results: (network, axis, position, member)."""
        return np.asarray(self.values[self.present])

    def measure(self, distance: Distance) -> Floats:
        """Squared distances (cell, replicate, cell, replicate, axis), NaN where a network is missing."""
        table = np.full((self.present.size, self.present.size, self.values.shape[2]), np.nan)
        where = np.flatnonzero(self.present)
        if where.size:
            table[np.ix_(where, where)] = distance.squared(self.networks)
        return table.reshape(*self.present.shape, *self.present.shape, self.values.shape[2])


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

    def select_axis(self, axis: int) -> ChoiceDistances:
        """The same by the weights of one axis alone."""
        return ChoiceDistances(
            choices=self.choices, distance=self.distance, squared=self.squared[..., [axis]],
            moments={name: each.select_axis(axis) for name, each in self.moments.items()}, margin=self.margin,
        )  # fmt: skip

    def estimate(self, confidence: float, axis: int | None = None) -> dict[str, Estimate]:
        """The displacement of every factor, the largest first; `axis`: the number of the one axis to measure."""
        found = {name: displacement(each, confidence, axis) for name, each in self.moments.items()}
        return _rank({name: each for name, each in found.items() if each.value is not None})

    def relative(self, confidence: float) -> dict[str, Estimate]:
        """Displacements in units of the distance between seeds."""
        return {name: relative_displacement(each, confidence) for name, each in self.moments.items()}

    def claims(self, confidence: float) -> dict[str, Claim]:
        """That each factor moves the choice by more than the margin.

        A contrast without results may lie anywhere: the factor can only be said to move the choice if it does even
        where the missing contrasts have no displacement, and cannot be said not to. A factor whose levels in between
        differ from its ends cannot be said not to move it either. A factor without any result is a claim without a
        value, which comes last.
        """
        found, measured = {}, self.estimate(confidence)
        for name in [*measured, *(name for name in self.moments if name not in measured)]:
            estimate = measured.get(name, Estimate())
            moments = self.moments[name]
            share = moments.n_contrasts / moments.n_planned
            low = estimate.low is not None and estimate.low * share**0.5 > self.margin
            found[name] = Claim(
                estimate=estimate, margin=self.margin, can_support=low or share == 1,
                can_refute=share == 1 and self._is_small_between(name, confidence),
            )  # fmt: skip
        return found

    def _is_small_between(self, factor: str, confidence: float) -> bool:
        """Whether all levels of a factor, not only its ends, lie within the margin of each other on average."""
        cells = self.choices.cells
        if cells[factor].map(repr).nunique() < 3 or find_ends(cells[factor].tolist()) is None:
            return True
        moments = measure_contrasts(self.cells, find_contrasts(cells, factor, all_levels=True))
        return displacement(moments, confidence).below(self.margin)


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the member bn leaves the pool (there BN is IN): a rule, not a choice, so those trials are left out.
    """
    trials: pd.DataFrame = records.from_scratch[records.from_scratch["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def collect_choices(
    profiles: Profiles, trials: pd.DataFrame, factors: Sequence[str], space: ChoiceSpace
) -> Choices:  # fmt: skip
    """The profiles of finished trials, by planned cell and replicate.

    trials: rows of the trial table, with its index. factors: columns of `trials`.
    """
    table = trials.assign(cell=cell_numbers(trials, ["trial_id"]), row=trials.index).reset_index(drop=True)
    grid = table.assign(place=table.index).pivot(index="cell", columns="replicate", values="place")
    places = grid.fillna(-1).to_numpy(dtype=np.intp)
    usable = table["key"].where(table["state"].eq("done") & table["key"].isin(list(profiles)))
    values = np.full((places.size, len(space.axes), len(profiles.positions), len(space.members)), np.nan)
    for number, place in enumerate(places.ravel()):
        if place >= 0 and isinstance(usable[place], str):
            values[number] = profiles[usable[place]]
    cells = pd.DataFrame({name: table.groupby("cell")[name].first() for name in factors}, index=grid.index)
    return Choices(
        space=space, profiles=profiles, cells=cells, replicates=tuple(int(number) for number in grid.columns),
        values=values.reshape(*places.shape, *values.shape[1:]),
        rows=np.where(places >= 0, table["row"].to_numpy(dtype=np.intp)[places], -1),
        states=table[["cell", "replicate", "row", "state"]],
    )  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------- effects


def displacement_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """Rows for the displacement of every factor, on which its verdict is given."""
    claims = distances.claims(confidence)
    p_values = adjust_p_values(claims, confidence)
    return [
        factor_row(distances.choices, "effect", name, [name], claim.estimate, p_values[name])
        for name, claim in claims.items()
    ]


def effect_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """Rows for the displacement of every factor: in two units, for each axis, by other distances, and per doubling."""
    choices, claims = distances.choices, distances.claims(confidence)
    rows = displacement_rows(distances, confidence)
    rows += _seed_rows(distances, confidence)
    relative = distances.relative(confidence)
    rows += [factor_row(choices, "effect_relative", name, [name], relative[name]) for name in claims]
    for number, axis in enumerate(choices.space.axes):
        rows += [
            factor_row(choices, f"effect_{axis.name}", name, [name], estimate)
            for name, estimate in distances.estimate(confidence, number).items()
        ]
    for measure, distance in (("effect_aitchison", AITCHISON), ("effect_total_variation", TOTAL_VARIATION)):
        other = measure_distances(choices, distances.margin, distance)
        rows += [
            factor_row(choices, measure, name, [name], estimate)
            for name, estimate in other.estimate(confidence).items()
        ]
    for name in claims:
        slopes = find_slope_contrasts(choices.cells, name)
        if slopes:
            estimate = displacement(measure_contrasts(distances.cells, slopes), confidence)
            rows.append(factor_row(choices, "effect_per_doubling", name, [name], estimate))
    return [row for row in rows if row.measure.name == "effect" or row.estimate.value is not None]


def _seed_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """The distance between replicates of a cell, over the cells of all factors."""
    names = list(distances.moments)
    if not names:
        return []
    contrasts = [each for name in names for each in distances.choices.contrasts[name]]
    estimate = seed_distance(measure_contrasts(distances.cells, contrasts), confidence)
    return [factor_row(distances.choices, "seed_distance", SEEDS, names, estimate)] * (estimate.value is not None)


def strongest_rows(distances: ChoiceDistances) -> list[Effect]:
    """The probability of each factor that it is the strongest, from joint resampling of replicates."""
    found = probability_strongest(distances.cells, distances.choices.contrasts)
    n = distances.choices.n_replicates
    return [
        factor_row(distances.choices, "probability_strongest", name, [name], Estimate(value=value, n=n))
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ] * (len(found) > 1)


def share_rows(choices: Choices, confidence: float) -> list[Effect]:
    """Rows for the share of variance of every factor, largest first, over replicates in which no cell is missing."""
    whole = np.flatnonzero(choices.present.all(axis=0))
    if whole.size < 2 or not choices.contrasts:
        return []
    values = choices.values[:, whole]
    products = -JENSEN_SHANNON.squared(values.reshape(-1, *values.shape[2:])).mean(axis=-1) / 2
    products = products.reshape(*values.shape[:2], *values.shape[:2])
    return [
        *_list_shares(choices, products, confidence, list(choices.contrasts)),
        *_list_part_shares(choices, log_ratios(values), confidence, list(choices.contrasts)),
    ]


def _list_shares(choices: Choices, products: Floats, confidence: float, names: Sequence[str]) -> list[Effect]:
    tests = adjust_holm([
        permutation_p_value(products, choices.cells, name, np.random.default_rng([7, number]))
        for number, name in enumerate(names)
    ])  # fmt: skip
    p_values, shares = dict(zip(names, tests, strict=True)), variance_shares(products, choices.cells, confidence)
    ranked = _rank({name: shares[name] for name in names if name in shares})
    return [
        *(factor_row(choices, "share_of_variance", name, [name], item, p_values[name])
          for name, item in ranked.items()),
        *(factor_row(choices, "share_of_variance", name, names, shares[name])
          for name in (REPLICATE, RESIDUAL) if name in shares),
    ]  # fmt: skip


def _list_part_shares(choices: Choices, coordinates: Floats, confidence: float, names: Sequence[str]) -> list[Effect]:
    """The same for every stage of the network, by log-ratios of the weights."""
    stages = [position.partition(",")[0] for position in choices.profiles.positions]
    found = []
    for stage in dict.fromkeys(stages):
        part = coordinates[:, :, :, [other == stage for other in stages]]
        shares = variance_shares(inner_products(part), choices.cells, confidence)
        found += [
            factor_row(choices, "layer_share", f"{name}, {stage}", [name], item)
            for name, item in _rank({name: shares[name] for name in names if name in shares}).items()
        ]
    return found


def inner_products(coordinates: Floats) -> Floats:
    """Inner products of the coordinates of networks, (cell, replicate, ...): (cell, replicate, cell, replicate)."""
    cells, replicates = coordinates.shape[:2]
    flat = coordinates.reshape(cells * replicates, -1)
    return np.asarray((flat @ flat.T).reshape(cells, replicates, cells, replicates))


def factor_row(
    choices: Choices, measure: str, comparison: str, factors: Sequence[str], estimate: Estimate,
    p_value: float | None = None,
) -> Effect:  # fmt: skip
    """A row about factors: the contrasts between cells that differ in one alone, their trials, and what is missing."""
    contrasts = [each for name in factors for each in choices.contrasts.get(name, ())]
    cells = sorted({int(cell) for each in contrasts for cell in each.cells})
    planned, present = choices.rows[cells], choices.present[cells]
    has_result: NDArray[np.bool_] = np.asarray(choices.present.any(axis=1))
    missing = choices.states[choices.states["row"].isin(planned[~present])]["state"]
    return Effect(
        measure=build_measures(choices.space)[measure], comparison=comparison, estimate=estimate, p_value=p_value,
        n_pairs=sum(bool(has_result[each.cells].all()) for each in contrasts), n_pairs_planned=len(contrasts),
        missing=dict(sorted(Counter(missing).items())), trials=sorted(planned[present].tolist()),
    )  # fmt: skip


def adjust_p_values(claims: Mapping[str, Claim], confidence: float) -> dict[str, float | None]:
    """One-sided p values that each number is no larger than its margin, adjusted for their number by Holm."""
    raw = [one_sided_p_value(claim.estimate, claim.margin, confidence) for claim in claims.values()]
    return dict(zip(claims, adjust_holm(raw), strict=True))


def find_empty_cells(choices: Choices) -> list[int]:
    """The numbers of planned cells without any result."""
    return [int(number) for number in np.flatnonzero(~choices.present.any(axis=1))]


def _rank(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return dict(sorted(estimates.items(), key=lambda pair: -(pair[1].value or 0)))

"""The rows of a table of effects: displacements of factors, shares of variance, and the strongest factor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from study.analysis.questions.answers import Effect
from study.analysis.questions.choices import ALL_LEVELS, Choices
from study.analysis.questions.factor_effects import ChoiceDistances, adjust_p_values, measure_distances, rank_estimates
from study.analysis.statistics.contrasts import find_slope_contrasts
from study.analysis.statistics.displacement import displacement, probability_strongest, seed_distance
from study.analysis.statistics.distances import AITCHISON, JENSEN_SHANNON, TOTAL_VARIATION, log_ratios
from study.analysis.statistics.intervals import Estimate, Floats, adjust_holm
from study.analysis.statistics.measures import build_measures
from study.analysis.statistics.moments import measure_contrasts
from study.analysis.statistics.permanova import REPLICATE, RESIDUAL, permutation_p_value, variance_shares
from study.analysis.wording import join_words

SEEDS = "another seed"  # the comparison of the row that shows the distance between replicates


def displacement_rows(distances: ChoiceDistances, confidence: float) -> list[Effect]:
    """Rows for the displacement of every factor, that between all levels, and that of the two furthest apart.

    The verdict on a factor is given on these numbers.
    """
    claims = distances.claims(confidence)
    p_values = adjust_p_values(claims, confidence)
    return [
        factor_row(distances.choices, "effect", name, [name], claim.estimate, p_values[name])
        for name, claim in claims.items()
    ] + [
        factor_row(distances.choices, "effect_all_levels", name, [name + ALL_LEVELS], other)
        for name, claim in claims.items() if name in distances.between for other in claim.others
    ] + [
        factor_row(distances.choices, "effect_widest_pair", f"{name}: {join_words(pair.levels)}", [name], pair.estimate)
        for name, pair in distances.find_widest_pairs(confidence).items()
    ]  # fmt: skip


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
    found = probability_strongest(distances.cells, distances.choices.contrasts, distances.choices.between)
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
    ranked = rank_estimates({name: shares[name] for name in names if name in shares})
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
            for name, item in rank_estimates({name: shares[name] for name in names if name in shares}).items()
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
    """A row about factors: the contrasts between cells that differ in one alone, their trials, and what is missing.

    factors: names of `Choices.comparisons`.
    """
    contrasts = [each for name in factors for each in choices.comparisons.get(name, ())]
    cells = sorted({int(cell) for each in contrasts for cell in each.cells})
    planned, present = choices.rows[cells], choices.present[cells]
    has_result: NDArray[np.bool_] = np.asarray(choices.present.any(axis=1))
    missing = choices.states[choices.states["row"].isin(planned[~present])]["state"]
    return Effect(
        measure=build_measures(choices.space)[measure], comparison=comparison, estimate=estimate, p_value=p_value,
        n_pairs=sum(bool(has_result[each.cells].all()) for each in contrasts), n_pairs_planned=len(contrasts),
        missing=dict(sorted(Counter(missing).items())), trials=sorted(planned[present].tolist()),
    )  # fmt: skip

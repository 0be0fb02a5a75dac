"""Shares of variance: against references, and on made-up networks whose truth is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from study.analysis.questions.factor_rows import inner_products
from study.analysis.statistics.distances import squared_jensen_shannon
from study.analysis.statistics.intervals import Floats
from study.analysis.statistics.permanova import REPLICATE, RESIDUAL, permutation_p_value, variance_shares
from tests.analysis.estimates import holds

DRAWS = 200
CROSSED = pd.DataFrame(list(product((0, 1), (0, 1, 2))), columns=["a", "b"])
DOUBLED = pd.concat([CROSSED.assign(c="x"), CROSSED.assign(c="y")], ignore_index=True)  # c makes no difference
BLOCKS = pd.DataFrame({"a": [0, 1, 0, 1, 0, 0], "b": [0, 0, 1, 1, 2, 0], "c": ["x", "x", "x", "x", "x", "y"]})
PARTLY = pd.DataFrame(list(product("xyz", (0, 1, 2))), columns=["a", "b"]).drop(index=8)  # z lacks b = 2
MOVES = {"a": np.array([0.3, -0.3, 0.5, 0.0, 0.2, 0.1]), "b": np.array([0.1, 0.1, -0.2, 0.1, 0.0, -0.1])}
SHARED, OWN = 0.2, 0.4  # how far seeds move each coordinate: of all networks of a replicate, and of each network


def _coordinates(replicates: int, seed: int, cells: pd.DataFrame = CROSSED) -> Floats:
    """(cell, replicate, coordinate): a and b move networks, and so do seeds, in part those of a replicate alike."""
    random = np.random.default_rng(seed)
    moved = np.outer(cells["a"], MOVES["a"]) + np.outer(cells["b"], MOVES["b"])
    shared = SHARED * random.normal(size=(1, replicates, 6))
    return np.asarray(moved[:, None] + shared + OWN * random.normal(size=(len(cells), replicates, 6)))


def _truth() -> dict[str, float]:
    """The shares in `CROSSED`: the variance of what levels add, over that and the variance of what seeds add."""
    explained = {name: float(np.var(CROSSED[name]) * np.sum(MOVES[name] ** 2)) for name in ("a", "b")}
    whole = sum(explained.values()) + 6 * (SHARED**2 + OWN**2)
    return {name: value / whole for name, value in explained.items()}


def _networks(cells: pd.DataFrame, replicates: int) -> pd.DataFrame:
    repeated = cells.loc[cells.index.repeat(replicates)].reset_index(drop=True)
    return repeated.assign(replicate=np.tile(np.arange(replicates), len(cells)))


@pytest.mark.parametrize("cells", [CROSSED, BLOCKS], ids=["crossed", "blocks"])
def test_shares_are_the_omega_squared_of_type_two(cells: pd.DataFrame) -> None:
    values = _coordinates(3, 0, cells)[..., :1]
    shares = variance_shares(inner_products(values), cells, 0.95)
    terms = [*cells, "replicate"]
    model = " + ".join(f"C({name})" for name in terms)
    fitted = smf.ols(f"value ~ {model}", _networks(cells, 3).assign(value=values.ravel())).fit()
    expected = anova_lm(fitted, typ=2).rename(lambda name: name.removeprefix("C(").rstrip(")"))
    squares, degrees = expected["sum_sq"], expected["df"]
    chance = squares["Residual"] / degrees["Residual"]
    total = np.sum((values - values.mean()) ** 2) + chance
    for name in terms:
        share = min(max((squares[name] - degrees[name] * chance) / total, 0.0), 1.0)
        assert shares[name].value == pytest.approx(share, abs=1e-9)
    assert shares[RESIDUAL].value == pytest.approx(values.size * chance / total)


def test_squared_distances_say_the_same_as_coordinates() -> None:
    values = _coordinates(3, 0)
    squared = ((values[:, :, None, None] - values) ** 2).sum(axis=-1)
    found, expected = (variance_shares(each, CROSSED, 0.95) for each in (-squared / 2, inner_products(values)))
    for name, share in expected.items():
        assert (found[name].value, found[name].low) == pytest.approx((share.value, share.low))


def test_shares_of_crossed_factors_sum_to_one() -> None:
    shares = variance_shares(inner_products(_coordinates(5, 0) + 7), CROSSED, 0.95)
    assert list(shares) == ["a", "b", REPLICATE, RESIDUAL]
    assert sum(share.value or 0 for share in shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("replicates", [3, 5])
def test_intervals_of_shares_cover_the_truth(replicates: int) -> None:
    draws = [
        variance_shares(inner_products(_coordinates(replicates, seed, DOUBLED)), DOUBLED, 0.95) for seed in range(DRAWS)
    ]
    for name, truth in {**_truth(), "c": 0.0}.items():
        assert sum(holds(draw[name], truth) for draw in draws) / DRAWS >= 0.91  # of 0.95, less three standard errors
        assert np.mean([draw[name].value for draw in draws]) == pytest.approx(truth, abs=0.03)


@pytest.mark.parametrize("replicates", [1, 2])
def test_few_replicates_give_no_interval(replicates: int) -> None:
    shares = variance_shares(inner_products(_coordinates(replicates, 0)), CROSSED, 0.95)
    assert all(share.low is None for share in shares.values())
    assert bool(shares) == (replicates > 1)


def test_networks_that_are_all_the_same_have_no_variance() -> None:
    assert variance_shares(np.zeros((6, 3, 6, 3)), CROSSED, 0.95) == {}


# --------------------------------------------------------------------------------------------- permutations


def _p_values(cells: pd.DataFrame, factor: str, draws: int) -> Floats:
    """Of six replicates: two levels have 32 permutations that differ in what they explain."""
    studies = (inner_products(_coordinates(6, seed, cells)) for seed in range(draws))
    return np.array([
        permutation_p_value(products, cells, factor, np.random.default_rng([7, seed]), 99)
        for seed, products in enumerate(studies)
    ])  # fmt: skip


def test_p_values_are_uniform_without_an_effect() -> None:
    p_values = _p_values(DOUBLED, "c", DRAWS)
    for level, most in ((0.05, 0.09), (0.2, 0.28), (0.5, 0.6)):  # three standard errors above it
        assert (p_values <= level).mean() <= most
    assert p_values.mean() == pytest.approx(0.5, abs=0.07)


def _with_shared_effect(cells: pd.DataFrame, factor: str, seed: int, replicates: int, move: float = 0.0) -> Floats:
    """Networks of a replicate that a seed moves alike at each level of a factor."""
    random = np.random.default_rng([1, seed])
    levels = pd.factorize(cells[factor])[0]
    shared = random.normal(size=(levels.max() + 1, replicates, 3))
    return np.asarray(shared[levels] + 0.3 * random.normal(size=(len(cells), replicates, 3))
                      + move * levels[:, None, None])  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "factor"),
    [(DOUBLED, "a"), (DOUBLED, "b"), (BLOCKS, "a"), (PARTLY, "b")],
    ids=["two levels", "three levels", "blocks", "blocks that lack a level"],
)
def test_a_seed_that_moves_all_networks_at_a_level_is_no_effect(cells: pd.DataFrame, factor: str) -> None:
    p_values = np.array([
        permutation_p_value(
            inner_products(_with_shared_effect(cells, factor, seed, 4)), cells, factor,
            np.random.default_rng([7, seed]), 99,
        )
        for seed in range(DRAWS)
    ])  # fmt: skip
    for level, most in ((0.05, 0.1), (0.2, 0.285), (0.5, 0.61)):
        assert (p_values <= level).mean() <= most


def test_an_effect_beyond_such_a_seed_is_found() -> None:
    found = [
        permutation_p_value(
            inner_products(_with_shared_effect(DOUBLED, "b", seed, 6, 1.5)), DOUBLED, "b", np.random.default_rng(seed)
        )
        for seed in range(20)
    ]
    assert np.mean(np.array(found) <= 0.05) >= 0.9


def test_a_factor_whose_levels_never_meet_cannot_be_tested() -> None:
    cells = pd.DataFrame({"a": [0, 1, 2, 0], "b": [0, 0, 1, 1]})
    products = inner_products(_coordinates(4, 0, cells))
    assert permutation_p_value(products, cells, "a", np.random.default_rng(0)) == 1


def test_the_order_of_cells_does_not_matter_to_shares() -> None:
    coordinates, order = _coordinates(3, 0), [3, 0, 5, 1, 4, 2]
    found = variance_shares(inner_products(coordinates[order]), CROSSED.iloc[order].reset_index(drop=True), 0.95)
    expected = variance_shares(inner_products(coordinates), CROSSED, 0.95)
    for name, share in expected.items():
        assert (found[name].value, found[name].low) == pytest.approx((share.value, share.low))


def test_a_planted_effect_has_a_small_p_value() -> None:
    assert (_p_values(CROSSED, "a", 40) <= 0.05).mean() >= 0.6


def test_p_values_are_no_smaller_than_the_permutations_allow() -> None:
    """Two cells and three replicates: eight ways to deal the levels, of which four explain each share."""
    cells = pd.DataFrame({"a": [0, 1]})
    far = np.array([0.0, 50.0])[:, None, None] + np.random.default_rng(0).normal(size=(2, 3, 4))
    found = permutation_p_value(inner_products(far), cells, "a", np.random.default_rng(0))
    assert found == pytest.approx(1 / 4, abs=0.05)


def test_the_generator_alone_makes_the_p_value() -> None:
    products = inner_products(_coordinates(3, 0))
    found = [permutation_p_value(products, CROSSED, "b", np.random.default_rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_one_factor_is_the_permanova_of_scikit_bio() -> None:
    """Of independent networks: each cell's replicates are its own, so that permutations are free."""
    from skbio.stats.distance import DistanceMatrix, permanova

    random = np.random.default_rng(0)
    weights = random.dirichlet([3, 3, 3], size=(3, 5, 2, 4))
    weights[0] = weights[0] ** 1.3 / (weights[0] ** 1.3).sum(axis=-1, keepdims=True)
    squared = squared_jensen_shannon(weights.reshape(15, 2, 4, 3)).mean(axis=-1).reshape(3, 5, 3, 5)
    reference = permanova(DistanceMatrix(np.sqrt(squared).reshape(15, 15)), np.repeat([0, 1, 2], 5), permutations=0)
    shares = variance_shares(-squared / 2, pd.DataFrame({"a": [0, 1, 2]}), 0.95)
    share, chance = shares["a"].value or 0.0, (shares[RESIDUAL].value or 0.0) / 15  # of a degree of freedom
    assert share > 0
    explained = share + 2 * chance
    within = 1 - chance - explained  # of replicate and residual, which a one-way design takes together
    assert explained / 2 / (within / 12) == pytest.approx(reference["test statistic"])

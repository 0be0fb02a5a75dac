"""Softmax, SparsestMax and random weights."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from study.norms import sparsestmax
from study.norms.mixing import random_weights, softmax
from tests.norms import formulas

logit_lists = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6)
radii = st.floats(0, 1.2)


def circumradius(size):
    return math.sqrt(1 - 1 / size)


@settings(max_examples=200, deadline=None)
@given(logit_lists, radii)
@example([1.0, 1.0, 1.0], 0.5)
@example([1.0, 1.0, 0.9], 0.6)
@example([1.0, 1.0 + 1e-7, 1.0], 0.6)
@example([1e30, -1e30, 0.0], 0.3)
def test_weights_are_on_the_simplex_at_least_radius_away(logits, radius):
    weights = sparsestmax(torch.tensor(logits), radius)
    assert weights.min() >= 0
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    distance = (weights - 1 / len(logits)).norm().item()
    assert distance >= min(radius, circumradius(len(logits))) - 1e-6


@settings(max_examples=200, deadline=None)
@given(logit_lists, st.floats(0, 0.3))
@example([1.0, 1.0, 1.0], 0.0)
@example([1.0, 1.0, 0.9], 0.0)
def test_exactly_one_hot_beyond_the_circumradius_with_ties_in_pool_order(logits, beyond):
    weights = sparsestmax(torch.tensor(logits), circumradius(len(logits)) + beyond)
    assert weights.tolist() == [float(i == logits.index(max(logits))) for i in range(len(logits))]


@settings(max_examples=200, deadline=None)
@given(logit_lists)
def test_radius_zero_is_sparsemax(logits):
    weights = sparsestmax(torch.tensor(logits, dtype=torch.float64), 0.0)
    assert weights.tolist() == pytest.approx(formulas.sparsemax(logits), abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("centre", ["simplex", "support"])
def test_sparsestmax_is_the_recursion_of_the_paper(size, scale, centre):
    generator = torch.Generator().manual_seed(size)
    logits = scale * torch.randn(100, size, generator=generator, dtype=torch.float64)
    radius = torch.rand(100, generator=generator, dtype=torch.float64)
    expected = [formulas.sparsestmax(row, r, centre) for row, r in zip(logits.tolist(), radius.tolist(), strict=True)]
    torch.testing.assert_close(sparsestmax(logits, radius, centre), torch.tensor(expected).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("logits", "radius", "expected"),
    [
        ([1.5, 0.9, -1.0], 0.6, [0.924264, 0.075736, 0.0]),
        ([0.8, 0.7, -0.6], 0.5, [0.853553, 0.146447, 0.0]),
        ([0.3, 0.25, 0.2], 0.6, [0.810913, 0.189087, 0.0]),
        ([0.4, 0.1, 0.35, -0.9], 0.55, [0.760608, 0.0, 0.239392, 0.0]),
    ],
)
def test_from_the_centre_of_the_support_weights_are_those_of_the_authors_code(logits, radius, expected):
    """Values that the last revision of Sparse_SwitchNorm (875db48) returns."""
    weights = sparsestmax(torch.tensor(logits), radius, "support")
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("logits", "radius"),
    [
        ([0.3, 0.1, 0.0], 0.0),  # sparsemax, full support
        ([0.9, 0.7, -2.0], 0.0),  # sparsemax, on an edge
        ([0.3, 0.1, 0.0], 0.3),  # pushed, inside
        ([0.3, 0.1, 0.0], 0.6),  # pushed to an edge, where the radius leaves one point
        ([0.5, 0.4, 0.2, 0.1], 0.65),  # pushed to a face
        ([0.5, 0.1, 0.2, 0.3], 0.9),  # one-hot
        ([0.9, 0.6, -1.0], 0.6),  # an edge from the start
        ([0.4], 0.5),
    ],
)
def test_gradient_in_every_regime(logits, radius):
    logits = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    # The margin against rounding errors changes weights by 1e-15, and finite differences by much more.
    assert torch.autograd.gradcheck(lambda z: sparsestmax(z, radius), logits, atol=1e-6)


@pytest.mark.parametrize("logits", [[1.0, 1.0, 1.0], [1.0, 1.0, 0.9], [0.0, 0.0], [2.0, 1.0, 1.0]])
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.41, 0.6, 0.75, 0.9])
def test_gradient_is_bounded_at_ties(logits, radius):
    logits = torch.tensor(logits, requires_grad=True)
    (sparsestmax(logits, radius) * torch.arange(len(logits))).sum().backward()
    assert logits.grad.norm() < 10


@pytest.mark.parametrize("logits", [[1.0, 0.0, 0.0], [0.0, 1.0], [1.0, 1.0, 1.0]])
def test_one_hot_weights_have_no_gradient(logits):
    logits = torch.tensor(logits, requires_grad=True)
    (sparsestmax(logits, 1.0) * torch.arange(len(logits))).sum().backward()
    assert logits.grad.eq(0).all()


def test_gradient_lets_uniform_logits_move():
    logits = torch.ones(3, requires_grad=True)
    (sparsestmax(logits, 0.1) * torch.tensor([0.0, 1.0, 2.0])).sum().backward()
    assert logits.grad.tolist() == pytest.approx([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(("size", "radius"), [(2, 0.70711), (3, 0.81650), (4, 0.86603)])
def test_all_logits_are_one_hot_at_the_circumradius_and_not_before(size, radius):
    logits = torch.randn(2000, size, generator=torch.Generator().manual_seed(0))
    assert (sparsestmax(logits, radius).amax(-1) == 1).all()
    assert (sparsestmax(0.01 * logits, radius - 0.001).amax(-1) < 1).any()


@pytest.mark.parametrize(("centre", "circumradius"), [("simplex", math.sqrt(2 / 3)), ("support", math.sqrt(1 / 2))])
def test_the_radius_that_fixes_a_choice_where_sparsemax_drops_a_member(centre, circumradius):
    logits = torch.tensor([0.6, 0.5, -1.0])
    assert sparsestmax(logits, 0.0, centre).tolist() == pytest.approx([0.55, 0.45, 0.0])
    assert sparsestmax(logits, circumradius - 0.001, centre).amax() < 1
    assert sparsestmax(logits, circumradius, centre).tolist() == [1.0, 0.0, 0.0]


def test_half_precision_logits_keep_their_dtype():
    weights = sparsestmax(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float16), 0.3)
    assert weights.dtype == torch.float16
    assert weights.sum().item() == pytest.approx(1, abs=1e-3)


def test_softmax_is_in_float32():
    assert softmax(torch.ones(3, dtype=torch.float16)).dtype == torch.float32


def test_random_weights_are_uniform_on_the_simplex():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([random_weights(3, generator) for _ in range(4000)])
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18.
    torch.testing.assert_close(draws.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.015)
    torch.testing.assert_close(draws.var(0), torch.full((3,), 1 / 18), rtol=0.1, atol=0)

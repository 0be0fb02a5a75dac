"""The schedule of sparse layers: the radius, fixed weights, and how they become trainable again."""

import math

import pytest
import torch
from torch import nn

from study.norms import SparseSwitchNorm2d, set_radius, unfreeze_switches
from tests.norms import formulas

both_kinds = pytest.mark.usefixtures("kernel_kind")


def build(mean, var):
    layer = SparseSwitchNorm2d(4)
    layer.mean_weight.data.copy_(torch.tensor(mean))
    layer.var_weight.data.copy_(torch.tensor(var))
    return layer


def fixed(layer):
    return layer.mean_fixed.item(), layer.var_fixed.item()


def test_radius_reaches_every_sparse_layer():
    model = nn.Sequential(SparseSwitchNorm2d(4), nn.Sequential(SparseSwitchNorm2d(4)), nn.BatchNorm2d(4))
    set_radius(model, 0.25)
    assert model[0].radius == model[1][0].radius == 0.25


@pytest.mark.parametrize("radius", [-0.1, math.nan])
def test_the_radius_must_not_be_negative(radius):
    with pytest.raises(ValueError, match="radius"):
        set_radius(SparseSwitchNorm2d(4), radius)


@both_kinds
def test_means_and_variances_are_fixed_independently():
    layer = build([2.0, 0.5, 0.0], [1.0, 0.9, 0.8])
    set_radius(layer, 0.1)
    assert fixed(layer) == (True, False)
    assert layer.mean_weight.tolist() == [1.0, 0.0, 0.0]
    assert layer.var_weight.tolist() == pytest.approx([1.0, 0.9, 0.8])


@both_kinds
@pytest.mark.parametrize(
    ("pool", "before", "circumradius"),
    [(("in", "ln", "bn"), 0.8164, 0.8165), (("in", "ln"), 0.7071, 0.7072)],
)
def test_weights_are_fixed_at_the_circumradius(pool, before, circumradius):
    layer = SparseSwitchNorm2d(4, pool=pool, logit_init="random", generator=torch.Generator().manual_seed(0))
    set_radius(layer, before)
    assert fixed(layer) == (False, False)
    set_radius(layer, circumradius)
    assert fixed(layer) == (True, True)


@both_kinds
def test_fixed_weights_do_not_follow_their_logits():
    layer = SparseSwitchNorm2d(4)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([2.0, 0.0, 0.0]))
    set_radius(layer, 0.9)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([0.0, 5.0, 0.0]))
    assert layer.switch_weights().mean.tolist() == [1.0, 0.0, 0.0]
    set_radius(layer, 0.95)
    assert layer.switch_weights().mean.tolist() == layer.mean_weight.tolist() == [1.0, 0.0, 0.0]


@both_kinds
def test_fixed_weights_have_no_gradient():
    layer = build([2.0, 0.5, 0.0], [1.0, 0.9, 0.8])
    set_radius(layer, 0.1)
    (layer(torch.randn(2, 4, 3, 3)) * torch.randn(2, 4, 3, 3)).sum().backward()
    assert layer.mean_weight.grad.tolist() == [0.0, 0.0, 0.0]
    assert layer.var_weight.grad.abs().sum() > 0


@both_kinds
@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_cannot_change_fixed_weights(optimizer_type):
    layer = build([1.0, 0.5, 0.4], [1.0, 0.9, 0.8])
    options = {"momentum": 0.9} if optimizer_type is torch.optim.SGD else {}
    optimizer = optimizer_type(layer.parameters(), lr=0.05, weight_decay=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        set_radius(layer, 0.0 if step < 5 else 0.9)
        choice = layer.mean_weight.argmax()
        x = torch.randn(4, 4, 3, 3, generator=generator)
        optimizer.zero_grad()
        (layer(x) * torch.randn(4, 4, 3, 3, generator=generator)).sum().backward()
        optimizer.step()
        if step >= 5:
            # Momentum moves the logits, but the weights do not change, and the next call resets the logits.
            assert layer.switch_weights().mean.tolist() == [float(i == choice) for i in range(3)]
    assert layer.mean_weight.amax() != 1
    set_radius(layer, 0.9)
    assert sorted(layer.mean_weight.tolist()) == [0.0, 0.0, 1.0]


@both_kinds
def test_weights_stay_fixed_at_a_smaller_radius():
    layer = build([1.0, 0.9, 0.8], [1.0, 0.9, 0.8])
    set_radius(layer, 0.9)
    set_radius(layer, 0.0)
    assert layer.switch_weights().var.tolist() == [1.0, 0.0, 0.0]


@both_kinds
def test_a_layer_can_measure_the_radius_from_the_centre_of_the_support():
    layers = [SparseSwitchNorm2d(4, centre=centre) for centre in ("simplex", "support")]
    for layer in layers:
        layer.var_weight.data.copy_(torch.tensor([0.6, 0.5, -1.0]))
        set_radius(layer, 0.5)
    for layer, centre in zip(layers, ("simplex", "support"), strict=True):
        expected = formulas.sparsestmax(layer.var_weight.tolist(), 0.5, centre)
        assert layer.switch_weights().var.tolist() == pytest.approx(expected, abs=1e-6)
        assert f"centre={centre}" in repr(layer)
        set_radius(layer, 0.75)
    assert [fixed(layer)[1] for layer in layers] == [False, True]


def test_a_frozen_layer_with_a_pool_of_one_is_the_same_in_both_forms(kernel_kind):
    layer = SparseSwitchNorm2d(4, pool=("bn",))
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    y = layer(torch.randn(2, 4, 3, 3))
    assert y.requires_grad  # as in SwitchNorm2d: the logits are trainable
    y.square().sum().backward()
    assert layer.mean_weight.grad.tolist() == layer.var_weight.grad.tolist() == [0.0]


@both_kinds
def test_a_pool_of_one_is_fixed_immediately():
    layer = SparseSwitchNorm2d(4, pool=("ln",))
    set_radius(layer, 0.0)
    assert fixed(layer) == (True, True)
    assert layer.switch_weights().mean.tolist() == [1.0]


def fixed_layer(pool=("in", "ln", "bn")):
    """A layer at the end of the schedule."""
    layer = SparseSwitchNorm2d(4, pool=pool, logit_init="random", generator=torch.Generator().manual_seed(0))
    set_radius(layer, 1.0)
    return layer


def train_step(layer):
    """Returns the weights after a step of SGD on the logits."""
    optimizer = torch.optim.SGD([layer.mean_weight, layer.var_weight], lr=0.01)
    x, target = torch.randn(2, 4, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    (layer(x) * target).sum().backward()
    optimizer.step()
    return torch.stack(layer.switch_weights()[1:])


@both_kinds
@pytest.mark.parametrize("pool", [("in", "ln", "bn"), ("in", "ln"), ("in", "ln", "bn", "gn")])
def test_unfrozen_weights_have_the_same_largest_member_and_are_trained(pool):
    layer = fixed_layer(pool)
    chosen = torch.stack(layer.switch_weights()[1:])
    unfreeze_switches(nn.Sequential(layer))
    before = torch.stack(layer.switch_weights()[1:])
    assert fixed(layer) == (False, False)
    assert before.argmax(1).tolist() == chosen.argmax(1).tolist()
    after = train_step(layer)
    assert ((after - before).abs() > 1e-6).all()  # every weight, of means and of variances
    torch.testing.assert_close(after.sum(1), torch.ones(2))
    assert (after > 0).all()


@both_kinds
def test_unfrozen_weights_are_fixed_again_by_the_schedule():
    layer = fixed_layer()
    chosen = layer.switch_weights().mean.argmax()
    layer.unfreeze()
    with torch.no_grad():
        layer.mean_weight[chosen] -= 1.0  # as training might do
    for step in range(101):
        set_radius(layer, step / 100)
    assert fixed(layer) == (True, True)
    assert layer.switch_weights().mean.argmax() != chosen
    assert sorted(layer.switch_weights().mean.tolist()) == [0.0, 0.0, 1.0]


def test_unfreezing_does_not_change_weights_that_are_not_fixed():
    layer = build([2.0, 0.5, 0.0], [1.0, 0.9, 0.8])
    set_radius(layer, 0.1)
    layer.unfreeze()
    assert layer.var_weight.tolist() == pytest.approx([1.0, 0.9, 0.8])


def test_weights_of_fix_weights_can_be_unfrozen():
    layer = SparseSwitchNorm2d(4)
    layer.fix_weights(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    layer.unfreeze()
    assert (train_step(layer) > 0).all()

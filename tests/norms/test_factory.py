"""Layers that are built from norm names."""

import pytest
import torch
from torch import nn

from study.norms import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, build_norm, switch_parameters, switch_weights
from study.norms.names import NORM_NAMES


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train_once(layer, x):
    y = layer(x)
    (y * draw(*y.shape, seed=9)).sum().backward()


@pytest.mark.usefixtures("kernel_kind")
@pytest.mark.parametrize("name", NORM_NAMES)
@pytest.mark.parametrize("statistics_batch", [1, 2])
def test_every_norm_can_be_built_and_trained(name, statistics_batch):
    factory = build_norm(name, statistics_batch=statistics_batch, chunks=4 // statistics_batch)
    layer = factory(6)
    train_once(layer, draw(4, 6, 3, 3))
    assert layer.weight.grad is not None
    assert factory.name == name
    assert layer.eval()(draw(1, 6, 1, 1)).isfinite().all()


@pytest.mark.parametrize(("name", "pool"), [("sn", ("in", "ln")), ("bn", ("bn",))])
def test_layers_have_the_pool_of_the_statistics_batch(name, pool):
    factory = build_norm(name, statistics_batch=1)
    assert factory.pool == factory(4).pool == pool


@pytest.mark.parametrize(
    ("name", "layer_type"),
    [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm), ("in", nn.GroupNorm), ("ln", nn.GroupNorm)],
)
def test_single_norms_are_layers_of_torch(name, layer_type):
    assert isinstance(build_norm(name)(6), layer_type)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (6, 2), (7, 1)])
def test_the_number_of_groups_divides_the_channels(channels, groups):
    assert build_norm("gn")(channels).num_groups == groups == SwitchNorm2d(channels, pool=("gn",)).groups


@pytest.mark.parametrize(("dims", "layer_type"), [(1, SwitchNorm1d), (2, SwitchNorm2d), (3, SwitchNorm3d)])
def test_dims(dims, layer_type):
    assert isinstance(build_norm("sn", dims=dims)(4), layer_type)


def test_sparse_norms_have_two_dimensions():
    with pytest.raises(ValueError, match="'ssn' in 3 dimensions"):
        build_norm("ssn", dims=3)


def test_correction_applies_to_switch_norms_only():
    assert build_norm("bn", correction=1, statistics_batch=1)(4).correction == 0
    assert build_norm("sn", correction=1)(4).correction == 1


class TestControls:
    def build(self, name, seed=0):
        factory = build_norm(name, generator=torch.Generator().manual_seed(seed))
        return nn.Sequential(factory(4), factory(4))

    def test_uniform(self):
        model = self.build("sn-uniform")
        assert switch_parameters(model) == []
        assert switch_weights(model)["0"].mean.tolist() == pytest.approx([1 / 3] * 3)

    def test_random_weights_are_fixed_and_differ_between_layers(self):
        model = self.build("sn-random")
        assert switch_parameters(model) == []
        assert not torch.allclose(switch_weights(model)["0"].mean, switch_weights(model)["1"].mean)

    def test_random_weights_come_from_the_generator(self):
        first, again, other = (switch_weights(self.build("sn-random", seed))["1"] for seed in (0, 0, 1))
        assert torch.equal(first.var, again.var)
        assert not torch.equal(first.var, other.var)

    def test_shared_logits_have_the_summed_gradient(self):
        shared, separate = self.build("sn-shared"), self.build("sn")
        for model in (shared, separate):
            train_once(model, draw(3, 4, 2, 2))
        assert shared[1].mean_weight is shared[0].mean_weight
        assert len(switch_parameters(shared)) == 2
        expected = separate[0].mean_weight.grad + separate[1].mean_weight.grad
        torch.testing.assert_close(shared[0].mean_weight.grad, expected)

    def test_two_factories_share_no_logits(self):
        assert self.build("sn-shared")[0].mean_weight is not self.build("sn-shared")[0].mean_weight

    def test_tied(self):
        model = self.build("sn-tied")
        assert model[0].var_weight is model[0].mean_weight
        assert len(switch_parameters(model)) == 2

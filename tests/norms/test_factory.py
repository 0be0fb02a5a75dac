import copy
import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from study.norms import (
    SparseSwitchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    average_statistics,
    build_norm,
    convert_norms,
    share_switches,
    switch_parameters,
    switch_weights,
)
from study.norms.factory import GhostBatchNorm
from study.norms.layers import SwitchWeights
from study.norms.names import NORM_NAMES

pytestmark = pytest.mark.usefixtures("form")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def train_once(layer, x):
    y = layer(x)
    (y * draw(*y.shape, seed=9)).sum().backward()
    return y


@pytest.mark.parametrize("name", NORM_NAMES)
@pytest.mark.parametrize("statistics_batch", [1, 2])
def test_every_norm_builds_and_trains(name, statistics_batch):
    factory = build_norm(name, statistics_batch=statistics_batch, chunks=4 // statistics_batch)
    layer = factory(6)
    train_once(layer, draw(4, 6, 3, 3))
    assert layer.weight.grad is not None
    assert factory.name == name
    assert layer.eval()(draw(1, 6, 1, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "batch", "pool"),
    [("sn", 1, ("in", "ln")), ("ssn", 1, ("in", "ln")), ("sn", 2, ("in", "ln", "bn")), ("bn", 1, ("bn",))],
)
def test_bn_leaves_the_pool_at_a_statistics_batch_of_one(name, batch, pool):
    factory = build_norm(name, statistics_batch=batch)
    assert factory.pool == pool
    assert factory(4).pool == pool


@pytest.mark.parametrize("shape", [(6, 5, 3, 2), (6, 5, 1, 1), (6, 5, 4), (6, 5), (6, 5, 2, 2, 3)])
@pytest.mark.parametrize("chunks", [1, 3])
def test_bn_over_chunks_is_a_pool_of_bn_over_chunks(shape, chunks):
    core_type = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}[len(shape)]
    native = GhostBatchNorm(5, eps=1e-5, momentum=0.3, chunks=chunks).double()
    core = core_type(5, momentum=0.3, pool=("bn",), chunks=chunks).double()
    results = []
    for layer in (native, core):
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 5))
            layer.bias.copy_(torch.linspace(-1, 1, 5))
        x = draw(*shape).double().requires_grad_()
        y = (layer(x) * draw(*shape, seed=9).double()).sum()
        y.backward()
        running = layer.running_mean, layer.running_var
        results.append((y, x.grad, layer.weight.grad, layer.bias.grad, *running, layer.eval()(x)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bn_over_chunks_needs_whole_chunks():
    with pytest.raises(ValueError, match="7 samples is not divisible into 2 chunks"):
        build_norm("bn", chunks=2)(3)(draw(7, 3, 2, 2))


def test_bn_over_chunks_reloads():
    layer, other = (build_norm("bn", chunks=2)(3) for _ in range(2))
    layer(draw(4, 3, 2, 2))
    other.load_state_dict(copy.deepcopy(layer).state_dict())
    torch.testing.assert_close(other.running_var, layer.running_var)


@pytest.mark.parametrize("name", ["bn", "in", "ln", "gn"])
@pytest.mark.parametrize("shape", [(4, 6, 3, 3), (4, 6, 1, 1)])
def test_native_layers_are_pools_of_one(name, shape):
    native = build_norm(name, momentum=0.3)(6)
    core = SwitchNorm2d(6, momentum=0.3, pool=(name,))
    x, twin = (draw(*shape).requires_grad_() for _ in range(2))
    # At one pixel, native kernels multiply a difference that should be 0 by 1 / sqrt(eps).
    tolerance = {"rtol": 1e-4, "atol": 1e-4 if shape[-1] == 1 else 2e-5}
    torch.testing.assert_close(train_once(native, x), train_once(core, twin), **tolerance)
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-3, atol=1e-2 if shape[-1] == 1 else 1e-4)
    torch.testing.assert_close(native.weight.grad, core.weight.grad, **tolerance)
    torch.testing.assert_close(native.eval()(x), core.eval()(x), **tolerance)


@pytest.mark.parametrize(
    ("name", "layer_type"),
    [("bn", nn.BatchNorm2d), ("gn", nn.GroupNorm), ("in", nn.GroupNorm), ("ln", nn.GroupNorm)],
)
def test_single_norms_are_native(name, layer_type):
    assert isinstance(build_norm(name)(6), layer_type)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (6, 2), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert build_norm("gn")(channels).num_groups == groups == SwitchNorm2d(channels, pool=("gn",)).groups


@pytest.mark.parametrize(("dims", "layer_type"), [(1, SwitchNorm1d), (2, SwitchNorm2d), (3, SwitchNorm3d)])
def test_dims(dims, layer_type):
    assert isinstance(build_norm("sn", dims=dims)(4), layer_type)


def test_sparse_norm_is_2d_only():
    with pytest.raises(ValueError, match="'ssn' in 3 dimensions"):
        build_norm("ssn", dims=3)


def test_correction_is_for_switch_norms():
    assert build_norm("bn", correction=1, statistics_batch=1)(4).correction == 0
    assert build_norm("sn", correction=1)(4).correction == 1


class TestControls:
    def build(self, name, seed=0, count=2):
        factory = build_norm(name, generator=torch.Generator().manual_seed(seed))
        return nn.Sequential(*[factory(4) for _ in range(count)])

    def test_uniform(self):
        model = self.build("sn-uniform")
        assert switch_parameters(model) == []
        assert switch_weights(model)["0"].mean.tolist() == pytest.approx([1 / 3] * 3)

    def test_random_is_fixed_and_differs_between_layers(self):
        model = self.build("sn-random")
        assert switch_parameters(model) == []
        assert not torch.allclose(switch_weights(model)["0"].mean, switch_weights(model)["1"].mean)

    def test_random_comes_from_the_generator(self):
        first, again, other = (switch_weights(self.build("sn-random", seed))["1"] for seed in (0, 0, 1))
        assert torch.equal(first.var, again.var)
        assert not torch.equal(first.var, other.var)

    def test_shared_layers_get_the_summed_gradient(self):
        model, loose = self.build("sn-shared"), self.build("sn")
        for network in (model, loose):
            train_once(network, draw(3, 4, 2, 2))
        assert model[1].mean_weight is model[0].mean_weight
        assert len(switch_parameters(model)) == 2
        torch.testing.assert_close(model[0].mean_weight.grad, loose[0].mean_weight.grad + loose[1].mean_weight.grad)

    def test_each_factory_shares_its_own(self):
        assert self.build("sn-shared")[0].mean_weight is not self.build("sn-shared")[0].mean_weight

    def test_tied(self):
        model = self.build("sn-tied")
        assert model[0].var_weight is model[0].mean_weight
        assert len(switch_parameters(model)) == 2

    def test_stages(self):
        model = self.build("sn-stage", count=4)
        share_switches(model, key=lambda path: int(path) // 2)
        assert model[1].var_weight is model[0].var_weight
        assert model[2].var_weight is not model[0].var_weight
        assert len(switch_parameters(model)) == 4

    def test_ties_survive_a_deepcopy_and_a_state_dict(self):
        model = copy.deepcopy(self.build("sn-shared"))
        assert model[1].mean_weight is model[0].mean_weight
        self.build("sn-shared").load_state_dict(model.state_dict(), strict=True)

    def test_only_equal_pools_share(self):
        model = nn.Sequential(SwitchNorm2d(4), SwitchNorm2d(4, pool=("in", "ln")))
        with pytest.raises(ValueError, match="'0' and '1' cannot share"):
            share_switches(model, key=lambda _: None)


def test_switch_layers_are_found_by_protocol():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean_weight = nn.Parameter(torch.ones(2))
            self.var_weight = nn.Parameter(torch.ones(2))

        def switch_weights(self):
            return SwitchWeights(("in", "ln"), self.mean_weight.detach(), self.var_weight.detach())

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(Foreign()), SwitchNorm2d(1))
    assert list(switch_weights(model)) == ["1.0", "2"]
    assert len(switch_parameters(model)) == 4


class TestConvert:
    def test_every_norm_of_a_resnet(self):
        model = convert_norms(resnet18(), "ssn", chunks=2)
        assert sum(isinstance(module, SparseSwitchNorm2d) for module in model.modules()) == 20
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert model(draw(2, 3, 32, 32)).isfinite().all()

    def test_stages_are_the_children(self):
        model = convert_norms(resnet18(), "sn-stage")
        stages = {path.split(".")[0] for path in switch_weights(model)}
        assert stages == {"bn1", "layer1", "layer2", "layer3", "layer4"}
        assert len(switch_parameters(model)) == 2 * len(stages)
        assert model.layer2[0].bn1.mean_weight is model.layer2[1].bn2.mean_weight

    def test_is_the_model_that_norm_layer_builds(self):
        built = resnet18(norm_layer=build_norm("sn"))
        assert built.state_dict().keys() == convert_norms(resnet18(), "sn").state_dict().keys()

    def test_keeps_values_mode_and_dtype(self):
        old = nn.BatchNorm2d(4).double().eval()
        for seed, tensor in enumerate((old.weight.data, old.bias.data, old.running_mean, old.running_var)):
            tensor.copy_(draw(4, seed=seed).exp())
        new = convert_norms(nn.Sequential(old), "sn[bn]")[0]
        x = draw(2, 4, 3, 3).double()
        torch.testing.assert_close(new(x), old(x))

    @pytest.mark.parametrize(
        "old",
        [
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4),
            nn.SyncBatchNorm(4),
            nn.BatchNorm2d(4, affine=False),
            FrozenBatchNorm2d(4),
            SwitchNorm2d(4),
        ],
        ids=lambda module: type(module).__name__,
    )
    def test_every_kind_of_norm(self, old):
        new = convert_norms(nn.Sequential(old), "sn[in,ln]")[0]
        assert isinstance(new, SwitchNorm2d)
        assert (new.num_features, new.pool) == (4, ("in", "ln"))

    def test_layer_norm_stays(self):
        assert isinstance(convert_norms(nn.Sequential(nn.LayerNorm(4)), "sn")[0], nn.LayerNorm)

    def test_a_layer_used_twice_stays_one_layer(self):
        norm = nn.BatchNorm2d(4)
        model = convert_norms(nn.Sequential(norm, nn.Sequential(norm)), "sn")
        assert model[0] is model[1][0]


class TestAverageStatistics:
    def batches(self):
        return [draw(4, 3, 2, 2, seed=seed) * (seed + 1) + seed for seed in range(5)]

    @pytest.mark.parametrize("build", [nn.BatchNorm2d, SwitchNorm2d, SparseSwitchNorm2d])
    def test_is_the_plain_average_over_batches(self, build):
        layer = build(3, momentum=0.01).eval()
        layer.running_mean.fill_(math.nan)
        average_statistics(layer, self.batches())
        mean = torch.stack([x.mean((0, 2, 3)) for x in self.batches()]).mean(0)
        var = torch.stack([x.var((0, 2, 3)) for x in self.batches()]).mean(0)
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)

    def test_over_chunks_averages_the_statistics_batches(self):
        layer = SwitchNorm2d(3, chunks=2)
        average_statistics(layer, self.batches())
        var = torch.stack([half.var((0, 2, 3)) for x in self.batches() for half in x.chunk(2)]).mean(0)
        torch.testing.assert_close(layer.running_var, var)

    def test_a_layer_called_twice_averages_its_calls(self):
        layer = SwitchNorm2d(3)
        model = nn.Sequential(layer, nn.Hardtanh(), layer)
        inputs = [*self.batches(), *(nn.Hardtanh()(layer(x)).detach() for x in self.batches())]
        average_statistics(model, self.batches())
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
        torch.testing.assert_close(layer.running_mean, mean)

    def test_restores_modes_and_momenta_and_leaves_parameters(self):
        model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2), nn.Dropout(), SwitchNorm2d(3).eval())
        parameters = [parameter.clone() for parameter in model.parameters()]
        average_statistics(model, self.batches())
        assert [module.training for module in model] == [True, True, False]
        assert [model[0].momentum, model[2].momentum] == [0.2, 0.1]
        assert all(map(torch.equal, model.parameters(), parameters))

    def test_restores_after_an_error(self):
        model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2))
        with pytest.raises(ValueError, match="expected 4D"):
            average_statistics(model, [torch.ones(2)])
        assert model[0].momentum == 0.2
        assert not model[0]._forward_pre_hooks

    def test_dropout_is_off(self):
        model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
        average_statistics(model, self.batches())
        mean = torch.stack([x.mean((0, 2, 3)) for x in self.batches()]).mean(0)
        torch.testing.assert_close(model[1].running_mean, mean)

    def test_forward_unpacks_a_batch(self):
        layer = nn.BatchNorm2d(3)
        average_statistics(layer, [(x, "label") for x in self.batches()], lambda model, batch: model(batch[0]))
        assert layer.running_mean.abs().sum() > 0

    def test_reaches_compiled_layers(self):
        torch.compiler.reset()
        layer = SwitchNorm2d(3, momentum=0.01)
        model = nn.Sequential(layer)
        model.compile(backend="eager", fullgraph=True)
        model(self.batches()[0])
        average_statistics(model, self.batches())
        mean = torch.stack([x.mean((0, 2, 3)) for x in self.batches()]).mean(0)
        torch.testing.assert_close(layer.running_mean, mean)

    def test_needs_a_batch(self):
        with pytest.raises(ValueError, match="batches is empty"):
            average_statistics(nn.BatchNorm2d(3), [])

    def test_without_running_statistics_asks_for_no_batch(self):
        average_statistics(nn.GroupNorm(1, 3), [])

"""Layers of a single normalizer against the switch layer with a pool of one."""

import copy

import pytest
import torch

from study.norms import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, build_norm
from study.norms.single_norms import GhostBatchNorm

both_kinds = pytest.mark.usefixtures("kernel_kind")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestGhostBatchNorm:
    @both_kinds
    @pytest.mark.parametrize("shape", [(6, 5, 3, 2), (6, 5, 1, 1), (6, 5, 4), (6, 5), (6, 5, 2, 2, 3)])
    @pytest.mark.parametrize("chunks", [1, 3])
    def test_it_is_a_pool_of_bn_over_chunks(self, shape, chunks):
        switch_type = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}[len(shape)]
        ghost = GhostBatchNorm(5, eps=1e-5, momentum=0.3, chunks=chunks).double()
        switch = switch_type(5, momentum=0.3, pool=("bn",), chunks=chunks).double()
        results = []
        for layer in (ghost, switch):
            with torch.no_grad():
                layer.weight.copy_(torch.linspace(0.5, 2, 5))
                layer.bias.copy_(torch.linspace(-1, 1, 5))
            x = draw(*shape).double().requires_grad_()
            y = (layer(x) * draw(*shape, seed=9).double()).sum()
            y.backward()
            running = layer.running_mean, layer.running_var
            results.append((y, x.grad, layer.weight.grad, layer.bias.grad, *running, layer.eval()(x)))
        torch.testing.assert_close(*results)

    def test_chunks_must_divide_the_batch(self):
        with pytest.raises(ValueError, match="7 samples is not divisible into 2 chunks"):
            build_norm("bn", chunks=2)(3)(draw(7, 3, 2, 2))

    @both_kinds
    @pytest.mark.parametrize("training", [True, False])
    def test_an_empty_batch_changes_nothing(self, training):
        layer = build_norm("bn", chunks=2)(3).train(training)
        before = copy.deepcopy(layer.state_dict())
        y = layer(draw(0, 3, 2, 2))
        assert y.shape == (0, 3, 2, 2)
        y.sum().backward()
        assert layer.weight.grad.tolist() == layer.bias.grad.tolist() == [0.0] * 3
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())

    @pytest.mark.parametrize("shape", [(3,), (3, 4, 4), (4, 2, 2, 2)])
    def test_the_error_names_inputs_of_other_channels(self, shape):
        with pytest.raises(ValueError, match=r"GhostBatchNorm input of shape \(\d.* is not allowed: 3 channels"):
            build_norm("bn", chunks=1, sync=True)(3)(torch.ones(shape))

    def test_momentum_is_a_number(self):
        with pytest.raises(ValueError, match="momentum None is not allowed"):
            build_norm("bn", chunks=2, momentum=None)(3)

    def test_state_dict_round_trip(self):
        layer, other = (build_norm("bn", chunks=2)(3) for _ in range(2))
        layer(draw(4, 3, 2, 2))
        other.load_state_dict(copy.deepcopy(layer).state_dict())
        torch.testing.assert_close(other.running_var, layer.running_var)


@both_kinds
@pytest.mark.parametrize("name", ["in", "ln", "gn"])
def test_group_norms_of_an_empty_batch(name):
    layer = build_norm(name)(6)
    for x in (draw(0, 6, 3, 3), draw(0, 6, 3, 3).to(memory_format=torch.channels_last)):
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.shape
        assert layer.weight.grad.tolist() == layer.bias.grad.tolist() == [0.0] * 6


@both_kinds
@pytest.mark.parametrize("name", ["bn", "in", "ln", "gn"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_single_norms_are_pools_of_one(name, size, memory_format):
    results = []
    for layer in (build_norm(name, momentum=0.3)(6), SwitchNorm2d(6, momentum=0.3, pool=(name,))):
        x = draw(4, 6, size, size).to(memory_format=memory_format).requires_grad_()
        y = layer(x)
        (y * draw(*y.shape, seed=9)).sum().backward()
        results.append((y, layer.weight.grad, layer.eval()(x), x.grad))
    *results, (dx, expected_dx) = zip(*results, strict=True)
    # At one pixel, torch multiplies a difference that should be 0 by 1 / sqrt(eps).
    for actual, expected in results:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 if size == 1 else 2e-5)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-3, atol=1e-2 if size == 1 else 1e-4)


@pytest.mark.parametrize("name", ["in", "ln", "gn"])
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 0)])
def test_group_norms_take_empty_batches(name, shape):
    layer = build_norm(name)(4)
    y = layer(torch.zeros(shape))
    y.sum().backward()
    assert y.shape == shape
    assert not layer.weight.grad.any()

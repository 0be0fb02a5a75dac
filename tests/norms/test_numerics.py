"""Precision, dtypes, memory formats, devices and compilation."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, set_radius

both_kinds = pytest.mark.usefixtures("kernel_kind")

LAYERS = [SwitchNorm2d, SparseSwitchNorm2d]
POOL = ("in", "ln", "bn", "gn")
SHAPE = (4, 8, 5, 5)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "samples inside": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "slice": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "expanded": lambda x: x[:, :, :1].expand(x.shape),
}
"""Memory layouts. All but the last two are dense, and only the first two are those in which the kernels compute."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(layer_type=SwitchNorm2d, **options):
    return layer_type(SHAPE[1], groups=2, logit_init="random", generator=torch.Generator().manual_seed(1), **options)


def in_float64(layer, x):
    return copy.deepcopy(layer).double()(x.double())


@both_kinds
@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize("std", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("correction", [0, 1])
def test_errors_at_large_means_are_those_of_a_rounded_mean(ratio, std, correction):
    layer = build(pool=POOL, eps=0.0, correction=correction)
    x = std * (draw(*SHAPE) + ratio)
    # A float32 mean is exact to ratio * 2^-24 standard deviations; 4 of these, and the rounding of y itself.
    tolerance = 4 * ratio * 2**-24 + 2e-6
    reference = in_float64(layer, x)
    torch.testing.assert_close(layer(x).double(), reference, rtol=0, atol=tolerance)


@both_kinds
def test_channels_of_very_different_means():
    layer = build(pool=POOL)
    x = draw(*SHAPE) + 1000 * draw(1, SHAPE[1], 1, 1)
    torch.testing.assert_close(layer(x).double(), in_float64(layer, x), rtol=0, atol=1e-4)


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mean", "std"), [(300.0, 1.0), (0.0, 300.0), (300.0, 300.0)])
def test_statistics_of_half_precision_inputs_are_in_float32(dtype, mean, std):
    layer = build(pool=POOL)
    x = (std * draw(*SHAPE) + mean).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    # Only the output is rounded, by up to half a unit in the last place of its largest value.
    reference = in_float64(layer, x)
    atol = torch.finfo(dtype).eps * reference.abs().max().item()
    torch.testing.assert_close(y.double(), reference, rtol=0, atol=atol)


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_finite(dtype):
    layer = build()
    x = (300 * draw(*SHAPE) + 300).to(dtype).requires_grad_()
    layer(x).square().sum().backward()
    assert x.grad.dtype == dtype
    assert all(value.grad.isfinite().all() for value in (x, *layer.parameters()))


@both_kinds
@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(layer_type, dtype):
    layer, other = build(layer_type, pool=POOL), build(layer_type, pool=POOL)
    x = (draw(*SHAPE) + 300).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, other(x))
    assert torch.equal(layer.running_var, other.running_var)


@both_kinds
def test_half_precision_module():
    layer = build(pool=POOL)
    x = draw(*SHAPE)
    y = copy.deepcopy(layer).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@both_kinds
@pytest.mark.parametrize("training", [True, False])
def test_memory_format_is_kept(training):
    layer = build(pool=POOL).train(training)
    x = draw(*SHAPE)
    y = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(y, layer.train(training)(x))


class NoHostSync(TorchDispatchMode):
    """Fails if the host reads the value of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@both_kinds
@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_no_host_sync(layer_type, training):
    layer = build(layer_type, pool=POOL, chunks=2).train(training)
    x = draw(*SHAPE).requires_grad_()
    with NoHostSync():
        set_radius(layer, 0.5)
        layer(x).sum().backward()
        layer.switch_weights()


@pytest.mark.parametrize("layer_type", LAYERS)
def test_meta_device(layer_type):
    layer = build(layer_type, pool=POOL).to("meta")
    set_radius(layer, 0.5)
    assert layer(torch.empty(SHAPE, device="meta")).shape == SHAPE


def assert_compiles(layer, backend, to_layout=lambda x: x):
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend=backend)
    results = []
    for module in (layer, compiled):
        x = to_layout(draw(*SHAPE)).requires_grad_()
        y = module(x)
        (y * draw(*SHAPE, seed=9)).sum().backward()
        results.append((y, x.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@both_kinds
@pytest.mark.parametrize("layer_type", LAYERS)
@pytest.mark.parametrize(("training", "backend"), [(True, "aot_eager"), (False, "eager")])
def test_compiles_into_one_graph(layer_type, training, backend):
    torch.compiler.reset()
    assert_compiles(build(layer_type, pool=POOL, chunks=2).train(training), backend)


@both_kinds
@pytest.mark.slow
def test_compiles_with_inductor():
    torch.compiler.reset()
    assert_compiles(build(SparseSwitchNorm2d), "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["transposed", "expanded"])
def test_compiles_with_inductor_in_other_layouts(layout):
    torch.compiler.reset()
    assert_compiles(build(), "inductor", LAYOUTS[layout])


@both_kinds
@pytest.mark.parametrize("layer_type", LAYERS)
def test_state_dict_round_trip(layer_type):
    layer, other = build(layer_type), layer_type(SHAPE[1])
    layer(draw(*SHAPE))
    set_radius(layer, 0.9)
    other.load_state_dict(layer.state_dict(), strict=True)
    x = draw(*SHAPE, seed=1)
    assert torch.equal(layer.eval()(x), other.eval()(x))

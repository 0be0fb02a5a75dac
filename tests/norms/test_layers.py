"""Switch layers against the paper's formula, torch's layers, and the variances of the official code."""

import copy

import pytest
import torch
from torch import nn

from study.norms import SparseSwitchNorm2d, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from study.norms.names import POOLS
from tests.norms import formulas

both_kinds = pytest.mark.usefixtures("kernel_kind")

CHANNELS = 4


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(pool=("in", "ln", "bn"), layer_type=SwitchNorm2d, **options):
    """A layer in float64 whose parameters are all different."""
    layer = layer_type(CHANNELS, pool=pool, groups=2, **options).double()
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters(), start=1):
            parameter.add_(0.5 * draw(*parameter.shape, seed=seed))
    return layer


def expected(layer, x, mean_weights, var_weights):
    return formulas.switch_norm(
        x,
        mean_weights,
        var_weights,
        layer.weight,
        layer.bias,
        layer.pool,
        groups=layer.groups,
        chunks=layer.chunks,
    )


def gradients(y, x, layer):
    """Gradients of a loss that is not symmetric in y, for x and every parameter."""
    return torch.autograd.grad((y * draw(*y.shape, seed=9)).sum(), [x, *layer.parameters()])


@both_kinds
@pytest.mark.parametrize("pool", POOLS, ids=",".join)
@pytest.mark.parametrize("chunks", [1, 2])
def test_output_and_gradients_follow_the_formula(pool, chunks):
    layer = build(pool, chunks=chunks)
    x = (draw(4, CHANNELS, 2, 3) + 1).requires_grad_()
    y = layer(x)
    y_expected = expected(layer, x, layer.mean_weight.softmax(0), layer.var_weight.softmax(0))
    torch.testing.assert_close(y, y_expected)
    torch.testing.assert_close(gradients(y, x, layer), gradients(y_expected, x, layer))


@both_kinds
@pytest.mark.parametrize(
    ("layer_type", "shape"),
    [
        (SwitchNorm1d, (4, CHANNELS)),
        (SwitchNorm1d, (4, CHANNELS, 5)),
        (SwitchNorm2d, (4, CHANNELS, 1, 1)),
        (SwitchNorm2d, (1, CHANNELS, 3, 3)),
        (SwitchNorm2d, (1, CHANNELS, 1, 1)),
        (SwitchNorm3d, (2, CHANNELS, 2, 3, 2)),
    ],
)
def test_the_formula_holds_for_every_shape(layer_type, shape):
    layer = build(("in", "ln", "bn", "gn"), layer_type)
    x = draw(*shape).requires_grad_()
    y = layer(x)
    y_expected = expected(layer, x, layer.mean_weight.softmax(0), layer.var_weight.softmax(0))
    torch.testing.assert_close(y, y_expected)
    torch.testing.assert_close(gradients(y, x, layer), gradients(y_expected, x, layer))


@both_kinds
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(training):
    layer = build(("in", "ln", "bn", "gn")).train(training)
    x = draw(2, CHANNELS, 2, 2).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def forward(x, *values):
        return torch.func.functional_call(copy.deepcopy(layer), dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(forward, (x, *parameters))


@both_kinds
def test_evaluation_uses_running_statistics():
    layer = build().eval()
    layer.running_mean.copy_(draw(CHANNELS, seed=5))
    layer.running_var.copy_(draw(CHANNELS, seed=6).exp())
    x = draw(3, CHANNELS, 2, 3) + 1
    mean_weights, var_weights = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    for n in range(3):
        for c in range(CHANNELS):
            means = torch.stack([x[n, c].mean(), x[n].mean(), layer.running_mean[c]])
            variances = torch.stack([formulas.biased_var(x[n, c]), formulas.biased_var(x[n]), layer.running_var[c]])
            y = (x[n, c] - mean_weights @ means) / (var_weights @ variances + 1e-5).sqrt()
            torch.testing.assert_close(layer(x)[n, c], layer.weight[c] * y + layer.bias[c])


NATIVE = {
    "bn": lambda: nn.BatchNorm2d(CHANNELS, momentum=0.3),
    "in": lambda: nn.InstanceNorm2d(CHANNELS, affine=True),
    "ln": lambda: nn.GroupNorm(1, CHANNELS),
    "gn": lambda: nn.GroupNorm(2, CHANNELS),
}


@both_kinds
@pytest.mark.parametrize("member", NATIVE)
@pytest.mark.parametrize("fixed", [False, True], ids=["pool of one", "one-hot weights"])
def test_one_hot_weights_are_the_layer_of_torch(member, fixed):
    native = NATIVE[member]().double()
    pool = ("in", "ln", "bn", "gn") if fixed else (member,)
    layer = SwitchNorm2d(CHANNELS, momentum=0.3, pool=pool, groups=2).double()
    if fixed:
        one_hot = torch.tensor([float(name == member) for name in pool])
        layer.fix_weights(one_hot, one_hot)
    for name in ("weight", "bias"):
        value = draw(CHANNELS, seed=3)
        getattr(native, name).data.copy_(value)
        getattr(layer, name).data.copy_(value)
    for step in range(3):
        x = (draw(4, CHANNELS, 3, 2, seed=step) * 2 + 1).requires_grad_()
        results = []
        for module in (native, layer):
            y = module(x)
            loss = (y * draw(*y.shape, seed=9)).sum()
            results.append((y, *torch.autograd.grad(loss, (x, module.weight, module.bias))))
        torch.testing.assert_close(results[1], results[0])
    if member == "bn":
        torch.testing.assert_close(layer.running_mean, native.running_mean)
        torch.testing.assert_close(layer.running_var, native.running_var)
    x = draw(5, CHANNELS, 3, 3, seed=7)
    torch.testing.assert_close(layer.eval()(x), native.eval()(x))


@both_kinds
@pytest.mark.parametrize("correction", [0, 1])
def test_chunks_compute_what_separate_devices_compute(correction):
    chunked = build(chunks=3, correction=correction)
    devices = [build(correction=correction) for _ in range(3)]
    x = draw(6, CHANNELS, 3, 3).requires_grad_()
    y = chunked(x)
    parts = [device(part) for device, part in zip(devices, x.chunk(3), strict=True)]
    torch.testing.assert_close(y, torch.cat(parts))
    got = gradients(y, x, chunked)
    loss = (torch.cat(parts) * draw(*y.shape, seed=9)).sum()
    wanted = torch.autograd.grad(loss, [x, *(p for device in devices for p in device.parameters())])
    torch.testing.assert_close(got[0], wanted[0])
    for index, gradient in enumerate(got[1:]):
        torch.testing.assert_close(gradient, sum(wanted[1 + index :: len(got) - 1]))
    for name in ("running_mean", "running_var"):
        average = torch.stack([getattr(device, name) for device in devices]).mean(0)
        torch.testing.assert_close(getattr(chunked, name), average)


def test_chunks_must_divide_the_batch():
    with pytest.raises(ValueError, match="batch of 4 samples is not divisible into 3 chunks"):
        SwitchNorm2d(2, chunks=3)(torch.ones(4, 2, 1, 1))


def test_evaluation_ignores_chunks():
    layer = build(chunks=3).eval()
    assert layer(draw(4, CHANNELS, 2, 2)).shape == (4, CHANNELS, 2, 2)


@both_kinds
@pytest.mark.parametrize("member", ["in", "ln", "bn"])
def test_correction_gives_the_official_variances(member):
    x = draw(5, CHANNELS, 3, 3) + 2
    layer = SwitchNorm2d(CHANNELS, pool=(member,), momentum=1.0, correction=1).double()
    variance = formulas.official_variances(x)[member]
    mean = {"in": x.mean((2, 3)), "ln": x.mean((1, 2, 3))[:, None], "bn": x.mean((0, 2, 3))[None]}[member]
    y = (x - mean[:, :, None, None]) / (variance[:, :, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), y)
    if member == "bn":
        torch.testing.assert_close(layer.running_var.double(), variance[0])


@both_kinds
def test_official_variance_is_inflated_by_at_most_the_bessel_factor():
    x = draw(64, CHANNELS, 3, 3)
    layer = SwitchNorm2d(CHANNELS, momentum=1.0, correction=1).double()
    layer(x)
    inflation = layer.running_var / x.var((0, 2, 3), correction=0)
    assert (inflation > 1.10).all()
    assert (inflation < 9 / 8).all()


@both_kinds
def test_corrected_variance_of_one_pixel_is_zero():
    layer = SwitchNorm2d(CHANNELS, pool=("in",), correction=1)
    assert layer(torch.full((2, CHANNELS, 1, 1), 3.0)).eq(0).all()


@both_kinds
@pytest.mark.parametrize("chunks", [1, 2])
def test_corrected_variances_of_inputs_without_pixels_are_those_of_the_official_layer(chunks):
    layer = build(("ln", "bn"), SwitchNorm1d, correction=1, chunks=chunks, momentum=1.0)
    x = draw(6, CHANNELS).requires_grad_()
    weights, var_weights = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)

    def normalize(x, mean, var):
        mixed_mean = weights[0] * x.mean(1, keepdim=True) + weights[1] * mean
        mixed_var = var_weights[0] * x.var(1, keepdim=True) + var_weights[1] * var
        return layer.weight * (x - mixed_mean) / (mixed_var + layer.eps).sqrt() + layer.bias

    parts = x.chunk(chunks)
    y, y_expected = layer(x), torch.cat([normalize(part, part.mean(0), part.var(0)) for part in parts])
    torch.testing.assert_close(y, y_expected)
    torch.testing.assert_close(gradients(y, x, layer), gradients(y_expected, x, layer))
    torch.testing.assert_close(layer.running_var, torch.stack([part.var(0) for part in parts]).mean(0))
    expected_in_evaluation = normalize(x, layer.running_mean, layer.running_var)
    torch.testing.assert_close(layer.eval()(x), expected_in_evaluation)
    assert layer.train()(x[:1].repeat(chunks, 1)).isfinite().all()  # the official layer gives NaN


@both_kinds
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer_type", "shape"),
    [
        (SwitchNorm1d, (0, CHANNELS)),
        (SwitchNorm2d, (0, CHANNELS, 3, 3)),
        (SwitchNorm2d, (2, CHANNELS, 0, 3)),
        (SparseSwitchNorm2d, (0, CHANNELS, 3, 3)),
    ],
)
@pytest.mark.parametrize("pool", [("in", "ln", "bn", "gn"), ("bn",)], ids=",".join)
def test_an_empty_batch_changes_nothing(layer_type, shape, pool, training):
    layer = build(pool, layer_type, chunks=2).train(training)
    buffers = [buffer.clone() for buffer in layer.buffers()]
    x = draw(*shape).requires_grad_()
    y = layer(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(parameter.grad.eq(0).all() for parameter in layer.parameters())
    assert all(map(torch.equal, layer.buffers(), buffers))


@both_kinds
@pytest.mark.parametrize("pool", [("in", "ln", "bn", "gn"), ("bn",)], ids=",".join)
@pytest.mark.parametrize("layer_type", [SwitchNorm2d, SparseSwitchNorm2d])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_value_that_is_not_finite_stays_alone_where_only_bn_is_used_in_evaluation(pool, layer_type, value):
    layer = build(pool, layer_type).eval()
    layer.running_mean.copy_(draw(CHANNELS, seed=5))
    hot = torch.tensor([float(name == "bn") for name in pool])
    layer.fix_weights(hot, hot)
    native = nn.BatchNorm2d(CHANNELS).double().eval()
    native.load_state_dict({name: layer.state_dict()[name] for name in native.state_dict() if "num" not in name}, False)
    x = draw(2, CHANNELS, 3, 3)
    x[0, 0, 0, 0] = value
    torch.testing.assert_close(layer(x), native(x), equal_nan=True)
    assert (~layer(x).isfinite()).sum() == 1


def test_without_bn_there_are_no_buffers():
    assert list(SwitchNorm2d(CHANNELS, pool=("in", "ln")).buffers()) == []


@both_kinds
def test_sparse_layer_mixes_by_sparsestmax():
    layer = build(layer_type=SparseSwitchNorm2d)
    layer.set_radius(0.3)
    x = draw(4, CHANNELS, 2, 3)
    mean = torch.tensor(formulas.sparsestmax(layer.mean_weight.tolist(), 0.3))
    var = torch.tensor(formulas.sparsestmax(layer.var_weight.tolist(), 0.3))
    torch.testing.assert_close(layer(x), expected(layer, x, mean, var), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer_type", [SwitchNorm2d, SparseSwitchNorm2d])
@pytest.mark.parametrize("pool", POOLS, ids=",".join)
def test_weights_sum_to_one(layer_type, pool):
    weights = layer_type(CHANNELS, pool=pool, logit_init="random").switch_weights()
    assert weights.pool == pool
    for values in (weights.mean, weights.var):
        assert values.shape == (len(pool),)
        assert not values.requires_grad
        assert values.sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("layer_type", [SwitchNorm2d, SparseSwitchNorm2d])
def test_random_weights_differ_between_means_and_variances(layer_type):
    build_layer = lambda: layer_type(  # noqa: E731
        CHANNELS, logit_init="random", generator=torch.Generator().manual_seed(1)
    ).switch_weights()
    first, second = build_layer(), build_layer()
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.var, second.var)
    assert not torch.allclose(first.mean, first.var)


def test_fixed_weights_are_the_given_ones():
    layer = SwitchNorm2d(CHANNELS)
    mean, var = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.0, 1.0, 0.0])
    layer.fix_weights(mean, var)
    torch.testing.assert_close(layer.switch_weights().mean, mean)
    torch.testing.assert_close(layer.switch_weights().var, var)
    layer(torch.randn(2, CHANNELS, 2, 2)).sum().backward()
    assert layer.mean_weight.grad is None


def test_fixed_weights_must_fit_the_pool():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        SwitchNorm2d(CHANNELS).fix_weights(torch.ones(2) / 2, torch.ones(2) / 2)


@both_kinds
def test_tied_layer_sums_the_gradients_of_both_uses():
    tied, loose = build(tied=True), build()
    for source, target in zip(("mean_weight", "mean_weight"), ("mean_weight", "var_weight"), strict=True):
        getattr(loose, target).data.copy_(getattr(tied, source).data)
    loose.weight.data.copy_(tied.weight.data)
    loose.bias.data.copy_(tied.bias.data)
    x = draw(3, CHANNELS, 2, 2)
    for layer in (tied, loose):
        (layer(x) * draw(3, CHANNELS, 2, 2, seed=9)).sum().backward()
    assert tied.var_weight is tied.mean_weight
    torch.testing.assert_close(tied.mean_weight.grad, loose.mean_weight.grad + loose.var_weight.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": ()}, "pool"),
        ({"pool": ("ln", "in")}, "in order"),
        ({"pool": ("in", "xn")}, "xn"),
        ({"correction": 2}, "correction 2"),
        ({"chunks": 0}, "chunks 0"),
        ({"logit_init": "zeros"}, "zeros"),
        ({"momentum": None}, "momentum None is not allowed"),
    ],
)
def test_errors_name_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SwitchNorm2d(CHANNELS, **options)


@pytest.mark.parametrize("shape", [(2, CHANNELS), (2, CHANNELS + 1, 2, 2), (2, 3, 3), (2,)])
def test_errors_name_wrong_inputs(shape):
    with pytest.raises(ValueError, match=r"SwitchNorm2d input of shape \(2,"):
        SwitchNorm2d(CHANNELS)(torch.ones(shape))


@both_kinds
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_errors_name_wrong_dtypes(dtype, training):
    with pytest.raises(ValueError, match=f"dtype {dtype} is not allowed: a floating-point dtype"):
        SwitchNorm2d(CHANNELS).train(training)(torch.ones(2, CHANNELS, 2, 2, dtype=dtype))

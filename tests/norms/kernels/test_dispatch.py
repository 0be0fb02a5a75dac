"""The compiled kernels on CPUs against the reference implementation."""

from functools import partial

import pytest
import torch

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, plain_norms
from study.norms.kernels import dispatch, reference
from study.norms.mixing import sparsestmax
from study.norms.names import NORMALIZERS
from tests.norms.kernel_cases import FIXED_CASES, Case, apply_kernels, build_trials, compare, draw_case, run_kernels
from tests.norms.test_numerics import LAYOUTS

# opcheck causes this warning, and fails in a process where some other code has made warnings errors.
checks_of_torch = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

LARGE = (  # work for several threads, rows and tiles that are split, sizes that are not multiples of a vector
    Case(shape=(8, 12, 65, 67), groups=4, chunks=2),
    Case(shape=(8, 12, 65, 67), groups=4, chunks=4, channels_last=True, dtype=torch.bfloat16),
    Case(shape=(4, 520, 7, 7), groups=8, channels_last=True),
    Case(shape=(2, 3, 70, 71), correction=1, dtype=torch.float16),
    Case(shape=(600, 70), members=6),
)
CASES = [*FIXED_CASES, *LARGE, *map(draw_case, range(100))]


@pytest.fixture
def kernels():
    assert dispatch.load_kernels("cpu")
    return torch.ops.switch_norm


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_compute_what_the_reference_computes(kernels, case):
    compare(case, kernels)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(kernels, case):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append((*run_kernels(case, kernels), *apply_kernels(kernels, *build_trials(case, 3)[1])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("trials", [2, 5])
@pytest.mark.parametrize("case", [case for case in CASES if case.shape[1] > 1], ids=str)  # 1 channel has no layout
def test_trials_side_by_side_have_the_bits_of_each_by_itself(kernels, case, trials):
    single, together = build_trials(case, trials)
    expected = zip(*(apply_kernels(kernels, *each) for each in single), strict=True)
    names = ("y", "stats", "batch", "dx", "dweight", "dbias", "dmean_switch", "dvar_switch")
    for name, value, parts in zip(names, apply_kernels(kernels, *together), expected, strict=True):
        by_channel = partial(torch.cat, dim=1 if name in ("y", "dx") else -1)
        wanted = (torch.stack if name.endswith("switch") else by_channel)(parts)
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("case", [*FIXED_CASES, *map(draw_case, range(30))], ids=str)
def test_the_reference_computes_each_trial_by_itself(case):
    single, together = build_trials(case, 3)

    def normalize(x, _, parameters, __):
        switch, affine, running = (tuple(parameters[start : start + 2]) for start in (0, 2, 4))
        return reference.normalize(
            x, switch, affine, running if case.uses_running else None, softmax=case.softmax,
            pool=tuple(name for bit, name in enumerate(NORMALIZERS) if case.members >> bit & 1),
            groups=case.groups, chunks=case.chunks, correction=case.correction, eps=case.eps,
        )  # fmt: skip

    y, batch = normalize(*together)
    ys, batches = zip(*(normalize(*each) for each in single), strict=True)
    close = partial(torch.testing.assert_close, **({"rtol": 1e-3, "atol": 1e-3} if case.offset > 1 else {}))
    close(y, torch.cat(ys, dim=1))
    if batch is None:
        assert batches == (None, None, None)
    else:
        close(batch, torch.cat(batches, dim=1))


@checks_of_torch
@pytest.mark.parametrize(("dtype", "switch"), [(torch.float32, (3,)), (torch.bfloat16, (2, 3))], ids=["one", "trials"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_of_layers_pass_the_checks_of_torch(kernels, layout, dtype, switch):
    """Among them: whether the fake operators, which compilers ask, have the strides that the operators return."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    x = LAYOUTS[layout](draw(2, 4, 3, 3)).to(dtype).requires_grad_()
    parameters = [torch.ones(size, requires_grad=True) for size in (switch, switch, 4, 4)]
    for running in ((None, None), (torch.zeros(4), torch.ones(4))):
        options = *running, 7, 1, 1, 0, 1e-5, True
        torch.library.opcheck(kernels.forward.default, (x, *parameters, *options))
        y, stats, _ = (each.detach() for each in kernels.forward(x, *parameters, *options))
        values = [each.detach() for each in (x, stats, *parameters[:3])]
        torch.library.opcheck(kernels.backward.default, (torch.ones_like(y), *values, *options))


@checks_of_torch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fixed", [False, True])
def test_other_operators_pass_the_checks_of_torch(kernels, fixed, dtype):
    logits, choice = torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0]], dtype=dtype)
    state = torch.tensor(0.3, dtype=dtype), torch.tensor(fixed)
    torch.library.opcheck(kernels.sparse_switch.default, (logits.clone().requires_grad_(), *state, choice))
    torch.library.opcheck(kernels.sparse_switch_backward.default, (choice, logits, *state))
    torch.library.opcheck(kernels.fix_choice.default, (logits, *state, choice))
    torch.library.opcheck(
        kernels.update_running_statistics.default, (logits, choice, torch.ones(2, 3, dtype=dtype), 0.1)
    )


def test_every_operator_is_checked():
    names = {schema.split("(")[0] for schema in dispatch._SCHEMAS}
    checked = {"forward", "backward", "sparse_switch", "sparse_switch_backward", "fix_choice"}
    assert names == checked | {"update_running_statistics"}


def test_parameters_and_statistics_may_have_any_strides():
    dense = SwitchNorm2d(6)
    strided = SwitchNorm2d(6)
    for name, value in (*dense.named_parameters(), *dense.named_buffers()):
        value.data.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(len(name))))
        getattr(strided, name).data = value.data.repeat_interleave(2)[::2]
    assert strided.weight.stride() == (2,)
    x = torch.randn(4, 6, 3, 3)
    for training in (True, False):
        results = []
        for layer in (dense, strided):
            y = layer.train(training)(x)
            results.append((y, *torch.autograd.grad(y.pow(3).sum(), list(layer.parameters())), *layer.buffers()))
        for first, second in zip(*results, strict=True):
            assert torch.equal(first, second)


def test_kernels_refuse_members_that_they_lack(kernels):
    values = [torch.ones(size) for size in (5, 5, 6, 6)]
    with pytest.raises(RuntimeError, match="the kernels lack a member"):
        kernels.forward(torch.randn(2, 6, 3, 3), *values, None, None, 31, 1, 1, 0, 1e-5, True)


def test_a_member_without_kernels_runs_on_the_reference(kernels, monkeypatch):
    """Someone may add a normalizer to the reference first: the kernels would silently leave it out."""
    x, layer = torch.randn(4, 6, 5, 5), SwitchNorm2d(6, pool=("in", "bn"))
    with plain_norms():
        expected = layer(x)
    assert dispatch.kernel_kind("cpu", pools=[("in", "bn")]) == "fused"
    assert dispatch.kernel_kind("cpu", pools=[("bn",), ("in", "new")]) == "plain"
    monkeypatch.delitem(dispatch._MEMBER_BITS, ("in", "bn"))
    assert torch.equal(layer(x), expected)


class TestSparseSwitch:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_weights_and_gradients_are_those_of_the_reference(self, size, dtype):
        generator = torch.Generator().manual_seed(size)
        radius = torch.linspace(0, 1, 41, dtype=dtype).repeat_interleave(3)
        spread = torch.tensor([[0.01], [0.3], [2.0]], dtype=dtype).repeat(41, 1)
        logits = (spread * torch.randn(123, size, generator=generator, dtype=dtype)).requires_grad_()
        upstream = torch.randn(123, size, generator=generator, dtype=dtype)
        fixed, choice = torch.tensor(False), torch.zeros(size, dtype=dtype)
        weights = torch.stack([dispatch.sparse_switch(*row, fixed, choice) for row in zip(logits, radius, strict=True)])
        (gradients,) = torch.autograd.grad(weights, logits, upstream)
        expected = sparsestmax(logits, radius)
        (expected_gradients,) = torch.autograd.grad((expected * upstream + 0 * logits).sum(), logits)
        tolerance = 1e-9 if dtype == torch.float64 else 5e-4  # the reference's gradients lose digits in float32
        torch.testing.assert_close(weights, expected, rtol=0, atol=tolerance)
        scale = expected_gradients.abs().amax(1, keepdim=True).clamp(min=1.0)
        torch.testing.assert_close(gradients / scale, expected_gradients / scale, rtol=0, atol=tolerance)

    @pytest.mark.parametrize("radius", [0.0, 0.3, 0.7, 0.9])
    def test_ties(self, radius):
        for logits in ([1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [-3.0, 0.0, 0.0]):
            results = []
            for module in (dispatch, reference):
                leaf = torch.tensor(logits, requires_grad=True)
                weights = module.sparse_switch(leaf, torch.tensor(radius), torch.tensor(False), torch.zeros(3))
                (weights @ torch.tensor([1.0, 2.0, 4.0])).backward()
                results.append((weights.detach(), leaf.grad))
            torch.testing.assert_close(results[0], results[1])

    def test_fixed_weights_have_no_gradient_and_set_their_logits(self):
        logits = torch.tensor([0.2, 0.9, 0.1], requires_grad=True)
        radius, fixed, choice = torch.tensor(0.9), torch.tensor(False), torch.zeros(3)
        with torch.no_grad():
            dispatch.fix_choice(logits, radius, fixed, choice)
        assert fixed
        assert choice.tolist() == logits.tolist() == [0.0, 1.0, 0.0]
        logits.data += 5.0
        weights = dispatch.sparse_switch(logits, radius, fixed, choice)
        assert weights.tolist() == [0.0, 1.0, 0.0]
        weights.sum().backward()
        assert logits.grad.tolist() == [0.0] * 3


def test_inputs_may_have_any_strides():
    layer = SwitchNorm2d(6)
    x = torch.randn(5, 7, 6, 4).transpose(1, 2)[:, :, ::2]  # neither contiguous nor channels last
    x.requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)  # dy is an expanded tensor
    with plain_norms():
        expected = SwitchNorm2d(6)(x)
    torch.testing.assert_close(y, expected)
    assert gradient.shape == x.shape


@pytest.mark.parametrize("layer_type", [SwitchNorm2d, SparseSwitchNorm2d])
def test_only_the_reference_has_second_derivatives(layer_type):
    layer, x = layer_type(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="plain_norms"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with plain_norms():
        (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def test_running_statistics_that_change_before_the_backward_pass_are_an_error():
    layer = SwitchNorm2d(3).eval()
    y = layer(torch.randn(2, 3, 4, 4))
    layer.train()(torch.randn(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_have_the_dtype_of_the_parameters():
    layer = SwitchNorm2d(3).bfloat16()
    layer(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)).sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in layer.parameters())


def test_frozen_inputs_and_parameters_need_no_gradient():
    layer = SwitchNorm2d(3).requires_grad_(False)
    assert not layer(torch.randn(2, 3, 4, 4)).requires_grad
    layer.bias.requires_grad_()
    layer(torch.randn(2, 3, 4, 4)).sum().backward()
    assert layer.bias.grad.tolist() == [32.0] * 3
    assert layer.weight.grad is None


def test_one_hot_bn_in_evaluation_does_not_use_the_statistics_of_the_input():
    layer = SwitchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0]))
    layer.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    hot = torch.tensor([0.0, 0.0, 1.0])
    layer.fix_weights(hot, hot)
    layer.eval()
    x = torch.randn(4, 3, 5, 5)
    x[0, 0, 0, 0] = torch.inf  # makes every statistic of its row NaN
    expected = torch.nn.BatchNorm2d(3).eval()
    expected.load_state_dict({name: layer.state_dict()[name] for name in ("running_mean", "running_var")}, strict=False)
    torch.testing.assert_close(layer(x), expected(x))

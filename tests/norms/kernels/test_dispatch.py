"""The fused kernels on CPUs against the plain form; what the layers do with them is in the other tests here."""

import os
import subprocess
import sys

import pytest
import torch

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, plain_norms
from study.norms.kernels import build, dispatch, reference
from tests.norms.kernel_cases import FIXED, Case, compare, draw_case, run_kernels

LARGE = (  # more than one thread's share, rows and tiles in parts, odd ends
    Case(shape=(8, 12, 65, 67), groups=4, chunks=2),
    Case(shape=(8, 12, 65, 67), groups=4, chunks=4, last=True, dtype=torch.bfloat16),
    Case(shape=(4, 520, 7, 7), groups=8, last=True),
    Case(shape=(2, 3, 70, 71), correction=1, dtype=torch.float16),
    Case(shape=(600, 70), members=6),
)


@pytest.fixture
def kernels():
    assert dispatch.available("cpu")
    return torch.ops.study_norms


@pytest.mark.parametrize("case", [*FIXED, *LARGE, *map(draw_case, range(100))], ids=str)
def test_kernels_are_the_plain_arithmetic(kernels, case):
    compare(case, kernels)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_numbers_do_not_depend_on_threads(kernels, case):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run_kernels(case, kernels))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(results[0], other, strict=True))


class TestSparseSwitch:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    def test_weights_and_gradients_are_those_of_the_plain_form(self, size, dtype):
        generator = torch.Generator().manual_seed(size)
        fixed, choice = torch.tensor(False), torch.zeros(size, dtype=dtype)
        for radius in torch.linspace(0, 1, 41).tolist():
            for spread in (0.01, 0.3, 2.0):
                logits = spread * torch.randn(size, generator=generator, dtype=dtype)
                upstream = torch.randn(size, generator=generator, dtype=dtype)
                results = []
                for module in (dispatch, reference):
                    leaf = logits.clone().requires_grad_()
                    weights = module.sparse_switch(leaf, torch.tensor(radius, dtype=dtype), fixed, choice)
                    (weights * upstream + 0 * leaf).sum().backward()
                    results.append((weights.detach(), leaf.grad))
                tolerance = 1e-9 if dtype == torch.float64 else 5e-4  # plain gradients of float32 cancel
                scale = max(1.0, results[1][1].abs().max().item())
                torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=tolerance)
                torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=tolerance * scale)

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

    def test_a_fixed_choice_has_no_gradient_and_takes_its_logits_along(self):
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


def test_any_strides():
    layer = SwitchNorm2d(6)
    x = torch.randn(5, 7, 6, 4).transpose(1, 2)[:, :, ::2]  # neither contiguous nor channels last
    x.requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)  # of an expanded dy
    with plain_norms():
        expected = SwitchNorm2d(6)(x)
    torch.testing.assert_close(y, expected)
    assert gradient.shape == x.shape


def test_an_empty_batch_stays_one():
    layer = SwitchNorm2d(6).eval()
    assert layer(torch.randn(0, 6, 4, 4)).shape == (0, 6, 4, 4)


@pytest.mark.parametrize("layer_type", [SwitchNorm2d, SparseSwitchNorm2d])
def test_second_derivatives_are_refused_and_plain(layer_type):
    layer, x = layer_type(3), torch.randn(2, 3, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="plain_norms"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with plain_norms():
        (gradient,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def test_statistics_that_move_before_a_gradient_is_taken_are_an_error():
    layer = SwitchNorm2d(3).eval()
    y = layer(torch.randn(2, 3, 4, 4))
    layer.train()(torch.randn(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gradients_reach_parameters_of_another_dtype():
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


def test_one_hot_bn_in_evaluation_is_a_fixed_affine_map():
    """As nn.BatchNorm2d, and without a look at the statistics of x."""
    layer = SwitchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.0]))
    layer.running_var.copy_(torch.tensor([4.0, 0.25, 1.0]))
    hot = torch.tensor([0.0, 0.0, 1.0])
    layer.fix_weights(hot, hot)
    layer.eval()
    x = torch.randn(4, 3, 5, 5)
    x[0, 0, 0, 0] = torch.inf  # would make every statistic of its row NaN
    folded = torch.nn.BatchNorm2d(3).eval()
    folded.load_state_dict({name: layer.state_dict()[name] for name in ("running_mean", "running_var")}, strict=False)
    torch.testing.assert_close(layer(x), folded(x))


class TestBuild:
    def test_no_compiler_is_one_warning_and_the_plain_form(self, tmp_path):
        program = (
            "import torch, warnings; from study.norms import SwitchNorm2d, fused\n"
            "with warnings.catch_warnings(record=True) as caught:\n"
            "    warnings.simplefilter('always')\n"
            "    for _ in range(3): SwitchNorm2d(3)(torch.randn(2, 3, 4, 4)).sum().backward()\n"
            "print([str(w.message) for w in caught if 'plain form' in str(w.message)], dispatch.available('cpu'))"
        )
        environment = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        environment.pop("CXX", None)
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.count("plain form") == 1
        assert "there is no C++ compiler" in done.stdout
        assert done.stdout.rstrip().endswith("False")

    def test_a_compiler_that_fails_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CXX", "false")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(build.BuildError, match="false"):
            build.library()
        assert not list(tmp_path.rglob("*.so"))

    def test_the_cache_is_for_its_owner_alone(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(build, "_compile", lambda compiler, flags, path: path.write_bytes(b""))
        path = build.library()
        assert path.parent.stat().st_mode & 0o077 == 0
        monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
        assert build.library() == path

    def test_a_cache_that_others_can_write_to_is_not_trusted(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        folder = tmp_path / "normalizer-study"
        folder.mkdir()
        folder.chmod(0o777)
        with pytest.raises(build.BuildError, match="owner alone"):
            build.library()

    def test_a_cache_that_cannot_be_written_is_a_build_error(self, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(build.BuildError, match="XDG_CACHE_HOME"):
            build.library()

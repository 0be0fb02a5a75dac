"""The Triton kernels: in Triton's interpreter, compiled without a device, and on a device."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.norms.kernel_cases import FIXED_CASES, Case, build, compare, draw_case, run_kernels

KERNELS = (
    "row_statistics_kernel",
    "member_statistics_kernel",
    "normalize_kernel",
    "row_sums_kernel",
    "set_sums_kernel",
    "input_gradients_kernel",
)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float64: "*fp64"}


@pytest.fixture
def kernels(monkeypatch):
    pytest.importorskip("triton", reason="triton is for Linux and Windows")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return importlib.import_module("study.norms.kernels.triton_launch")


@pytest.mark.slow
def test_interpreted_kernels_compute_what_the_reference_computes():
    pytest.importorskip("triton", reason="triton is for Linux and Windows")
    # Importing triton selects the interpreter or the compiler, for the whole process.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.norms.kernel_cases"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr


class LaunchRecorder:
    """Replaces a kernel and records the arguments of its launches."""

    def __init__(self, kernel, launches):
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid):
        assert all(0 < size < 2**16 for size in grid)

        def launch(*args, num_warps=4, **options):
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | options
            assert set(arguments) == set(self.kernel.arg_names)
            self.launches.append((self.kernel, arguments, num_warps))

        return launch


def compile_kernel(kernel, arguments, num_warps, capability):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32"
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("capability", "shape", "channels_last", "dtype", "uses_running"),
    [
        (80, (64, 256, 56, 56), False, torch.float32, False),
        (90, (64, 256, 56, 56), True, torch.bfloat16, False),
        (90, (64, 512, 7, 7), False, torch.float16, True),
    ],
)
def test_kernels_compile_without_a_device(kernels, monkeypatch, capability, shape, channels_last, dtype, uses_running):
    launches = []
    for name in KERNELS:
        monkeypatch.setattr(kernels, name, LaunchRecorder(getattr(kernels, name), launches))
    x = torch.empty(shape, dtype=dtype, device="meta")
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    switch, affine = torch.empty(4, device="meta"), torch.empty(shape[1], device="meta")
    running = (affine, affine) if uses_running else (None, None)
    options = 15, 32, 2, 0, 1e-5, True
    y, stats, _ = kernels.forward(x, switch, switch, affine, affine, *running, *options)
    kernels.backward(y, x, stats, switch, switch, affine, *running, *options)
    assert len(launches) == 7
    for launch in launches:  # Triton keeps what it has compiled, so later runs on the same machine are faster
        assert compile_kernel(*launch, capability).asm["cubin"]


LARGE = (
    Case(shape=(32, 64, 56, 56), groups=32, chunks=4),
    Case(shape=(32, 64, 56, 56), groups=32, channels_last=True, dtype=torch.bfloat16),
    Case(shape=(64, 512, 7, 7), groups=32, correction=1),
    Case(shape=(2, 16, 48, 64, 64), groups=4, dtype=torch.float16),
    Case(shape=(256, 2048, 1, 1), groups=32, chunks=2),
)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", [*FIXED_CASES, *LARGE, *map(draw_case, range(20))], ids=str)
def test_kernels_on_a_device(kernels, case):
    compare(case, kernels, "cuda")
    for first, second in zip(run_kernels(case, kernels, "cuda"), run_kernels(case, kernels, "cuda"), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_can_be_captured(kernels):
    case = LARGE[0]
    x, _, parameters, options = build(case, "cuda")
    expected, *_ = kernels.forward(x, *parameters, *options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, *_ = kernels.forward(x, *parameters, *options)
    graph.replay()
    assert torch.equal(y, expected)

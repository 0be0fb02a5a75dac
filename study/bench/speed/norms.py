"""Norm layers over the layer shapes of ResNets: time, memory, and how near they come to copying."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from study.bench.result import Figure, Result
from study.bench.timing import Seconds, alternate, median, ratio
from study.norms import build_norm, set_radius
from study.norms.kernels.dispatch import plain_norms

Shape = tuple[int, int, int, int]

# (C, H = W) of the norm layers, each shape once.
RESNET20 = ((16, 32), (32, 16), (64, 8))
RESNET50 = ((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14), (1024, 14),
            (512, 14), (512, 7), (2048, 7))  # fmt: skip
TINY: tuple[Shape, ...] = ((2, 16, 8, 8), (16, 16, 4, 4), (2, 64, 4, 4))
SETTINGS = tuple((dtype, channels_last) for dtype in (torch.float32, torch.bfloat16) for channels_last in (False, True))
NORMS = ("bn", "gn", "in", "sn", "ssn", "sn plain")
# How often a pass moves the whole tensor: forward reads x twice and writes y, backward reads x and dy twice and
# writes dx. A copy moves it twice.
FORWARD, BOTH = 3, 8
_STATUS = Path("/proc/self/status")


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """All norms at all shapes, forward and forward + backward, by turns in one process."""
    if threads:
        torch.set_num_threads(threads)
    result = Result("norms")
    for dtype, channels_last in SETTINGS[:: len(SETTINGS) - 1] if quick else SETTINGS:  # quick: the first and the last
        first = (dtype, channels_last) == SETTINGS[0]
        for shape in _shapes(device, quick=quick or (device == "cpu" and not first)):
            seconds, rounds = (0.03, 3) if quick else (0.7, 7)
            result.rows += _rows(shape, dtype, channels_last, device, seconds, rounds)
    result.figures = list(_figures(result.rows))
    # A process each: quick ones are few.
    result.figures += _memory_figures((8 if quick else 32, 64, 56, 56), ("bn", "sn") if quick else NORMS, device)
    result.notes.append(
        f"{torch.get_num_threads()} threads. Training mode; ms; share: of the time that copying as much memory takes. "
        "Ratios: median over rounds in which all took turns."
    )
    return result


def _shapes(device: str, quick: bool) -> list[Shape]:
    if quick:
        return [(16, 16, 32, 32), (8, 256, 28, 28)]
    small = [(batch, c, size, size) for batch in (16, 128) for c, size in RESNET20]
    large = [(8 if device == "cpu" else 64, c, size, size) for c, size in RESNET50]
    return [*TINY, *small, *large]


def _rows(
    shape: Shape, dtype: torch.dtype, channels_last: bool, device: str, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format)
    dy = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format)
    layers = {name: _build(name, shape[1], device) for name in NORMS}
    timed = partial(
        alternate, seconds=seconds, rounds=rounds, synchronize=torch.cuda.synchronize if device == "cuda" else _nothing
    )
    rows = []
    for passes, moved in (("forward", FORWARD), ("forward + backward", BOTH)):
        call = _forward if passes == "forward" else _forward_backward
        contenders: dict[str, Callable[[], object]] = {
            name: partial(call, layer, x, dy, name == "sn plain") for name, layer in layers.items()
        }
        times: Seconds = timed({**contenders, "copy": partial(torch.empty_like(x).copy_, x)})
        row: dict[str, Any] = {
            "shape": "x".join(map(str, shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "channels_last" if channels_last else "contiguous",
            "passes": passes,
        }
        row |= {name: 1000 * median(times[name]) for name in NORMS}
        row["sn / bn"] = ratio(times, "sn", "bn")
        row["ssn / bn"] = ratio(times, "ssn", "bn")
        row["plain / sn"] = ratio(times, "sn plain", "sn")
        row["share"] = moved / 2 * ratio(times, "copy", "sn")
        rows.append(row)
    return rows


def _figures(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    tiny = {"x".join(map(str, shape)) for shape in TINY}
    both = [row for row in rows if row["passes"] != "forward" and row["shape"] not in tiny]
    plain = [row for row in both if (row["dtype"], row["layout"]) == ("float32", "contiguous")]
    yield Figure("sn / bn, float32 contiguous, median over ResNet shapes", _median(plain, "sn / bn"), 1.0)
    yield Figure("sn / bn, float32 contiguous, largest", max(row["sn / bn"] for row in plain), 1.3)
    if small := [row for row in rows if row["passes"] != "forward" and row["shape"] in tiny]:
        yield Figure("sn / bn, tiny tensors, largest", max(row["sn / bn"] for row in small), 1.5)
    for dtype, layout in sorted({(row["dtype"], row["layout"]) for row in both} - {("float32", "contiguous")}):
        chosen = [row for row in both if (row["dtype"], row["layout"]) == (dtype, layout)]
        yield Figure(f"sn / bn, {dtype} {layout}, largest", max(row["sn / bn"] for row in chosen), 1.3)
    yield Figure("ssn / bn, float32 contiguous, median", _median(plain, "ssn / bn"))
    yield Figure("sn plain / sn, median over ResNet shapes", _median(plain, "plain / sn"), 5.0, at_least=True)
    yield Figure("share of copy bandwidth, median", _median(plain, "share"))


def _median(rows: list[dict[str, Any]], column: str) -> float:
    return float(statistics.median(row[column] for row in rows))


def _build(name: str, channels: int, device: str) -> nn.Module:
    layer = build_norm(name.split()[0])(channels).to(device).train()
    set_radius(layer, 0.5)  # of ssn: halfway through its training
    return layer


def _forward(layer: nn.Module, x: Tensor, _: Tensor, plain: bool) -> None:
    with torch.no_grad(), plain_norms() if plain else nullcontext():
        layer(x)


def _forward_backward(layer: nn.Module, x: Tensor, dy: Tensor, plain: bool) -> None:
    x = x.detach().requires_grad_()
    with plain_norms() if plain else nullcontext():
        layer(x).backward(dy)
    layer.zero_grad()


def _memory_figures(shape: Shape, norms: Sequence[str], device: str) -> list[Figure]:
    """Peak memory of forward + backward beyond x and dy, in multiples of bn's, each in a process of its own."""
    if device == "cpu" and not _STATUS.exists():
        return []
    peaks = {}
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name in norms:
            peaks[name] = pool.apply(_peak_bytes, (name, shape, device))
    title = f"peak memory at {'x'.join(map(str, shape))},"
    figures = [Figure(f"{title} sn / bn", peaks["sn"] / peaks["bn"], 1.05)]
    figures += [Figure(f"{title} {name} / bn", peaks[name] / peaks["bn"]) for name in norms if name not in ("bn", "sn")]
    return figures


def _peak_bytes(name: str, shape: Shape, device: str) -> int:
    """Peak bytes of one forward + backward, x and dy included."""
    layer = _build(name, shape[1], device)
    small = torch.randn(2, *shape[1:3], 4, device=device)
    _forward_backward(layer, small, torch.randn_like(small), name == "sn plain")  # threads, buffers, kernels
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far: importing torch needs more
        start = _resident("VmRSS")
    x, dy = torch.randn(shape, device=device), torch.randn(shape, device=device)
    _forward_backward(layer, x, dy, name == "sn plain")
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _resident("VmHWM")) - start


def _resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most so far (VmHWM)."""
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def _nothing() -> None:
    """The CPU has finished when a call returns."""

"""Norm layers at the layer shapes of ResNets: time, peak memory, and the share of the bandwidth of a copy."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from study.bench.result import Figure, Result
from study.bench.timing import Contenders, median_ratio, time_in_turns
from study.norms import build_norm, set_radius
from study.norms.kernels.dispatch import plain_norms

Shape = tuple[int, int, int, int]

# (C, H = W) of the norm layers, without repetitions.
RESNET20 = ((16, 32), (32, 16), (64, 8))
RESNET50 = ((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28), (256, 28), (256, 14), (1024, 14),
            (512, 14), (512, 7), (2048, 7))  # fmt: skip
TINY: tuple[Shape, ...] = ((2, 16, 8, 8), (16, 16, 4, 4), (2, 64, 4, 4))
FORMATS = tuple((dtype, channels_last) for dtype in (torch.float32, torch.bfloat16) for channels_last in (False, True))
NORMS = ("bn", "gn", "in", "sn", "ssn", "sn plain")
# Times that the whole tensor is read or written. Forward reads x twice and writes y; backward reads x and dy twice and
# writes dx; a copy reads once and writes once.
MOVES = {"forward": 3, "forward + backward": 8}
COPY_MOVES = 2
_STATUS = Path("/proc/self/status")


def measure(*, quick: bool, threads: int | None, device: str) -> Result:
    """Times all norms at all shapes, forward and forward + backward, alternating in one process."""
    if threads:
        torch.set_num_threads(threads)
    result = Result("norms")
    for dtype, channels_last in (FORMATS[0], FORMATS[-1]) if quick else FORMATS:
        first = (dtype, channels_last) == FORMATS[0]
        for shape in _select_shapes(device, quick=quick or (device == "cpu" and not first)):
            seconds, rounds = (0.03, 3) if quick else (0.7, 7)
            result.rows += _measure_shape(shape, dtype, channels_last, device, seconds, rounds)
    result.figures = list(_summarize(result.rows))
    result.figures += _measure_memory((8 if quick else 32, 64, 56, 56), ("bn", "sn") if quick else NORMS, device)
    result.notes.append(
        f"{torch.get_num_threads()} threads. Training mode; milliseconds. share: the time that copying as much memory "
        "takes / the time of sn. Ratios are medians over rounds, in each of which every layer was timed."
    )
    return result


def _select_shapes(device: str, quick: bool) -> list[Shape]:
    if quick:
        return [(16, 16, 32, 32), (8, 256, 28, 28)]
    small = [(batch, c, size, size) for batch in (16, 128) for c, size in RESNET20]
    large = [(8 if device == "cpu" else 64, c, size, size) for c, size in RESNET50]
    return [*TINY, *small, *large]


def _measure_shape(
    shape: Shape, dtype: torch.dtype, channels_last: bool, device: str, seconds: float, rounds: int
) -> list[dict[str, Any]]:
    """Two rows: forward, and forward + backward."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format)
    dy = torch.randn(shape, device=device, dtype=dtype).to(memory_format=memory_format)
    layers = {name: _build_layer(name, shape[1], device) for name in NORMS}
    rows = []
    for passes, moves in MOVES.items():
        call = _forward if passes == "forward" else _forward_backward
        contenders: Contenders = {
            name: partial(call, layer, x, dy, name == "sn plain") for name, layer in layers.items()
        }
        copy = partial(torch.empty_like(x).copy_, x)
        times = time_in_turns({**contenders, "copy": copy}, seconds=seconds, rounds=rounds, device=device)
        row: dict[str, Any] = {
            "shape": "x".join(map(str, shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "channels_last" if channels_last else "contiguous",
            "passes": passes,
        }
        row |= {name: 1000 * statistics.median(times[name]) for name in NORMS}
        row["sn / bn"] = median_ratio(times, "sn", "bn")
        row["ssn / bn"] = median_ratio(times, "ssn", "bn")
        row["plain / sn"] = median_ratio(times, "sn plain", "sn")
        row["share"] = moves / COPY_MOVES * median_ratio(times, "copy", "sn")
        rows.append(row)
    return rows


def _summarize(rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Medians and largest values over shapes, of forward + backward."""
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


def _build_layer(name: str, channels: int, device: str) -> nn.Module:
    layer = build_norm(name.split()[0])(channels).to(device).train()
    set_radius(layer, 0.5)  # the radius of ssn halfway through training
    return layer


def _forward(layer: nn.Module, x: Tensor, _: Tensor, plain: bool) -> None:
    with torch.no_grad(), plain_norms() if plain else nullcontext():
        layer(x)


def _forward_backward(layer: nn.Module, x: Tensor, dy: Tensor, plain: bool) -> None:
    x = x.detach().requires_grad_()
    with plain_norms() if plain else nullcontext():
        layer(x).backward(dy)
    layer.zero_grad()


def _measure_memory(shape: Shape, norms: Sequence[str], device: str) -> list[Figure]:
    """Peak memory of forward + backward relative to bn, each norm measured in its own process."""
    if device == "cpu" and not _STATUS.exists():
        return []
    peaks = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not in every process
    with context.Pool(1, maxtasksperchild=1) as pool:
        for name in norms:
            peaks[name] = pool.apply(_measure_peak_bytes, (name, shape, device))
    title = f"peak memory at {'x'.join(map(str, shape))},"
    figures = [Figure(f"{title} sn / bn", peaks["sn"] / peaks["bn"], 1.05)]
    figures += [Figure(f"{title} {name} / bn", peaks[name] / peaks["bn"]) for name in norms if name not in ("bn", "sn")]
    return figures


def _measure_peak_bytes(name: str, shape: Shape, device: str) -> int:
    """Peak bytes of one forward + backward, x and dy included."""
    layer = _build_layer(name, shape[1], device)
    small = torch.randn(2, *shape[1:3], 4, device=device)
    # Starts threads, loads kernels and allocates buffers, so that they do not count.
    _forward_backward(layer, small, torch.randn_like(small), name == "sn plain")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: importing torch has the higher peak
        start = _read_resident_bytes("VmRSS")
    x, dy = torch.randn(shape, device=device), torch.randn(shape, device=device)
    _forward_backward(layer, x, dy, name == "sn plain")
    return (torch.cuda.max_memory_allocated() if device == "cuda" else _read_resident_bytes("VmHWM")) - start


def _read_resident_bytes(name: str) -> int:
    """Resident memory of this process in bytes: now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

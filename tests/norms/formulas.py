"""The papers' formulas, value by value in float64 and without reuse of statistics: references for the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def switch_norm(x, mean_weights, var_weights, weight, bias, pool, *, groups=1, chunks=1, eps=1e-5):
    """Switchable Normalization with biased variances; every statistic is computed directly from its values."""
    batch, channels = x.shape[:2]
    samples = batch // chunks
    size = channels // groups
    y = []
    for n in range(batch):
        chunk = x[n // samples * samples : (n // samples + 1) * samples]
        for c in range(channels):
            group = slice(c // size * size, (c // size + 1) * size)
            values = {"in": x[n, c], "ln": x[n], "bn": chunk[:, c], "gn": x[n, group]}
            mean = sum(w * values[name].mean() for w, name in zip(mean_weights, pool, strict=True))
            var = sum(w * biased_var(values[name]) for w, name in zip(var_weights, pool, strict=True))
            y.append(weight[c] * (x[n, c] - mean) / torch.sqrt(var + eps) + bias[c])
    return torch.stack(y).reshape(x.shape)


def biased_var(values: Tensor) -> Tensor:
    return ((values - values.mean()) ** 2).mean()


def official_variances(x: Tensor) -> dict[str, Tensor]:
    """Variances of the official code, (N or 1, C or 1): in is unbiased over pixels, the others are derived from it."""
    mean = x.mean((2, 3))
    var = ((x - mean[:, :, None, None]) ** 2).sum((2, 3)) / (x.shape[2] * x.shape[3] - 1)
    second = var + mean**2
    return {
        "in": var,
        "ln": second.mean(1, keepdim=True) - mean.mean(1, keepdim=True) ** 2,
        "bn": second.mean(0, keepdim=True) - mean.mean(0, keepdim=True) ** 2,
    }


def sparsestmax(logits: list[float], radius: float, centre: str = "simplex") -> list[float]:
    """The paper's recursion: push away from the centre of a face, project, repeat in the smaller face.

    It begins in the face of all members, or, in the last version of the authors' code, in that of sparsemax's support.
    """
    weights = sparsemax(logits)
    return _push(weights, [i for i, value in enumerate(weights) if value > 0 or centre == "simplex"], radius)


def _push(weights: list[float], face: list[int], radius: float) -> list[float]:
    centre = 1 / len(face)
    distance = math.sqrt(sum((weights[i] - centre) ** 2 for i in face))
    if distance >= radius or len(face) == 1:
        return weights
    pushed = [centre + radius * (weights[i] - centre) / distance for i in face]
    inside = pushed if min(pushed) >= 0 else sparsemax(pushed)
    weights = [0.0] * len(weights)
    for i, value in zip(face, inside, strict=True):
        weights[i] = value
    if min(pushed) >= 0:
        return weights
    smaller = [i for i in face if weights[i] > 0]
    return _push(weights, smaller, math.sqrt(max(0.0, radius**2 - (1 / len(smaller) - centre))))


def sparsemax(logits: list[float]) -> list[float]:
    """Projection on the simplex, by trying every support."""
    ordered = sorted(logits, reverse=True)
    thresholds = [(sum(ordered[:n]) - 1) / n for n in range(1, len(ordered) + 1)]
    support = max(n for n, threshold in enumerate(thresholds, 1) if ordered[n - 1] > threshold)
    return [max(logit - thresholds[support - 1], 0.0) for logit in logits]

"""The planted truth, and the accuracy and switch weights of a trial drawn from it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.analysis.statistics.intervals import Floats
from study.analysis.weight_tables import BACKBONE
from study.norms.names import parse_norm
from study.plan.trials import PlannedTrial

Effect = Callable[[PlannedTrial], float]


@dataclass(kw_only=True)
class Truth:
    """What synthetic records are drawn from. Effects are functions of a trial.

    accuracy: mean of the main metric: accuracy, mIoU or box AP.
    accuracy_noise: standard deviation of the noise of each trial.
    shared: standard deviations of noise that trials of one replicate share: (): all of them; ("norm",): those with
        the same norm, which makes the gain of a norm vary with the seed.
    bn_logit: added to the logit of bn in every layer, twice as much for variances as for means.
    bn_logit_of_heads: added to it in the layers of heads.
    layer_logits: added to it as well: a function of a trial and its layers, which have the attributes of
        `LayerGeometry` (place, stage, depth_fraction, ...), with a result that broadcasts to (layers, statistics).
    ln_slope: what is added to the logit of ln from the first layer of the backbone to its last.
    one_hot: whether each layer gives all of its weight to the member with the largest logit.
    logit_noise: standard deviation of the noise of logits, drawn once per network and once per layer.
    shared_logits: like `shared`, for logits.
    draw: draws standard noise from a generator in a given shape. Replace it for noise with heavy tails.
    diverges: the probability that a trial diverges, which may depend on the accuracy that it would have had.
    fails: the probability that it fails and leaves no result, in the same way.
    repeats: which replicate's random numbers a replicate reuses, where it does not draw its own.
    """

    accuracy: Effect = lambda trial: 0.9
    accuracy_noise: float | Effect = 0.004
    shared: Mapping[tuple[str, ...], float] = field(default_factory=lambda: {(): 0.01})
    bn_logit: Effect = lambda trial: 0.0
    bn_logit_of_heads: float = 0.0
    layer_logits: Callable[[PlannedTrial, Sequence[Any]], Floats | float] = lambda trial, layers: 0.0
    ln_slope: float = 1.0
    one_hot: bool = False
    logit_noise: float | Effect = 0.15
    shared_logits: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats] = np.random.Generator.standard_normal
    diverges: Callable[[PlannedTrial, float], float] = lambda trial, accuracy: 0.0
    fails: Callable[[PlannedTrial, float], float] = lambda trial, accuracy: 0.0
    repeats: Mapping[int, int] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """One trial drawn from a truth. `history` holds its switch weights (epochs, layers, axes, pool)."""

    accuracy: float
    history: NDArray[np.float32]
    diverged: bool
    failed: bool


def simulate_run(trial: PlannedTrial, layers: Sequence[Any], truth: Truth) -> SimulatedRun:
    """Draws one trial. `layers`: the norm layers of its network."""
    random = _build_generator(truth.seed, *trial.trial_id.encode(), _find_source(truth, trial))
    own = float(truth.draw(random, (1,))[0]) * _evaluate(truth.accuracy_noise, trial)
    shared = sum(
        spread * float(truth.draw(_build_shared_generator(truth, trial, fields), (1,))[0])
        for fields, spread in truth.shared.items()
    )
    accuracy = truth.accuracy(trial) + shared + own
    history = _simulate_switch_weights(trial, layers, truth, random)
    diverged, failed = (random.random() < chance(trial, accuracy) for chance in (truth.diverges, truth.fails))
    return SimulatedRun(accuracy=accuracy, history=history, diverged=diverged, failed=failed)


def _simulate_switch_weights(
    trial: PlannedTrial, layers: Sequence[Any], truth: Truth, random: np.random.Generator
) -> NDArray[np.float32]:
    """Switch weights (epochs, layers, axes, pool) that move from uniform towards those of the planted logits."""
    epochs, pool = trial.config.epochs + 1, trial.pool
    if not parse_norm(trial.config.norm).is_switch or len(pool) == 1:  # the layers choose nothing
        return np.empty((epochs, 0, len(trial.space.axes), 0), np.float32)
    shape, noise = (len(trial.space.axes), len(pool)), _evaluate(truth.logit_noise, trial)
    logits = noise * (truth.draw(random, shape) + truth.draw(random, (len(layers), *shape)))
    for fields, spread in truth.shared_logits.items():
        logits += spread * truth.draw(_build_shared_generator(truth, trial, fields, 1), shape)
    in_backbone = np.array([layer.role == BACKBONE for layer in layers])
    depths = np.arange(len(layers)) / (in_backbone.sum() - 1)
    if "bn" in pool:
        bn = logits[..., pool.index("bn")]
        bn += truth.bn_logit(trial) * np.array([1, 2]) / 1.5 + truth.layer_logits(trial, layers)
        bn[~in_backbone] += truth.bn_logit_of_heads
    if "ln" in pool:
        logits[..., pool.index("ln")] += truth.ln_slope * depths[:, None]
    if truth.one_hot:
        chosen = np.eye(len(pool), dtype=np.float32)[logits.argmax(axis=-1)]
        return np.stack([np.full_like(chosen, 1 / len(pool)), *[chosen] * (epochs - 1)])
    progress = 1 - 0.5 ** np.arange(epochs)
    weights = np.exp(progress[:, None, None, None] * logits)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _build_shared_generator(
    truth: Truth, trial: PlannedTrial, fields: Sequence[str], *more: int
) -> np.random.Generator:
    """The same for all trials of a replicate that have equal levels of these fields."""
    levels = [zlib.crc32(f"{name}={getattr(trial.config, name)}".encode()) for name in fields]
    return _build_generator(truth.seed, _find_source(truth, trial), *levels, *more)


def _find_source(truth: Truth, trial: PlannedTrial) -> int:
    """The replicate whose random numbers a trial uses: its own, or the one that it repeats."""
    return truth.repeats.get(trial.replicate, trial.replicate)


def _build_generator(*numbers: int) -> np.random.Generator:
    """`default_rng(numbers)`, but several times faster: numpy converts an array at once, a list number by number."""
    return np.random.default_rng(np.array(numbers, dtype=np.uint32))


def _evaluate(number: float | Effect, trial: PlannedTrial) -> float:
    return number(trial) if callable(number) else number

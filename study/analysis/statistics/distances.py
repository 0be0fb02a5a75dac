"""Distances between profiles. All are distances between points of a Hilbert space.

So the mean squared distance between two sets of networks is the mean within the sets plus the squared distance of their
centres: two sets with the same centre are not counted as distant only because their spreads differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import entr

from study.analysis.statistics.intervals import Floats
from study.plan.analysis_plan import DISTANCE

FLOOR = 0.01  # smaller weights, including the zeros of sparse norms, are raised to this before a logarithm is taken


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A distance between weights of members, and how to compute its square between many networks.

    squared: takes profiles (network, axis, position, member); returns squared distances (network, network, axis), means
    over positions.
    """

    name: str
    squared: Callable[[Floats], Floats]


def squared_jensen_shannon(profiles: Floats) -> Floats:
    """The Jensen-Shannon divergence (base 2, from 0 to 1), which is a squared distance (Fuglede and Topsoe, 2004)."""
    entropy = entr(profiles).sum(axis=-1)
    table = np.zeros((len(profiles), len(profiles), profiles.shape[1]))
    for row, network in enumerate(profiles):  # row by row: all pairs at once would need too much memory
        middle = entr((network + profiles[row:]) / 2).sum(axis=-1)
        divergence = (middle - (entropy[row] + entropy[row:]) / 2).mean(axis=-1) / np.log(2)
        table[row, row:] = table[row:, row] = np.maximum(divergence, 0.0)
    return table


def squared_aitchison(profiles: Floats) -> Floats:
    """The squared Aitchison distance (1986), that of centred log-ratios."""
    return _squared_euclidean(log_ratios(profiles))


def squared_total_variation(profiles: Floats) -> Floats:
    """Half the squared Euclidean distance of weights.

    Its root is the total variation distance for two members, and within 14 % of it for three: unlike total variation it
    is a distance of a Hilbert space, so that the noise of seeds can be subtracted from its square.
    """
    return _squared_euclidean(profiles) / 2


JENSEN_SHANNON = Distance(name=DISTANCE, squared=squared_jensen_shannon)
AITCHISON = Distance(name="Aitchison", squared=squared_aitchison)
TOTAL_VARIATION = Distance(name="total variation", squared=squared_total_variation)
DISTANCES = (JENSEN_SHANNON, AITCHISON, TOTAL_VARIATION)


def log_ratios(profiles: Floats) -> Floats:
    """Centred log-ratios (..., member) of weights, over the members that any of these networks has.

    A weight below `FLOOR` is replaced by it, and the others shrink in proportion (multiplicative replacement:
    Martin-Fernandez et al., 2003).
    """
    if not profiles.size:
        return profiles
    members = (profiles > 0).any(axis=tuple(range(profiles.ndim - 1)))
    weights = profiles[..., members]
    low = weights < FLOOR
    high = np.where(low, 0.0, weights)
    shrunk = high * (1 - FLOOR * low.sum(axis=-1, keepdims=True)) / high.sum(axis=-1, keepdims=True)
    logs = np.log(np.where(low, FLOOR, shrunk))
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True), dtype=float)


def convert_margin(margin: float, distance: Distance, n_members: int) -> float:
    """The margin of a Jensen-Shannon distance in the unit of another distance.

    Both are the distance by which the same amount of weight, taken in equal parts from all other members, raises one
    member above uniform weights.
    """
    uniform = np.full(n_members, 1 / n_members)
    direction = np.eye(n_members)[0] - uniform

    def measure(amount: float, by: Distance) -> float:
        pair = np.stack([uniform, uniform + amount * direction])
        return float(np.sqrt(by.squared(pair[:, None, None])[0, 1, 0]))

    if n_members < 2 or margin <= 0:
        return 0.0
    if measure(1.0, JENSEN_SHANNON) <= margin:
        return measure(1.0, distance)
    return measure(float(brentq(lambda amount: measure(amount, JENSEN_SHANNON) - margin, 0.0, 1.0)), distance)


def _squared_euclidean(coordinates: Floats) -> Floats:
    """Squared Euclidean distances (network, network, axis), means over positions."""
    networks, axes, positions = coordinates.shape[:3]
    table = np.empty((networks, networks, axes))
    for axis in range(axes):
        flat = coordinates[:, axis].reshape(networks, -1)
        flat = flat - flat.mean(axis=0)  # a smaller norm loses fewer digits
        norms = np.einsum("np,np->n", flat, flat)
        table[:, :, axis] = np.maximum(norms[:, None] + norms - 2 * flat @ flat.T, 0.0) / max(positions, 1)
    diagonal = np.arange(networks)
    table[diagonal, diagonal] = 0.0
    return table

"""Texts of figures: what a point shows on hover, and descriptions for screen readers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from study.analysis.questions.answers import Effect
from study.analysis.statistics.intervals import Estimate
from study.analysis.wording import format_bounds, format_confidence, format_number, join_words
from study.config.wording import format_plural

MAX_DESCRIBED = 4  # effects that the description of a figure names; it counts the others


def format_effect(effect: Effect) -> str:
    """Hover text of an effect, one line per value."""
    lines = [f"{effect.measure.label}: {format_number(effect.estimate.value or 0.0, 4)}"]
    if effect.estimate.low is not None and effect.estimate.high is not None:
        lines.append(f"interval {format_number(effect.estimate.low, 4)} to {format_number(effect.estimate.high, 4)}")
    if effect.bootstrap:
        lines.append(f"bootstrap {format_number(effect.bootstrap[0], 4)} to {format_number(effect.bootstrap[1], 4)}")
    if effect.share_above is not None:
        lines.append(f"share of pairs above 0: {format_number(effect.share_above, 2)}")
    if effect.p_value is not None:
        lines.append(f"adjusted p {effect.p_value:.2g}")
    pairs = f"{effect.n_pairs} of {format_plural(effect.n_pairs_planned, 'pair')}"
    lines.append(f"{format_plural(effect.estimate.n, 'replicate')}, {pairs}")
    return "<br>".join(lines)


def format_effects(effects: Sequence[Effect]) -> str:
    """Screen-reader text listing the first effects of a figure."""
    shown = [effect for effect in effects if effect.measure == effects[0].measure][:MAX_DESCRIBED]
    numbers = []
    for effect in shown:
        value = format_number(effect.estimate.value or 0.0)
        numbers.append(f"{effect.comparison} {value} ({format_bounds(effect.estimate)})")
    more = format_plural(len(effects) - len(shown), "more number is", "more numbers are")
    in_table = f" {more} in the table." if len(effects) > len(shown) else ""
    return f"{effects[0].measure.label.capitalize()}: {join_words(numbers)}.{in_table}"


def format_interval(estimate: Estimate) -> str:
    """`interval 0.004 to 0.020, 5 replicates`: hover text."""
    if estimate.low is None or estimate.high is None:
        return f"no interval from {format_plural(estimate.n, 'replicate')}"
    return f"interval {estimate.low:.3f} to {estimate.high:.3f}, {format_plural(estimate.n, 'replicate')}"


def format_weights(weights: pd.Series) -> str:
    """Weights by member: `in 0.20, ln 0.50, bn 0.30`."""
    return ", ".join(f"{name} {format_number(weight, 2)}" for name, weight in weights.items())


def format_bars(confidence: float) -> str:
    """What error bars show."""
    return f"Bars: {format_confidence(confidence)} intervals over replicates"

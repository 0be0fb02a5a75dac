"""Numbers, estimates and lists as text, for pages, terminals, figures and file names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.sample_size import (
    MAX_REPLICATES,
    PROBABILITY,
    compute_next_confidence,
    replicates_to_settle,
)
from study.config.wording import format_plural


def format_number(value: float, digits: int = 3, sign: bool = False) -> str:
    """`-0.012` for -0.0123; a number that rounds to zero has no sign. ASCII, for any terminal."""
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def round_number(value: float | None) -> float | None:
    """The value rounded to 6 significant digits, for JSON: the last bit of a sum changes no byte of a file."""
    return None if value is None else float(f"{value:.6g}")


def format_estimate(estimate: Estimate, confidence: float, digits: int = 3, sign: bool = False) -> str:
    """`+0.012 (95 % interval 0.004 to 0.020, n = 5 replicates)`; without an interval the text says so."""
    if estimate.value is None:
        return "not measured"
    value = format_number(estimate.value, digits, sign)
    replicates = f"n = {format_plural(estimate.n, 'replicate')}"
    if estimate.low is None or estimate.high is None:
        return f"{value} (no interval from {replicates})"
    low, high = format_number(estimate.low, digits), format_number(estimate.high, digits)
    return f"{value} ({format_confidence(confidence)} interval {low} to {high}, {replicates})"


def format_bounds(estimate: Estimate) -> str:
    """`0.004 to 0.020`; without an interval `no interval`, with the reason where it is known."""
    if estimate.low is None or estimate.high is None:
        reason = {0: "", 1: ": 1 replicate"}.get(estimate.n, f": {estimate.n} replicates, too few here or all equal")
        return f"no interval{reason}"
    return f"{format_number(estimate.low)} to {format_number(estimate.high)}"


def format_confidence(confidence: float) -> str:
    """`95 %`, or `98.33 %`."""
    return f"{confidence * 100:.4g} %"


def format_verdict(verdict: str, interim: bool = False) -> str:
    """A verdict as pages and terminals show it; `answers.json` keeps the verdict's own words."""
    return "interim" if interim else {"not supported": "evidence against"}.get(verdict, verdict)


def format_states(states: Iterable[str]) -> str:
    """`3 planned, 2 failed`, the most frequent first; `none` for an empty list."""
    ranked = sorted(Counter(states).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number} {state}" for state, number in ranked) or "none"


def join_words(words: Iterable[object]) -> str:
    """`a, b and c`."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def split_sentences(text: str) -> list[str]:
    """The sentences of an answer or a rule."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)


def format_slug(text: str, most: int) -> str:
    """Lower-case letters, digits and hyphens, at most `most` characters: for names of files and of figures on W&B."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:most].rstrip("-")


def format_replicates_to_settle(
    estimate: Estimate, margin: float, confidence: float, *, n_supporting: int = 1, n_refuting: int = 1
) -> str:  # fmt: skip
    """How many replicates would probably put the interval of a mean on one side of its margin."""
    following = compute_next_confidence(confidence)
    found = replicates_to_settle(
        estimate, margin, confidence=confidence, confidence_next=following, n_supporting=n_supporting,
        n_refuting=n_refuting,
    )  # fmt: skip
    if found is None:
        probably = f"with a probability of {100 * PROBABILITY:.0f} %"
        return f"more than {MAX_REPLICATES} replicates would be needed to settle it {probably}"
    total, probability = found
    more = total - estimate.n
    return (
        f"about {format_plural(more, 'more replicate')} of every cell ({total} in all) would settle it with a "
        f"probability of {int(100 * probability)} %, given what is known now"
    )

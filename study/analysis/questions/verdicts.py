"""The one logic of all verdicts: where the intervals of the numbers that decide lie, compared with a margin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from study.analysis.statistics.intervals import Estimate, adjust_holm

Verdict = Literal["supported", "not supported", "not enough evidence"]
SUPPORTED: Verdict = "supported"
AGAINST: Verdict = "not supported"
OPEN: Verdict = "not enough evidence"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number that decides, and the margin above which it supports the claim.

    can_support, can_refute: whether the data allow that verdict; a loss of runs may bar one of them.
    """

    estimate: Estimate
    margin: float
    can_support: bool = True
    can_refute: bool = True


def judge(claim: Claim, confidence: float) -> Verdict:
    """The verdict on one number: its whole interval lies above the margin, or below it, or neither."""
    return judge_all({"": claim}, confidence)


def judge_all(claims: Mapping[str, Claim], confidence: float) -> Verdict:
    """The verdict on a claim that holds only if all of its numbers lie above their margins.

    All of them must pass, so support needs no correction for their number. One number below its margin refutes the
    claim, so the p values for that are adjusted by Holm.
    """
    if find_below(claims, confidence):
        return AGAINST
    above = [claim.can_support and claim.estimate.above(claim.margin) for claim in claims.values()]
    return SUPPORTED if above and all(above) else OPEN


def judge_any(claims: Mapping[str, Claim], confidence: float) -> Verdict:
    """The verdict on a claim that holds if any of its numbers lies above its margin; `judge_all` mirrored."""
    if find_above(claims, confidence):
        return SUPPORTED
    below = [claim.can_refute and claim.estimate.below(claim.margin) for claim in claims.values()]
    return AGAINST if below and all(below) else OPEN


def find_below(claims: Mapping[str, Claim], confidence: float) -> list[str]:
    """The numbers that lie below their margins, with a family-wise error rate of half of 1 - confidence."""
    return _find_beyond({name: claim for name, claim in claims.items() if claim.can_refute}, claims, confidence, -1)


def find_above(claims: Mapping[str, Claim], confidence: float) -> list[str]:
    """The numbers that lie above their margins, with the same error rate."""
    return _find_beyond({name: claim for name, claim in claims.items() if claim.can_support}, claims, confidence, 1)


def _find_beyond(
    tested: Mapping[str, Claim], family: Mapping[str, Claim], confidence: float, side: Literal[-1, 1]
) -> list[str]:
    """Those of the tested numbers that lie beyond their margins; p values are adjusted over the whole family."""
    p_values = adjust_holm([_p_value(claim, confidence, side) for claim in family.values()])
    level = (1 - confidence) / 2
    return [name for name, p in zip(family, p_values, strict=True) if name in tested and p is not None and p < level]


def _p_value(claim: Claim, confidence: float, side: Literal[-1, 1]) -> float | None:
    """One-sided p value of the hypothesis that a number is not beyond its margin, from its interval.

    It agrees with the interval: p < (1 - confidence) / 2 where the whole interval lies beyond the margin. None without
    an interval. Identical replicates without any spread have an interval of one point, and p is 0 or 1.
    """
    value, low, high, freedom = claim.estimate.value, claim.estimate.low, claim.estimate.high, claim.estimate.freedom
    if value is None or low is None or high is None or freedom is None:
        return None
    distance = side * (value - claim.margin)
    if low == high:
        return 0.0 if distance > 0 else 1.0
    error = (high - low) / 2 / float(stats.t.ppf((1 + confidence) / 2, freedom))
    return float(stats.t.sf(distance / error, freedom))

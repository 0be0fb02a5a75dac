"""The one logic of all verdicts: where the intervals of the numbers that decide lie, compared with a margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from study.analysis.statistics.intervals import Estimate, adjust_holm, one_sided_p_value

Verdict = Literal["supported", "not supported", "not enough evidence"]
SUPPORTED: Verdict = "supported"
AGAINST: Verdict = "not supported"
OPEN: Verdict = "not enough evidence"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A number that decides, and the margin above which it supports the claim.

    others: further numbers, any of which supports the claim by itself; all of them must lie below the margin to refute
    it. Half of the error rate of support is that of `estimate`, the other half that of all others (Bonferroni).
    can_support, can_refute: whether the data allow that verdict; a loss of runs may bar one of them.
    """

    estimate: Estimate
    margin: float
    others: Sequence[Estimate] = ()
    can_support: bool = True
    can_refute: bool = True

    def compute_p_value(self, confidence: float, *, above: bool) -> float | None:
        """One-sided p value that no number lies above the margin, or that not all lie below it; None if unknown."""
        numbers = self.count_tests()
        p_values = [one_sided_p_value(each, self.margin, confidence, above=above) for each, _ in numbers]
        known = [(p, tests) for p, (_, tests) in zip(p_values, numbers, strict=True) if p is not None]
        if above:
            return min(1.0, *(tests * p for p, tests in known)) if known else None
        return max(p for p, _ in known) if len(known) == len(p_values) else None

    def count_tests(self) -> list[tuple[Estimate, int]]:
        """All numbers, and by how many tests the p value is adjusted with which each supports the claim."""
        halves = 2 if self.others else 1
        return [(self.estimate, halves), *((other, halves * len(self.others)) for other in self.others)]


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
    above = [claim.can_support and lies_beyond(claim, confidence, above=True) for claim in claims.values()]
    return SUPPORTED if above and all(above) else OPEN


def judge_any(claims: Mapping[str, Claim], confidence: float) -> Verdict:
    """The verdict on a claim that holds if any of its numbers lies above its margin; `judge_all` mirrored."""
    if find_above(claims, confidence):
        return SUPPORTED
    below = [claim.can_refute and lies_beyond(claim, confidence, above=False) for claim in claims.values()]
    return AGAINST if below and all(below) else OPEN


def find_below(claims: Mapping[str, Claim], confidence: float) -> list[str]:
    """The numbers that lie below their margins, with a family-wise error rate of half of 1 - confidence."""
    allowed = [name for name, claim in claims.items() if claim.can_refute]
    return _find_beyond(claims, allowed, confidence, above=False)


def find_above(claims: Mapping[str, Claim], confidence: float) -> list[str]:
    """The numbers that lie above their margins, with the same error rate."""
    allowed = [name for name, claim in claims.items() if claim.can_support]
    return _find_beyond(claims, allowed, confidence, above=True)


def _find_beyond(claims: Mapping[str, Claim], allowed: Sequence[str], confidence: float, *, above: bool) -> list[str]:
    """Those of the allowed numbers that lie beyond their margins; p values are adjusted over all of them."""
    p_values = adjust_holm([claim.compute_p_value(confidence, above=above) for claim in claims.values()])
    level = (1 - confidence) / 2
    return [name for name, p in zip(claims, p_values, strict=True) if name in allowed and p is not None and p < level]


def lies_beyond(claim: Claim, confidence: float, *, above: bool) -> bool:
    """Whether the numbers of a claim lie above its margin, or below it, whatever the loss of runs bars."""
    p_value = claim.compute_p_value(confidence, above=above)
    return p_value is not None and p_value < (1 - confidence) / 2

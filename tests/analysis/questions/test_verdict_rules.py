"""The one logic of verdicts: intervals, margins, and Holm's adjustment for claims of several numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from study.analysis.questions.verdicts import Claim, Verdict, find_above, find_below, judge, judge_all, judge_any
from study.analysis.statistics.intervals import Estimate
from tests.analysis.estimates import estimate_mean

CONFIDENCE = 0.95
MARGIN = 0.05
LEVEL = (1 - CONFIDENCE) / 2
DRAWS = 500


def _claim(low: float, high: float, margin: float = MARGIN, **allowed: bool) -> Claim:
    estimate = Estimate(value=(low + high) / 2, low=low, high=high, n=5, freedom=4)
    return Claim(estimate=estimate, margin=margin, **allowed)


def _at(p_above: float) -> Claim:
    """A claim whose one-sided p value of "not above the margin" is this."""
    value, reach = stats.t.isf(p_above, 4), stats.t.ppf(1 - LEVEL, 4)
    return _claim(value - reach, value + reach, 0.0)


ABOVE, BELOW, ACROSS = _claim(0.1, 0.2), _claim(0.01, 0.02), _claim(0.0, 0.1)
NONE = Claim(estimate=Estimate(value=0.3, n=2), margin=MARGIN)
NOT_MEASURED = Claim(estimate=Estimate(), margin=MARGIN)
MANY = (ABOVE, BELOW, ACROSS, NONE, _claim(0.06, 0.1, can_support=False))


# ---------------------------------------------------------------------------------------------- one number


@pytest.mark.parametrize(
    ("claim", "verdict"),
    [
        (ABOVE, "supported"),
        (BELOW, "not supported"),
        (_claim(-0.3, -0.2), "not supported"),
        (ACROSS, "not enough evidence"),
        (NONE, "not enough evidence"),
        (NOT_MEASURED, "not enough evidence"),
        (_claim(0.001, 0.02, margin=0.0), "supported"),
        (_claim(0.1, 0.2, can_support=False), "not enough evidence"),
        (_claim(0.01, 0.02, can_refute=False), "not enough evidence"),
        (_claim(0.1, 0.2, can_refute=False), "supported"),
        (_claim(0.01, 0.02, can_support=False), "not supported"),
    ],
)
def test_the_interval_of_one_number_decides(claim: Claim, verdict: Verdict) -> None:
    assert judge(claim, CONFIDENCE) == verdict
    assert judge_any({"one": claim}, CONFIDENCE) == verdict


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
def test_the_verdict_is_where_the_interval_lies(seed: int, confidence: float) -> None:
    estimate = estimate_mean(np.random.default_rng(seed).normal(0.05, 0.04, 4), confidence)
    expected = (
        "supported" if estimate.above(MARGIN) else "not supported" if estimate.below(MARGIN) else "not enough evidence"
    )
    assert judge(Claim(estimate=estimate, margin=MARGIN), confidence) == expected


@pytest.mark.parametrize("value", [0.02, 0.05, 0.2])
def test_a_certain_number_is_compared_with_the_margin(value: float) -> None:
    """Seeds that change nothing give an interval of one point."""
    claim = Claim(estimate=Estimate(value=value, low=value, high=value, n=4, freedom=3), margin=MARGIN)
    expected = {0.02: "not supported", 0.05: "not enough evidence", 0.2: "supported"}[value]
    assert judge(claim, CONFIDENCE) == expected


# ------------------------------------------------------------------------------------- claims of several numbers


@pytest.mark.parametrize(
    ("claims", "all_of", "any_of"),
    [
        ([ABOVE, ABOVE], "supported", "supported"),
        ([ABOVE, ACROSS], "not enough evidence", "supported"),
        ([ABOVE, BELOW], "not supported", "supported"),
        ([ACROSS, BELOW], "not supported", "not enough evidence"),
        ([BELOW, BELOW], "not supported", "not supported"),
        ([ABOVE, NOT_MEASURED], "not enough evidence", "supported"),
        ([BELOW, NOT_MEASURED], "not supported", "not enough evidence"),
        ([NONE, NONE], "not enough evidence", "not enough evidence"),
        ([], "not enough evidence", "not enough evidence"),
    ],
)
def test_all_must_pass_or_any(claims: list[Claim], all_of: Verdict, any_of: Verdict) -> None:
    named = {str(number): claim for number, claim in enumerate(claims)}
    assert judge_all(named, CONFIDENCE) == all_of
    assert judge_any(named, CONFIDENCE) == any_of


def _mirror(claim: Claim) -> Claim:
    """The claim that the number lies on the other side of its margin."""
    estimate = claim.estimate
    value, low, high = (None if end is None else -end for end in (estimate.value, estimate.high, estimate.low))
    return Claim(
        estimate=Estimate(value=value, low=low, high=high, n=estimate.n, freedom=estimate.freedom),
        margin=-claim.margin, can_support=claim.can_refute, can_refute=claim.can_support,
    )  # fmt: skip


@pytest.mark.parametrize("numbers", list(product(MANY, repeat=2)))
def test_that_all_hold_is_the_opposite_of_that_any_fails(numbers: tuple[Claim, Claim]) -> None:
    """De Morgan, with the same error rates: judging "all above" mirrors judging "any below"."""
    claims = dict(zip("ab", numbers, strict=True))
    opposite = {"supported": "not supported", "not supported": "supported"}
    mirrored = judge_any({name: _mirror(claim) for name, claim in claims.items()}, CONFIDENCE)
    assert judge_all(claims, CONFIDENCE) == opposite.get(mirrored, mirrored)
    assert find_below(claims, CONFIDENCE) == find_above(
        {name: _mirror(claim) for name, claim in claims.items()}, CONFIDENCE
    )


def test_what_may_not_decide_still_counts_in_the_adjustment() -> None:
    just = _at(0.9 * LEVEL)
    assert find_above({"a": just}, CONFIDENCE) == ["a"]
    assert find_above({"a": just, "b": NOT_MEASURED}, CONFIDENCE) == []
    barred = Claim(estimate=_at(0.4 * LEVEL).estimate, margin=0.0, can_support=False)
    assert find_above({"a": just, "b": barred}, CONFIDENCE) == ["a"]  # the second step of Holm
    barred = Claim(estimate=_at(0.6).estimate, margin=0.0, can_support=False)
    assert find_above({"a": just, "b": barred}, CONFIDENCE) == []


@pytest.mark.parametrize("seed", range(10))
def test_those_above_are_found_as_by_holm_of_statsmodels(seed: int) -> None:
    p_values = np.random.default_rng(seed).choice([0.001, 0.004, 0.008, 0.02, 0.3, 0.9], 4)
    claims = {str(number): _at(float(p)) for number, p in enumerate(p_values)}
    rejected = multipletests(p_values, LEVEL, method="holm")[0]
    assert find_above(claims, CONFIDENCE) == [str(number) for number in np.flatnonzero(rejected)]


def test_support_of_all_needs_no_adjustment_and_one_number_below_does() -> None:
    above = {"a": _at(0.9 * LEVEL), "b": _at(0.9 * LEVEL)}
    assert judge_all(above, CONFIDENCE) == "supported"
    assert judge_any({"a": _at(0.9 * LEVEL), "b": _at(0.5)}, CONFIDENCE) == "not enough evidence"
    below = {"a": _at(1 - 0.9 * LEVEL), "b": _at(0.5)}
    assert judge_all(below, CONFIDENCE) == "not enough evidence"
    assert judge_all({"a": below["a"]}, CONFIDENCE) == "not supported"


# ------------------------------------------------------------------------------------------------ error rates


def _share(judging: object, verdict: Verdict, means: tuple[float, ...]) -> float:
    """How often a claim about the means of independent numbers gets a verdict; four replicates, margin 0."""
    random, count = np.random.default_rng(7), 0
    for _ in range(DRAWS):
        claims = {
            str(number): Claim(estimate=estimate_mean(random.normal(mean, 1, 4), CONFIDENCE), margin=0.0)
            for number, mean in enumerate(means)
        }
        count += judging(claims, CONFIDENCE) == verdict  # type: ignore[operator]
    return count / DRAWS


def test_at_the_margin_a_false_verdict_is_as_rare_as_one_in_forty() -> None:
    """Of 2.5 %, three standard errors above it."""
    on_margin = (0.0, 0.0, 0.0)
    assert _share(judge_all, "not supported", on_margin) <= 0.046
    assert _share(judge_any, "supported", on_margin) <= 0.046
    assert _share(judge_all, "supported", (0.0, 9.0, 9.0)) <= 0.046  # the hardest case: one number decides
    assert _share(judge_any, "not supported", (0.0, -9.0, -9.0)) <= 0.046


def test_clear_truths_are_found() -> None:
    assert _share(judge_all, "supported", (5.0, 5.0, 5.0)) >= 0.9
    assert _share(judge_all, "not supported", (5.0, 5.0, -9.0)) >= 0.9
    assert _share(judge_any, "supported", (0.0, 0.0, 9.0)) >= 0.9
    assert _share(judge_any, "not supported", (-5.0, -5.0, -5.0)) >= 0.9

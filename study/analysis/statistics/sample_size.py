"""How many replicates would settle a comparison, and with which probability."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from scipy import special

from study.analysis.statistics.cell_means import compute_standard_error
from study.analysis.statistics.intervals import Estimate

MAX_REPLICATES = 1000
PROBABILITY = 0.8  # with which a comparison is to be settled
DRAWS = 2000


def replicates_to_settle(
    estimate: Estimate,
    margin: float,
    *,
    confidence: float,
    confidence_next: float,
    n_supporting: int = 1,
    n_refuting: int = 1,
) -> tuple[int, float] | None:
    """The least total number of replicates that probably settles a comparison, and the probability that it does.

    Settled means that the next interval lies wholly above the margin or wholly below it. The numbers so far are kept
    and new replicates are added to them. The probability is the share of `DRAWS` futures in which that happens: each
    draws the true value and standard deviation from what the replicates so far say about them (Student's t and scaled
    inverse chi-squared distributions: a flat prior), then the mean and standard deviation of the new replicates.

    estimate: a mean with its Student t interval at `confidence`. confidence_next: of the interval at the next look.
    n_supporting: number of tests by which the p value is adjusted for a number above the margin.
    n_refuting: number of tests by which p values are adjusted (Holm) for a number below the margin; the first step of
    Holm, which is the hardest, is assumed.
    None without an interval, and where more than `MAX_REPLICATES` would be needed.
    """
    error, value, freedom_now = compute_standard_error(estimate, confidence), estimate.value, estimate.freedom
    if not error or value is None or freedom_now is None:
        return None
    random = np.random.default_rng([11, estimate.n])
    spread = error * np.sqrt(estimate.n)  # standard deviation over replicates
    sigma = spread * np.sqrt(freedom_now / random.chisquare(freedom_now, DRAWS))
    true = value + sigma / np.sqrt(estimate.n) * random.standard_normal(DRAWS)
    noise, quantiles = random.standard_normal(DRAWS), random.uniform(size=DRAWS)

    def compute_probability(total: int) -> float:
        new = total - estimate.n
        mean_new = true + sigma / np.sqrt(new) * noise
        squares_new = sigma**2 * 2 * special.gammaincinv((new - 1) / 2, quantiles) if new > 1 else 0.0
        mean = (estimate.n * value + new * mean_new) / total
        between = estimate.n * new / total * (mean_new - value) ** 2
        freedom = freedom_now + new
        error_then = np.sqrt((freedom_now * spread**2 + squares_new + between) / freedom / total)
        above, below = (
            special.stdtrit(freedom, 1 - (1 - confidence_next) / 2 / n_tests) * error_then
            for n_tests in (n_supporting, n_refuting)
        )
        return float(np.mean((mean - above > margin) | (mean + below < margin)))

    totals = range(estimate.n + 1, MAX_REPLICATES + 1)
    found = bisect_left(totals, PROBABILITY, key=compute_probability)
    return (totals[found], compute_probability(totals[found])) if found < len(totals) else None


def compute_next_confidence(confidence: float) -> float:
    """The confidence of the next look at the data, after replicates have been added."""
    return 1 - (1 - confidence) / 2

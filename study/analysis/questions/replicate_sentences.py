"""Sentences on how many replicates would settle a question, and with which probability."""

from __future__ import annotations

from study.analysis.statistics.intervals import Estimate
from study.analysis.statistics.sample_size import MAX_REPLICATES, replicates_to_settle


def format_replicates_to_settle(
    estimate: Estimate, margin: float, confidence: float, *, n_refuting: int = 1, n_supporting: int = 1
) -> str:
    """How many replicates would probably put the interval of a mean on one side of its margin."""
    found = replicates_to_settle(
        estimate, margin, confidence=confidence, confidence_next=compute_next_confidence(confidence),
        n_refuting=n_refuting, n_supporting=n_supporting,
    )  # fmt: skip
    if found is None:
        return f"more than {MAX_REPLICATES} replicates would be needed to settle it with a probability of 80 %"
    total, probability = found
    more = total - estimate.n
    return (
        f"about {more} more replicate{'s' * (more > 1)} of every cell ({total} in all) would settle it with a "
        f"probability of {int(100 * probability)} %, given what is known now"
    )


def compute_next_confidence(confidence: float) -> float:
    """The confidence of the next look at the data, after replicates have been added."""
    return 1 - (1 - confidence) / 2

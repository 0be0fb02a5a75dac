"""The sentences on warm starts and their rule: findings in, text out. Nothing is decided or measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.analysis.questions.verdicts import AGAINST, OPEN, SUPPORTED, Verdict
from study.analysis.wording import join_words


def format_start_answer(reference_norm: str | None, judged: Mapping[str, Verdict]) -> list[str]:
    """Whether the properties that start rules remove matter, by property."""
    words = {
        SUPPORTED: "it matters {}",
        AGAINST: "it does not matter {}",
        OPEN: "it cannot be said yet whether it matters {}",
    }
    said = [words[verdict].format(what) for what, verdict in judged.items()]
    if not said:
        return []
    return [
        f"Does it matter that each layer has its own choice, or that layers mix normalizers? With the choices of "
        f"finished networks of {reference_norm}, {join_words(said)}."
    ]


def format_starts_rule(not_own: Sequence[str], no_mix: Sequence[str], margin: float) -> str:
    """The rule of comparisons between start rules."""
    return " ".join([
        "Warm starts are compared by the same rule and do not decide the verdict. The difference is frozen (every",
        "layer keeps its own choice) minus the other start rule. If the study has no frozen, it is fine_tune (whose",
        "choices are trained further) minus the other start rule. That each layer has its own choice matters if the",
        f"difference lies above {margin:g} for each of {', '.join(not_own)} that the study has. It does not matter if",
        f"the difference lies below {margin:g} for any of them (adjusted by Holm). Whether it matters that layers mix",
        f"normalizers is decided in the same way by {', '.join(no_mix)}. The rule transplant, and all rules with",
        "start.fresh, train a newly initialized network. They are compared with frozen and start.fresh, or else with",
        "scratch. This decides nothing: the BN statistics of scratch may be moving averages, whereas those of warm",
        "starts are re-estimated.",
    ])  # fmt: skip

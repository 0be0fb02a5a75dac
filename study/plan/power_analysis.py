"""Power analysis: how many replicates it takes to detect an effect.

Effects are in standard deviations over replicates. The standard deviations of a study's own effects are estimated from
its last report, if there is one.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from study.config.schema import StudyConfig
from study.plan.margins import compute_margin
from study.record.io import read_json
from study.record.layout import StudyFolder

POWER = 0.8
"""Probability with which an effect is to be detected."""
MIN_REPLICATES = 3
"""With fewer replicates a displacement has no interval."""
RECOMMENDED_REPLICATES = 5
MAX_REPLICATES = 1000
"""Larger numbers of replicates are not computed."""
TARGET_DISPLACEMENT = 0.1
"""The effect that is to be detected, in Jensen-Shannon distance: about eleven points of weight in every layer."""


def describe_power(study: StudyConfig, folder: StudyFolder) -> list[str]:
    """Returns lines that say how many replicates the effects of the study's questions take."""
    confidence, questions = study.analysis.confidence, study.analysis.questions
    lines = []
    if "useful" in questions and len(study.list_values("norm")) > 1:
        needed = find_required_replicates(1, confidence)
        line = f"replicates: to detect a paired difference of one standard deviation takes {needed} (power {POWER:g})"
        if study.replicates > 1:
            effect = compute_detectable_effect(study.replicates, confidence)
            line += f"; the {study.replicates} planned detect {effect:.2g} standard deviations"
        lines += [line, *_describe_margin(study, folder)]
    if {"impacts", "tasks"} & set(questions):
        lines.append(_describe_displacement(study, folder))
    return lines


def compute_power(replicates: int, effect: float, confidence: float) -> float:
    """Returns the power of a two-sided paired t test.

    effect: the mean difference of a pair over its standard deviation over replicates (Cohen's d of paired samples).
    """
    from scipy.stats import nct, t

    critical, shift = t.ppf((1 + confidence) / 2, replicates - 1), effect * np.sqrt(replicates)
    # The lower tail by symmetry: computed directly, it is NaN where it is tiny.
    return float(nct.sf(critical, replicates - 1, shift) + nct.sf(critical, replicates - 1, -shift))


def find_required_replicates(effect: float, confidence: float) -> int | None:
    """Returns the least number of replicates that detects an effect with power `POWER`; None above `MAX_REPLICATES`."""
    sizes = range(2, MAX_REPLICATES + 1)
    found = bisect_left(sizes, POWER, key=lambda replicates: compute_power(replicates, effect, confidence))
    return sizes[found] if found < len(sizes) else None


def compute_detectable_effect(replicates: int, confidence: float) -> float:
    """Returns the minimum detectable effect, in standard deviations, of at least 2 replicates."""
    from scipy.optimize import brentq

    return float(brentq(lambda effect: compute_power(replicates, effect, confidence) - POWER, 1e-3, 100.0))


def _describe_margin(study: StudyConfig, folder: StudyFolder) -> list[str]:
    """Replicates to detect the margin of the study's metric, for the difference of the last report that varies most."""
    deviations = {
        effect["comparison"]: float(np.std(values, ddof=1))
        for effect in _read_effects(folder, "useful", study.metric)
        if len(values := effect.get("per_replicate") or []) > 1
    }  # fmt: skip
    comparison = max(deviations, key=lambda name: deviations[name], default="")
    if not deviations or not deviations[comparison]:
        return []
    margin = compute_margin(study, study.metric)
    needed = find_required_replicates(margin / deviations[comparison], study.analysis.confidence)
    return [f"the standard deviation of {study.metric} in the last report is {deviations[comparison]:.3g} "
            f"({comparison}): to detect {margin:.3g} takes {_format_replicates(needed)} replicates"]  # fmt: skip


def _describe_displacement(study: StudyConfig, folder: StudyFolder) -> str:
    """Replicates to detect `TARGET_DISPLACEMENT`, for the factor of the last report whose displacement varies most."""
    from scipy.stats import t

    confidence, margin, deviations = study.analysis.confidence, study.analysis.margins.displacement, {}
    for effect in [*_read_effects(folder, "impacts", "effect"), *_read_effects(folder, "tasks", "effect")]:
        low, high = effect.get("interval") or (0.0, 0.0)
        if high > low and effect["n"] > 1:
            half_width, critical = (high - low) / 2, t.ppf((1 + confidence) / 2, effect["n"] - 1)
            deviations[effect["comparison"]] = float(half_width * np.sqrt(effect["n"]) / critical)
    if not deviations or margin >= TARGET_DISPLACEMENT:
        return (
            f"replicates for displacements: at least {MIN_REPLICATES}, better {RECOMMENDED_REPLICATES}; "
            "there is no report yet to estimate their standard deviation from"
        )
    factor = max(deviations, key=lambda name: deviations[name])
    needed = find_required_replicates((TARGET_DISPLACEMENT - margin) / deviations[factor], confidence)
    return (
        f"replicates to detect a factor that moves the choice by {TARGET_DISPLACEMENT:g} (margin {margin:g}), at the "
        f"standard deviation of {factor} in the last report: {_format_replicates(needed, MIN_REPLICATES)}"
    )


def _format_replicates(needed: int | None, least: int = 2) -> str:
    return f"more than {MAX_REPLICATES}" if needed is None else str(max(needed, least))


class _Effect(TypedDict):
    """What is read of an effect in answers.json."""

    measure: str
    comparison: str
    n: int
    interval: NotRequired[tuple[float, float] | None]
    per_replicate: NotRequired[list[float] | None]


_EFFECT = TypeAdapter(_Effect)


def _read_effects(folder: StudyFolder, question: str, measure: str) -> list[_Effect]:
    """The effects of one measure in the last report; empty without a report, or with one of another format."""
    try:
        found = list((read_json(folder.report / "answers.json") or {})["questions"][question]["effects"])
    except (KeyError, TypeError):
        return []
    effects = []
    for values in found:
        with suppress(ValidationError):  # a number of it is undefined
            effects.append(_EFFECT.validate_python(values))
    return [effect for effect in effects if effect["measure"] == measure]

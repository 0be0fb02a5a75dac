"""Question 1 for warm starts: does it matter that each layer has its own choice, or that layers mix normalizers?

Trials that start from a finished trial of the switch norm differ in what happens to its choices. With `frozen` every
layer keeps its own choice. `permute` and `shared` keep the mix but give a layer a choice that is not its own; `argmax`
keeps the layer's own choice but removes the mix. All four continue from the same weights with fixed choices, so their
differences to `frozen` are the cleanest. Differences to `fine_tune`, whose choices are trained further, also contain
the gain of that training. `transplant`, and rules with `start_fresh`, train a newly initialized network and are
compared separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.analysis.questions.level_comparisons import build_claims, compare_levels
from study.analysis.questions.useful_sentences import format_distinguished
from study.analysis.questions.verdicts import AGAINST, SUPPORTED, Claim, Verdict, find_below, judge, judge_all
from study.analysis.questions.warm_start_sentences import format_start_answer
from study.analysis.records import StudyRecords
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.wording import format_estimate, join_words
from study.plan.warm_start import build_config

NOT_OWN = ("permute", "shared")
NO_MIX = ("argmax",)
DECIDING = ("frozen", "fine_tune")  # references that train equally long and are evaluated alike


def compare_starts(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The reference of each start rule minus that rule, for the switch norm; empty where the study varies no start.

    What varies in the intervals: the replicate.
    """
    trials = records.trials[records.trials["norm"].eq(records.reference_norm or "")]
    return [
        compare_levels(records, trials, factor="start_rule", reference=reference, other=rule, metric=metric)
        for rule, reference in _references(records).items()
    ]


def describe_starts(records: StudyRecords, differences: Mapping[str, Sequence[PairedDifference]]) -> list[str]:
    """The sentences on comparisons of starts; `differences` are from `compare_starts`, by metric."""
    metric, confidence = records.study.metric, records.confidence
    if not differences[metric]:
        return []
    found = [item for item in differences[metric] if item.estimate.value is not None]
    if not found:
        return ["No run that starts from another one has finished together with the one it is compared with."]
    judged = judge_properties(differences[metric], records.margin(metric), confidence)
    parts = format_start_answer(records.reference_norm, judged)
    parts += _describe_disagreement(differences[metric], judged, records.margin(metric), confidence)
    for reference in dict.fromkeys(item.reference for item in found):
        numbers = "; ".join(
            f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}"
            for item in found if item.reference == reference
        )  # fmt: skip
        parts.append(
            f"{records.measures[metric].label.capitalize()} of {reference} minus that of the other: {numbers}."
        )
        parts += [
            format_distinguished(
                f"The {records.measures[name].label} of {reference}",
                [item for item in items if item.reference == reference], confidence,
            )
            for name, items in differences.items() if name != metric
        ]  # fmt: skip
    return parts


def judge_properties(items: Sequence[PairedDifference], margin: float, confidence: float) -> dict[str, Verdict]:
    """Whether each property that start rules remove matters; `format_starts_rule` states the rule.

    A property without deciding comparisons has no entry.
    """
    claims = _build_property_claims(items, margin)
    return {what: judge_all(those, confidence) for what, those in claims.items() if those}


def _build_property_claims(items: Sequence[PairedDifference], margin: float) -> dict[str, dict[str, Claim]]:
    """The claims on each property, by start rule."""
    deciding = [item for item in items if item.reference in DECIDING]
    taken = {"that each layer has its own choice": NOT_OWN, "that layers mix normalizers": NO_MIX}
    return {
        what: build_claims([item for item in deciding if item.other in rules], margin) for what, rules in taken.items()
    }


def _describe_disagreement(
    items: Sequence[PairedDifference], judged: Mapping[str, Verdict], margin: float, confidence: float
) -> list[str]:
    """The rules that lose something although a property does not matter, because another rule loses nothing."""
    said = []
    for what, claims in _build_property_claims(items, margin).items():
        losing = [rule for rule, claim in claims.items() if judge(claim, confidence) == SUPPORTED]
        if judged.get(what) == AGAINST and losing:
            others = join_words(find_below(claims, confidence))
            said.append(
                f"Rules disagree on whether it matters {what}: {join_words(losing)} loses more than {margin:g}, "
                f"{others} does not."
            )
    return said


def _references(records: StudyRecords) -> dict[str, str]:
    """The rule that each start rule is compared with: it differs in what layers choose, and in little else."""
    if "start_rule" not in records.study.factors or records.reference_norm is None:
        return {}
    trials = records.trials[records.trials["norm"].eq(records.reference_norm)]
    rows = trials.drop_duplicates("start_rule")[list(records.study.factors)].to_dict("records")
    configs = {str(row["start_rule"]): build_config(records.study, {str(name): level for name, level in row.items()})
               for row in rows}  # fmt: skip
    fresh = [rule for rule, config in configs.items() if config.start_fresh or rule in ("scratch", "transplant")]
    trained_on = [rule for rule in configs if rule not in fresh]
    keeps_own = "frozen" in configs and not configs["frozen"].start_epoch
    references: dict[str, str] = {}
    for rules, else_with in ((trained_on, "fine_tune"), (fresh, "scratch")):
        reference = "frozen" if keeps_own and "frozen" in rules else else_with
        references |= {rule: reference for rule in rules if reference in rules and rule != reference}
    return references

"""Question 1, asked of finished networks: is it the mix of normalizers, or is it that each layer has its own?

Trials that start from a finished one of the switch norm differ in what becomes of its choices. With `frozen` every
layer keeps its own. `permute` and `shared` keep the mix, and take from each layer that the choice is its own; `argmax`
leaves each layer its own, and takes the mix. All four go on from the same weights, with choices that learn no more: the
differences to `frozen` are the cleanest. Those to `fine_tune`, whose choices learn on, also hold what learning on is
worth. `transplant`, and rules with `start_fresh`, train a network that is drawn anew: a comparison of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.analysis.questions.answers import confirms, format_distinguished, format_estimate, join_words, refuted
from study.analysis.records import StudyRecords
from study.analysis.statistics.measures import MEASURES
from study.analysis.statistics.paired_differences import PairedDifference, compare_levels
from study.config.schema import SCORE_MARGIN
from study.plan.warm_start import build_config

NOT_OWN = ("permute", "shared")
NO_MIX = ("argmax",)
DECIDING = ("frozen", "fine_tune")  # references that have trained as long, and are evaluated alike
RULE = (
    f"Starts, which do not decide the verdict: the difference is frozen minus the other rule, or fine_tune (whose "
    f"choices learn on) minus the other where frozen (every layer keeps its own) is not in the study. That each layer "
    f"has its own matters if it lies above 0 for each of {', '.join(NOT_OWN)} that the study has, and does not if it "
    f"lies below {SCORE_MARGIN:g} for any of them (Holm, as above); that layers mix, the same for {', '.join(NO_MIX)}. "
    f"transplant, and all "
    f"rules with start.fresh, train a network that is drawn anew: theirs is frozen with start.fresh, or else scratch, "
    f"which decides nothing: its BN statistics may be moving averages, those of starts are re-estimated."
)


def compare_starts(records: StudyRecords, metric: str) -> list[PairedDifference]:
    """The reference of each start rule minus that rule, for the switch norm; nothing where the study varies no start.

    What varies in the intervals: the replicate.
    """
    trials = records.trials[records.trials["norm"].eq(records.reference_norm or "")]
    return [
        compare_levels(records, trials, factor="start_rule", reference=reference, other=rule, metric=metric)
        for rule, reference in _references(records).items()
    ]


def start_sentences(records: StudyRecords, differences: Mapping[str, Sequence[PairedDifference]]) -> list[str]:
    """What the comparisons of starts say; `differences` are those of `compare_starts` by metric."""
    metric, confidence = records.study.metric, records.study.analysis.confidence
    if not differences[metric]:
        return []
    found = [item for item in differences[metric] if item.estimate.value is not None]
    if not found:
        return ["No run that starts from another one has finished together with the one it is compared with."]
    parts = _answer(records, differences[metric])
    for reference in dict.fromkeys(item.reference for item in found):
        numbers = [
            f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}"
            for item in found if item.reference == reference
        ]  # fmt: skip
        parts.append(
            f"{MEASURES[metric].label.capitalize()} of {reference} minus that of the other: {'; '.join(numbers)}."
        )
        others = {MEASURES[name].label: items for name, items in differences.items() if name != metric}
        parts += [
            format_distinguished(
                f"The {label} of {reference}", [item for item in items if item.reference == reference], confidence
            )
            for label, items in others.items()
        ]
    return parts


def judge(items: Sequence[PairedDifference], confidence: float) -> bool | None:
    """Whether what the rules take away matters: the rule that `RULE` puts into words. None: it cannot be said."""
    if refuted(items, confidence):
        return False
    return True if items and all(confirms(item) for item in items) else None


def _answer(records: StudyRecords, items: Sequence[PairedDifference]) -> list[str]:
    deciding = [item for item in items if item.reference in DECIDING]
    taken = {"that each layer has its own": NOT_OWN, "that layers mix normalizers": NO_MIX}
    judged = {what: [item for item in deciding if item.other in rules] for what, rules in taken.items()}
    words = {True: "it matters {}", False: "it does not matter {}", None: "whether it matters {} cannot be said yet"}
    said = [
        words[judge(those, records.study.analysis.confidence)].format(what) for what, those in judged.items() if those
    ]
    if not said:
        return []
    return [
        f"Is it the mix of normalizers, or that each layer has its own? With the choices of finished networks of "
        f"{records.reference_norm}, {join_words(said)}."
    ]


def _references(records: StudyRecords) -> dict[str, str]:
    """What each start rule is compared with: one that differs in what layers choose, and as little else as possible."""
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

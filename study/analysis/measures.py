"""Every number that an answer may hold, in one table: what it is called, what it means, and the rule that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from study.analysis.paired import paired_differences
from study.analysis.profiles import effect_contrast, factor_effect, transfer_distance
from study.analysis.variance import variance_shares


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A kind of number. The report prints `rule` beside it, and `definition` where numbers are explained.

    line: the value at which nothing differs. headline: whether it is in the table on top of the report.
    """

    label: str
    definition: str
    rule: Callable[..., Any]
    line: float = 0.0
    headline: bool = False

    @property
    def rule_name(self) -> str:
        """Where the rule is to be read: `paired.paired_differences`."""
        return f"{self.rule.__module__.rpartition('.')[2]}.{self.rule.__name__}"


def _difference(label: str, what: str, headline: bool = False) -> Measure:
    definition = f"{what}; one level of a factor minus another, paired at equal cell and replicate, mean over both."
    return Measure(label=label, definition=definition, rule=paired_differences, headline=headline)


_LAST = "in the last epoch"
_RATIO = (
    "Mean Jensen-Shannon distance between the {} of two cells that differ in the factor alone, over the mean "
    "distance between replicates of a cell, both between different replicates."
)

MEASURES = {
    "val_accuracy": _difference("validation accuracy", f"Share of validation images named right {_LAST}", True),
    "test_accuracy": _difference("test accuracy", f"Share of test images named right {_LAST}", True),
    "val_score": _difference("validation score", f"Accuracy, mIoU or box AP, by the task, {_LAST}", True),
    "test_score": _difference("test score", f"Accuracy, mIoU or box AP on the test split {_LAST}", True),
    "train_loss": _difference("training loss", "Mean loss of the last epoch's steps"),
    "generalization_gap": _difference(
        "generalization gap", "Score on training images, seen as validation images are, minus the validation score"
    ),
    "effect": Measure(
        label="effect on all weights", line=1.0, headline=True, rule=factor_effect,
        definition=_RATIO.format("switch-weight profiles"),
    ),
    "effect_mean": Measure(
        label="effect on mean weights", line=1.0, rule=factor_effect, definition=_RATIO.format("weights of the means")
    ),
    "effect_var": Measure(
        label="effect on variance weights", line=1.0, rule=factor_effect,
        definition=_RATIO.format("weights of the variances"),
    ),
    "effect_ratio": Measure(
        label="effect over effect", line=1.0, rule=effect_contrast, definition="One factor's effect over another's."
    ),
    "bn_share": _difference("BN share of all weights", "Weight of bn, mean over layers and both statistics", True),
    "bn_share_mean": _difference("BN share of mean weights", "Weight of bn for the means, mean over layers"),
    "bn_share_var": _difference("BN share of variance weights", "Weight of bn for the variances, mean over layers"),
    "effect_aitchison": Measure(
        label="effect by Aitchison distance", line=1.0, rule=factor_effect,
        definition=_RATIO.format("log-ratios of switch weights").replace("Jensen-Shannon", "Aitchison"),
    ),
    "share_of_variance": Measure(
        label="share of variance", rule=variance_shares,
        definition="Omega squared of a PERMANOVA on Jensen-Shannon distances between networks: what a factor explains "
        "of all variance beyond what chance does, added to all other factors and the replicate. The residual holds "
        "what factors do together, and seeds. In a study of blocks the shares need not sum to 1. "
        "Few cells and replicates allow few permutations, and no p value below one over half their number.",
    ),
    "layer_share": Measure(
        label="share of variance by depth", rule=variance_shares,
        definition="The same on centred log-ratios of the switch weights of each third of the depth (early, middle, "
        "late).",
    ),
    "effect_heads": Measure(
        label="effect on heads", line=1.0, rule=factor_effect, definition=_RATIO.format("switch weights of a head")
    ),
    "effect_after": Measure(
        label="effect after transfer", line=1.0, rule=factor_effect,
        definition=_RATIO.format("switch-weight profiles of fine-tuned networks"),
    ),
    "transfer_distance": Measure(
        label="distance moved by transfer", line=1.0, rule=transfer_distance,
        definition="Mean Jensen-Shannon distance between the profiles of a network before and after it was fine-tuned, "
        "over the mean distance between replicates before.",
    ),
}  # fmt: skip

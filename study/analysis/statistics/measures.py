"""Every number that an answer may hold, in one table: what it is called, what it means, and the rule that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from study.analysis.statistics.distinctness import layer_distances
from study.analysis.statistics.dynamics import SETTLED, count_flips, settle_epochs
from study.analysis.statistics.paired_differences import paired_differences
from study.analysis.statistics.permanova import variance_shares
from study.analysis.statistics.profiles import effect_contrast, factor_effect, transfer_distance
from study.analysis.statistics.time_to_target import TARGET, epochs_to_target
from study.analysis.statistics.trends import axis_slopes, batch_trends, rank_trends


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


def _trend_inside(label: str, place: str) -> Measure:
    return Measure(
        label=f"trend with {label}", rule=rank_trends,
        definition=f"Spearman's rank correlation, -1 to 1, of a switch weight with the {place} of its layer, in each "
        "network; mean over cells. p: t test over replicates that it is 0, adjusted by Holm for all weights.",
    )  # fmt: skip


def _slope(weights: str) -> Measure:
    return Measure(
        label=f"BN share of {weights} per doubling", rule=axis_slopes,
        definition=f"Change of bn's part of {weights} for each doubling of B or of G x B while the other stays: least "
        "squares in each replicate, over cells that agree in all else.",
    )  # fmt: skip


_SETTLED = (
    f"The first epoch from which a layer's weights stay within a total variation of {SETTLED:g} of those of the last"
)
_LAST = "in the last epoch"
_TIME = (
    "Epochs of training until the validation score first reaches the target, linear between evaluations. The target "
    f"of a cell is {TARGET * 100:g} % of the lower of the two compared levels' mean scores in the last epoch. A run "
    "that never reaches it counts as one epoch more than it had (it is censored, and counted)"
)
_LAYERS = (
    "Jensen-Shannon distance between {} of two layers of the backbone, over the distance between replicates of one "
    "layer, both root mean squares between different replicates of a cell: at 1, layers differ no more than seeds move "
    "one layer."
)
_RATIO = (
    "Jensen-Shannon distance between the {} of two cells that differ in the factor alone, over the distance between "
    "replicates of a cell, both root mean squares between different replicates."
)


def _distinctness(label: str, weights: str, headline: bool = False) -> Measure:
    return Measure(label=label, definition=_LAYERS.format(weights), rule=layer_distances, line=1.0, headline=headline)


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
    "epochs_to_target": replace(_difference("time to target", _TIME), rule=epochs_to_target),
    "distinctness": _distinctness("distinctness of layers", "the switch weights", headline=True),
    "distinctness_mean": _distinctness("distinctness of layers' mean weights", "the weights of the means"),
    "distinctness_var": _distinctness("distinctness of layers' variance weights", "the weights of the variances"),
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
        definition="Jensen-Shannon distance between the profiles of a network before and after it was fine-tuned, over "
        "the distance between replicates before, both root mean squares.",
    ),
    "trend_depth": _trend_inside("depth inside a network", "relative depth"),
    "trend_receptive_field": _trend_inside("receptive field", "receptive field"),
    "trend_batch": Measure(
        label="trend with B", rule=batch_trends,
        definition="Change of a switch weight, mean over layers, for each doubling of B, over cells that agree in all "
        "else. p: Page's trend test with replicates as blocks, two-sided; with two levels of B a paired t test; Holm.",
    ),
    "share_slope": _slope("all weights"),
    "share_slope_mean": _slope("mean weights"),
    "share_slope_var": _slope("variance weights"),
    "convergence_epoch": Measure(
        label="epoch of convergence", rule=settle_epochs,
        definition=f"{_SETTLED}. Mean over layers; a layer that never moves has 0.",
    ),
    "convergence": Measure(
        label="convergence, part of training", rule=settle_epochs,
        definition="The epoch of convergence over the number of epochs: 0 at the start, 1 at the end.",
    ),
    "flips": Measure(
        label="flips of a layer", rule=count_flips,
        definition="How often the largest weight of a layer becomes another, from epoch to epoch; mean over layers. "
        "While several are largest, the one before stays; leaving the even weights of the start is no flip.",
    ),
    "convergence_change": _difference("change of convergence", "Convergence as a part of training"),
    "flips_change": _difference("change of flips", "Flips of a layer"),
}  # fmt: skip

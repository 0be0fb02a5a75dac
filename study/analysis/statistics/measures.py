"""The kinds of numbers that an answer may hold: label, definition, and the function that computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from study.analysis.statistics.distinctness import layer_distances
from study.analysis.statistics.dynamics import SETTLED, count_flips, settle_epochs
from study.analysis.statistics.paired_differences import paired_differences
from study.analysis.statistics.permanova import variance_shares
from study.analysis.statistics.profiles import effect_contrast, factor_effect, transfer_distance
from study.analysis.statistics.time_to_target import TARGET, TIME, epochs_to_target
from study.analysis.statistics.trends import axis_slopes, batch_trends, rank_trends
from study.config.choice_space import NORMALIZATION, ChoiceSpace


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A kind of number.

    name: identifies it in `answers.json`. rule: the function that computes it.
    line: the value that means "no difference". headline: whether it is in the table of main numbers.
    """

    name: str
    label: str
    definition: str
    rule: Callable[..., Any]
    line: float = 0.0
    headline: bool = False

    @property
    def rule_name(self) -> str:
        """Module and name of the rule: `paired_differences.paired_differences`."""
        return f"{self.rule.__module__.rpartition('.')[2]}.{self.rule.__name__}"


@cache
def build_measures(space: ChoiceSpace = NORMALIZATION) -> dict[str, Measure]:
    """All measures of a study whose layers choose from `space`, by name, in the order of the report."""
    measures = [*_scores(), *_effects(space), *_shares(space), *_layers(space), *_variance(), *_trends(space), *_time()]
    return {measure.name: measure for measure in measures}


_LAST = "in the last epoch"
_RATIO = (
    "Jensen-Shannon distance between the {} of two cells that differ in the factor alone, over the distance between "
    "replicates of a cell, both root mean squares between different replicates."
)


def _scores() -> list[Measure]:
    return [
        _difference("val_accuracy", "validation accuracy", f"Share of validation images classified correctly {_LAST}",
                    True),
        _difference("test_accuracy", "test accuracy", f"Share of test images classified correctly {_LAST}", True),
        _difference("val_score", "validation score", f"Accuracy, mIoU or box AP, by the task, {_LAST}", True),
        _difference("test_score", "test score", f"Accuracy, mIoU or box AP on the test split {_LAST}", True),
        _difference("train_loss", "training loss", "Mean loss of the last epoch's steps"),
        _difference(
            "generalization_gap", "generalization gap",
            "Score on training images, evaluated as validation images are, minus the validation score",
        ),
        Measure(
            name=TIME, label="time to target", rule=epochs_to_target,
            definition="Epochs of training until the validation score first reaches the target, linear between "
            f"evaluations. The target of a cell is {TARGET * 100:g} % of the lower of the two compared levels' mean "
            "scores in the last epoch. A run that never reaches it counts as one epoch more than it had (it is "
            "censored, and counted); one level of a factor minus another, paired at equal cell and replicate, mean "
            "over both.",
        ),
    ]  # fmt: skip


def _effects(space: ChoiceSpace) -> list[Measure]:
    return [
        Measure(
            name="effect", label="effect on all weights", line=1.0, headline=True, rule=factor_effect,
            definition=_RATIO.format("switch-weight profiles"),
        ),
        *(
            Measure(
                name=f"effect_{axis.name}", label=f"effect on {axis.label}", line=1.0, rule=factor_effect,
                definition=_RATIO.format(f"weights of the {axis.target}"),
            )
            for axis in space.axes
        ),
        Measure(
            name="effect_aitchison", label="effect by Aitchison distance", line=1.0, rule=factor_effect,
            definition=_RATIO.format("log-ratios of switch weights").replace("Jensen-Shannon", "Aitchison"),
        ),
        Measure(
            name="effect_ratio", label="effect over effect", line=1.0, rule=effect_contrast,
            definition="One factor's effect over another's.",
        ),
        Measure(
            name="effect_heads", label="effect on heads", line=1.0, rule=factor_effect,
            definition=_RATIO.format("switch weights of a head"),
        ),
        Measure(
            name="effect_after", label="effect after transfer", line=1.0, rule=factor_effect,
            definition=_RATIO.format("switch-weight profiles of fine-tuned networks"),
        ),
        Measure(
            name="transfer_distance", label="distance moved by transfer", line=1.0, rule=transfer_distance,
            definition="Jensen-Shannon distance between the profiles of a network before and after it was fine-tuned, "
            "over the distance between replicates before, both root mean squares.",
        ),
    ]  # fmt: skip


def _shares(space: ChoiceSpace) -> list[Measure]:
    """The weight of the tracked member, and its slopes."""
    member, label = space.tracked
    slope = (
        "Change of the weight of {} in {} for each doubling of B or of G x B while the other stays: least squares in "
        "each replicate, over cells that agree in all else."
    )
    weights = {"": "all weights", **{f"_{axis.name}": axis.label for axis in space.axes}}
    return [
        _difference(
            f"{member}_share", f"{label} share of all weights",
            f"Weight of {member}, mean over layers and over all choices of a layer", True,
        ),
        *(
            _difference(
                f"{member}_share_{axis.name}", f"{label} share of {axis.label}",
                f"Weight of {member} for the {axis.target}, mean over layers",
            )
            for axis in space.axes
        ),
        *(
            Measure(
                name=f"share_slope{suffix}", label=f"{label} share of {words} per doubling", rule=axis_slopes,
                definition=slope.format(member, words),
            )
            for suffix, words in weights.items()
        ),
    ]  # fmt: skip


def _layers(space: ChoiceSpace) -> list[Measure]:
    """How distinct layers are."""
    definition = (
        "Jensen-Shannon distance between {} of two layers of the backbone, over the distance between replicates of one "
        "layer, both root mean squares between different replicates of a cell: at 1, layers differ no more than seeds "
        "move one layer."
    )
    return [
        Measure(
            name="distinctness", label="distinctness of layers", line=1.0, headline=True, rule=layer_distances,
            definition=definition.format("the switch weights"),
        ),
        *(
            Measure(
                name=f"distinctness_{axis.name}", label=f"distinctness of layers' {axis.label}", line=1.0,
                rule=layer_distances, definition=definition.format(f"the weights of the {axis.target}"),
            )
            for axis in space.axes
        ),
    ]  # fmt: skip


def _variance() -> list[Measure]:
    return [
        Measure(
            name="share_of_variance", label="share of variance", rule=variance_shares,
            definition="Omega squared of a PERMANOVA on Jensen-Shannon distances between networks: the share of the "
            "variance that a factor explains beyond chance, in addition to all other factors and the replicate. The "
            "residual holds interactions and seeds. In a study of blocks the shares need not sum to 1. "
            "Few cells and replicates allow few permutations, and no p value below one over half their number.",
        ),
        Measure(
            name="layer_share", label="share of variance by depth", rule=variance_shares,
            definition="The same on centred log-ratios of the switch weights of each third of the depth (early, "
            "middle, late).",
        ),
    ]  # fmt: skip


def _trends(space: ChoiceSpace) -> list[Measure]:
    inside = (
        "Partial rank correlation (Spearman), -1 to 1, of a switch weight with the {} of its layer, in each network, "
        "given the layer's place in its block (stem, first norm, second norm, shortcut): the mean rank of each place "
        "is subtracted, so only layers of the same place are compared. Mean over cells. p: t test over replicates that "
        "it is 0, adjusted by Holm for all weights."
    )
    return [
        Measure(
            name="trend_depth", label="trend with depth inside a network", rule=rank_trends,
            definition=inside.format("relative depth"),
        ),
        Measure(
            name="trend_receptive_field", label="trend with receptive field", rule=rank_trends,
            definition=inside.format("receptive field"),
        ),
        Measure(
            name="trend_batch", label="trend with B", rule=batch_trends,
            definition="Change of a switch weight, mean over layers, for each doubling of B, over cells that agree in "
            "all else. p: Page's trend test with replicates as blocks, two-sided; with two levels of B a paired t "
            "test; Holm.",
        ),
    ]  # fmt: skip


def _time() -> list[Measure]:
    settled = (
        f"The first epoch from which a layer's weights stay within a total variation of {SETTLED:g} of those of the "
        "last"
    )
    return [
        Measure(
            name="convergence_epoch", label="epoch of convergence", rule=settle_epochs,
            definition=f"{settled}. Mean over layers; a layer that never moves has 0.",
        ),
        Measure(
            name="convergence", label="convergence, part of training", rule=settle_epochs,
            definition="The epoch of convergence over the number of epochs: 0 at the start, 1 at the end.",
        ),
        Measure(
            name="flips", label="flips of a layer", rule=count_flips,
            definition="How often another member gets the largest weight of a layer, from epoch to epoch; mean over "
            "layers. During a tie the previous one counts as the largest; leaving the equal weights of the start does "
            "not count as a flip.",
        ),
        _difference("convergence_change", "change of convergence", "Convergence as a part of training"),
        _difference("flips_change", "change of flips", "Flips of a layer"),
    ]  # fmt: skip


def _difference(name: str, label: str, what: str, headline: bool = False) -> Measure:
    definition = f"{what}; one level of a factor minus another, paired at equal cell and replicate, mean over both."
    return Measure(name=name, label=label, definition=definition, rule=paired_differences, headline=headline)

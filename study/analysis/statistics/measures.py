"""The kinds of numbers that an answer may hold: label, definition, and the function that computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from study.analysis.statistics.cell_means import estimate_contrast, find_interaction
from study.analysis.statistics.displacement import (
    displacement,
    displacement_difference,
    probability_strongest,
    relative_displacement,
    seed_distance,
)
from study.analysis.statistics.distinctness import layer_distances, place_distances
from study.analysis.statistics.dynamics import SETTLED, count_flips, settle_epochs
from study.analysis.statistics.paired_differences import paired_differences
from study.analysis.statistics.permanova import variance_shares
from study.analysis.statistics.seed_sources import pool_deviations
from study.analysis.statistics.time_to_target import TARGET, TIME, epochs_to_target
from study.analysis.statistics.trends import rank_trends, slope_weights
from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.plan.analysis_plan import DISTANCE


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A kind of number.

    name: identifies it in `answers.json`. rule: the function that computes it.
    headline: whether it is in the table of main numbers.
    """

    name: str
    label: str
    definition: str
    rule: Callable[..., Any]
    headline: bool = False

    @property
    def is_signed(self) -> bool:
        """Whether it is a difference or a trend, which texts show with its sign."""
        return self.rule in _SIGNED

    @property
    def rule_name(self) -> str:
        """Module and name of the rule: `paired_differences.paired_differences`."""
        return f"{self.rule.__module__.rpartition('.')[2]}.{self.rule.__name__}"


_SIGNED = (
    *(paired_differences, epochs_to_target, estimate_contrast, find_interaction),
    *(displacement_difference, rank_trends, slope_weights),
)


@cache
def build_measures(space: ChoiceSpace = NORMALIZATION) -> dict[str, Measure]:
    """All measures of a study whose layers choose from `space`, by name, in the order of the report."""
    measures = [
        *_scores(),
        *_seeds(),
        *_effects(space),
        *_shares(space),
        *_layers(space),
        *_variance(),
        *_trends(space),
        *_time(),
    ]
    return {measure.name: measure for measure in measures}


_LAST = "in the last epoch"
_MOVES = (
    "How far the {} of two cells that differ in the factor alone lie apart, free of the noise of seeds: the signed "
    "root of the mean squared {} distance between networks of different replicates, between the cells minus within "
    "them. At 0, the factor changes nothing. A change of the spread between seeds alone counts as well, if it is large."
)
_LEVELS = (
    "A factor with numeric levels is measured between the lowest and the highest, any other by the mean over all pairs "
    "of its levels (of squares). Layers are matched by stage and place in the block. p: one-sided, that it is no "
    "larger than the margin, Holm."
)
_ALL_LEVELS = (
    "A factor with numeric levels is measured between its lowest and its highest, and again, marked `(all levels)`, "
    "over all pairs where there are levels between them."
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
        _difference("tuned_difference", "difference at each norm's own best",
                    "Test score, with the tuned settings (`analysis.tuned`) chosen on validation per norm and cell, "
                    "for each replicate on the others; the interval allows for the choice, and covers about 98 % "
                    "where levels are equally good"),
        Measure(
            name=TIME, label="time to target", rule=epochs_to_target,
            definition="Epochs of training until the validation score first reaches the target, linear between "
            f"evaluations. The target of a cell is {TARGET * 100:g} % of the lower of the two compared levels' mean "
            "scores in the last epoch. A run that never reaches it counts as one epoch more than it had (it is "
            "censored, and counted); one level of a factor minus another, paired at equal cell and replicate, mean "
            "over both.",
        ),
        Measure(
            name="cell_difference", label="difference in a single cell", rule=estimate_contrast,
            definition="The metric of the study: one norm minus another in one cell, paired at equal replicate. All "
            "intervals of a comparison together have the stated confidence (Bonferroni).",
        ),
        Measure(
            name="interaction", label="interaction of norm and cell", rule=find_interaction,
            definition="The metric of the study: the difference between two norms in one cell, minus its mean over the "
            "other cells, paired at equal replicate, for the cell where this is largest, of those whose interval "
            "excludes 0. The interval is adjusted for the number of cells (Bonferroni), and p, that all cells have the "
            "same difference, by Holm.",
        ),
    ]  # fmt: skip


def _seeds() -> list[Measure]:
    return [
        Measure(
            name="seed_deviation", label="standard deviation over seeds", rule=pool_deviations,
            definition="Standard deviation of the metric over runs of a cell that differ in one seed alone; root of "
            "the mean variance over cells.",
        ),
    ]  # fmt: skip


def _effects(space: ChoiceSpace) -> list[Measure]:
    def measure(name: str, label: str, definition: str, rule: Callable[..., Any], *, headline: bool = False) -> Measure:
        return Measure(name=name, label=label, definition=definition, rule=rule, headline=headline)

    return [
        measure("effect", "displacement of the choice",
                f"{_MOVES.format('switch weights', 'Jensen-Shannon')} {_LEVELS}", displacement, headline=True),
        measure("seed_distance", "distance between seeds",
                "Root mean squared Jensen-Shannon distance between the switch weights of replicates of a cell.",
                seed_distance, headline=True),
        measure("effect_relative", "displacement in seed distances",
                "The displacement over the distance between seeds: at 1, a factor moves the choice as far as another "
                "seed does.", relative_displacement, headline=True),
        *(measure(f"effect_{axis.name}", f"displacement of {axis.label}",
                  _MOVES.format(f"weights of the {axis.target}", DISTANCE), displacement)
          for axis in space.axes),
        measure("effect_aitchison", "displacement by Aitchison distance",
                _MOVES.format("log-ratios of switch weights", "Aitchison"), displacement),
        measure("effect_total_variation", "displacement by total variation",
                _MOVES.format("switch weights", "Euclidean") + " Divided by the root of 2: for two members it is the "
                "total variation, for three within 14 % of it.", displacement),
        measure("effect_all_levels", "displacement between all levels",
                "The displacement of a factor with numeric levels between its lowest and its highest: the mean over "
                "all pairs of its levels (of squares).", displacement),
        measure("effect_widest_pair", "displacement of the two levels furthest apart",
                "The displacement between those two levels that lie furthest apart, of a factor with more than two "
                "levels that are not numbers. The intervals of all its pairs together have the stated confidence "
                "(Bonferroni).", displacement),
        measure("effect_per_doubling", "displacement per doubling",
                "Displacement for each doubling of a factor: least squares on log2 of its levels.", displacement),
        measure("effect_difference", "difference of displacements", "One factor's displacement minus another's.",
                displacement_difference),
        measure("effect_difference_all_levels", "difference of displacements, all levels",
                "The displacement between all levels of the first factor minus the other's displacement.",
                displacement_difference),
        measure("effect_cell", "displacement in single cells",
                "The displacement of a factor at one combination of the other factors' levels. All intervals of a "
                f"factor together have the stated confidence (Bonferroni). {_ALL_LEVELS}", displacement),
        measure("probability_strongest", "probability of being the strongest",
                "Share of resampled studies in which the factor has the largest displacement; replicates are resampled "
                "jointly, by random weights. Of a factor with numeric levels between the ends, the larger of two "
                "numbers counts in each resampled study: the displacement between its ends, and that between all its "
                "levels. Other factors count by the mean over all pairs of their levels.", probability_strongest),
        measure("effect_place", "displacement between places in a block",
                "Displacement between the places of layers inside a network (stem, first norm, second norm, shortcut), "
                "each a mean over its layers: the mean over all pairs of places.", place_distances),
        measure("effect_layer", "displacement at one position",
                "The displacement of the layers of one stage and place. p: one-sided, that it is no larger than 0, "
                "adjusted for the number of positions and factors by the false discovery rate (Benjamini and "
                f"Hochberg). {_ALL_LEVELS}", displacement),
        measure("effect_heads", "displacement of heads", _MOVES.format("switch weights of a head", DISTANCE),
                displacement),
        measure("effect_after", "displacement after transfer",
                _MOVES.format("switch weights of fine-tuned networks", DISTANCE), displacement),
        measure("transfer_distance", "displacement by transfer",
                "Displacement between networks before and after they were fine-tuned.", displacement),
    ]  # fmt: skip


def _shares(space: ChoiceSpace) -> list[Measure]:
    """The weight of the tracked member, and its slopes."""
    member, label = space.tracked
    slope = (
        "Change of the weight of {} in {} for each doubling of B or of G x B while the other stays: least squares "
        "over the means of cells that agree in all else."
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
                name=f"share_slope{suffix}", label=f"{label} share of {words} per doubling", rule=slope_weights,
                definition=slope.format(member, words), headline=not suffix,
            )
            for suffix, words in weights.items()
        ),
    ]  # fmt: skip


def _layers(space: ChoiceSpace) -> list[Measure]:
    """How distinct layers are."""
    definition = (
        "Displacement between {} of two layers of the backbone of a network, over the distance between replicates of "
        "one layer: at 0, layers do not differ; at 1, they differ as much as seeds move one layer."
    )
    return [
        Measure(
            name="distinctness", label="distinctness of layers", headline=True, rule=layer_distances,
            definition=definition.format("the switch weights"),
        ),
        *(
            Measure(
                name=f"distinctness_{axis.name}", label=f"distinctness of layers' {axis.label}", rule=layer_distances,
                definition=definition.format(f"the weights of the {axis.target}"),
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
            "residual holds interactions and seeds. In a study of blocks the shares need not sum to 1. Computed over "
            "the replicates in which no cell is missing. p: levels are permuted alike in all cells of a replicate. "
            "Few cells and replicates allow few permutations, and no p value below one over half their number.",
        ),
        Measure(
            name="layer_share", label="share of variance by stage", rule=variance_shares,
            definition="The same on centred log-ratios of the switch weights of each stage.",
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
            name="trend_batch", label="trend with B", rule=slope_weights,
            definition="Change of a switch weight, mean over layers, for each doubling of B, over cells that agree in "
            "all else (least squares over the means of cells). p: t test over replicates that it is 0, Holm. It is "
            "said to rise or to fall only where the change between the ends of B has the same sign, with p below 5 %.",
        ),
        Measure(
            name="trend_batch_ends", label="change between the ends of B", rule=slope_weights,
            definition="Change of a switch weight, mean over layers, from the smallest to the largest B, over cells "
            "that agree in all else; shown where there are levels between the two. p: as for the trend.",
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

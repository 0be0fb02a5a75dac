"""The sentences of answers and of rules: findings in, text out. Nothing is decided or measured here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from study.analysis.questions.answers import MIN_CELLS, Effect, covers_pairs
from study.analysis.questions.factor_effects import (
    RATIO_MARGIN,
    ChoiceDistances,
    cells_of_pairs,
    find_distinguished,
)
from study.analysis.questions.verdicts import Verdict
from study.analysis.records import StudyRecords
from study.analysis.statistics.dynamics import SETTLED
from study.analysis.statistics.intervals import (
    Estimate,
    Floats,
    adjust_holm,
    replicate_interval,
    replicates_needed,
)
from study.analysis.statistics.paired_differences import PairedDifference
from study.analysis.statistics.permanova import PERMUTATIONS, varied
from study.analysis.statistics.profiles import FLOOR
from study.analysis.statistics.trends import AXES, BatchAxis, leading_axis
from study.analysis.wording import format_estimate, format_number, format_states, join_words
from study.config.schema import SCORE_MARGIN, StudyConfig
from study.plan.trials import find_factor_fields

MAX_NAMED = 3  # cells that a sentence names; it counts the others
OPEN = "It cannot be said yet."
EFFECT = (
    "The effect of a factor is the Jensen-Shannon distance between the switch-weight profiles of two cells that "
    "differ in it alone (of backbones, by relative depth), divided by the distance between replicates of a cell, both "
    "root mean squares between different replicates: at 1, the factor moves the choice no further than another seed "
    f"does. The same with Aitchison distances (weights below {FLOOR:g} count as {FLOOR:g}), and shares of variance "
    f"(PERMANOVA; p values from {PERMUTATIONS} permutations between networks that differ in the factor alone), are "
    "shown and do not decide."
)


# --------------------------------------------------------------------------------- question 1: is it useful?


def open_useful(
    verdict: Verdict, reference: object, opponents: Sequence[PairedDifference], refuting: Sequence[PairedDifference]
) -> str:
    """The first sentence of question 1."""
    return {
        "supported": f"Yes, in this study: {reference} is better than {_join_others(opponents)}.",
        "not supported": f"No, in this study: {reference} gains less than {SCORE_MARGIN:g} over "
        f"{_join_others(refuting)}.",
        "not enough evidence": OPEN,
    }[verdict]


def format_differences(items: Sequence[PairedDifference], confidence: float) -> str:
    """Differences with their intervals; of more than four, which the table holds, the smallest and the largest."""
    ranked = sorted(items, key=lambda item: item.estimate.value or 0.0)
    numbers = [f"{format_estimate(item.estimate, confidence, sign=True)} against {item.other}" for item in ranked]
    if len(numbers) > 4:
        return f"from {numbers[0]} (the smallest) to {numbers[-1]} (the largest)"
    return "; ".join(numbers)


def format_distinguished(subject: str, items: Sequence[PairedDifference], confidence: float) -> str:
    """Which differences of the subject ("Its training loss") are distinguished by p values adjusted over `items`."""
    p_values = adjust_holm([item.p_value for item in items])
    apart = {id(item) for item, p in zip(items, p_values, strict=True) if p is not None and p < 1 - confidence}
    lower = [item for item in items if id(item) in apart and (item.estimate.value or 0) < 0]
    higher = [item for item in items if id(item) in apart and item not in lower]
    open_ = [item for item in items if id(item) not in apart]
    groups = {
        "lower than that of": lower, "higher than that of": higher, "not distinguished from that of": open_,
    }  # fmt: skip
    said = [f"{words} {join_words(item.other for item in group)}" for words, group in groups.items() if group]
    return f"{subject} is {join_words(said)}."


def format_sparse(items: Sequence[PairedDifference], confidence: float) -> list[str]:
    """What the sparse norm gains."""
    measured = [item for item in items if item.estimate.value is not None]
    if not measured:
        return []
    gains = format_differences(measured, confidence)
    return [f"The same for {measured[0].reference}, which does not decide: {gains}."]


def format_censored(items: Sequence[PairedDifference]) -> list[str]:
    """How many runs never reached the target of the time to target."""
    late = [f"{item.censored} in {item.reference} - {item.other}" for item in items if item.censored]
    if not late:
        return []
    return [f"Runs that never reached the target, counted as one epoch more than they had: {join_words(late)}."]


def format_distinctness(reference: str | None, estimate: Estimate, confidence: float) -> str:
    """Whether layers differ by more than seeds move a layer."""
    if estimate.value is None:
        return f"Replicates that differ are needed to say whether layers of {reference} differ more than seeds."
    number = format_estimate(estimate, confidence, digits=2)
    compared = (
        "more than seeds do" if estimate.above(1)
        else "no more than seeds do" if estimate.below(RATIO_MARGIN)
        else "not distinguished from seeds"
    )  # fmt: skip
    return f"Distance between layers of {reference}, relative to replicates of one layer: {number}; {compared}."


def format_missing_runs(trials: pd.DataFrame) -> str:
    """How many runs of each norm have no result to compare."""
    missing = trials[trials["state"].ne("done")]
    if missing.empty:
        return "Every planned run has a result to compare."
    parts = [f"{norm} {format_states(group['state'])}" for norm, group in missing.groupby("norm", sort=False)]
    return f"Runs without a result to compare: {'; '.join(parts)}."


def format_useful_rule(label: str, controls: Sequence[str], confidence: float) -> str:
    """The rule of question 1; `label` names the metric."""
    return (
        f"The switch norm is compared with every norm without a choice. Supported: against every single normalizer (at "
        f"least one) and every control ({', '.join(controls)}) of the study, the {confidence * 100:g} % interval of "
        f"the difference in {label} (switch norm minus the other, last epoch, paired at equal cell and replicate, "
        f"averaged over cells) lies above 0 (every comparison must pass, so no correction for multiple comparisons is "
        f"needed). Not supported: against any of them it lies below {SCORE_MARGIN:g}, so no practical gain is left (a "
        f"single comparison suffices, so the one-sided p values of a gain of {SCORE_MARGIN:g} or more are adjusted by "
        f"Holm over all comparisons, to the level {(1 - confidence) / 2:g}; if there is only one comparison, its "
        f"interval must lie below {SCORE_MARGIN:g}). Otherwise: not enough evidence. A comparison needs "
        f"{MIN_CELLS * 100:g} % of its planned cells. If one run of a pair diverges, the pair is dropped, "
        f"and no verdict is given that this loss could have caused. Training loss, generalization gap and "
        f"time to target (distinguished where the two-sided p value, adjusted by Holm over all with the same "
        f"reference, is below {1 - confidence:.3g}), norms whose layers also pick their own (ssn, sn-tied, other "
        f"pools), what ssn gains, and how distinct layers are (more than seeds: the interval lies above 1; no more: "
        f"below {RATIO_MARGIN:g}) are shown and do not decide."
    )


def format_pair_needs(item: PairedDifference, confidence: float, n_opponents: int) -> str:
    """What would decide an undecided difference."""
    estimate, missing = item.estimate, format_states(Counter(item.missing).elements())
    if estimate.value is None or not covers_pairs(item):
        complete = f"{item.n_cells} of {item.n_cells_planned} cells complete"
        return f"results of {_format_missing_pairs(item)} ({complete}; missing pairs: {missing})"
    if estimate.low is None or estimate.high is None:
        if estimate.n > 1:
            return "replicates that differ"
        return "at least 1 more replicate of every cell (2 allow an interval), better 4 more"
    if estimate.above(0) or (estimate.below(SCORE_MARGIN) and item.missing.get(f"{item.other} diverged")):
        return f"runs that do not diverge (missing pairs: {missing})"
    return _format_more_replicates(_count_replicates_needed(item, confidence, n_opponents), estimate.n)


def _count_replicates_needed(item: PairedDifference, confidence: float, n_opponents: int) -> int | None:
    """Replicates that would put the interval above 0, or below `SCORE_MARGIN` at the first level of Holm."""
    value, n = item.estimate.value or 0.0, item.estimate.n
    needed = []
    for target, level in ((value, confidence), (SCORE_MARGIN - value, 1 - (1 - confidence) / n_opponents)):
        interval = replicate_interval(item.per_replicate, level)
        half_width = ((interval.high or 0.0) - (interval.low or 0.0)) / 2
        needed.append(replicates_needed(half_width, target, n, level))
    return min((number for number in needed if number is not None), default=None)


def _format_missing_pairs(item: PairedDifference) -> str:
    """`3 more replicates at B = 2`, for the first cells that are not complete."""
    missing = [
        f"{number} more replicate{'s' * (number != 1)}" + f" at {cell}" * bool(cell)
        for cell, number in item.cells_missing.items()
    ]
    more = len(missing) - MAX_NAMED
    return join_words([*missing[:MAX_NAMED], *[f"those of {more} more cells"] * (more > 0)] or ["both norms in a cell"])


def _join_others(items: Sequence[PairedDifference]) -> str:
    return join_words([item.other for item in items] or ["none"])


# -------------------------------------------------------------------------------- question 1: warm starts


def format_start_answer(reference_norm: str | None, judged: Mapping[str, bool | None]) -> list[str]:
    """Whether the properties that start rules remove matter. judged: True, False or None (undecided), by property."""
    words = {True: "it matters {}", False: "it does not matter {}", None: "whether it matters {} cannot be said yet"}
    said = [words[matters].format(what) for what, matters in judged.items()]
    if not said:
        return []
    return [
        f"Does it matter that each layer has its own choice, or that layers mix normalizers? With the choices of "
        f"finished networks of {reference_norm}, {join_words(said)}."
    ]


def format_starts_rule(not_own: Sequence[str], no_mix: Sequence[str]) -> str:
    """The rule of comparisons between start rules."""
    return (
        f"Warm starts, which do not decide the verdict: the difference is frozen (every layer keeps its own choice) "
        f"minus the other rule, or, if the study has no frozen, fine_tune (whose choices are trained further) minus "
        f"the other rule. That each layer has its own choice matters if the difference lies above 0 for each of "
        f"{', '.join(not_own)} that the study has, and does not if it lies below {SCORE_MARGIN:g} for any of them "
        f"(Holm, as above). Whether it matters that layers mix normalizers is decided in the same way by "
        f"{', '.join(no_mix)}. The rule transplant, and all rules with start.fresh, train a newly initialized network: "
        f"they are compared with frozen and start.fresh, or else with scratch, which decides nothing: the BN "
        f"statistics of scratch may be moving averages, whereas those of warm starts are re-estimated."
    )


# ----------------------------------------------------------------------- questions 2 and 3: effects of factors


def format_missing_choices(records: StudyRecords, distances: ChoiceDistances) -> list[str]:
    """Why there is nothing to say about choices; empty where there is."""
    if records.reference_norm is None:
        return ["The study holds no switch norm, so there is no choice to look at."]
    if not len(distances.cells):
        return [f"No run of {records.reference_norm} has finished with switch weights."]
    return []


def format_factor_effects(distances: ChoiceDistances, confidence: float) -> list[str]:
    """How far each factor moves the choice, and which of them further than seeds."""
    effects = {name: item for name, item in distances.rank(confidence).items() if item.value is not None}
    if not effects:
        return ["There is no distance between replicates to compare with; a second replicate is needed."] * bool(
            distances.factors
        )
    more = find_distinguished(effects, 1, confidence)
    no_more = [name for name in find_distinguished(effects, RATIO_MARGIN, confidence, above=False) if name not in more]
    open_ = [name for name in effects if name not in more + no_more]
    numbers = "; ".join(f"{name} {format_estimate(item, confidence, digits=2)}" for name, item in effects.items())
    groups = {"Detected beyond seed noise": more, "No further than seeds": no_more, "Open": open_}
    return [
        f"How far each factor moves the choice, relative to another seed, strongest first: {numbers}.",
        *(f"{words}: {join_words(names)}." for words, names in groups.items() if names),
    ]


def format_variance_shares(rows: Sequence[Effect]) -> list[str]:
    """The ranking by share of variance; `rows` are from `share_rows`."""
    shares = [row for row in rows if row.measure.name == "share_of_variance" and row.estimate.value is not None]
    said = "; ".join(f"{row.comparison} {_format_percent(row.estimate)}" for row in shares)
    return [f"Shares of the variance between what networks chose: {said}."] if shares else []


def format_co_varying(study: StudyConfig, factors: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """What else changes with the levels of a factor, besides the factor itself and the `known` fields."""
    others = {
        name: [field for field in find_factor_fields(study, name) if field not in (name, *known)] for name in factors
    }
    return [
        f"With {factor} these settings change too: {join_words(fields)}." for factor, fields in others.items() if fields
    ]


def format_gradient_batch(trials: pd.DataFrame) -> list[str]:
    """What else B changes: with a fixed number of chunks the gradient batch, and all that follows from it."""
    batches = trials.groupby("batch_size")["gradient_batch"].unique()
    if len(batches) < 2 or len({tuple(sorted(values)) for values in batches}) == 1:
        return []
    each = ", ".join(f"{'/'.join(map(str, values))} at B = {level}" for level, values in batches.items())
    return [
        f"With B the gradient batch changes too ({each}), and with it the learning rate and the number of steps; "
        "fixed_gradient_batch holds it."
    ]


def format_left_out(records: StudyRecords, trials: pd.DataFrame) -> list[str]:
    """Which runs are not in the numbers: warm starts, B = 1, no result. `trials` are from `select_choices`."""
    found = []
    of_norm, from_scratch = (
        int(each["norm"].eq(records.reference_norm or "").sum()) for each in (records.trials, records.from_scratch)
    )
    if started := of_norm - from_scratch:
        found.append(f"{started} runs that start from others are left out.")
    if left_out := from_scratch - len(trials):
        found.append(f"{left_out} runs at B = 1 are left out: there bn is always removed from the pool.")
    missing = trials["state"][trials["state"].ne("done")]
    return [*found, f"Runs of {records.reference_norm} without a result to compare: {format_states(missing)}."]


def format_common_needs(distances: ChoiceDistances) -> list[str]:
    """The cells and replicates that any verdict on the choice needs, where they are missing."""
    needs = []
    if not distances.covered:
        n_cells = f"{len(distances.cells)} of {len(distances.planned_cells)} complete"
        needs.append(f"results in more cells ({n_cells}): {_name_missing_cells(distances)}")
    if distances.n_replicates < 3:
        more = 3 - distances.n_replicates
        needs.append(
            f"at least 3 replicates of every cell, better 5 (now {distances.n_replicates}; "
            f"{more} more at every cell would do)"
        )
    return needs


def format_replicates_for_ratio(
    distances: ChoiceDistances, factors: Sequence[str], ratio: Estimate, confidence: float
) -> list[str]:
    """How many replicates would put the interval of a ratio above 1 or below the margin."""
    if not (ratio.value and ratio.low and ratio.high):
        return []
    half_width = np.log(ratio.high / ratio.low) / 2
    target = max(np.log(ratio.value), np.log(RATIO_MARGIN / ratio.value))
    needed = replicates_needed(half_width, target, ratio.n, confidence)
    if needed is None:
        return ["more than 1000 replicates"]
    more = max(1, needed - ratio.n)
    where = _name_where_varied(distances, factors)
    return [f"about {more} more replicate{'s' * (more != 1)} {where}, at the spread seen so far"]


def _name_where_varied(distances: ChoiceDistances, factors: Sequence[str]) -> str:
    """The cells in which factors vary: `at every cell`, or `at decay = step and solver = sgd`."""
    cells = distances.cells.iloc[cells_of_pairs(distances.pairs, factors)]
    constant = [
        name for name in cells if cells[name].nunique(dropna=False) == 1 < distances.cells[name].nunique(dropna=False)
    ]
    return f"at {_name_cell(cells.iloc[0], constant)}" if constant else "at every cell"


def _name_missing_cells(distances: ChoiceDistances) -> str:
    """The cells outside of the block, those that miss most first: `3 more replicates at batch_size = 2; ...`."""
    factors = varied(distances.planned_cells)
    outside = distances.planned[~distances.planned["cell"].isin(distances.cells.index)]
    missing = outside[~outside["state"].isin(["done", "diverged"])].groupby("cell").size()
    said = [
        f"{count} more replicate{'s' * (count != 1)} at {_name_cell(distances.planned_cells.loc[cell], factors)}"
        for cell, count in missing.sort_values(ascending=False, kind="stable").items()
    ]
    left = len(said) - MAX_NAMED
    return "; ".join([*said[:MAX_NAMED], *([f"and {left} more cells"] if left > 0 else [])])


def _name_cell(levels: pd.Series, factors: Sequence[str]) -> str:
    return join_words(f"{name} = {levels[name]}" for name in factors) if len(factors) else "the one cell"


def _format_percent(share: Estimate) -> str:
    value, *ends = (
        None if end is None else format_number(100 * end, 0) for end in (share.value, share.low, share.high)
    )
    return f"{value} %" + (f" ({ends[0]} to {ends[1]} %)" if None not in ends else "")


# ---------------------------------------------------------------------- question 2: what impacts the choice?


def open_impacts(verdict: Verdict, contrasts: Sequence[str], lost: Sequence[str]) -> str:
    """The first sentence of question 2; `contrasts` and `lost` are named `depth / solver`."""
    if verdict == "supported":
        strong, weak = (join_words(dict.fromkeys(name.split(" / ")[side] for name in contrasts)) for side in (0, 1))
        return f"Yes, in this study: {strong} move the choice further than {weak}."
    if verdict == "not supported":
        names = join_words(name.replace(" / ", " over ") for name in lost)
        return f"No, in this study: the ratio of effects is below {RATIO_MARGIN:g} for {names}."
    return OPEN


def format_impacts_rule(strong: Sequence[str], weak: Sequence[str], confidence: float) -> str:
    """The rule of question 2."""
    return (
        f"The effects of {' and '.join(strong)} are compared with those of {', '.join(weak)}. {EFFECT} Not supported: "
        f"for any pair of one of {' and '.join(strong)} and one of {', '.join(weak)}, the ratio of their effects lies "
        f"below {RATIO_MARGIN:g} (one-sided t test; p, adjusted by Holm for the number of pairs, below "
        f"{(1 - confidence) / 2:g}). Else supported: {' and '.join(strong)} vary, with at least one of the others, and "
        f"for every such pair the {confidence * 100:g} % interval of the ratio lies above 1 (every pair must "
        f"pass, so no correction for their number is needed). Otherwise: not enough evidence. It needs "
        f"{MIN_CELLS * 100:g} % of the planned cells and 3 replicates. The size of an effect depends on the compared "
        f"levels: levels that are further apart give larger effects."
    )


def format_missing_claim(missing: Sequence[str], weak: Sequence[str], varied_factors: Iterable[object]) -> list[str]:
    """Which factors of the paper's claim a study does not vary, as needs."""
    needs = [f"cells that differ in {name} alone" for name in missing]
    if not set(weak) & set(varied_factors):
        needs.append(f"cells that differ in one of {', '.join(weak)} alone")
    return needs


def format_trend(quantity: str, rows: Sequence[Effect], confidence: float) -> list[str]:
    """Which weights rise and which fall with a quantity ("B"); the numbers are in the table."""
    if not rows:
        return []
    if rows[0].estimate.n < 2:
        return [f"With {quantity}, nothing can be said of trends from one replicate."]
    ways: dict[str, list[str]] = {"the weight rises": [], "falls": [], "shows no trend": []}
    for row in rows:
        shown = row.p_value is not None and row.p_value < 1 - confidence
        way = "shows no trend" if not shown else "the weight rises" if (row.estimate.value or 0) > 0 else "falls"
        ways[way].append(row.comparison)
    said = [f"{way} for {join_words(names)}" for way, names in ways.items() if names]
    return [f"With {quantity}, {join_words(said)} (adjusted p below {1 - confidence:.2g})."]


def format_tracked_share(records: StudyRecords, shares: Sequence[PairedDifference]) -> list[str]:
    """How the share of the tracked member changes from the smallest to the largest B."""
    if not shares or shares[0].estimate.value is None:
        return []
    confidence = records.study.analysis.confidence
    whole, *others = (format_estimate(item.estimate, confidence, sign=True) for item in shares)
    each = ", ".join(f"{axis.label} {said}" for axis, said in zip(records.space.axes, others, strict=True))
    levels = f"from B = {shares[0].other} to B = {shares[0].reference}"
    return [f"The {records.space.tracked[1]} share changes by {whole} {levels}: {each}."]


def format_inseparable(label: str, cells: pd.DataFrame) -> str:
    """Why a study cannot separate B from G x B, and which study can."""
    if cells.empty:
        return "No cell has a result in enough replicates to separate B from G x B."
    b, gradient = (cells[name].nunique() for name in ("statistics_batch", "gradient_batch"))
    reason = "where cells agree in everything else, the two do not vary independently"
    if gradient == 1:
        reason = "G x B is the same in all cells"
    elif b == 1:
        reason = "B is the same in all cells"
    return f"This study cannot say whether the {label} share follows B or G x B: {reason}; study batch_axes can."


def format_followed(label: str, slopes: Floats, confidence: float) -> str:
    """Which of B and G x B the share follows, with numbers and rule. slopes: (axis, replicate)."""
    each: dict[BatchAxis, Floats] = {"B": slopes[0], "G x B": slopes[1]}
    estimates = {axis: replicate_interval(values, confidence) for axis, values in each.items()}
    moves = {
        axis: f"{'rises' if item.above(0) else 'falls'} with {axis}"
        for axis, item in estimates.items()
        if item.above(0) or item.below(0)
    }
    leader, verdict = leading_axis(each, confidence), "whether it follows B or G x B cannot be said yet"
    if leader:
        other = AXES[1 - AXES.index(leader)]
        rest = f", more than it {moves[other]}" if other in moves else f" and not with {other}"
        verdict = f"it {moves[leader]}{rest}"
    elif moves:
        verdict = f"it {join_words(moves.values())}, but which of the two it follows more cannot be said yet"
    b, gradient = (format_estimate(item, confidence, sign=True) for item in estimates.values())
    return (
        f"{label} share, B against G x B: {verdict}. A doubling of B at equal G x B changes it by {b}, a doubling of "
        f"G x B at equal B by {gradient}. (Rule: least squares in each replicate; one leads where the intervals of its "
        "slope, of its slope minus the other's, and of the sum of both lie on one side of 0.)"
    )


def format_held_axes(study: StudyConfig) -> str:
    """What else changes with G x B."""
    moved = ["the learning rate"] * study.base.scale_learning_rate
    moved += ["the number of steps"] * (study.base.epoch_steps is None)
    if moved:
        return f"With G x B the recipe also changes {join_words(moved)}; the study batch_axes avoids this."
    return "Learning rate and number of steps are the same at every G x B."


def format_dynamics(effects: Sequence[Effect], changes: Mapping[str, Sequence[Effect]], confidence: float) -> list[str]:
    """When layers settle and how often their largest weight changes; `changes`: by factor, of either."""
    settled, flips = (
        join_words(
            f"{format_estimate(item.estimate, confidence, digits=2)} for {item.comparison}"
            for item in effects
            if item.measure.name == measure
        )
        for measure in ("convergence", "flips")
    )
    found = [
        f"Layers settle, to within {SETTLED:g} of their last weights, after this part of training: {settled}.",
        f"Number of times the largest weight of a layer changes: {flips}.",
    ]
    beginnings = ("Layers settle at another time", "The largest weight changes more or less often")
    for words, rows in zip(beginnings, changes.values(), strict=True):
        shown = [
            f"{row.comparison} ({format_estimate(row.estimate, confidence, digits=2, sign=True)})"
            for row in rows
            if row.p_value is not None and row.p_value < 1 - confidence
        ]
        found += [f"{words} with {join_words(shown)}."] if shown else []
    return found


# -------------------------------------------------------------------------- question 3: tasks and data sets


def open_tasks(verdict: Verdict, names: Sequence[str], moving: Sequence[str]) -> str:
    """The first sentence of question 3; `moving`: those of the names that move the choice further than seeds."""
    return {
        "supported": f"Yes, in this study: backbones choose differently by {join_words(moving or ['none'])}.",
        "not supported": f"No, in this study: {join_words(names or ['none'])} move the choice no further than seeds.",
        "not enough evidence": OPEN,
    }[verdict]


def format_tasks_rule(together: str, confidence: float) -> str:
    """The rule of question 3."""
    return (
        f"{EFFECT} Supported: the effect of task, or of dataset, lies above 1 (one-sided t test; p, adjusted by Holm "
        f"where there are two, below {(1 - confidence) / 2:g}). Else not supported: its {confidence * 100:g} % "
        f"interval lies below {RATIO_MARGIN:g} for each of them that varies. Otherwise: not enough evidence. It needs "
        f"{MIN_CELLS * 100:g} % of the planned cells and 3 replicates. Where tasks have no data set in common, the two "
        f"cannot be separated and count as one factor, {together}. Heads, compared within their task, and transfer are "
        f"shown and do not decide."
    )


def format_preferences(means: pd.DataFrame) -> str:
    """The mean weights of each setting: one row per setting, one column per normalizer."""
    each = [
        f"{setting} {', '.join(f'{name} {format_number(weight, 2)}' for name, weight in row.dropna().items())}"
        for setting, row in means.iterrows()
    ]
    return f"Mean weights of the backbone: {'; '.join(each)}."


def format_head_effects(rows: Sequence[Effect], confidence: float) -> list[str]:
    """The effects of factors on what heads choose."""
    said = "; ".join(
        f"{row.comparison} {format_estimate(row.estimate, confidence, digits=2)}"
        for row in rows if row.estimate.value is not None
    )  # fmt: skip
    return [f"Effects on heads, within their task: {said}."] if said else []


def format_transfer(rows: Sequence[Effect], confidence: float) -> list[str]:
    """How far transfer moves the choice, and what it leaves of the effects of task and data set."""
    titles = {
        "transfer_distance": "How far transfer moves what backbones chose, relative to the distance between seeds "
        "before",
        "effect_after": "Effects between fine-tuned networks",
        "effect_ratio": "The same, relative to the effects between networks from scratch",
    }
    said = {
        measure: "; ".join(
            f"{row.comparison} {format_estimate(row.estimate, confidence, digits=2)}"
            for row in rows if row.measure.name == measure and row.estimate.value is not None
        )
        for measure in titles
    }  # fmt: skip
    return [f"{titles[measure]}: {text}." for measure, text in said.items() if text]


# ------------------------------------------------------------------------------------------------- replicates


def _format_more_replicates(needed: int | None, n: int) -> str:
    """How many replicates to add to the `n` existing ones. needed: their total number, None if it is above 1000."""
    if needed is None:
        return "more than 1000 replicates"
    more = max(needed - n, 1)
    return f"about {more} more replicate{'s' * (more > 1)} of every cell ({n + more} in all), at the spread seen so far"

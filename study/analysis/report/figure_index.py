"""The figures of each question, the most direct first; figures without anything to show are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from study.analysis.questions.answers import Effect
from study.analysis.questions.tasks import APART, TOGETHER, name_settings, task_factors
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report.effect_figures import RankingColumn, draw_factor_ranking, draw_forest
from study.analysis.report.figure_texts import format_bars
from study.analysis.report.layer_figures import draw_layers_by_epoch, draw_triangles, draw_weight_maps
from study.analysis.report.levels import LEVEL, choose_ends, format_factor, keep_largest_pools, split_by_level
from study.analysis.report.score_figures import draw_learning_curves, draw_metric_by_norm
from study.analysis.report.share_figures import (
    draw_share_by_epoch,
    draw_share_by_level,
    draw_share_by_place,
    draw_share_by_setting,
)
from study.analysis.statistics.distances import AITCHISON, TOTAL_VARIATION, convert_margin
from study.analysis.weight_tables import BACKBONE
from study.analysis.wording import join_words
from study.record.layout import StudyFolder

PAIRED = "Paired at equal cell and replicate."

# Effects that are not ranked are drawn in families, by the start of their measure's name: title and subtitle.
# `{margin}`: the margin of displacements. `{tracked}`: the member whose share is tracked.
FAMILIES = {
    "effect_difference": ("How much further one factor moves the choice than another",
                          "Displacement of the first minus that of the second. Dotted line: the margin, {margin}. "
                          "Where the interval lies above it, the first moves the choice further."),
    "effect_relative": ("How far each factor moves the choice, in distances between seeds",
                        "At 0, a factor changes nothing; at 1 (dotted line), it moves the choice as far as another "
                        "seed does."),
    "effect_per_doubling": ("How far a doubling of a factor moves the choice",
                            "Slope on log2 of the levels, in Jensen-Shannon distance."),
    "effect_all_levels": ("How far all levels of a factor lie apart", "In Jensen-Shannon distance."),
    "effect_widest_pair": ("How far apart the levels of a factor are that differ most",
                           "In Jensen-Shannon distance; adjusted for the number of pairs of levels."),
    "effect_cell": ("How far a factor moves the choice in single cells",
                    "In Jensen-Shannon distance; adjusted for the number of cells."),
    "effect_place": ("How far places in a block lie apart",
                     "Displacement inside a network, in Jensen-Shannon distance."),
    "effect_layer": ("Where in the network a factor moves the choice",
                     "Displacements of the layers of one stage and place, in Jensen-Shannon distance."),
    "effect_heads": ("How far each factor moves what heads choose", "In Jensen-Shannon distance, within each task."),
    "effect_after": ("What transfer leaves of the differences between tasks and data sets",
                     "Displacements between fine-tuned networks, in Jensen-Shannon distance."),
    "transfer_distance": ("How far transfer moves the choice",
                          "Displacement between networks before and after they were fine-tuned, in Jensen-Shannon "
                          "distance."),
    "probability_strongest": ("Which factor moves the choice furthest",
                              "Share of resampled studies in which the factor has the largest displacement."),
    "share_of_variance": ("Which share of the variance between networks each factor explains",
                          "Omega squared of a PERMANOVA: 0 where a factor explains no more than chance."),
    "layer_share": ("Which share of the variance each factor explains, by part of the network", "Omega squared."),
    "distinctness": ("How distinct layers are",
                     "Displacement between layers of a network, in distances between replicates of a layer: at 0, "
                     "layers do not differ; at 1, as much as seeds move one layer."),
    "cell_difference": ("Differences between norms in single cells",
                        "Paired at equal replicate; adjusted for the number of cells."),
    "interaction": ("Which cell's difference between norms is least like that of the others",
                    "The difference in one cell minus its mean over the other cells."),
    "seed_deviation": ("How much seeds change the result", "Standard deviation over seeds that are varied apart."),
    "trend": ("Trends of the switch weights", ""),
    "share_slope": ("How the {tracked} share follows B, and how G x B", ""),
    "convergence_change": ("How the time in which the choice settles differs", PAIRED),
    "flips_change": ("How flips of a layer's largest weight differ", PAIRED),
    "convergence": ("When the choice settles", ""),
    "flips": ("How often a layer's largest weight changes", ""),
}  # fmt: skip
# Their measures have no value that means "no difference".
WITHOUT_LINE = ("convergence", "convergence_epoch", "flips", "probability_strongest", "seed_deviation")
SETTING = "task and data set"  # `TOGETHER` in titles
REFERENCES = ("effect_place", "seed_distance")  # measures that the ranking of factors shows for comparison
PUBLISHED = "official"  # the default folder of `study.cli.import_published`


def draw_useful(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 1: differences between norms, scores and learning curves."""
    norms = records.levels("norm")
    planned = records.balanced_subset(records.from_scratch, "norm", "batch_size")
    done = planned[planned["state"].eq("done")]
    starts = ", and between how its networks start" * ("start_rule" in records.study.factors)
    yield from _draw_forests(records, effects, f"Differences between the switch norm and each other norm{starts}")
    if done[records.study.metric].notna().any():
        yield draw_metric_by_norm(done, norms, records.measures[records.study.metric])
    if records.curves["key"].isin(done["key"]).any():
        split = split_by_level(records, done, "batch_size")
        yield draw_learning_curves(
            records.curves, split, norms, records.measures[records.study.metric.replace("test", "val")]
        )


def draw_impacts(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 2: effects of factors, and what layers choose at the levels of each."""
    yield from _draw_ranking(records, effects)
    factors = _list_split_factors(records, effects, [name for name in records.study.factors if name != "norm"])
    yield from _draw_places(records, _split_choices(records, (factors or ["norm"])[0]), factors[:1])
    for number, factor in enumerate(factors):
        yield from _draw_choices(records, factor, layers_by_epoch=number == 0)
    if not factors:
        yield from _draw_choices(records, "norm", layers_by_epoch=True)
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def draw_tasks(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 3: effects of task and data set, and what layers choose at each."""
    yield from _draw_ranking(records, effects)
    tasks = task_factors(records.study)
    chosen = _split(records, name_settings(select_finished_choices(records, *APART, *tasks)), TOGETHER)
    yield from _draw_places(records, chosen, [SETTING])
    if len(chosen):
        weights = pd.concat([records.switch, records.heads]) if len(records.heads) else records.switch
        yield _assign_group(draw_share_by_setting(weights, chosen, records.space, records.confidence), SETTING)
        yield from _draw_layers(records, chosen, SETTING)
    if "impacts" not in records.study.analysis.questions:  # whose figures show the other factors
        others = [name for name in records.study.factors if name not in ("norm", *tasks)]
        for factor in _list_split_factors(records, effects, others):
            yield from _draw_choices(records, factor)
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def draw_published(folder: StudyFolder) -> Iterator[go.Figure]:
    """What the networks that the authors of the SN papers published chose, if they were imported beside the study."""
    beside = StudyFolder(folder.path.parent / PUBLISHED)
    if folder.path.name == PUBLISHED or not beside.config.exists():
        return
    records = load_study_records(beside)
    for depth, chosen in select_finished_choices(records, "depth", "batch_size").groupby("depth"):
        if records.switch["key"].isin(chosen["key"]).any():
            split = split_by_level(records, chosen, "batch_size")
            figure = draw_weight_maps(records.switch, split, records.space)
            figure.layout.title.text = f"What the papers' own networks chose: ResNet-{depth}"
            figure.layout.title.subtitle.text = f"Read from the files that their authors published ({beside.path})."
            yield _unlink_trials(figure)


def select_finished_choices(records: StudyRecords, *axes: str) -> pd.DataFrame:
    """The finished trials of the reference norm over which a figure with these axes may average."""
    trials = records.from_scratch[records.from_scratch["norm"].eq(records.reference_norm or "")]
    balanced = records.balanced_subset(trials, *axes)
    finished: pd.DataFrame = balanced[balanced["state"].eq("done")]
    return finished


def select_all_epochs(records: StudyRecords, trials: pd.DataFrame) -> pd.DataFrame:
    """Switch weights of backbones at every epoch, with the key of each trial; text is dictionary-encoded."""
    table = records.weights
    wanted = pc.and_(
        pc.is_in(table["trial_id"].cast(pa.string()), pa.array(trials["trial_id"].unique(), pa.string())),
        pc.equal(table["role"].cast(pa.string()), BACKBONE),
    )
    frame = table.filter(wanted).to_pandas()
    identity = ["trial_id", "replicate"]
    rows: pd.DataFrame = frame.merge(trials[[*identity, "key"]].astype({"replicate": "int32"}), on=identity)
    return rows


def _list_split_factors(records: StudyRecords, effects: Sequence[Effect], factors: Sequence[str]) -> list[str]:
    """Those of the factors that have several levels with results, in the order of their displacements.

    A factor whose levels a search draws from a range has as many levels as trials, so it is left out.
    """
    ranked = [effect.comparison for effect in effects if effect.measure.name == "effect"]
    listed = [name for name in factors if isinstance(records.study.factors[name], list)]
    in_order = sorted(listed, key=lambda name: ranked.index(name) if name in ranked else len(ranked))
    return [name for name in in_order if len(_split_choices(records, name)[LEVEL].unique()) > 1]


def _split_choices(records: StudyRecords, factor: str) -> pd.DataFrame:
    """The finished trials by level of a factor, over a subset in which all other factors are balanced."""
    return _split(records, select_finished_choices(records, factor), factor)


def _split(records: StudyRecords, trials: pd.DataFrame, factor: str) -> pd.DataFrame:
    """`split_by_level` for the trials that have switch weights, of each level those with its largest pool."""
    with_weights = trials[trials["key"].isin(records.switch["key"].unique())]
    return keep_largest_pools(split_by_level(records, with_weights, factor))


def _draw_places(records: StudyRecords, chosen: pd.DataFrame, factors: Sequence[str]) -> Iterator[go.Figure]:
    """What layers choose at each place in a block, if they have several places."""
    if len(chosen):
        by = format_factor(factors[0]) if factors else ""
        figure = draw_share_by_place(records.switch, chosen, records.space, records.confidence, by)
        yield from [figure] if figure else []


def _draw_choices(records: StudyRecords, factor: str, *, layers_by_epoch: bool = False) -> Iterator[go.Figure]:
    """What layers choose at the levels of a factor, in the last epoch and during training, as one group of figures."""
    chosen = _split_choices(records, factor)
    if chosen.empty:
        return
    by = format_factor(factor) if factor != "norm" else ""
    if by:
        also = records.co_varying.get(factor, [])
        said = f"Along with {by}, the study changes {join_words(also)}." if also else ""
        figure = draw_share_by_level(records.switch, chosen, records.space, records.confidence, by, said)
        yield _assign_group(figure, by)
    yield from _draw_layers(records, chosen, by)
    yield _assign_group(draw_share_by_epoch(records.switch_epochs, chosen, records.space, by), by)
    if layers_by_epoch:
        weights = select_all_epochs(records, chosen[chosen[LEVEL].isin(choose_ends(chosen))])
        yield _assign_group(draw_layers_by_epoch(weights, chosen, records.space, by), by)


def _draw_layers(records: StudyRecords, chosen: pd.DataFrame, by: str) -> Iterator[go.Figure]:
    """Maps and triangles of the layers."""
    yield _assign_group(draw_weight_maps(records.switch, chosen, records.space, by), by)
    triangle = draw_triangles(records.switch, chosen, records.space, by)
    yield from [_assign_group(triangle, by)] if triangle else []


def _assign_group(figure: go.Figure, by: str) -> go.Figure:
    """The figure, marked as one of those that are split by this factor: the page shows them together."""
    return figure.update_layout(meta={**figure.layout.meta, "group": by}) if by else figure


def _draw_ranking(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    columns, measures = _build_ranking_columns(records), _list_ranked_measures(records, effects)
    if ranked := [effect for effect in effects if effect.measure.name in measures]:
        yield draw_factor_ranking(
            ranked, columns, "How far each factor moves the choice",
            "Displacement between the levels of each factor, free of the noise of seeds: at 0, the factor changes "
            f"nothing. {format_bars(records.confidence)}.",
        )  # fmt: skip


def _build_ranking_columns(records: StudyRecords) -> list[RankingColumn]:
    """The distances by which factors are ranked, with the margin in the unit of each."""
    margin, space = records.margin("effect"), records.space
    kinds = {"all weights": "effect", **{axis.label: f"effect_{axis.name}" for axis in space.axes}}
    n_members = len(space.members)
    return [
        RankingColumn(title="Jensen-Shannon distance", measures=kinds, margin=margin, references=REFERENCES),
        RankingColumn(
            title="Aitchison distance", measures={"all weights": "effect_aitchison"},
            margin=convert_margin(margin, AITCHISON, n_members),
        ),
        RankingColumn(
            title="total variation", measures={"all weights": "effect_total_variation"},
            margin=convert_margin(margin, TOTAL_VARIATION, n_members),
        ),
    ]  # fmt: skip


def _list_ranked_measures(records: StudyRecords, effects: Sequence[Effect]) -> set[str]:
    """The measures that the ranking shows: none if no factor has an effect."""
    measures = {measure for column in _build_ranking_columns(records) for measure in column.measures.values()}
    return {*measures, *REFERENCES} if any(effect.measure.name in measures for effect in effects) else set()


def _draw_forests(records: StudyRecords, effects: Sequence[Effect], title: str) -> Iterator[go.Figure]:
    """A forest for each of the `FAMILIES`; `title` is that of the forest with all other effects."""
    families: dict[tuple[str, str], list[Effect]] = {}
    ranked, margin = _list_ranked_measures(records, effects), records.margin("effect")
    for effect in effects:
        if effect.measure.name not in ranked:
            families.setdefault(_find_family(effect, title), []).append(effect)
    in_order = [(title, PAIRED), *FAMILIES.values()]
    for (name, what), members in sorted(families.items(), key=lambda family: in_order.index(family[0])):
        points = " (grey points)" if any(effect.per_replicate for effect in members) else ""
        compared = not any(effect.measure.name in WITHOUT_LINE for effect in members)
        has_intervals = any(effect.estimate.low is not None for effect in members)
        bars = f"{format_bars(records.confidence)}{points}." if has_intervals or points else ""
        texts = {"tracked": records.space.tracked[1], "margin": f"{margin:g}"}
        yield draw_forest(
            members, name.format(**texts), f"{what.format(**texts)} {bars}".strip(), compared=compared,
            lines={"effect_difference": margin, "effect_relative": 1.0},
        )  # fmt: skip


def _find_family(effect: Effect, title: str) -> tuple[str, str]:
    """Title and subtitle of the forest that shows an effect, to be formatted."""
    found = (words for start, words in FAMILIES.items() if effect.measure.name.startswith(start))
    return next(found, (title, PAIRED))


def _unlink_trials(figure: go.Figure) -> go.Figure:
    """Weight maps whose cells do not link to rows of the trial table: their trials are of another study."""
    figure.layout.meta = {**figure.layout.meta, "trials": []}
    for trace in figure.data:
        trace.customdata = [[[-1, *cell[1:]] for cell in row] for row in trace.customdata]
    return figure

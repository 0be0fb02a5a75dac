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
from study.analysis.report.effect_figures import draw_factor_ranking, draw_forest
from study.analysis.report.figure_texts import format_bars
from study.analysis.report.layer_figures import draw_layers_by_epoch, draw_triangles, draw_weight_maps
from study.analysis.report.score_figures import draw_learning_curves, draw_metric_by_norm
from study.analysis.report.share_figures import draw_share_by_batch, draw_share_by_epoch, draw_share_by_setting
from study.analysis.weight_tables import BACKBONE
from study.config.choice_space import ChoiceSpace
from study.record.layout import StudyFolder

# Effects that are not ranked are drawn in families, by the start of their measure's name: title and subtitle.
FAMILIES = {
    "effect_ratio": ("One factor's effect over another's", "Above 1, the first moves the choice further."),
    "effect_heads": ("How far each factor moves what heads choose, relative to seeds", ""),
    "effect_after": ("What transfer leaves of the effects",
                     "Effects between fine-tuned networks, relative to how far seeds move the choice."),
    "transfer": ("How far transfer moves the choice",
                 "Before against after fine-tuning, relative to how far seeds move the choice."),
    "share_of_variance": ("Which share of the variance between networks each factor explains",
                          "Omega squared of a PERMANOVA: 0 where a factor explains no more than chance."),
    "layer_share": ("Which share of the variance each factor explains, by part of the network", "Omega squared."),
    "distinctness": ("How distinct layers are",
                     "Distances between layers, relative to those between replicates of a layer."),
    "cell_difference": ("Differences between norms in single cells",
                        "Paired at equal replicate; adjusted for the number of cells."),
    "interaction": ("Which cell's difference between norms is least like that of the others",
                    "The difference in one cell minus its mean over the other cells."),
    "trend": ("Trends of the switch weights", ""),
    "share_slope": ("How the {tracked} share follows B, and how G x B", ""),
    "convergence_change": ("How the time in which the choice settles differs", "Paired at equal cell and replicate."),
    "flips_change": ("How flips of a layer's largest weight differ", "Paired at equal cell and replicate."),
    "convergence": ("When the choice settles", ""),
    "flips": ("How often a layer's largest weight changes", ""),
}  # fmt: skip
WITHOUT_LINE = ("convergence", "convergence_epoch", "flips")  # their measures have no value that means "no difference"
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
        yield draw_learning_curves(
            records.curves, done, norms, records.measures[records.study.metric.replace("test", "val")]
        )


def draw_impacts(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 2: effects of factors, and what layers choose."""
    chosen = select_finished_choices(records, "depth", "batch_size")
    chosen = chosen[chosen["key"].isin(records.switch["key"].unique())]
    yield from _draw_ranking(records, effects)
    if len(chosen):
        yield from _draw_choices(records, chosen)
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def draw_tasks(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 3: effects of task and data set, and what layers choose at each."""
    chosen = name_settings(select_finished_choices(records, *APART, *task_factors(records.study), "batch_size"))
    chosen = chosen[chosen["key"].isin(records.switch["key"].unique())]
    yield from _draw_ranking(records, effects)
    if len(chosen):
        weights = pd.concat([records.switch, records.heads]) if len(records.heads) else records.switch
        yield draw_share_by_setting(weights, chosen, records.space, TOGETHER, records.confidence)
        yield draw_weight_maps(records.switch, chosen, records.space, TOGETHER, "backbones by task")
        triangle = draw_triangles(records.switch, chosen, records.space, TOGETHER, "backbones by task")
        yield from [triangle] if triangle else []
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def draw_published(folder: StudyFolder) -> Iterator[go.Figure]:
    """What the networks that the authors of the SN papers published chose, if they were imported beside the study."""
    beside = StudyFolder(folder.path.parent / PUBLISHED)
    if folder.path.name == PUBLISHED or not beside.config.exists():
        return
    records = load_study_records(beside)
    for depth, chosen in select_finished_choices(records, "depth", "batch_size").groupby("depth"):
        if records.switch["key"].isin(chosen["key"]).any():
            figure = draw_weight_maps(records.switch, chosen, records.space, "batch_size", f"ResNet-{depth}")
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


def _draw_choices(records: StudyRecords, chosen: pd.DataFrame) -> Iterator[go.Figure]:
    """What layers choose, by depth and B: in the last epoch, and during training."""
    yield draw_share_by_batch(records.switch, chosen, records.space, records.confidence)
    for depth, networks in chosen.groupby("depth"):
        yield draw_weight_maps(records.switch, networks, records.space, "batch_size", f"ResNet-{depth}")
        triangle = draw_triangles(records.switch, networks, records.space, "batch_size", f"ResNet-{depth}")
        yield from [triangle] if triangle else []
    yield draw_share_by_epoch(records.switch_epochs, chosen, records.space)
    extremes = chosen[chosen["batch_size"].isin([chosen["batch_size"].min(), chosen["batch_size"].max()])]
    for depth, networks in extremes.groupby("depth"):
        yield draw_layers_by_epoch(select_all_epochs(records, networks), networks, records.space, f"ResNet-{depth}")


def _draw_ranking(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    ranking = _list_ranking_measures(records.space)
    names = {name for kinds in ranking.values() for name in kinds.values()}
    if ranked := [effect for effect in effects if effect.measure.name in names]:
        bars = format_bars(records.confidence)
        yield draw_factor_ranking(
            ranked, ranking, "How far each factor moves the choice, relative to seeds",
            "Distances between cells that differ in the factor alone, relative to those between replicates of a cell: "
            f"at 1, a factor moves the choice as far as another seed does. {bars}.",
        )  # fmt: skip


def _list_ranking_measures(space: ChoiceSpace) -> dict[str, dict[str, str]]:
    """The measures by which factors are ranked, by distance and by kind of weights."""
    return {
        "Jensen-Shannon": {"all weights": "effect", **{axis.label: f"effect_{axis.name}" for axis in space.axes}},
        "Aitchison": {"all weights": "effect_aitchison"},
    }


def _draw_forests(records: StudyRecords, effects: Sequence[Effect], title: str) -> Iterator[go.Figure]:
    """A forest for each of the `FAMILIES`; `title` is that of the forest with all other effects."""
    families: dict[tuple[str, str], list[Effect]] = {}
    ranked = {name for kinds in _list_ranking_measures(records.space).values() for name in kinds.values()}
    for effect in effects:
        if effect.measure.name not in ranked:
            families.setdefault(_find_family(effect, title, records.space.tracked[1]), []).append(effect)
    for (name, what), members in families.items():
        points = " (grey points)" if any(effect.per_replicate for effect in members) else ""
        compared = not any(effect.measure.name in WITHOUT_LINE for effect in members)
        bars = format_bars(records.confidence)
        yield draw_forest(members, name, f"{what} {bars}{points}.".strip(), compared=compared)


def _find_family(effect: Effect, title: str, tracked: str) -> tuple[str, str]:
    """Title and subtitle of the forest that shows an effect."""
    found = (words for start, words in FAMILIES.items() if effect.measure.name.startswith(start))
    name, what = next(found, (title, "Paired at equal cell and replicate."))
    return name.format(tracked=tracked), what


def _unlink_trials(figure: go.Figure) -> go.Figure:
    """Weight maps whose cells do not link to rows of the trial table: their trials are of another study."""
    figure.layout.meta = {**figure.layout.meta, "trials": []}
    for trace in figure.data:
        trace.customdata = [[[-1, *cell[1:]] for cell in row] for row in trace.customdata]
    return figure

"""Which figures belong to which question, the most direct first; none that would be empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from study.analysis.questions.answers import Effect
from study.analysis.questions.tasks import APART, TOGETHER, name_settings, task_factors
from study.analysis.records import StudyRecords, load_study_records
from study.analysis.report import choice_figures, figures
from study.analysis.weight_tables import BACKBONE
from study.config.choice_space import ChoiceSpace
from study.record.layout import StudyFolder

# Other effects are drawn together by how the names of their measures start: a title, and what to know.
FAMILIES = {
    "effect_ratio": ("One factor's effect over another's", "Above 1, the first moves the choice further."),
    "effect_heads": ("How far each factor moves what heads choose, over how far seeds do", ""),
    "effect_after": ("What transfer leaves of the effects", "Effects after fine-tuning, over how far seeds move."),
    "transfer": ("How far transfer moves the choice", "Before against after fine-tuning, over how far seeds move."),
    "share_of_variance": ("Which share of the variance between networks each factor explains",
                          "Omega squared of a PERMANOVA: 0 for no more than chance explains."),
    "layer_share": ("Which share of the variance each factor explains, by part of the network", "Omega squared."),
    "distinctness": ("How distinct layers are", "Distances between layers, over those between replicates of a layer."),
    "trend": ("Trends of the switch weights", ""),
    "share_slope": ("How the {tracked} share follows B, and how G x B", ""),
    "convergence_change": ("How the time in which the choice settles differs", "Paired at equal cell and replicate."),
    "flips_change": ("How flips of a layer's largest weight differ", "Paired at equal cell and replicate."),
    "convergence": ("When the choice settles", ""),
    "flips": ("How often a layer's largest weight changes", ""),
}  # fmt: skip
PLAIN = ("convergence", "convergence_epoch", "flips")  # compare nothing
PUBLISHED = "official"  # the folder that `study.cli.import_published` writes to, if it is not told another


def draw_published(folder: StudyFolder) -> Iterator[go.Figure]:
    """What the networks chose that the authors of the SN papers published, where they lie beside the study."""
    beside = StudyFolder(folder.path.parent / PUBLISHED)
    if folder.path.name == PUBLISHED or not beside.config.exists():
        return
    records = load_study_records(beside)
    for depth, chosen in finished_choices(records, "depth", "batch_size").groupby("depth"):
        if records.switch["key"].isin(chosen["key"]).any():
            figure = choice_figures.weight_maps(records.switch, chosen, records.space, "batch_size", f"ResNet-{depth}")
            figure.layout.title.text = f"What the papers' own networks chose: ResNet-{depth}"
            figure.layout.title.subtitle.text = f"Read from the files that their authors published ({beside.path})."
            figure.layout.meta = {**figure.layout.meta, "trials": []}  # those are of another study
            for trace in figure.data:
                trace.customdata = [[[-1, *cell[1:]] for cell in row] for row in trace.customdata]
            yield figure


def finished_choices(records: StudyRecords, *axes: str) -> pd.DataFrame:
    """The finished trials of the reference norm that a figure over these axes may average."""
    trials = records.from_scratch[records.from_scratch["norm"].eq(records.reference_norm or "")]
    balanced_subset = records.balanced_subset(trials, *axes)
    finished: pd.DataFrame = balanced_subset[balanced_subset["state"].eq("done")]
    return finished


def draw_useful(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 1: differences between norms, scores and learning curves."""
    norms = records.levels("norm")
    planned = records.balanced_subset(records.from_scratch, "norm", "batch_size")
    done = planned[planned["state"].eq("done")]
    starts = ", and between how its networks start" * ("start_rule" in records.study.factors)
    yield from _draw_forests(records, effects, f"Differences between the switch norm and each other norm{starts}")
    if done[records.study.metric].notna().any():
        yield figures.metric_by_norm(done, norms, records.study.metric)
    if records.curves["key"].isin(done["key"]).any():
        yield figures.learning_curves(records.curves, done, norms, records.study.metric.replace("test", "val"))


def draw_impacts(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 2: effects of factors, and what layers choose."""
    chosen = finished_choices(records, "depth", "batch_size")
    chosen = chosen[chosen["key"].isin(records.switch["key"].unique())]
    yield from _draw_ranking(records, effects)
    if len(chosen):
        yield from _draw_choices(records, chosen)
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def _draw_choices(records: StudyRecords, chosen: pd.DataFrame) -> Iterator[go.Figure]:
    """What layers choose, by depth and B: at the end, and on the way there."""
    yield choice_figures.share_by_batch(records.switch, chosen, records.space, records.study.analysis.confidence)
    for depth, networks in chosen.groupby("depth"):
        yield choice_figures.weight_maps(records.switch, networks, records.space, "batch_size", f"ResNet-{depth}")
        triangle = choice_figures.ternary(records.switch, networks, records.space, "batch_size", f"ResNet-{depth}")
        yield from [triangle] if triangle else []
    yield choice_figures.share_by_epoch(records.switch_epochs, chosen, records.space)
    extremes = chosen[chosen["batch_size"].isin([chosen["batch_size"].min(), chosen["batch_size"].max()])]
    for depth, networks in extremes.groupby("depth"):
        yield choice_figures.layers_by_epoch(every_epoch(records, networks), networks, records.space, f"ResNet-{depth}")


def draw_tasks(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    """Figures of question 3: effects of task and data set, and what layers choose at each."""
    chosen = name_settings(finished_choices(records, *APART, *task_factors(records.study), "batch_size"))
    chosen = chosen[chosen["key"].isin(records.switch["key"].unique())]
    yield from _draw_ranking(records, effects)
    if len(chosen):
        weights = pd.concat([records.switch, records.heads]) if len(records.heads) else records.switch
        yield choice_figures.share_by_setting(
            weights, chosen, records.space, TOGETHER, records.study.analysis.confidence
        )
        yield choice_figures.weight_maps(records.switch, chosen, records.space, TOGETHER, "backbones by task")
        triangle = choice_figures.ternary(records.switch, chosen, records.space, TOGETHER, "backbones by task")
        yield from [triangle] if triangle else []
    yield from _draw_forests(records, effects, "Differences in what networks choose")


def _draw_ranking(records: StudyRecords, effects: Sequence[Effect]) -> Iterator[go.Figure]:
    ranking = _ranking(records.space)
    names = {name for kinds in ranking.values() for name in kinds.values()}
    if ranked := [effect for effect in effects if effect.measure.name in names]:
        yield figures.factor_ranking(
            ranked, ranking, "How far each factor moves the choice, over how far seeds do",
            f"Distances between cells that differ in the factor alone, over those between replicates of a cell: at 1, "
            f"no further than seeds. {_bars(records)}.",
        )  # fmt: skip


def _ranking(space: ChoiceSpace) -> dict[str, dict[str, str]]:
    """The measures that rank factors, by distance and by kind of weights."""
    return {
        "Jensen-Shannon": {"all weights": "effect", **{axis.label: f"effect_{axis.name}" for axis in space.axes}},
        "Aitchison": {"all weights": "effect_aitchison"},
    }


def _draw_forests(records: StudyRecords, effects: Sequence[Effect], title: str) -> Iterator[go.Figure]:
    """A forest for each of the `FAMILIES`; `title` names the one of all other effects that are not ranked."""
    families: dict[tuple[str, str], list[Effect]] = {}
    ranked = {name for kinds in _ranking(records.space).values() for name in kinds.values()}
    for effect in effects:
        if effect.measure.name not in ranked:
            families.setdefault(_find_family(effect, title, records.space.tracked[1]), []).append(effect)
    for (name, what), members in families.items():
        points = " (grey points)" if any(effect.per_replicate for effect in members) else ""
        compared = not any(effect.measure.name in PLAIN for effect in members)
        yield figures.forest(members, name, f"{what} {_bars(records)}{points}.".strip(), compared=compared)


def _bars(records: StudyRecords) -> str:
    return f"Bars: {records.study.analysis.confidence * 100:g} % intervals over replicates"


def _find_family(effect: Effect, title: str, tracked: str) -> tuple[str, str]:
    """Title and subtitle of the forest that an effect belongs to."""
    found = (words for start, words in FAMILIES.items() if effect.measure.name.startswith(start))
    name, what = next(found, (title, "Paired at equal cell and replicate."))
    return name.format(tracked=tracked), what


def every_epoch(records: StudyRecords, trials: pd.DataFrame) -> pd.DataFrame:
    """Switch weights of backbones at every epoch, with the key of each trial; text is coded."""
    table = records.weights
    wanted = pc.and_(
        pc.is_in(table["trial_id"].cast(pa.string()), pa.array(trials["trial_id"].unique(), pa.string())),
        pc.equal(table["role"].cast(pa.string()), BACKBONE),
    )
    frame = table.filter(wanted).to_pandas()
    identity = ["trial_id", "replicate"]
    of_trials: pd.DataFrame = frame.merge(trials[[*identity, "key"]].astype({"replicate": "int32"}), on=identity)
    return of_trials

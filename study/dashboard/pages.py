"""The workspace and the report of a study: their sections and panels, from the study and the names that trials log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from study.analysis.records import StudyRecords
from study.analysis.report.report import Report
from study.config.choice_space import ChoiceSpace
from study.dashboard.summary import COVERAGE, figures, tables

MOST_RUNS = 100  # that a panel draws; W&B's own limit of 10 would leave most of a study out
SUMMARY, TRIALS = "summary", "train"  # job types
ALL = "Group"  # all trials of a study are one group: curves are means over them


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section of the workspace and a chapter of the report.

    of: the job type of the runs that its panels are about. rows: whether the report shows these as a table, too.
    """

    title: str
    text: str = ""
    panels: Sequence[Any]
    of: str = TRIALS
    rows: bool = False


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the trials of a study log at the end of an epoch, as far as there are records of it."""

    space: ChoiceSpace
    metrics: list[str]
    pool: list[str]
    heads: list[str]
    stages: list[int]

    @classmethod
    def of(cls, records: StudyRecords) -> Logged:
        """Read from the records: a panel of what no trial logs would stay empty."""
        metrics = ("val_accuracy", "val_score", "val_loss", "train_accuracy", "train_loss")
        curves, switch = set(records.curves["name"]), records.switch
        if "val_accuracy" in curves and records.study.metric != "val_score":
            curves -= {"val_score"}  # the same
        return cls(
            space=records.space,
            metrics=[name for name in metrics if name in curves],
            pool=[name for name in records.space.member_names if name in set(switch["normalizer"])],
            heads=list(dict.fromkeys(records.heads["role"])),
            stages=sorted(int(stage) for stage in switch["stage"].unique()),
        )

    @property
    def shares(self) -> list[str]:
        """The metrics that stand for a choice: the share of the tracked member, or else of the first of the pool."""
        tracked = self.space.tracked[0]
        member = tracked if tracked in self.pool else next(iter(self.pool), None)
        return [f"switch/{axis}/{member}" for axis in self.space.axis_names if member]


def build_workspace(report: Report, entity: str) -> ws.Workspace:
    """The workspace: one of the project's saved views, of the runs of this study alone."""
    study = report.records.study
    return ws.Workspace(
        entity=entity, project=study.tracking.project, name=study.name,
        sections=[
            ws.Section(
                name=part.title, is_open=True,
                panels=[*([wr.MarkdownPanel(markdown=part.text)] if part.text else []), *part.panels],
            )
            for part in _parts(report)
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group") == study.name), pinned_columns=_columns(report.records)
        ),
    )  # fmt: skip


def build_report(report: Report, entity: str) -> wr.Report:
    """The report: the answers, with the charts of all trials and their table below them."""
    study, blocks = report.records.study, []
    for part in _parts(report):
        runs = wr.Runset(  # of the report's own project
            name=f"{study.name}: {part.of}",
            filters=expr.And(expr.Metric("Group") == study.name, expr.Metric("JobType") == part.of),
            pinned_columns=_columns(report.records) if part.of == TRIALS else [],
        )
        blocks += [wr.H2(part.title), *([wr.MarkdownBlock(part.text)] if part.text else [])]
        if part.panels:
            blocks += [wr.PanelGrid(runsets=[runs], panels=list(part.panels), hide_run_sets=not part.rows)]
    return wr.Report(
        entity=entity, project=study.tracking.project, title=study.title[:128], description=study.question.strip(),
        blocks=[wr.TableOfContents(), *blocks], width="fluid",
    )  # fmt: skip


def _parts(report: Report) -> list[Part]:
    """All that is shown, the answers first. New panels at each call: laying them out changes them."""
    records = report.records
    logged = Logged.of(records)
    parts = [
        *_answers(report),
        *(_by_factor(factor, logged) for factor in records.study.factors),
        *_choices(logged),
        _factors_and_choices(records, logged),
        *_layers(logged),
    ]
    return [part for part in parts if part.panels or part.text]


def _answers(report: Report) -> list[Part]:
    shown = tables(report)
    parts = [
        Part(
            title=answer.title, text=f"**{answer.verdict}.** {answer.answer}", of=SUMMARY,
            panels=[
                *(_media(name, figure.layout.title.text) for name, figure in figures(report).items()
                  if name.startswith(f"{question}/")),
                *(_table(name) for name in shown if name == f"{question}/effects"),
            ],
        )
        for question, answer in report.answers.items()
    ]  # fmt: skip
    return [*parts, Part(title="What is done", panels=[_table(COVERAGE)], of=SUMMARY)]


def _by_factor(factor: str, logged: Logged) -> Part:
    """Every metric, and the choice, with a curve a level: the mean over its trials, and their range."""
    return Part(
        title=f"By {factor.replace('_', ' ')}",
        panels=[_curves([name], by=wr.Config(_level(factor))) for name in (*logged.metrics, *logged.shares)],
    )


def _choices(logged: Logged) -> list[Part]:
    """Switch weights against the epoch: of the network, and the same by stage and by role."""
    each = [(statistic, normalizer) for statistic in logged.space.axis_names for normalizer in logged.pool]
    network = [
        _curves([f"switch/{statistic}/{normalizer}" for normalizer in logged.pool], f"{statistic} weights")
        for statistic in logged.space.axis_names if logged.pool
    ]  # fmt: skip
    stages = [
        _curves([f"switch/stage{stage}/{s}/{n}" for stage in logged.stages], f"{n}, {s} weights, by stage")
        for s, n in each
    ]
    roles = [
        _curves([f"switch/{s}/{n}", *(f"switch/{role}/{s}/{n}" for role in logged.heads)], f"{n}, {s} weights, by role")
        for s, n in each if logged.heads
    ]  # fmt: skip
    return [
        Part(title="How the choice is made", panels=network),
        Part(title="The choice by stage", panels=stages),
        Part(title="The choice of backbone and heads", panels=roles),
    ]


def _factors_and_choices(records: StudyRecords, logged: Logged) -> Part:
    """How a trial's factors, its choice and its result go together, at the end of training."""
    levels = {factor: wr.Config(_level(factor)) for factor in records.study.factors}
    ends = {name: wr.SummaryMetric(name) for name in (*logged.shares, records.study.metric)}
    columns = [wr.ParallelCoordinatesPlotColumn(axis, display_name=name) for name, axis in {**levels, **ends}.items()]
    result = records.study.metric
    return Part(
        title="Factors, choice and result", rows=True,
        panels=[
            wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=24, h=10)),
            *(wr.ScatterPlot(x=ends[share], y=ends[result], title=f"{result}, {share}") for share in logged.shares),
        ],
    )  # fmt: skip


def _layers(logged: Logged) -> list[Part]:
    if not logged.pool:
        return []
    panels = [_media("switch_weights/heat_map", "Layers x normalizers"), _table("switch_weights/table")]
    return [Part(title="Every layer, of each trial", panels=panels)]


def _curves(names: list[str], title: str | None = None, by: str | wr.Config = ALL) -> wr.LinePlot:
    """Curves against the epoch: a line a name and level, the mean over its trials, in a band of their range."""
    return wr.LinePlot(
        title=title or names[0], x="epoch", y=names, groupby=by, groupby_aggfunc="mean", groupby_rangefunc="minmax",
        max_runs_to_show=MOST_RUNS,
    )  # fmt: skip


def _media(name: str, title: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=[name], num_columns=1, layout=wr.Layout(w=12, h=12))


def _table(name: str) -> wr.WeavePanelSummaryTable:
    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=10))


def _columns(records: StudyRecords) -> list[str]:
    """Of the table of runs: the levels, the result, the choice."""
    levels = [f"config:levels.value.{factor}" for factor in records.study.factors]
    shown = [records.study.metric, *Logged.of(records).shares, "status"]
    return ["run:displayName", *levels, *(f"summary:{name}" for name in shown)]


def _level(factor: str) -> str:
    """Where the config of a run has the level."""
    return f"levels.{factor}"

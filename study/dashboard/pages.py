"""The W&B workspace and W&B report of a study: sections and panels, built from the metrics that its trials log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from study.analysis.questions.answers import Answer
from study.analysis.records import StudyRecords
from study.analysis.report.report import Report
from study.analysis.wording import format_verdict
from study.config.choice_space import ChoiceSpace
from study.dashboard.summary import COVERAGE, build_tables, name_figures
from study.record.wandb_names import StudyRuns

MAX_RUNS = 100  # runs that a panel draws; W&B's default of 10 would leave out most of a study
SUMMARY_JOB, TRIAL_JOB = "summary", "train"  # job types
GROUP = "Group"  # all trials of a study are one group, so curves are means over them


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the workspace and of the report.

    job_type: of the runs that its panels show. show_runs: whether the report also shows a table of these runs.
    """

    title: str
    text: str = ""
    panels: Sequence[Any]
    job_type: str = TRIAL_JOB
    show_runs: bool = False


@dataclass(frozen=True, kw_only=True)
class LoggedMetrics:
    """The metrics that the trials of a study have logged at the end of epochs."""

    space: ChoiceSpace
    metrics: list[str]
    pool: list[str]
    heads: list[str]
    stages: list[int]

    @classmethod
    def from_records(cls, records: StudyRecords) -> LoggedMetrics:
        """The metrics that occur in the records; panels of others would stay empty."""
        metrics = ("val_accuracy", "val_score", "val_loss", "train_accuracy", "train_loss")
        curves, switch = set(records.curves["name"]), records.switch
        if "val_accuracy" in curves and records.study.metric != "val_score":
            curves -= {"val_score"}  # equal to val_accuracy
        return cls(
            space=records.space,
            metrics=[name for name in metrics if name in curves],
            pool=[name for name in records.space.member_names if name in set(switch["normalizer"])],
            heads=list(dict.fromkeys(records.heads["role"])),
            stages=sorted(int(stage) for stage in switch["stage"].unique()),
        )

    @property
    def tracked_shares(self) -> list[str]:
        """The metrics that represent a choice: the share of the tracked member, or of the first member of the pool."""
        tracked = self.space.tracked[0]
        member = tracked if tracked in self.pool else next(iter(self.pool), None)
        return [f"switch/{axis}/{member}" for axis in self.space.axis_names if member]


def build_workspace(report: Report, runs: StudyRuns, entity: str) -> ws.Workspace:
    """The workspace: a saved view of the project that shows the runs of this study alone."""
    return ws.Workspace(
        entity=entity, project=runs.tracking.project, name=report.records.study.name,
        sections=[
            ws.Section(
                name=section.title, is_open=True,
                panels=[*([wr.MarkdownPanel(markdown=section.text)] if section.text else []), *section.panels],
            )
            for section in _build_sections(report)
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MAX_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric(GROUP) == runs.group), pinned_columns=_list_run_columns(report.records)
        ),
    )  # fmt: skip


def build_report(report: Report, runs: StudyRuns, entity: str) -> wr.Report:
    """The report: the answers, with the charts of all trials and their table below them."""
    study, blocks = report.records.study, []
    for section in _build_sections(report):
        shown = wr.Runset(
            name=f"{study.name}: {section.job_type}",
            filters=expr.And(expr.Metric(GROUP) == runs.group, expr.Metric("JobType") == section.job_type),
            pinned_columns=_list_run_columns(report.records) if section.job_type == TRIAL_JOB else [],
        )
        blocks += [wr.H2(section.title), *([wr.MarkdownBlock(section.text)] if section.text else [])]
        if section.panels:
            blocks += [wr.PanelGrid(runsets=[shown], panels=list(section.panels), hide_run_sets=not section.show_runs)]
    return wr.Report(
        entity=entity, project=runs.tracking.project, title=study.title[:128], description=study.question.strip(),
        blocks=[wr.TableOfContents(), *blocks], width="fluid",
    )  # fmt: skip


def _build_sections(report: Report) -> list[Section]:
    """All sections, the answers first. Panels are new at each call, because their layout changes them."""
    records = report.records
    logged = LoggedMetrics.from_records(records)
    sections = [
        *_build_answer_sections(report),
        *(_build_factor_section(factor, logged) for factor in records.study.factors),
        *_build_choice_sections(logged),
        _build_result_section(records, logged),
        *_build_layer_sections(logged),
    ]
    return [section for section in sections if section.panels or section.text]


def _build_answer_sections(report: Report) -> list[Section]:
    shown = build_tables(report)
    sections = [
        Section(
            title=answer.title, job_type=SUMMARY_JOB,
            text=_format_answer_text(answer),
            panels=[
                *(_build_media_panel(name, figure.layout.title.text) for name, figure in name_figures(report).items()
                  if name.startswith(f"{question}/")),
                *(_build_table_panel(name) for name in shown if name == f"{question}/effects"),
            ],
        )
        for question, answer in report.answers.items()
    ]  # fmt: skip
    return [*sections, Section(title="Coverage", panels=[_build_table_panel(COVERAGE)], job_type=SUMMARY_JOB)]


def _format_answer_text(answer: Answer) -> str:
    """Verdict, claim, the verdict on each factor, and the answer, as Markdown."""
    parts = [f"**{format_verdict(answer.verdict, answer.interim).capitalize()}.** {answer.answer}"]
    if answer.claim:
        parts.insert(0, f"Tested: {answer.claim}.")
    if answer.factors and not answer.interim:
        judged = "; ".join(f"{name}: {format_verdict(verdict)}" for name, verdict in answer.factors.items())
        parts.append(f"Does each factor move the choice? {judged}.")
    return "\n\n".join(parts)


def _build_factor_section(factor: str, logged: LoggedMetrics) -> Section:
    """Every metric, and the choice, with one curve per level: the mean over its trials, and their range."""
    by = wr.Config(_name_level_key(factor))
    panels = [_build_line_plot([name], by=by) for name in (*logged.metrics, *logged.tracked_shares)]
    return Section(title=f"By {factor.replace('_', ' ')}", panels=panels)


def _build_choice_sections(logged: LoggedMetrics) -> list[Section]:
    """Switch weights against the epoch: of the network, and the same by stage and by role."""
    axes, pool = logged.space.axes, logged.pool
    network = [
        _build_line_plot([f"switch/{axis.name}/{member}" for member in pool], axis.label) for axis in axes if pool
    ]
    stages = [
        _build_line_plot(
            [f"switch/stage{stage}/{axis.name}/{member}" for stage in logged.stages],
            f"{member}, {axis.label}, by stage",
        )
        for axis, member in product(axes, pool)
    ]
    roles = [
        _build_line_plot(
            [f"switch/{role}{axis.name}/{member}" for role in ("", *(f"{head}/" for head in logged.heads))],
            f"{member}, {axis.label}, by role",
        )
        for axis, member in product(axes, pool) if logged.heads
    ]  # fmt: skip
    return [
        Section(title="How the choice is made", panels=network),
        Section(title="The choice by stage", panels=stages),
        Section(title="The choice of backbone and heads", panels=roles),
    ]


def _build_result_section(records: StudyRecords, logged: LoggedMetrics) -> Section:
    """Factors, choice and result of every trial at the end of training, side by side."""
    result, shares = records.study.metric, logged.tracked_shares
    levels = {factor: wr.Config(_name_level_key(factor)) for factor in records.study.factors}
    ends = {name: wr.SummaryMetric(name) for name in (*shares, result)}
    columns = [wr.ParallelCoordinatesPlotColumn(axis, display_name=name) for name, axis in {**levels, **ends}.items()]
    return Section(
        title="Factors, choice and result", show_runs=True,
        panels=[
            wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=24, h=10)),
            *(wr.ScatterPlot(x=ends[share], y=ends[result], title=f"{result}, {share}") for share in shares),
        ],
    )  # fmt: skip


def _build_layer_sections(logged: LoggedMetrics) -> list[Section]:
    if not logged.pool:
        return []
    title = f"Layers x {logged.space.noun}s"
    panels = [_build_media_panel("switch_weights/heat_map", title), _build_table_panel("switch_weights/table")]
    return [Section(title="Every layer of each trial", panels=panels)]


def _build_line_plot(names: list[str], title: str | None = None, by: str | wr.Config = GROUP) -> wr.LinePlot:
    """Curves against the epoch: a line for each name and level, the mean over trials, and a band of their range."""
    return wr.LinePlot(
        title=title or names[0], x="epoch", y=names, groupby=by, groupby_aggfunc="mean", groupby_rangefunc="minmax",
        max_runs_to_show=MAX_RUNS,
    )  # fmt: skip


def _build_media_panel(name: str, title: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=[name], num_columns=1, layout=wr.Layout(w=12, h=12))


def _build_table_panel(name: str) -> wr.WeavePanelSummaryTable:
    return wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(w=24, h=10))


def _list_run_columns(records: StudyRecords) -> list[str]:
    """Columns of the table of runs: levels, result and choice."""
    levels = [f"config:levels.value.{factor}" for factor in records.study.factors]
    shown = [records.study.metric, *LoggedMetrics.from_records(records).tracked_shares, "status"]
    return ["run:displayName", *levels, *(f"summary:{name}" for name in shown)]


def _name_level_key(factor: str) -> str:
    """The key of a factor's level in the config of a run."""
    return f"levels.{factor}"

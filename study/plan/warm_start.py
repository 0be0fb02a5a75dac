"""Warm starts in the plan: which trial or file a trial starts from.

A trial with a `start_rule` other than `scratch` starts from the trial of another cell of its study, from a trial of any
study, or from a file of weights, as the study's section `start` says. `warm_start_section` reads that section,
`warm_start_checks` refuses what cannot work before anything is trained, and `study.training.warm_start` loads weights
and choices. None of the three modules of the plan imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config.schema import StartConfig, StartRule, StudyConfig, TrialConfig, trial_id
from study.record.layout import StudyFolder

OPTION_RULES: dict[str, tuple[StartRule, ...]] = {
    "start_epoch": ("frozen",),
    "start_fresh": ("argmax", "frozen", "permute", "shared"),
    "start_thaw": ("fine_tune", "frozen"),
}
"""The start rules that each option of a start applies to."""


@dataclass(frozen=True, kw_only=True)
class StartSource:
    """What the trials of a cell start from: the trials of another cell of their study, or a path outside of it.

    cell: the id of the other cell; empty for a path.
    path: a file of weights, the folder of a trial, or the folder of a cell with a trial for every replicate.
    by_replicate: whether `path` is the folder of a cell.
    """

    cell: str = ""
    path: str = ""
    by_replicate: bool = True

    def key(self, replicate: int) -> str | None:
        """The key of the trial of the same study to start from; None for a start outside of the study."""
        return f"{self.cell}-r{replicate}" if self.cell else None

    def locate(self, replicate: int, study: StudyFolder) -> Path:
        """The folder of the trial, or the file of weights, to start from."""
        return study.trial(self.cell, replicate).path if self.cell else self.locate_outside(replicate).absolute()

    def describe(self, replicate: int) -> str:
        """The key of the trial of the same study, or the path outside of it."""
        return self.key(replicate) or str(self.locate_outside(replicate))

    def locate_outside(self, replicate: int) -> Path:
        """The folder of the trial, or the file of weights, at `path`."""
        return Path(self.path, f"r{replicate}") if self.by_replicate else Path(self.path)


def build_config(study: StudyConfig, levels: Mapping[str, Any]) -> TrialConfig:
    """Returns the config of a cell, with the settings of its start and the id of what it starts from.

    Raises pydantic's `ValidationError` for a value that is not allowed.
    """
    config = study.apply_levels(levels)
    if config.start_rule == "scratch":
        return config
    options = {"start_epoch": study.start.epoch, "start_fresh": study.start.fresh, "start_thaw": study.start.thaw}
    given = {
        name: value for name, value in options.items()
        if value is not None and config.start_rule in OPTION_RULES[name]
    }  # fmt: skip
    return study.apply_levels(levels, {**study.start.base, **given, "start_source": _build_source_id(study, levels)})


def find_source(study: StudyConfig, levels: Mapping[str, Any], config: TrialConfig) -> StartSource | None:
    """Returns what the trials of a cell start from; None from scratch."""
    if config.start_rule == "scratch":
        return None
    if is_outside(study.start):
        return build_outside_source(study.start)
    source = find_source_levels(study, levels)
    return StartSource(cell=study.build_trial_id(build_config(study, source), source))


def list_required_cells(study: StudyConfig, levels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns a cell and the cells of its study that it starts from, directly or not, in the order of training."""
    cells = [dict(levels)]
    while not is_outside(study.start) and study.apply_levels(cells[0]).start_rule != "scratch":
        cells.insert(0, find_source_levels(study, cells[0]))
    return cells


def is_outside(start: StartConfig) -> bool:
    """Whether trials start from something outside of their study."""
    return start.trial is not None or start.checkpoint is not None


def build_outside_source(start: StartConfig) -> StartSource:
    """The trial or file outside of their study that trials start from."""
    if start.checkpoint is not None:
        return StartSource(path=start.checkpoint, by_replicate=False)
    return StartSource(path=str(start.trial), by_replicate=find_replicate(start) is None)


def find_replicate(start: StartConfig) -> int | None:
    """The one replicate that `start.trial` names; None if it names the folder of a cell."""
    found = re.search(r"/r(\d+)/*$", start.trial or "")
    return int(found[1]) if found else None


def find_source_levels(study: StudyConfig, levels: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of the same study that a cell with a start rule starts from.

    That cell may have a start rule itself. It then starts from its own cell at `scratch`, so that there is no cycle.
    """
    own = {"start_rule": study.base.start_rule, **levels}
    source = {**own, "start_rule": "scratch", **study.start.cell}
    return source if source != own else {**own, "start_rule": "scratch"}


def find_source_config(study: StudyConfig, levels: Mapping[str, Any]) -> TrialConfig | None:
    """The config of the trial that a cell with a start rule starts from; None for a file of weights."""
    if not is_outside(study.start):
        return build_config(study, find_source_levels(study, levels))
    source = study.start.source
    return TrialConfig(**source) if isinstance(source, dict) else None


def _build_source_id(study: StudyConfig, levels: Mapping[str, Any]) -> str:
    """Identifies a start by its config or content, whatever study and folder it is in."""
    config, replicate = find_source_config(study, levels), find_replicate(study.start)
    if config is None:
        return str(study.start.source)
    return trial_id(config, []) + ("" if replicate is None else f"-r{replicate}")

"""The names of a study's runs on W&B. Imports no W&B."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from study.config.schema import StudyConfig, TrackingConfig


def build_run_config(description: Mapping[str, Any], environment: Mapping[str, Any], attempts: int) -> dict[str, Any]:
    """The config of a trial's run: its description, with the norm and the number of attempts as columns of their own.

    description: the content of trial.yaml.
    """
    return {"norm": description["config"]["norm"], **description, "environment": environment, "attempts": attempts}


def name_runs(study: StudyConfig, study_id: str, project_url: str | None = None) -> StudyRuns:
    """The names of the runs of a study in the folder with this id."""
    return StudyRuns(study=study.name, study_id=study_id, tracking=study.tracking, project_url=project_url)


def create_study_id() -> str:
    """Six random hex digits, which tell the runs of a study folder from those of the same study elsewhere."""
    return secrets.token_hex(3)


@dataclass(frozen=True, kw_only=True)
class StudyRuns:
    """The W&B runs of one study folder.

    study_id: of the folder; empty for folders of older versions, whose runs have no id in their names.
    project_url: the project's page, if runs are online.
    """

    study: str = ""
    study_id: str = ""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    project_url: str | None = None

    @property
    def group(self) -> str:
        """The group of all runs of this folder."""
        return self._add_id(self.study)

    def build_run_id(self, name: str) -> str:
        """The id of a run, unique in the project. `name` is what the page shows."""
        return self._add_id(name)

    def build_url(self, name: str) -> str | None:
        """The page of a run; None if runs are not online."""
        return self.project_url and f"{self.project_url}/runs/{quote(self.build_run_id(name))}"

    def _add_id(self, name: str) -> str:
        return f"{name}-{self.study_id}" if self.study_id else name

"""Build hook: puts the commit into the wheel and the source distribution, as `study/commit.txt`.

An installed package has no checkout to ask, and its records must still name the commit that they were made with.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface[BuilderConfig]):
    """Adds `study/commit.txt`, without writing it into the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the file, except to an editable install, and where a source distribution already has it."""
        if version == "editable" or Path(self.root, "study", "commit.txt").exists():
            return
        environment = runpy.run_path(str(Path(self.root, "study", "record", "environment.py")))
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name, "commit.txt")
        file.write_text(environment["find_commit"]() + "\n", encoding="utf-8")
        build_data["force_include"][str(file)] = "study/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Deletes the temporary file."""
        if hasattr(self, "folder"):
            self.folder.cleanup()

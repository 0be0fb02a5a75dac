"""Build hook: adds the files that an installed package cannot find beside itself, as a checkout does.

Wheels and source distributions get the commit as `study/commit.txt`, because records name the commit that made them.
Wheels also get the folder `configs` as `study/configs`. An editable install needs neither: it imports the checkout.
"""

from __future__ import annotations

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BuildHook(BuildHookInterface[BuilderConfig]):
    """Adds the files without writing into the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the files; a source distribution that is built from already has the commit."""
        self.folder = tempfile.TemporaryDirectory()
        if version == "editable":
            return
        if self.target_name == "wheel":
            build_data["force_include"]["configs"] = "study/configs"
        if not Path(self.root, "study", "commit.txt").exists():
            environment = runpy.run_path(str(Path(self.root, "study", "record", "environment.py")))
            file = Path(self.folder.name, "commit.txt")
            file.write_text(environment["git_commit"]() + "\n", encoding="utf-8")
            build_data["force_include"][str(file)] = "study/commit.txt"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Deletes the temporary file."""
        self.folder.cleanup()

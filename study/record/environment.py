"""Describes what a run was made with: versions, commit, command, machine. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "optuna", "wandb", "numpy", "scipy", "pandas",
            "scikit-learn")  # fmt: skip


def describe_environment(command: str) -> dict[str, Any]:
    """Versions, commit, command and host, which are the same for all trials of a run on one machine."""
    return {"command": command, "commit": git_commit(), **describe_machine()}


def describe_machine() -> dict[str, Any]:
    """Versions and host of this machine, which may differ between the nodes of a cluster."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }


def format_command(arguments: list[str]) -> str:
    """The command line that repeats a run, with passwords hidden."""
    return shlex.join(["python", "run_study.py", *map(hide_passwords, arguments)])


def hide_passwords(text: str) -> str:
    """`postgresql://me:secret@host` -> `postgresql://me:***@host`, and `?password=secret` -> `?password=***`.

    A password may contain characters that a URL should escape: everything up to the last @ of the word is hidden, or
    up to the next @ of the line.
    """
    text = re.sub(r"(\w+://[^:/@\s]*):(\S*|[^@\n]*)@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE)


def git_commit() -> str:
    """The commit of the checkout, with `+changes` where tracked files differ from it; empty outside a checkout."""
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(  # noqa: S603
                ["git", "-C", str(folder), *arguments],  # noqa: S607
                capture_output=True, text=True, timeout=10, check=True,
            ).stdout.strip()  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return ""

    if not (folder / ".git").exists():
        return ""
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

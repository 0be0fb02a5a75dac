"""What a run was made with: versions, commit, command, machine. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "optuna", "wandb", "numpy", "scipy", "pandas",
            "scikit-learn")  # fmt: skip


def describe_environment(command: str) -> dict[str, Any]:
    """Versions, commit, command, host. The same for every trial of a run on one machine."""
    return {"command": command, "commit": git_commit(), **describe_machine()}


def describe_machine() -> dict[str, Any]:
    """What is this machine's own: a cluster's nodes may differ."""
    return {
        "versions": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }


def program_name() -> str:
    """How the user starts this program: `run-study` where it is installed, `python run_study.py` in a checkout."""
    script_was_typed = Path(sys.argv[0]).stem == "run-study"
    in_checkout = (Path(__file__).parents[2] / "run_study.py").is_file()
    return "python run_study.py" if in_checkout and not script_was_typed else "run-study"


def command_line(arguments: Sequence[str]) -> str:
    """The command as a user would type it again, with passwords hidden."""
    return f"{program_name()} {shlex.join(map(hide_passwords, arguments))}"


def hide_passwords(text: str) -> str:
    """`postgresql://me:secret@host` -> `postgresql://me:***@host`, and `?password=secret` -> `?password=***`.

    Also where the password has characters that a URL should not have: all up to the last @ of a word is hidden, or up
    to the next @ of the line.
    """
    text = re.sub(r"(\w+://[^:/@\s]*):(\S*|[^@\n]*)@", r"\1:***@", text)
    return re.sub(r"([?&]\w*password=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE)


def git_commit() -> str:
    """The checkout's commit, with `+changes` where files differ from it; empty outside a checkout."""
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


def package_version(package: str) -> str:
    """The installed version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

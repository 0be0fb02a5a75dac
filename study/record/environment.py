"""Describes what a run is made with: versions, commit, command, machine. Imports no torch.

The build hook (`hatch_build.py`) runs this file by itself, so it imports nothing of `study`.
"""

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

PACKAGES = ("normalizer-study", "torch", "torchvision", "lightning", "torchmetrics", "optuna", "wandb", "numpy",
            "scipy", "pandas", "scikit-learn")  # fmt: skip
_NAMES = r"(?:passw(?:or)?d|passphrase|pwd|secret|token|api_?key)\s*(?:=|%3D)\s*"  # ends of names, and what follows
_VALUE = r"""(?:'[^']*'|"[^"]*"|[^&\s'"]*)"""
UNKNOWN_COMMIT = "unknown"
_URL_PASSWORD = re.compile(r"((?<!\w)\w+://[^:/@]*):(\S*|[^@]*)@")


def describe_environment(command: str) -> dict[str, Any]:
    """Returns command, commit, versions and host: identical for all trials of one command on one machine."""
    return {"command": command, "commit": git_commit(), **describe_machine()}


def describe_machine() -> dict[str, Any]:
    """Returns what can differ between the nodes of a cluster: versions, Python, platform, host, cores."""
    return {
        "versions": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
    }


def program_name() -> str:
    """Returns how the user starts this program: `run-study` if it is installed, `python run_study.py` in a checkout."""
    script_was_typed = Path(sys.argv[0]).stem == "run-study"
    in_checkout = (Path(__file__).parents[2] / "run_study.py").is_file()
    return "python run_study.py" if in_checkout and not script_was_typed else "run-study"


def format_command(arguments: Sequence[str], program: str = "") -> str:
    """Returns the command that a user types to run `arguments` again, with passwords hidden; default: this program."""
    return f"{program or program_name()} {shlex.join(map(hide_passwords, arguments))}"


def hide_passwords(text: str) -> str:
    """`postgresql://me:secret@host` -> `postgresql://me:***@host`, and `password=secret` -> `password=***`.

    A password may contain characters that a URL should escape: everything up to the last @ of the word is hidden, or
    up to the next @.
    """
    before, at, after = text.rpartition("@")  # only before an @, so that no search is in vain
    text = _URL_PASSWORD.sub(r"\1:***@", before + at) + after
    return re.sub(f"({_NAMES}){_VALUE}", r"\1***", text, flags=re.IGNORECASE)


def git_commit() -> str:
    """Returns the commit of the checkout, with `+changes` if files differ from it.

    For an installed package, this is the commit it was built from. "unknown" if git fails, or if the package was built
    outside a checkout.
    """
    package = Path(__file__).parents[1]
    if (package.parent / ".git").exists():
        return _ask_git(package.parent)
    file = package / "commit.txt"  # the build hook writes it
    return file.read_text(encoding="utf-8").strip() if file.exists() else UNKNOWN_COMMIT


def _ask_git(checkout: Path) -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(checkout), *arguments],  # noqa: S607
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN_COMMIT


def package_version(package: str) -> str:
    """Returns the installed version of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""

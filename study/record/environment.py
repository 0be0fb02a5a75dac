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
# Ends of the names of secrets.
_NAMES = r"(?:passw(?:or)?d|passphrase|pwd|credentials?|secret|token|(?:api|access|private|secret)[_-]?key)"
_VALUE = r"""(?:'[^']*'|"[^"]*"|\*\*\*|[^&\s'"]+)"""
_SECRETS = [
    re.compile(rf"""({_NAMES}["']?\s*(?:=|%3D)\s*){_VALUE}""", re.IGNORECASE),
    # What follows the colon after a path, as in `/etc/passwd: cannot be read`, is a message.
    re.compile(rf"""((?<![\w/-])[\w-]*{_NAMES}["']?\s*:\s*)(?!unknown (?:key|study|scale);){_VALUE}""", re.IGNORECASE),
    re.compile(rf"((?<![A-Za-z])pass(?:=|:\s*|%3D)){_VALUE}", re.IGNORECASE),
    re.compile(rf"((?<![\w-])--(?:[\w-]*[_-])?{_NAMES}\s+)(?!-){_VALUE}", re.IGNORECASE),
    re.compile(rf"(Authorization\s*[:=]\s*(?:\w+\s+)?){_VALUE}", re.IGNORECASE),
    re.compile(rf"(\b(?:Bearer|Basic)\s+)(?=[^\s]{{16}}){_VALUE}"),
    re.compile(r"(\bhttps?://)[^\s/@:]+(?=@)", re.IGNORECASE),  # a token in place of a user
]
UNKNOWN_COMMIT = "unknown"
_URL_PASSWORD = re.compile(r"((?<!\w)\w+://[^:/@]*):(\S*|[^@]*)@")


def describe_environment(command: str) -> dict[str, Any]:
    """Returns command, commit, versions and host: identical for all trials of one command on one machine."""
    return {"command": command, "commit": git_commit(), **describe_machine()}


def describe_machine() -> dict[str, Any]:
    """Returns what can differ between the nodes of a cluster: versions, Python, platform, host, processor, cores.

    Other processors round differently, so that a trial has other bits on them.
    """
    return {
        "versions": {name: package_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "processor": read_processor_name(),
        "cpus": os.cpu_count(),
    }


def read_processor_name() -> str:
    """Returns the name of the processor's model, or of its architecture where the system does not say more."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def program_name() -> str:
    """Returns how the user starts this program: `run-study` if it is installed, `python run_study.py` in a checkout."""
    script_was_typed = Path(sys.argv[0]).stem == "run-study"
    in_checkout = (Path(__file__).parents[2] / "run_study.py").is_file()
    return "python run_study.py" if in_checkout and not script_was_typed else "run-study"


def format_command(arguments: Sequence[str], program: str = "") -> str:
    """Returns the command that a user types to run `arguments` again, with passwords hidden; default: this program."""
    # Twice: a value may have its name in the argument before it, and may be quoted in the joined line.
    return f"{program or program_name()} {hide_passwords(shlex.join(map(hide_passwords, arguments)))}"


def hide_passwords(text: str) -> str:
    """`postgresql://me:secret@host` -> `postgresql://me:***@host`, and `password=secret` -> `password=***`.

    So are values after `--token` and `Authorization:`, and a token in place of a user, as in `https://token@host`.
    A password may contain characters that a URL should escape: everything up to the last @ of the word is hidden, or
    up to the next @.
    """
    before, at, after = text.rpartition("@")  # only before an @, so that no search is in vain
    text = _URL_PASSWORD.sub(r"\1:***@", before + at) + after
    for pattern in _SECRETS:
        text = pattern.sub(r"\1***", text)
    return text


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

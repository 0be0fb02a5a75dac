"""Compiles the CPU kernels once a machine, and loads them."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

HEADER = Path(__file__).with_name("kernels.h")
# Of operators.cpp, all that takes time is reading torch's headers.
SOURCES = {Path(__file__).with_name("kernels.cpp"): "-O3", Path(__file__).with_name("operators.cpp"): "-O1"}
FLAGS = ("-std=c++20", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_logger = logging.getLogger(__name__)


class BuildError(Exception):
    """There is no compiler, or it failed."""


def library() -> Path:
    """The compiled kernels, from the cache or compiled into it. BuildError if that cannot be.

    Every source, compiler, torch and processor has a file of its own, which is written under another name and moved
    into place. The lock, which a killed process cannot leave behind, only saves a second one the same work.
    """
    if os.name != "posix":
        raise BuildError("there are kernels for Linux and macOS")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    flags = [*FLAGS, _machine_flag()]
    sources = [source.read_text(encoding="utf-8") for source in (HEADER, *SOURCES)]
    key = "\n".join([*sources, compiler, *flags, torch.__version__, _processor()])
    path = _cache() / f"norms-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _compile(compiler, flags, path)
    return path


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    _logger.warning("compiling the kernels of the norm layers, once a machine: about half a minute")
    home = Path(torch.__file__).parent
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    link = ["-shared", "-L", str(home / "lib"), "-ltorch", "-ltorch_cpu", "-lc10"]
    if platform.system() == "Darwin":
        link.append("-Wl,-undefined,dynamic_lookup")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
        _run(*([compiler, *flags, level, *includes, "-c", str(source), "-o", target]
               for (source, level), target in zip(SOURCES.items(), objects, strict=True)))  # fmt: skip
        result = Path(folder) / path.name
        _run([compiler, *objects, "-o", str(result), *link])
        os.replace(result, path)


def _run(*commands: list[str]) -> None:
    """Runs commands at the same time. BuildError, with the first line that says why, if one fails."""
    try:
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]  # noqa: S603
    except OSError as error:
        raise BuildError(str(error)) from error
    messages = [process.communicate()[1] for process in processes]
    for command, process, message in zip(commands, processes, messages, strict=True):
        if process.returncode != 0:
            why = next((line for line in message.splitlines() if "error" in line), f"exit code {process.returncode}")
            raise BuildError(f"{command[0]}: {why}")


def _cache() -> Path:
    """A folder that only this user can write to: what lies there is loaded and run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "normalizer-study"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
        if os.access(folder, os.W_OK) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022:
            return folder
    except OSError:
        pass
    raise BuildError(f"{folder} is not writable, or not by its owner alone; XDG_CACHE_HOME chooses another place")


def _machine_flag() -> str:
    """Code for this very processor; clang spells it differently on ARM."""
    return "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


def _processor() -> str:
    """What `native` stands for, and the C library: nodes of a cluster share a home, and not always these."""
    library = " ".join(platform.libc_ver())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return library + next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.platform() + platform.processor()

"""Compiles the CPU kernels once a machine, and loads them."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("fused.cpp")
# The oldest torch that pyproject.toml allows: what is compiled works with all later ones, too.
FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
         "-DTORCH_TARGET_VERSION=0x020b000000000000")  # fmt: skip


class BuildError(Exception):
    """There is no compiler, or it failed."""


def library() -> Path:
    """The compiled kernels, from the cache or compiled into it. BuildError if that cannot be.

    Every source, compiler, torch and processor has a file of its own, which is written under another name and moved
    into place: no lock is needed, none can be left behind, and at worst two processes do the same work.
    """
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    flags = [*FLAGS, _machine_flag()]
    key = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, *flags, torch.__version__, _processor()])
    path = _cache() / f"norms-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        _compile(compiler, flags, path)
    return path


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    home = Path(torch.__file__).parent
    libraries = ["-L", str(home / "lib"), "-ltorch", "-ltorch_cpu", "-lc10"]
    if platform.system() == "Darwin":
        libraries.append("-Wl,-undefined,dynamic_lookup")
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".so.tmp")
    os.close(handle)
    try:
        command = [compiler, *flags, f"-I{home / 'include'}", str(SOURCE), "-o", scratch, *libraries]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)  # noqa: S603
        if done.returncode != 0:
            first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise BuildError(f"{compiler} failed: {first}")
        os.replace(scratch, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler}: {error}") from error
    finally:
        Path(scratch).unlink(missing_ok=True)


def _cache() -> Path:
    """A folder that only this user can write to: what lies there is loaded and run."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "normalizer-study"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    except OSError:
        pass
    raise BuildError(f"{folder} cannot be written to; XDG_CACHE_HOME chooses another folder")


def _machine_flag() -> str:
    """Code for this very processor; clang spells it differently on ARM."""
    return "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


def _processor() -> str:
    """What `native` stands for: nodes of a cluster share a home, and not always a processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.platform() + platform.processor()

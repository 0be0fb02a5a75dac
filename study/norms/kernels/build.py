"""Compiles the CPU kernels, once per machine, into a cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock  # torch requires it, too

HEADER = Path(__file__).with_name("kernels.h")
# operators.cpp needs no -O3: its compilation time is spent on torch's headers.
SOURCES = {Path(__file__).with_name("kernels.cpp"): "-O3", Path(__file__).with_name("operators.cpp"): "-O1"}
# Without -ffp-contract=off, compilers contract multiplications and additions of whole vectors and of the rest unlike,
# so that the last bit of a channel would depend on how many channels, and trials, lie beside it.
FLAGS = ("-std=c++20", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
UNMAPPED_USER = 65534
_logger = logging.getLogger(__name__)


class BuildError(Exception):
    """There is no compiler, the compiler failed, or there is no cache folder."""


def build_library() -> Path:
    """Returns the path of the compiled kernels, and compiles them if the cache does not contain them yet.

    The file name is a hash of the sources, the compiler, its flags, torch's version and the processor. The compiler
    writes to a temporary folder, and the result is moved into place, so a killed process leaves no broken file. The
    file lock keeps a second process from compiling the same file.

    Raises:
        BuildError: if there is no compiler, if it fails, or if the cache folder cannot be used.
    """
    if os.name != "posix":
        raise BuildError("there are kernels for Linux and macOS only")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise BuildError("there is no C++ compiler (c++, g++, clang++ or $CXX)")
    flags = [*FLAGS, _native_flag()]
    sources = [source.read_text(encoding="utf-8") for source in (HEADER, *SOURCES)]
    key = "\n".join([*sources, compiler, *flags, torch.__version__, _describe_processor()])
    path = _find_cache_folder() / f"norms-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    _compile(compiler, flags, path)
    except OSError as error:  # a full disk, a quota, a read-only mount
        raise BuildError(f"{path.parent}: {error.strerror or error}") from None
    return path


def _compile(compiler: str, flags: list[str], path: Path) -> None:
    _logger.warning("compiling the kernels of the norm layers, once per machine: about half a minute")
    home = Path(torch.__file__).parent
    includes = [f"-I{home / 'include'}", f"-I{home / 'include/torch/csrc/api/include'}"]
    link = ["-shared", "-L", str(home / "lib"), "-ltorch", "-ltorch_cpu", "-lc10"]
    if platform.system() == "Darwin":
        link.append("-Wl,-undefined,dynamic_lookup")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        objects = [str(Path(folder) / f"{source.stem}.o") for source in SOURCES]
        _run_concurrently(*([compiler, *flags, level, *includes, "-c", str(source), "-o", target]
                            for (source, level), target in zip(SOURCES.items(), objects, strict=True)))  # fmt: skip
        result = Path(folder) / path.name
        _run_concurrently([compiler, *objects, "-o", str(result), *link])
        os.replace(result, path)


def _run_concurrently(*commands: list[str]) -> None:
    """Runs all commands at the same time. BuildError with the first line of error output if one fails."""
    try:
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]  # noqa: S603
    except OSError as error:
        raise BuildError(str(error)) from error
    messages = [process.communicate()[1] for process in processes]
    for command, process, message in zip(commands, processes, messages, strict=True):
        if process.returncode != 0:
            reason = next((line for line in message.splitlines() if "error" in line), f"exit code {process.returncode}")
            raise BuildError(f"{command[0]}: {reason}")


def _find_cache_folder() -> Path:
    """Returns a folder that only this user can write to or replace, because its files are loaded and executed."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "normalizer-study"
    advice = "set XDG_CACHE_HOME to another place"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()  # links are not followed again
        status = folder.stat()
        unsafe = next((parent for parent in folder.parents if _is_open_to_others(parent.stat())), None)
    except OSError as error:
        raise BuildError(f"{folder} cannot be used: {error.strerror}; {advice}") from None
    if not os.access(folder, os.W_OK) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildError(f"{folder} is not writable, or others can write to it; {advice}")
    if unsafe is not None:
        raise BuildError(f"{folder}: other users can replace it, because they can write to {unsafe}; {advice}")
    return folder


def _is_open_to_others(folder: os.stat_result) -> bool:
    """Whether users other than this one and root can rename what a folder contains.

    This user's own folders may be writable to a group, which often has no other members. In a container, the host's
    root appears as `UNMAPPED_USER`.
    """
    own = folder.st_uid == os.getuid()
    if not own and folder.st_uid not in (0, UNMAPPED_USER):
        return True
    writable = folder.st_mode & (stat.S_IWOTH if own else stat.S_IWGRP | stat.S_IWOTH)
    return bool(writable) and not folder.st_mode & stat.S_ISVTX


def _native_flag() -> str:
    """Returns the flag for code that fits this processor; on ARM clang spells it differently."""
    return "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"


def _describe_processor() -> str:
    """Describes the processor features that `native` stands for, and the C library.

    The nodes of a cluster may share a home folder and still differ in both.
    """
    library = " ".join(platform.libc_ver())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return library + next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.platform() + platform.processor()

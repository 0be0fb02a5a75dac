"""How the command line ends: exit codes, and user errors that are printed as one line, whatever a value holds."""

from __future__ import annotations

import argparse
import difflib
import errno
import re
import reprlib
import stat
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED, READER_LEFT = 0, 1, 2, 130, 141
"""Exit codes. 141 is what a shell reports for a program that SIGPIPE ended, as most do if `head` reads no further."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exhausted quota."""
UNUSABLE_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY),
)
"""Error numbers of a path that cannot be read or written: of a read-only folder, or of a file in place of a folder."""
MAX_ALLOWED, MAX_NEAREST = 16, 4
"""How many names an error message lists: all that are allowed, or the nearest ones."""
KEYS = "docs/configuration.md lists the keys"
NO_SPACE = "no space left on"
"""How the reason of a trial that failed on a full disk begins."""


class UserError(ValueError):
    """A mistake in the user's input. The command line prints it as one line and exits with code 2.

    The message says what is wrong, where, and what is allowed. Control characters in it are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_controls(message))


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` instead of printing its usage and exiting, also for empty values."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # `parse_args` and others call it
        arguments = sys.argv[1:] if args is None else list(args)
        for before, argument in pairwise(["the command line", *arguments]):
            if not argument or re.fullmatch(r"--[a-z-]+=", argument):
                flag = argument.removesuffix("=") or before
                raise UserError(f"{flag}: an empty value is not allowed; is a variable of the shell not set?")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse_count(text: str, source: str, most: int) -> int:
    """Returns a number from 1 to `most` of a command line; as in a study file, it cannot start with 0."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text) or int(text) > most:
        raise UserError(f"{source}: expected a whole number from 1 to {most}, without leading zeros")
    return int(text)


def allowed_names(name: object, names: Iterable[object], others: str = "") -> str:
    """Returns the end of an error message: 'allowed: a, b, c; nearest: b'; of many names, the nearest ones alone.

    others: what to say if none of many names is near; by default how many there are.
    """
    known = {str(candidate).lower(): str(candidate) for candidate in names}
    few, wanted = len(known) <= MAX_ALLOWED, shorten(str(name), MAX_VALUE).lower()
    close = difflib.get_close_matches(wanted, known, n=1 if few else MAX_NEAREST, cutoff=0.4 if few else 0.6)
    parts = [f"nearest: {', '.join(known[each] for each in close)}"] if close else []
    if few:
        parts.insert(0, f"allowed: {', '.join(known.values())}")
    elif not close:
        parts.append(others or f"{len(known)} are allowed, such as {next(iter(known.values()))}")
    return "; ".join(parts)


def describe_error(error: UserError | OSError) -> tuple[int, str]:
    """Returns exit code and line for a mistake of the user, an unusable path or a full disk; raises other errors."""
    if isinstance(error, UserError):
        return BAD_INPUT, str(error)
    where = escape_controls(str(error.filename))
    if error.errno in FULL_DISK:
        where = where if error.filename else "the disk of the results"
        return SOME_FAILED, f"{NO_SPACE} {where}. Free some space and run the same command to resume."
    if error.errno in UNUSABLE_PATH and error.filename is not None:
        problem = "is a file, not a folder" if error.errno == errno.EEXIST else error.strerror
        return BAD_INPUT, f"{where}: {problem}"
    raise error


# ---------------------------------------------------------------------------------------------- values in messages

MAX_VALUE = 100
"""Number of characters of a value that a message shows."""
MAX_MESSAGE = 2000
"""Number of characters of a message that the command line prints."""

# C0 and C1 control characters, line and paragraph separators, controls of the writing direction, and surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str, keep: str = "") -> str:
    """Returns `text` with its control characters as escapes: one line that cannot change a terminal.

    keep: control characters that stay, such as a line break.
    """
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def shorten(text: str, width: int) -> str:
    """Returns `text` with its middle left out where it is longer than `width`."""
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]}...{text[-half:]}"


def describe_kind(path: Path) -> str:
    """Returns what a path is instead of a file: `is a folder, not a file`; empty for a file, and for nothing at all."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    kinds = (stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket")
    kind = next((name for is_kind, name in kinds if is_kind(mode)), "device")
    return "" if stat.S_ISREG(mode) else f"is a {kind}, not a file"


def format_value(value: object) -> str:
    """Returns a value as messages show it, as in Python; of a long one, its first parts."""
    return _VALUES.repr(value)


_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = MAX_VALUE
_VALUES.maxlist = _VALUES.maxtuple = _VALUES.maxdict = 8
_VALUES.maxlevel = 3

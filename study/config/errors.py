"""How the command line ends: exit codes, and user errors that are printed as one line."""

from __future__ import annotations

import argparse
import difflib
import errno
from collections.abc import Iterable
from typing import NoReturn

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exhausted quota."""
NO_SPACE = "no space left on"
"""How the reason of a trial that failed on a full disk begins."""


class UserError(ValueError):
    """A mistake in the user's input. The command line prints it as one line and exits with code 2.

    The message says what is wrong, where, and what is allowed.
    """


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def allowed_names(name: object, names: Iterable[object]) -> str:
    """Returns the end of an error message: 'allowed: a, b, c; nearest: b'."""
    known = [str(candidate) for candidate in names]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f"allowed: {', '.join(known)}" + (f"; nearest: {close[0]}" if close else "")

"""What a user is told about a mistake: one line that says what is wrong, where, and what is allowed."""

from __future__ import annotations

import argparse
import difflib
import errno
from collections.abc import Iterable
from typing import NoReturn

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


NO_SPACE = "no space left on"


class UserError(ValueError):
    """A mistake in what the user gave. The command line prints it as one line and exits with 2."""


class Parser(argparse.ArgumentParser):
    """A command line on which a mistake is one line, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def allowed_names(name: object, names: Iterable[object]) -> str:
    """'allowed: a, b, c; nearest: b', for the end of an error line."""
    known = [str(candidate) for candidate in names]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f"allowed: {', '.join(known)}" + (f"; nearest: {close[0]}" if close else "")

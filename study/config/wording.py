"""Numbers with their nouns, as messages, pages and figures show them."""

from __future__ import annotations


def format_plural(number: int, noun: str, plural: str = "") -> str:
    """`1 trial`, `2 trials`; plural: where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_count(finished: int, total: int, repeated: int = 0) -> str:
    """`3 of 8 trials have a result`, and why these are fewer than a search suggests."""
    return f"{finished} of {format_plural(total, 'trial has', 'trials have')} a result{format_repeats(repeated)}"


def format_repeats(repeated: int) -> str:
    """`; 2 suggestions of the search repeat an earlier cell`; empty for none."""
    suggestions = format_plural(repeated, "suggestion of the search repeats", "suggestions of the search repeat")
    return f"; {suggestions} an earlier cell" * (repeated > 0)

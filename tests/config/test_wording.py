"""Numbers with their nouns."""

from __future__ import annotations

from study.config.wording import format_count, format_plural


def test_one_is_singular_and_all_else_plural() -> None:
    assert [format_plural(n, "cell") for n in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
    assert [format_plural(n, "trial is", "trials are") for n in (1, 2)] == ["1 trial is", "2 trials are"]
    assert [format_count(1, n) for n in (1, 2)] == ["1 of 1 trial has a result", "1 of 2 trials have a result"]
    assert format_count(1, 2, 1).endswith("; 1 suggestion of the search repeats an earlier cell")

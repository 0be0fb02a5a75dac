"""What a terminal shows of a snapshot, and problems grouped by cause."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from study.cli.live_view import LiveView, format_duration, format_problems, group_problems, normalize_reason
from study.cli.study_observer import RunningTrial, StudySnapshot, TrialStatus

KEY = "sn-depth14-batch_size16-xavier_uniform-cosine-adamw-0804ffa3"


def draw(width: int, height: int) -> list[str]:
    """The lines that a terminal of that size shows of a study with many problems and long names, without colours."""
    effects = [f"+0.012 (0.004 to 0.020, n = 4) validation accuracy, sn - {'sn-uniform[in,ln]' * 3}"]
    questions = [{"name": name, "verdict": "not enough evidence", "effects": effects} for name in ("useful", "impacts")]
    snapshot = StudySnapshot(
        name="depth_vs_batch", total=400, seconds_left=180,
        states={"done": 100, "diverged": 3, "running": 30, "failed": 7, "planned": 260},
        problems=[TrialStatus(key=f"{KEY}-r{n}", state="failed", reason=f"Error{'ABCDEFG'[n]}: " + "x" * 200)
                  for n in range(7)],
        answers={"n": 103, "confidence": 0.95, "questions": questions},
        running=[RunningTrial(key=f"{KEY}-r{n}", epoch=n or None, epochs=8, seconds=75, place="job 7" * (n == 1))
                 for n in range(10)],
    )  # fmt: skip
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)
    console.print(LiveView(snapshot))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(60, 24), (80, 24), (80, 60), (200, 30)])
def test_the_view_fits_the_terminal_and_shows_what_matters_first(width: int, height: int) -> None:
    lines = draw(width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for part in ("103 of 400", "7 failed", "useful: not enough", "+0.012 (0.004 to 0.020, n = 4)"):
        assert part in text
    assert ("about 3 min left" in text) == (width >= 80)


def test_as_many_running_trials_as_there_is_room_for() -> None:
    shown = {height: sum("1 min 15 s" in line for line in draw(80, height)) for height in (12, 24, 30, 60)}
    assert shown[12] == 0
    assert 0 <= shown[24] < shown[30] <= shown[60] == 10
    *_, first, second, _, _, _, _, _, _, _, _, more = draw(60, 60)
    assert first.startswith("starting, 1 min 15 s")
    assert first.endswith("0804ffa3-r0")  # a key is cut in the middle
    assert second.startswith("epoch 1 of 8, 1 min 15 s")
    assert second.endswith("job 7")
    assert more == "and 20 more"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MemoryError: tried 20.5 MiB of 1e9", "MemoryError: tried 3 MiB of 2e+10"),
        ("OSError: /a/b/r0/x.png: bad", "OSError: /c/d9/y.png: bad"),
        ("it starts from sn-depth8-ea66f2ad-r0, which failed", "it starts from bn-depth14-a10ff5e6-r3, which failed"),
        ("at 0x7f3a", "at 0x11"),
    ],
)
def test_reasons_that_differ_in_numbers_paths_and_names_are_one_cause(one: str, other: str) -> None:
    assert normalize_reason(one) == normalize_reason(other)


def test_other_words_are_another_cause_and_the_most_frequent_comes_first() -> None:
    reasons = ["ValueError: a", "KeyError: b 1", "KeyError: b 2"]
    problems = [TrialStatus(key=f"t-r{n}", state="failed", reason=reason) for n, reason in enumerate(reasons)]
    groups = group_problems([*problems, TrialStatus(key="t-r9", state="stale", reason="KeyError: b 3")])
    assert list(map(format_problems, groups)) == [
        "2 failed: KeyError: b 1 (t-r1)", "1 failed: ValueError: a (t-r0)", "1 stale: KeyError: b 3 (t-r9)"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3, "3 s"), (59.4, "59 s"), (59.6, "1 min"), (89.4, "1 min 29 s"), (180, "3 min"),
     (599.4, "9 min 59 s"), (599.6, "10 min"), (640, "11 min"), (5399, "90 min"), (5700, "1 h 35 min"),
     (7190, "2 h 0 min"), (200_000, "2 days")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text

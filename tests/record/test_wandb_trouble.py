"""A tracker and a server in trouble: no call waits, the end has a limit, and what arrives is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.services.wandb_server import Fault, Run, WandbServer

SCRIPT = textwrap.dedent("""
    import json, os, sys, time
    from pathlib import Path
    from study.config.schema import TrackingConfig
    from study.record import wandb_run
    from study.record.wandb_names import StudyRuns
    from study.record.wandb_status import RunStatus

    path, mode, end, attempt = sys.argv[1:5]
    wandb_run.FINISH_SECONDS = 3.0
    wandb_run.START_SECONDS = 3.0
    runs = StudyRuns(study="s", study_id="ab12cd", tracking=TrackingConfig.model_validate_json(sys.argv[5]))
    tracker = wandb_run.Tracker(Path(path), "sn-1-r0", runs, mode)
    longest = 0.0

    def call(function, *arguments):
        global longest
        started = time.perf_counter()
        function(*arguments)
        longest = max(longest, time.perf_counter() - started)

    wandb_run.start_wandb_service(mode)
    call(tracker.start, {"norm": "sn"}, {"attempts": int(attempt)})
    for line in sys.stdin:
        epoch = int(line)
        call(tracker.log_epoch, epoch, {"val_accuracy": epoch / 10})
    if runs.tracking.checkpoints == "last":
        (Path(path) / "last.ckpt").write_bytes(b"weights")
        tracker.log_checkpoint(Path(path) / "last.ckpt")
    reason = "it says so" if end != "done" else ""
    call(tracker.end, RunStatus(status=end, attempt=int(attempt), reason=reason, metrics={"val_accuracy": 0.5}))
    started = time.perf_counter()
    problem = tracker.close()
    print(json.dumps({"longest": longest, "close": time.perf_counter() - started, "problem": problem}))
    sys.stdout.flush()
    os._exit(0)  # as processes of trials end
""")


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        assert not server.unknown


def track(
    server: WandbServer,
    path: Path,
    *,
    epochs: range = range(4),
    mode: str = "online",
    end: str = "done",
    attempt: int = 1,
    halfway: Callable[[], object] = lambda: None,
    **tracking: object,
) -> dict[str, Any]:
    """Writes a run in a process of its own, and calls `halfway` after half of the epochs, once the run has started."""
    home = {"HOME": str(path), "XDG_CACHE_HOME": str(path)}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), mode, end, str(attempt), json.dumps(tracking)],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **server.environment, **home},
    )  # fmt: skip
    assert process.stdin is not None
    lines = [f"{epoch}\n" for epoch in epochs]
    process.stdin.write("".join(lines[: len(lines) // 2]))
    process.stdin.flush()
    if halfway is not track.__kwdefaults__["halfway"]:
        deadline = time.monotonic() + 30
        while not server.runs and time.monotonic() < deadline:
            time.sleep(0.05)
        halfway()
    printed, _ = process.communicate("".join(lines[len(lines) // 2 :]), timeout=60)
    measured: dict[str, Any] = json.loads(printed)
    assert measured["longest"] < 0.1
    return measured


def only_run(server: WandbServer) -> Run:
    (run,) = server.runs.values()
    return run


def test_a_healthy_server_has_everything(server: WandbServer, tmp_path: Path) -> None:
    assert track(server, tmp_path)["problem"] == ""
    run = only_run(server)
    assert (run.state, run.summary["status"], run.epochs) == ("finished", "done", [0, 1, 2, 3])
    assert (run.tags, run.group) == (["norm=sn"], "s-ab12cd")
    assert "wandb-metadata.json" in run.files
    assert run.events
    (log,) = tmp_path.glob("wandb/run-*/*.synced")
    assert log.stat().st_size == 0


def test_the_machine_is_not_described_where_the_study_does_not_want_it(server: WandbServer, tmp_path: Path) -> None:
    track(server, tmp_path, system_metrics=False)
    assert "wandb-metadata.json" not in only_run(server).files
    assert not only_run(server).events


def test_why_an_attempt_has_ended_is_a_tag_and_a_note_until_the_next_goes_on(
    server: WandbServer, tmp_path: Path
) -> None:
    """What the user adds on the page stays."""

    def wait_until_running(note: str) -> None:
        deadline = time.monotonic() + 30
        while (only_run(server).tags, only_run(server).notes) != (["norm=sn", "mine"], note):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    track(server, tmp_path, epochs=range(2), end="failed")
    run = only_run(server)
    assert (run.state, run.tags, run.notes) == ("failed", ["norm=sn", "failed"], "attempt 1: failed: it says so")
    run.tags.append("mine")
    for attempt, end, state in ((2, "preempted", "preempted"), (3, "diverged", "finished")):
        running = partial(wait_until_running, f"attempt {attempt}: running")
        track(server, tmp_path, epochs=range(2 * attempt), end=end, attempt=attempt, halfway=running)
        assert (run.state, run.tags) == (state, ["norm=sn", end, "mine"])
        assert run.notes == f"attempt {attempt}: {end}: it says so"
        assert run.epochs == list(range(2 * attempt))


def test_a_checkpoint_is_an_artifact_if_the_study_asks_for_it(server: WandbServer, tmp_path: Path) -> None:
    track(server, tmp_path, checkpoints="last")
    (artifact,) = server.artifacts.values()
    assert (artifact["state"], artifact["entries"]) == ("COMMITTED", ["last.ckpt"])
    assert b"weights" in server.stored.values()


@pytest.mark.parametrize(
    ("fault", "faulty", "said"),
    [
        (401, "", "refuses the API key of this machine; run `wandb login` (HTTP status 401)"),
        ("silent", "", "does not answer within 5 s"),
        (403, "UpsertBucket", "fault 403"),
    ],
)
def test_a_server_that_refuses_gets_nothing_and_the_run_is_offline(
    server: WandbServer, tmp_path: Path, fault: Fault, faulty: str, said: str
) -> None:
    server.fault, server.faulty = fault, faulty
    measured = track(server, tmp_path)
    assert measured["close"] < 8
    assert said in measured["problem"]
    assert not server.runs
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_slow_server_has_everything_in_the_end(server: WandbServer, tmp_path: Path) -> None:
    server.fault = 0.2
    track(server, tmp_path)
    assert only_run(server).epochs == [0, 1, 2, 3]


def test_a_server_that_is_lost_holds_nobody_and_later_gets_the_rest_once(server: WandbServer, tmp_path: Path) -> None:
    def lose() -> None:
        server.fault = "gone"

    measured = track(server, tmp_path, halfway=lose)
    assert measured["close"] < 9
    assert measured["problem"]
    server.fault = None
    track(server, tmp_path, epochs=range(6))
    run = only_run(server)
    assert (run.state, run.epochs) == ("finished", [0, 1, 2, 3, 4, 5])


def test_a_table_that_fails_does_not_hide_the_status(server: WandbServer, tmp_path: Path) -> None:
    server.fault, server.faulty = 403, "CreateArtifact"
    track(server, tmp_path, checkpoints="last")
    assert (only_run(server).state, only_run(server).summary["status"]) == ("finished", "done")

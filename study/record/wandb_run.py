"""The W&B run of a trial, a copy of its record: it can be made again from the record at any time."""

from __future__ import annotations

import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from study.config.choice_space import ChoiceSpace
from study.config.secrets import hide_secret_settings
from study.record.environment import hide_passwords
from study.record.wandb_links import find_runs_below, mark_continued, mark_uploaded, was_uploaded
from study.record.wandb_names import StudyRuns
from study.record.wandb_server import Mode, ServerError, ask_server, format_error
from study.record.wandb_status import RunStatus

if TYPE_CHECKING:  # the summary run of a study is written without torch
    from numpy.typing import NDArray
    from torch import Tensor

    from study.models.geometry import LayerGeometry

FLUSH_SECONDS = 1.0  # by default W&B flushes every 15 s, and a killed run loses that history
START_SECONDS = 15.0  # for `wandb.init`
FINISH_SECONDS = 20.0  # for the rest of a run's data at its end
FINISH_WITH_CHECKPOINT_SECONDS = 300.0
NOT_IN_TIME = "the server did not take the data in time; try again later"

Call = Callable[[wandb.Run], None]


class Tracker:
    """Writes one W&B run, in a thread of its own: no call waits for W&B or its server, and none raises.

    The history has one row per epoch that has values, and then one with the table of the final choices. W&B's step is
    the epoch, and W&B tells the last one, so that a resumed run continues with the first row that the server lacks.
    """

    def __init__(self, path: Path, name: str, runs: StudyRuns, mode: Mode) -> None:
        """The run `name` of a study, with its files below the folder `path`. With `disabled` all calls do nothing."""
        self.path, self.name, self.runs, self.mode = path, name, runs, mode
        self.calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.defined: set[str] = set()
        self.levels: Mapping[str, Any] = {}
        self.problem = ""

    @property
    def location(self) -> dict[str, str | None]:
        """For the record. The address is None for an offline run."""
        if self.mode == "disabled":
            return {"mode": "disabled", "url": None, "run": None}
        url = self.runs.build_url(self.name) if self.mode == "online" else None
        return {"mode": self.mode, "url": url, "run": self.runs.build_run_id(self.name)}

    def start(self, levels: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Starts the run of a trial, with its factor `levels` as tags and as flat keys of its config."""
        if self.mode == "disabled":
            return
        self.levels = levels
        start = partial(
            start_run, self.path, self.name, self.runs, mode=self.mode, job_type="train", config={**levels, **config}
        )
        self._show(RunStatus(status="running", attempt=config["attempts"]))
        self.thread = threading.Thread(target=self._work, args=(start,), daemon=True)
        self.thread.start()

    def log_epoch(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Logs the scalars of one epoch. There are none per layer: hundreds of charts make a project page freeze."""
        known = {name: value for name, value in values.items() if value is not None}
        if not known:  # epoch 0 of a trial whose layers have no choice
            return

        def log(run: wandb.Run) -> None:
            if epoch < run.starting_step:  # an earlier attempt has logged it
                return
            for name in {"epoch", *known} - self.defined:
                # Plotted against epochs and not W&B's own step: a resumed run would log smaller steps again, which W&B
                # drops. Defined by its full name: where several patterns match a name, W&B takes any of them.
                run.define_metric(name, step_metric=None if name == "epoch" else "epoch", hidden=_is_hidden(name))
                self.defined.add(name)
            run.log({"epoch": epoch, **known}, step=epoch, commit=True)

        self.calls.put(log)

    def log_switch_weights(
        self,
        weights: Tensor | NDArray[Any],
        layers: Sequence[LayerGeometry],
        pool: Sequence[str],
        space: ChoiceSpace,
        epochs: int,
    ) -> None:
        """Logs the final weights (layers, axes, pool) as a table and as a heat map, after `epochs` epochs."""
        if not len(weights):
            return
        fields = ("layer", "layer_index", "stage", "place", "depth_fraction", "receptive_field")
        columns: list[str | int] = [*fields, "statistic", *pool]

        def log(run: wandb.Run) -> None:
            if run.starting_step > epochs + 1:
                return
            rows: list[Iterable[Any]] = [
                (*(getattr(layer, field) for field in fields), axis, *weights[index, a].tolist())
                for index, layer in enumerate(layers)
                for a, axis in enumerate(space.axis_names)
            ]
            run.log({
                "switch_weights/table": wandb.Table(columns=columns, data=rows),
                "switch_weights/heat_map": wandb.Plotly(build_heat_map(weights, layers, pool, space)),
            }, step=epochs + 1, commit=True)  # fmt: skip

        self.calls.put(log)

    def log_checkpoint(self, checkpoint: Path) -> None:
        """Uploads a checkpoint as an artifact, a version of `<run>-checkpoint`, if the study asks for it."""
        if self.runs.tracking.checkpoints == "last" and checkpoint.is_file():
            self.calls.put(lambda run: log_files(run, f"{run.id}-checkpoint", "model", [checkpoint]))

    def end(self, status: RunStatus) -> None:
        """Ends the run with the status of the trial."""
        self._show(status)
        if status.status == "preempted":
            self.calls.put(lambda run: run.mark_preempting())
        self.calls.put(partial(_finish, exit_code=0 if status.is_finished else 1))
        self.calls.put(None)

    def close(self) -> str:
        """Waits a limited time until the run has ended. Returns what went wrong; empty if all is on the server.

        The verb `sync` uploads what is missing.
        """
        if self.thread is None:
            return ""
        self.thread.join(finish_seconds(self.runs) + 5.0)  # W&B gives up first
        return NOT_IN_TIME if self.thread.is_alive() else self.problem

    def _show(self, status: RunStatus) -> None:
        """Sets tags, notes and summary of the run. Each change of tags or notes is a request."""

        def show(run: wandb.Run) -> None:
            run.summary.update(status.summary)
            tags, notes = status.update_tags(run.tags or (), self.levels), status.update_notes(run.notes or "")
            if tags != list(run.tags or ()):
                run.tags = tags
            if notes != (run.notes or ""):
                run.notes = notes

        self.calls.put(show)

    def _work(self, start: Callable[[], tuple[wandb.Run, str]]) -> None:
        try:
            run, self.problem = start()
        except Exception as error:  # W&B may fail in any way (its process killed, the disk full)
            self._keep_problem(error)
            return
        while (call := self.calls.get()) is not None:
            try:
                call(run)
            except TimeoutError as error:
                self._keep_problem(error)
                self.problem = NOT_IN_TIME
            except Exception as error:  # the next call may succeed: a table that fails must not hide the status
                self._keep_problem(error)

    def _keep_problem(self, error: Exception) -> None:
        self.problem = self.problem or format_error(error)


def start_wandb_service(mode: Mode) -> None:
    """Starts W&B's service process in the background, so that `wandb.init` need not wait for it.

    Each trial has a service process of its own: a shared one would refuse the run of a trial that was killed and is
    trained again.
    """
    isolate_wandb()
    if mode == "offline":
        # W&B reports its own errors over the network, which takes an offline trial a third of a second.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode != "disabled":
        threading.Thread(target=_start_service, daemon=True).start()


def isolate_wandb() -> None:
    """Forgets the W&B service of the process that started this one, and has W&B print nothing and upload no secrets.

    It has no effect on a service that this process has started.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    sys.argv[1:] = map(hide_passwords, hide_secret_settings(sys.argv[1:]))  # part of the machine's description
    os.environ.pop("WANDB_SERVICE", None)


def _start_service() -> None:
    with suppress(Exception):  # `wandb.init` tries again
        wandb.setup()


def start_run(
    path: Path, name: str, runs: StudyRuns, *, mode: Mode, version: str = "", **facts: Any
) -> tuple[wandb.Run, str]:
    """Starts a silent run below `path`; offline where the server cannot be used from this machine now. Returns why.

    version: part of its id, for runs that do not continue each other.

    Older runs below `path` are deleted: W&B cannot resume an offline run, and would have two runs with one id. Nothing
    is lost, because the whole history is logged again.
    """
    older = find_runs_below(path)
    continued = any(map(was_uploaded, older))
    for run in older:
        shutil.rmtree(run, ignore_errors=True)
    tracking = runs.tracking
    start = partial(
        wandb.init, project=tracking.project, entity=tracking.entity, name=name,
        id="-".join(filter(None, (runs.build_run_id(name), version))),
        group=runs.group, dir=path, resume="allow", reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, disable_job_creation=True,
            x_disable_stats=not tracking.system_metrics, x_disable_meta=not tracking.system_metrics,
            x_save_requirements=False, x_transaction_log_flush_interval=FLUSH_SECONDS, init_timeout=START_SECONDS,
            finish_timeout=finish_seconds(runs), finish_timeout_raises=True,
        ),
        **facts,
    )  # fmt: skip
    problem = ""
    if mode == "online":
        try:
            ask_server(tracking)  # it may be lost since, and this machine may be another one than the driver's
            return start(mode="online"), ""
        except (ServerError, wandb.Error) as error:  # such as no permission for this project
            problem = str(error)
            if isinstance(error, wandb.Error):
                problem = f"the server does not take the run: {format_error(error)}"
                wandb.teardown()  # the service process still holds the run's id
    offline = start(mode="offline")
    if continued:
        mark_continued(Path(offline.settings.sync_file))
    return offline, problem


def _finish(run: wandb.Run, exit_code: int) -> None:
    """Waits until all data is on the server, and marks the run's files. Raises `TimeoutError`."""
    log, offline = Path(run.settings.sync_file), run.offline
    run.finish(exit_code=exit_code)
    if not offline:
        mark_uploaded(log)


def finish_seconds(runs: StudyRuns) -> float:
    """How long a run may take to upload the rest of its data at its end."""
    return FINISH_SECONDS if runs.tracking.checkpoints == "none" else FINISH_WITH_CHECKPOINT_SECONDS


def log_files(run: wandb.Run, name: str, kind: str, files: Iterable[Path]) -> None:
    """Logs files as a new version of an artifact, unless the last version is the same."""
    artifact = wandb.Artifact(name, kind)
    for file in files:
        artifact.add_file(str(file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)


def build_heat_map(
    weights: Tensor | NDArray[Any], layers: Sequence[LayerGeometry], pool: Sequence[str], space: ChoiceSpace
) -> Any:
    """The weights (layers, axes, pool) as a plotly figure with one panel per axis."""
    # Imported here: plotly takes a quarter of a second, and only finished trials need it.
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(space.axes), shared_yaxes=True, subplot_titles=[axis.label for axis in space.axes])
    for a in range(len(space.axes)):
        figure.add_heatmap(
            z=weights[:, a].tolist(), x=list(pool), y=[layer.layer for layer in layers],
            zmin=0, zmax=1, colorscale="Cividis", showscale=a == len(space.axes) - 1, row=1, col=a + 1,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure


def _is_hidden(name: str) -> bool:
    """Whether a metric has no chart on the project page.

    The page shows the means of the backbone. Stages and heads (`switch/stage1/mean/bn`) would add dozens of charts;
    they are on the study's dashboard.
    """
    return name in ("epoch", "learning_rate") or name.count("/") > 2

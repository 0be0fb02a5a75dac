"""The W&B mirror of a record: one run a trial. What it shows can be made again from the record at any time."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from study.config.schema import TrackingConfig
from study.plan.trials import PlannedTrial
from study.record.layout import TrialFolder
from study.record.switch_weights import STATISTICS
from study.record.wandb_mode import Mode

if TYPE_CHECKING:  # the summary of a study is written without torch
    from torch import Tensor

    from study.models.geometry import LayerGeometry

FLUSH_SECONDS = 1.0  # W&B's own 15 s lose a killed run's history


def start_wandb_service(mode: Mode) -> None:
    """Has W&B's service process started while a trial is set up: `wandb.init` would sleep until it is there.

    A process a trial: one that trials share would refuse the run of a trial that was killed and is trained again.
    """
    if mode == "offline":
        # What W&B reports of its own errors goes over the network, and costs an offline trial a third of a second.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode != "disabled":
        threading.Thread(target=_start_service, daemon=True).start()


def _start_service() -> None:
    with suppress(Exception):  # `wandb.init` tries again
        wandb.setup()


def start_run(path: Path, name: str, *, mode: Mode, tracking: TrackingConfig, **facts: Any) -> wandb.Run:
    """A run of this name and id below `path`, which prints nothing; offline where the server has gone away.

    It replaces older ones on this disk: offline, W&B cannot go on with one, it would be two runs of one id. Nothing is
    lost, as a whole history is logged again.
    """
    for older in (path / "wandb").glob("*run-*"):
        shutil.rmtree(older, ignore_errors=True)
    start = partial(
        wandb.init, project=tracking.project, entity=tracking.entity, id=name, name=name, dir=path, resume="allow",
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, disable_job_creation=True,
            x_disable_stats=True, x_disable_meta=True, x_save_requirements=False,
            x_transaction_log_flush_interval=FLUSH_SECONDS, init_timeout=30,
        ),
        **facts,
    )  # fmt: skip
    try:
        return start(mode=mode)
    except wandb.Error:  # the server went away since it was asked, or refuses
        wandb.teardown()  # the service process still holds the run's id
        return start(mode="offline")


def is_hidden(name: str) -> bool:
    """Whether a metric has no chart of its own on the project's page, where the means of the backbone are enough.

    Stages and heads (`switch/stage1/mean/bn`) would be dozens; they are on the study's dashboard.
    """
    return name == "learning_rate" or name.count("/") > 2


def finish_open_run() -> None:
    """Ends the run of a trial that has left without: the next one in this process would write into it."""
    if wandb.run is not None:
        with suppress(Exception):
            wandb.run.finish(exit_code=1)


class Tracker:
    """One W&B run. With mode `disabled`, or when W&B fails, every call does nothing: the record is the truth."""

    def __init__(
        self,
        folder: TrialFolder,
        trial: PlannedTrial,
        *,
        study: str,
        mode: Mode,
        tracking: TrackingConfig,
        config: Mapping[str, Any],
    ) -> None:
        self.run: wandb.Run | None = None
        self.logged = -1
        self.defined: set[str] = set()
        # For the record: the mode, the run's address, unless it is offline, and its id.
        self.where: dict[str, str | None] = {"mode": "disabled", "url": None, "run": None}
        if mode == "disabled":
            return
        with self._guard():
            self.run = start_run(
                folder.path, trial.key, mode=mode, tracking=tracking, group=study, job_type="train",
                tags=[f"{factor}={level}"[:64] for factor, level in trial.levels.items()], config=dict(config),
            )  # fmt: skip
            online = not self.run.offline
            self.where = {
                "mode": "online" if online else "offline", "url": self.run.url if online else None, "run": self.run.id
            }  # fmt: skip
            if self.run.resumed:
                self.logged = int(dict(self.run.summary).get("epoch", -1))
            self.run.define_metric("epoch", hidden=True)

    def log_epoch(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Scalars of one epoch. Per layer there is one table at the end: hundreds of charts freeze a project's page."""
        if self.run is None or epoch <= self.logged:
            return
        with self._guard():
            known = {name: value for name, value in values.items() if value is not None}
            for name in known.keys() - self.defined:
                # Against epochs, never W&B's own step: a resumed run would go back in it, and lose those rows. By its
                # name: of several patterns that a name matches, W&B takes any.
                self.run.define_metric(name, step_metric="epoch", hidden=is_hidden(name))
                self.defined.add(name)
            self.run.log({"epoch": epoch, **known})

    def log_switch_weights(self, weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str]) -> None:
        """The final weights (layers, statistics, pool) as one table and one heat map, layers x normalizers."""
        if self.run is None or not len(weights):
            return
        fields = ("layer", "layer_index", "stage", "depth_fraction", "receptive_field")
        columns: list[str | int] = [*fields, "statistic", *pool]
        rows: list[Iterable[Any]] = [
            (*(getattr(place, field) for field in fields), statistic, *weights[index, s].tolist())
            for index, place in enumerate(layers)
            for s, statistic in enumerate(STATISTICS)
        ]
        with self._guard():
            self.run.log({
                "switch_weights/table": wandb.Table(columns=columns, data=rows),
                "switch_weights/heat_map": wandb.Plotly(heat_map(weights, layers, pool)),
            })  # fmt: skip

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Closes the run; `status` is the record's."""
        if self.run is None:
            return
        with self._guard():
            self.run.summary.update({"status": status, **summary})
            self.run.finish(exit_code=0)
        self.run = None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """W&B may fail in any way (its process killed, the disk full); the trial goes on without it."""
        try:
            yield
        except Exception as error:
            logging.getLogger("study").warning("W&B failed, the trial goes on without it: %s", error)
            self.run = None


def heat_map(weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str]) -> Any:
    """The weights (layers, statistics, pool) as a plotly figure: one panel a statistic."""
    # Imported late: plotly costs a quarter of a second, and only finished trials draw.
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[f"{name} weights" for name in STATISTICS])
    for s in range(len(STATISTICS)):
        figure.add_heatmap(
            z=weights[:, s].tolist(), x=list(pool), y=[place.layer for place in layers],
            zmin=0, zmax=1, colorscale="Cividis", showscale=s == 1, row=1, col=s + 1,
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    return figure

"""The W&B run of a trial, a copy of its record: it can be made again from the record at any time."""

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

from study.config.choice_space import ChoiceSpace
from study.config.schema import TrackingConfig
from study.record.wandb_mode import Mode

if TYPE_CHECKING:  # the summary run of a study is written without torch
    from torch import Tensor

    from study.models.geometry import LayerGeometry

FLUSH_SECONDS = 1.0  # by default W&B flushes every 15 s, and a killed run loses that history


class Tracker:
    """One W&B run. With mode `disabled`, or after W&B has failed, every call does nothing."""

    def __init__(
        self,
        path: Path,
        key: str,
        levels: Mapping[str, Any],
        *,
        study: str,
        mode: Mode,
        tracking: TrackingConfig,
        config: Mapping[str, Any],
    ) -> None:
        """Starts the run of the trial `key` below the trial's folder `path`, with its factor `levels` as tags."""
        self.run: wandb.Run | None = None
        self.logged = -1  # the last epoch that an earlier attempt has sent to the server
        self.defined: set[str] = set()
        # For the record. The address is None for an offline run.
        self.location: dict[str, str | None] = {"mode": "disabled", "url": None, "run": None}
        if mode == "disabled":
            return
        with self._disable_on_error():
            self.run = start_run(
                path, key, mode=mode, tracking=tracking, group=study, job_type="train",
                tags=[f"{factor}={level}"[:64] for factor, level in levels.items()], config=dict(config),
            )  # fmt: skip
            online = not self.run.offline
            self.location = {
                "mode": "online" if online else "offline", "url": self.run.url if online else None, "run": self.run.id
            }  # fmt: skip
            if self.run.resumed:
                self.logged = int(dict(self.run.summary).get("epoch", -1))
            self.run.define_metric("epoch", hidden=True)

    def log_epoch(self, epoch: int, values: Mapping[str, float | None]) -> None:
        """Logs the scalars of one epoch. There are none per layer: hundreds of charts make a project page freeze."""
        if self.run is None or epoch <= self.logged:
            return
        with self._disable_on_error():
            known = {name: value for name, value in values.items() if value is not None}
            for name in known.keys() - self.defined:
                # Plotted against epochs and not W&B's own step: a resumed run would log smaller steps again, which W&B
                # drops. Defined by its full name: where several patterns match a name, W&B takes any of them.
                self.run.define_metric(name, step_metric="epoch", hidden=_is_hidden(name))
                self.defined.add(name)
            self.run.log({"epoch": epoch, **known})

    def log_switch_weights(
        self, weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str], space: ChoiceSpace
    ) -> None:
        """Logs the final weights (layers, axes, pool) as a table and as a heat map, layers x members."""
        if self.run is None or not len(weights):
            return
        fields = ("layer", "layer_index", "stage", "place", "depth_fraction", "receptive_field")
        columns: list[str | int] = [*fields, "statistic", *pool]
        rows: list[Iterable[Any]] = [
            (*(getattr(layer, field) for field in fields), axis, *weights[index, a].tolist())
            for index, layer in enumerate(layers)
            for a, axis in enumerate(space.axis_names)
        ]
        with self._disable_on_error():
            self.run.log({
                "switch_weights/table": wandb.Table(columns=columns, data=rows),
                "switch_weights/heat_map": wandb.Plotly(build_heat_map(weights, layers, pool, space)),
            })  # fmt: skip

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        """Closes the run. `status` is the one in result.json."""
        if self.run is None:
            return
        with self._disable_on_error():
            self.run.summary.update({"status": status, **summary})
            self.run.finish(exit_code=0)
        self.run = None

    @contextmanager
    def _disable_on_error(self) -> Iterator[None]:
        """W&B may fail in any way (its process killed, the disk full); the trial continues without it."""
        try:
            yield
        except Exception as error:
            logging.getLogger("study").warning("W&B failed, the trial continues without it: %s", error)
            self.run = None


def start_wandb_service(mode: Mode) -> None:
    """Starts W&B's service process in the background, so that `wandb.init` need not wait for it.

    Each trial has a service process of its own: a shared one would refuse the run of a trial that was killed and is
    trained again.
    """
    if mode == "offline":
        # W&B reports its own errors over the network, which takes an offline trial a third of a second.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode != "disabled":
        threading.Thread(target=_start_service, daemon=True).start()


def _start_service() -> None:
    with suppress(Exception):  # `wandb.init` tries again
        wandb.setup()


def start_run(path: Path, name: str, *, mode: Mode, tracking: TrackingConfig, **facts: Any) -> wandb.Run:
    """Starts a silent run with this name and id below `path`; offline where the server does not respond.

    Older runs below `path` are deleted: W&B cannot resume an offline run, and would have two runs with one id. Nothing
    is lost, because the whole history is logged again.
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
    except wandb.Error:  # the server became unavailable after the driver's check, or refuses the run
        wandb.teardown()  # the service process still holds the run's id
        return start(mode="offline")


def finish_open_run() -> None:
    """Closes the run of a trial that ended early; the next trial in this process would write into it."""
    if wandb.run is not None:
        with suppress(Exception):
            wandb.run.finish(exit_code=1)


def build_heat_map(weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str], space: ChoiceSpace) -> Any:
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
    return name == "learning_rate" or name.count("/") > 2

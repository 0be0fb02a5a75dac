"""Records as training leaves them, made up with a known truth planted in them: on disk, or at once in memory. No torch.

On disk a trial takes five milliseconds. In memory a study of 64 takes ten, so that the rules of `study.analysis` can be
asked hundreds of times how often they are wrong.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from study.analysis.records import StudyRecords, load_study_records
from study.analysis.statistics.intervals import Floats
from study.analysis.trial_files import CURVES, METRICS
from study.analysis.weight_tables import BACKBONE
from study.config.schema import StudyConfig, TrialConfig
from study.norms.names import parse_norm
from study.plan.trials import PlannedTrial, plan_trials
from study.record.io import file_digest, write_yaml
from study.record.layout import SCHEMA, StudyFolder, TrialFolder
from study.record.switch_weights import STATISTICS, parquet_bytes

Effect = Callable[[PlannedTrial], float]
Which = Callable[[PlannedTrial], bool]
DIVERGED, FAILED = "loss is nan at step 3", "out of memory"
_YAML_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times faster, where PyYAML has it


@dataclass(kw_only=True)
class Truth:
    """What the synthetic world is like. Effects are functions of a trial; noise is per trial, seeds' per replicate.

    accuracy: or mIoU, or box AP. `accuracy_noise` is the standard deviation of a trial's own.
    shared: standard deviations of what trials of one replicate have in common in their accuracy: all of them, (), or
        those at equal levels of the named fields: ("norm",) is how far a norm's gain moves with the seeds.
    bn_logit: how far a trial's layers lean to bn, the weights of variances twice as far as those of means.
    layer_logits: what comes on top of it, by relative depth: (trial, depths (layers,)) -> to be broadcast to
        (layers, statistics).
    logit_noise: a trial's own, once for the network and once more for each layer; `shared_logits` as `shared`.
    draw: standard noise of a generator and a shape; heavy tails, where it is no normal one.
    diverges: the probability that a trial does, by the accuracy that it would have had.
    """

    accuracy: Effect = lambda trial: 0.9
    accuracy_noise: float | Effect = 0.004
    shared: Mapping[tuple[str, ...], float] = field(default_factory=lambda: {(): 0.01})
    bn_logit: Effect = lambda trial: 0.0
    bn_logit_of_heads: float = 0.0  # on top
    layer_logits: Callable[[PlannedTrial, Floats], Floats | float] = lambda trial, depths: 0.0
    logit_noise: float | Effect = 0.15
    shared_logits: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats] = np.random.Generator.standard_normal
    diverges: Callable[[PlannedTrial, float], float] = lambda trial, accuracy: 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a trial came to: `history` are its switch weights (epochs, layers, statistics, pool)."""

    accuracy: float
    history: NDArray[np.float32]
    diverged: bool


def write_study(
    folder: StudyFolder,
    study: StudyConfig,
    truth: Truth,
    *,
    only: Which = lambda trial: True,
    diverged: Which = lambda trial: False,
    failed: Which = lambda trial: False,
) -> None:
    """A study on disk: `only` says which trials have a result, and `failed` which have none because they failed.

    `diverged` says which results are of runs that diverged, beside those that do by the truth.
    """
    provenance = {
        "command": f"python run_study.py --study {study.name}", "commit": "abc123", "versions": {"torch": "2.11.0"},
        "platform": "Linux", "python": "3.11", "created": "2026-01-01T00:00:00",
    }  # fmt: skip
    write_yaml(folder.config, {"study": study.model_dump(mode="json"), "provenance": provenance})
    for trial in plan_trials(study):
        if failed(trial):
            record = folder.trial(trial.trial_id, trial.replicate)
            record.path.mkdir(parents=True)
            record.state.write_text(_json({"state": "failed", "reason": FAILED, "failures": 3, "attempt": 3}))
        elif only(trial):
            write_trial(folder, trial, truth, "diverged" if diverged(trial) else "done")


def write_trial(folder: StudyFolder, trial: PlannedTrial, truth: Truth, status: str = "done") -> TrialFolder:
    """The record of one finished trial, its result last. In place and not synced: nobody reads it yet."""
    record = folder.trial(trial.trial_id, trial.replicate)
    record.path.mkdir(parents=True)
    layers = norm_layers(trial.config)
    run = run_trial(trial, layers, truth)
    status = "diverged" if run.diverged and status == "done" else status
    steps = [trial.steps_per_epoch * epoch for epoch in range(len(run.history))]
    description = _describe(trial, folder.path.name, len(layers))
    record.state.write_text(_json({"state": "running", "failures": 0, "attempt": 1, "pid": 1, "host": "somewhere"}))
    record.trial.write_text(yaml.dump(description, Dumper=_YAML_DUMPER, sort_keys=False))
    record.environment.write_text(_json({"device": "cpu", "commit": "abc123", "host": "somewhere", "threads": 1}))
    record.metrics.write_text("".join(_metric_lines(trial, run, steps)))
    record.switch_weights.write_bytes(
        parquet_bytes(run.history, steps, layers, trial.pool, trial.trial_id, trial.replicate)
    )
    write_result(record, description, status, None if status == "diverged" else run.accuracy)
    return record


def write_result(record: TrialFolder, description: dict[str, Any], status: str, accuracy: float | None) -> None:
    """result.json, which vouches for the other files; without an accuracy all metrics are null."""
    files = (record.trial, record.environment, record.metrics, record.switch_weights)
    repeated = ("trial_id", "replicate", "statistics_batch", "gradient_batch", "pool", "parameters", "norm_layers")
    record.result.write_text(_json({
        "schema": SCHEMA, **{name: description[name] for name in repeated}, "status": status,
        "reason": DIVERGED if status == "diverged" else None,
        "epochs": description["config"]["epochs"], "seconds": 1.5, "attempts": 1,
        "metrics": _metrics(description["config"]["task"], accuracy),
        "notes": [], "files": {file.name: file_digest(file) for file in files},
    }))  # fmt: skip


class SyntheticStudy:
    """One study in many worlds: what does not depend on the truth is made once, and read as any study is."""

    def __init__(self, study: StudyConfig) -> None:
        self.plan = plan_trials(study)
        self.layers = [norm_layers(trial.config) for trial in self.plan]
        with tempfile.TemporaryDirectory(prefix="study-synthetic-") as scratch:
            finished, empty = (StudyFolder(Path(scratch) / name / study.name) for name in ("finished", "empty"))
            write_study(finished, study, Truth())
            write_study(empty, study, Truth(), only=lambda trial: False)
            self.finished, self.planned = load_study_records(finished), load_study_records(empty).trials
        self.rows = _Rows(self.finished, [trial.key for trial in self.plan])

    def records(
        self,
        truth: Truth,
        *,
        only: Which = lambda trial: True,
        diverged: Which = lambda trial: False,
        failed: Which = lambda trial: False,
    ) -> StudyRecords:
        """What `load_study_records` would give of the files that `write_study` would make."""
        present = [only(trial) and not failed(trial) for trial in self.plan]
        runs = [run_trial(*made, truth) for made in zip(self.plan, self.layers, strict=True)]
        states = [
            "diverged" if here and (run.diverged or diverged(trial))
            else "done" if here else "failed" if failed(trial) else "planned"
            for trial, run, here in zip(self.plan, runs, present, strict=True)
        ]  # fmt: skip
        weights = np.concatenate([run.history.ravel() for run in runs])
        curves = np.concatenate([_curve_values(trial, run) for trial, run in zip(self.plan, runs, strict=True)])
        parts = self.rows.fill(self.finished, weights, curves, np.array(present))
        return replace(self.finished, trials=self._trials(runs, np.array(states)), **parts)

    def _trials(self, runs: Sequence[Run], states: NDArray[np.str_]) -> pd.DataFrame:
        """The trial table: metrics of those that are done, facts of those that have left any."""
        absent = np.isin(states, ("planned", "failed"))
        trials: pd.DataFrame = self.finished.trials.copy()
        found = [_metrics(trial.config.task, run.accuracy) for trial, run in zip(self.plan, runs, strict=True)]
        metrics = pd.DataFrame(found, columns=list(METRICS), dtype=float)
        metrics.loc[states != "done"] = np.nan
        trials[list(METRICS)] = metrics
        reasons = {"diverged": DIVERGED, "failed": FAILED}
        trials["state"] = pd.Series(states.tolist(), dtype=object)
        trials["reason"] = pd.Series([reasons.get(str(state), "") for state in states], dtype=object)
        if absent.any():
            rest = [name for name in trials if name not in ("state", "reason")]
            trials.loc[absent, rest] = self.planned.loc[absent, rest]
        return trials


def synthetic_records(study: StudyConfig, truth: Truth, **which: Which) -> StudyRecords:
    """One world of a study in memory; `which` as in `write_study`. For many, keep the `SyntheticStudy`."""
    return SyntheticStudy(study).records(truth, **which)


class _Rows:
    """Where the numbers of a world go: rows of the frames of a study in which every trial has finished."""

    def __init__(self, finished: StudyRecords, keys: Sequence[str]) -> None:
        """Keys of trials, in the order in which `fill` is handed their numbers."""
        weights = finished.weights.to_pandas()
        weights["key"] = weights["trial_id"].astype(str) + "-r" + weights["replicate"].astype(str)
        last = weights["epoch"].eq(weights.groupby("key")["epoch"].transform("max"))
        backbone = weights["role"].eq(BACKBONE)
        self.switch, self.heads = (np.flatnonzero(last & those) for those in (backbone, ~backbone))
        self.backbone = np.flatnonzero(backbone)
        by = ["key", "epoch", "statistic", "normalizer"]
        means = finished.switch_epochs.assign(group=np.arange(len(finished.switch_epochs)))
        of_backbone = weights.loc[backbone, [*by, "stage"]].astype({name: str for name in by if name != "epoch"})
        scopes = (pd.Series("network", of_backbone.index), "stage " + of_backbone["stage"].astype(str))
        self.groups = [
            of_backbone.assign(scope=scope).merge(means, on=[*by, "scope"], how="left")["group"].to_numpy()
            for scope in scopes
        ]
        self.sizes = np.bincount(np.concatenate(self.groups), minlength=len(means))
        frames = {
            "weights": weights, "switch": finished.switch, "heads": finished.heads,
            "switch_epochs": finished.switch_epochs, "curves": finished.curves,
        }  # fmt: skip
        self.trials = {name: pd.Index(keys).get_indexer(frame["key"].astype(str)) for name, frame in frames.items()}

    def fill(
        self, finished: StudyRecords, weights: NDArray[np.float32], curves: Floats, present: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """The frames with these weights and values of curves, without the rows of trials that have left nothing."""
        means = np.bincount(
            np.concatenate(self.groups), np.tile(weights[self.backbone], len(self.groups)), minlength=len(self.sizes)
        )
        column = finished.weights.schema.get_field_index("weight")
        table = finished.weights.set_column(column, finished.weights.schema.field(column), pa.array(weights))
        frames = {
            "switch": finished.switch.assign(weight=weights[self.switch]),
            "heads": finished.heads.assign(weight=weights[self.heads]),
            "switch_epochs": finished.switch_epochs.assign(weight=means / self.sizes),
            "curves": finished.curves.assign(value=curves),
        }
        if not present.all():
            here = {name: present[numbers] for name, numbers in self.trials.items()}
            table = table.filter(pa.array(here["weights"]))
            frames = {name: frame[here[name]].reset_index(drop=True) for name, frame in frames.items()}
        return {"weights": table, **frames}


def run_trial(trial: PlannedTrial, layers: Sequence[Any], truth: Truth) -> Run:
    """What a trial comes to in a world. `layers`: `norm_layers` of it."""
    random = _generator(truth.seed, *trial.trial_id.encode(), trial.replicate)
    own = float(truth.draw(random, (1,))[0]) * _value(truth.accuracy_noise, trial)
    shared = sum(
        spread * float(truth.draw(_common_generator(truth, trial, names), (1,))[0])
        for names, spread in truth.shared.items()
    )
    accuracy = truth.accuracy(trial) + shared + own
    history = _history(trial, layers, truth, random)
    return Run(accuracy=accuracy, history=history, diverged=random.random() < truth.diverges(trial, accuracy))


def _common_generator(truth: Truth, trial: PlannedTrial, names: Sequence[str], *more: int) -> np.random.Generator:
    """Of what the trials of a replicate have in common at equal levels of the named fields."""
    levels = [zlib.crc32(f"{name}={getattr(trial.config, name)}".encode()) for name in names]
    return _generator(truth.seed, trial.replicate, *levels, *more)


def _generator(*numbers: int) -> np.random.Generator:
    """As of the list of numbers, and several times faster: numpy takes a list apart one by one."""
    return np.random.default_rng(np.array(numbers, dtype=np.uint32))


def _value(number: float | Effect, trial: PlannedTrial) -> float:
    return number(trial) if callable(number) else number


def _history(
    trial: PlannedTrial, layers: Sequence[Any], truth: Truth, random: np.random.Generator
) -> NDArray[np.float32]:
    """Switch weights (epochs, layers, statistics, pool), from even ones to those of the planted logits."""
    epochs, pool = trial.config.epochs + 1, trial.pool
    if not parse_norm(trial.config.norm).is_switch or len(pool) == 1:  # no choice, nothing to record
        return np.empty((epochs, 0, len(STATISTICS), 0), np.float32)
    shape, noise = (len(STATISTICS), len(pool)), _value(truth.logit_noise, trial)
    logits = noise * (truth.draw(random, shape) + truth.draw(random, (len(layers), *shape)))
    for names, spread in truth.shared_logits.items():
        logits += spread * truth.draw(_common_generator(truth, trial, names, 1), shape)
    in_backbone = np.array([layer.role == BACKBONE for layer in layers])
    depths = np.arange(len(layers)) / (in_backbone.sum() - 1)
    if "bn" in pool:
        bn = logits[..., pool.index("bn")]
        bn += truth.bn_logit(trial) * np.array([1, 2]) / 1.5 + truth.layer_logits(trial, depths)
        bn[~in_backbone] += truth.bn_logit_of_heads
    if "ln" in pool:
        logits[..., pool.index("ln")] += depths[:, None]
    grown = 1 - 0.5 ** np.arange(epochs)
    weights = np.exp(grown[:, None, None, None] * logits)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def _describe(trial: PlannedTrial, study: str, norm_layers: int) -> dict[str, Any]:
    settings = [f"--set 'factors.{factor}={json.dumps([level])}'" for factor, level in trial.levels.items()]
    command = f"python run_study.py --study {study} --set replicates={trial.replicate + 1} {' '.join(settings)}"
    return {
        "trial_id": trial.trial_id, "replicate": trial.replicate, "study": study, "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"), "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch, "device_batch": trial.device_batch, "pool": list(trial.pool),
        "parameters": 1000, "norm_layers": norm_layers, "seeds": trial.seeds, "command": command,
    }  # fmt: skip


def _metrics(task: str, score: float | None) -> dict[str, float | None]:
    value = float("nan") if score is None else score
    name = _MAIN[task]
    metrics = {
        f"val_{name}": value, "val_loss": 2 * (1 - value), "train_loss": 1 - value, f"fit_{name}": (1 + value) / 2,
        "fit_loss": 1 - value, f"test_{name}": value, "test_loss": 2 * (1 - value),
        "val_score": value, "fit_score": (1 + value) / 2, "test_score": value, "generalization_gap": (1 - value) / 2,
    }  # fmt: skip
    if task == "classification":
        metrics["train_accuracy"] = value
    return {name: None if score is None else level for name, level in metrics.items()}


def _curves(trial: PlannedTrial, run: Run) -> dict[str, Floats]:
    """What is logged at the end of every epoch, by name: arrays (epochs,)."""
    value = run.accuracy + (0.1 - run.accuracy) * 0.4 ** np.arange(len(run.history))
    return {
        f"val_{_MAIN[trial.config.task]}": value, "val_score": value, "val_loss": 2 * (1 - value),
        "train_accuracy": value, "train_loss": 2 * (1 - value), "learning_rate": np.full(len(value), 0.1),
    }  # fmt: skip


def _curve_values(trial: PlannedTrial, run: Run) -> Floats:
    """Those that the records keep, epoch by epoch."""
    kept = [values for name, values in _curves(trial, run).items() if name in CURVES]
    return np.stack(kept, axis=1).ravel()


def _metric_lines(trial: PlannedTrial, run: Run, steps: list[int]) -> Iterator[str]:
    """metrics.jsonl: what is logged at the end of every epoch, and the network's mean switch weights."""
    curves = _curves(trial, run)
    for epoch, (step, weights) in enumerate(zip(steps, run.history, strict=True)):
        means = weights.mean(axis=0) if weights.size else np.empty((0, 0))
        switches = {
            f"switch/{statistic}/{normalizer}": float(weight)
            for statistic, row in zip(STATISTICS, means, strict=False)
            for normalizer, weight in zip(trial.pool, row, strict=True)
        }
        for name, level in {**{name: float(values[epoch]) for name, values in curves.items()}, **switches}.items():
            yield json.dumps({"schema": SCHEMA, "epoch": epoch, "step": step, "name": name, "value": level}) + "\n"


_MAIN = {"classification": "accuracy", "segmentation": "miou", "detection": "box_ap"}
_HEADS = {"classification": (), "segmentation": ("decoder",), "detection": ("fpn", "box_head", "mask_head")}


def norm_layers(config: TrialConfig) -> list[Any]:
    """The norm layers of a small ResNet and its heads; stand-ins for `LayerGeometry`, which is traced with torch."""
    named = [("bn1", 0, "backbone")]
    for stage in (1, 2, 3):
        for block in range((config.depth - 2) // 6):
            kinds = ("bn1", "bn2", "downsample.1") if stage > 1 and block == 0 else ("bn1", "bn2")
            named += [(f"layer{stage}.{block}.{kind}", stage, "backbone") for kind in kinds]
    heads = [(role, -1, role) for role in _HEADS[config.task]]  # a layer each
    return [
        SimpleNamespace(
            layer=name, layer_index=index, stage=stage, role=role,
            depth_fraction=index / (len(named) - 1) if role == "backbone" else 0.0,
            receptive_field=3 + 2 * index if role == "backbone" else None,
        )
        for index, (name, stage, role) in enumerate([*named, *heads])
    ]  # fmt: skip


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"

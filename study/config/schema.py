"""Closed, typed configuration: what a trial is, what a study is, and how files become them.

A study is `configs/scales/<scale>.yaml` (how big), overlaid by `configs/studies/<study>.yaml` (which question),
overlaid by `--set key=value`. Every mistake a user can make becomes one line: file, key, value, what is allowed.
This module imports no torch: `plan` and `status` must answer at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from study.config.datasets import DATASETS
from study.config.errors import allowed_names
from study.norms.names import DEFAULT_POOL, parse_norm

SMALL_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
LARGE_DEPTHS = (18, 34, 50, 101, 152)
NO_NORM = "none"  # of a head without norm layers

Task = Literal["classification", "segmentation", "detection"]
Head = Literal["fcn", "deeplabv3", "faster_rcnn", "mask_rcnn"]
HEADS: dict[str, tuple[Head, ...]] = {
    "classification": (),
    "segmentation": ("fcn", "deeplabv3"),
    "detection": ("mask_rcnn", "faster_rcnn"),
}
"""The heads of each task; the first is the default."""
HEAD_ROLES: dict[Head | None, tuple[str, ...]] = {
    None: (),
    "fcn": ("decoder",),
    "deeplabv3": ("decoder",),
    "faster_rcnn": ("fpn", "box_head"),
    "mask_rcnn": ("fpn", "box_head", "mask_head"),
}
"""Where a network has norm layers beside its backbone's, by its head."""

StartRule = Literal["scratch", "fine_tune", "argmax", "frozen", "transplant", "permute", "shared"]
START_OPTIONS: dict[str, tuple[StartRule, ...]] = {
    "start_epoch": ("frozen",),
    "start_fresh": ("argmax", "frozen", "permute", "shared"),
    "start_thaw": ("fine_tune", "frozen"),
}
"""What qualifies a start rule, and the rules that it qualifies."""


# ---------------------------------------------------------------------------------------------- a trial


def _check_norm(name: str) -> str:
    """One norm has one name, so that one cell has one id: `sn[in,ln,bn]` is `sn`."""
    spec = parse_norm(name)
    return name.partition("[")[0] if spec.pool == DEFAULT_POOL else name


def _check_depth(depth: int) -> int:
    if depth not in SMALL_DEPTHS + LARGE_DEPTHS:
        allowed = sorted(SMALL_DEPTHS + LARGE_DEPTHS)
        nearest = min(allowed, key=lambda known: abs(known - depth))
        raise ValueError(f"allowed: {', '.join(map(str, allowed))}; nearest: {nearest}")
    return depth


def _check_head_norm(name: str | None) -> str | None:
    return name if name in (None, NO_NORM) else _check_norm(str(name))


def _check_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(allowed_names(name, DATASETS))
    return name


class _StrictModel(BaseModel):
    """Frozen, without unknown keys, and without silent conversion (`true` is not 1 epoch)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_Parts = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),  # YAML has lists alone
]
_HeadNorm = Annotated[str | None, AfterValidator(_check_head_norm)]  # None: the backbone's; "none": no norm


class TrialConfig(_StrictModel):
    """The science of one training run. Every field is part of the trial's identity; nothing else is."""

    # data
    dataset: Annotated[str, AfterValidator(_check_dataset)] = "digits"
    train_samples: Annotated[int, Field(ge=1)] | None = None
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    augmentation: Literal["none", "shift", "shift_flip", "flip", "random_resized_crop", "scale_flip", "crop_flip"] = (
        "shift"
    )
    color: Literal["none", "lighting", "jitter"] = "none"  # of random_resized_crop; jitter is on top of lighting
    mild_epochs: Annotated[int, Field(ge=0)] = 0  # the last epochs, with milder crops

    # task
    task: Task = "classification"
    head: Head | None = None  # None: the first of the task's
    output_stride: Literal[1, 2, 4, 8, 16] | None = None  # of a dilated backbone; None: the plain one
    deep_supervision: Annotated[float, Field(ge=0)] = 0.0  # weight of a second decoder, on the last stage but one
    box_head: Literal["conv", "mlp"] = "conv"  # four convolutions with norms and a linear layer, or two linear layers
    decoder_norm: _HeadNorm = None
    fpn_norm: _HeadNorm = None
    box_head_norm: _HeadNorm = None
    mask_head_norm: _HeadNorm = None
    freeze_stages: Annotated[int, Field(ge=0, le=5)] = 0  # that do not learn: the stem is the first

    # network
    depth: Annotated[int, AfterValidator(_check_depth)] = 20
    width: Annotated[float, Field(gt=0)] = 1.0
    zero_last_gamma: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    initialization: Literal["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal"] = "he_normal"

    # normalization; (G, B) of the paper is (chunks, batch_size)
    norm: Annotated[str, AfterValidator(_check_norm)] = "sn"
    batch_size: Annotated[int, Field(ge=1)] = 32
    chunks: Annotated[int, Field(ge=1)] = 8
    fixed_gradient_batch: Annotated[int, Field(ge=1)] | None = None  # G * B for every B; chunks then follow from it
    logit_init: Literal["ones", "random"] = "ones"
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    bn_statistics: Literal["moving", "batch"] = "moving"
    sync_statistics: bool = False  # SyncBN, SyncSN: batch statistics over all of the gradient batch
    correction: Literal[0, 1] = 0
    gn_groups: Annotated[int, Field(ge=1)] = 32

    # start; a rule other than scratch takes what it needs from the trial or file that the study's start section names
    start_rule: StartRule = "scratch"
    start_source: str | None = None  # the id of that trial, or a file's digest; follows from the study
    start_epoch: Annotated[int, Field(ge=0)] = 0  # of `frozen`: switch weights learn until then
    start_fresh: bool = False  # switch weights alone: the backbone is drawn anew
    start_thaw: bool = False  # choices that a sparse norm has fixed learn again

    # optimization
    epochs: Annotated[int, Field(ge=0)] = 100
    epoch_steps: Annotated[int, Field(ge=1)] | None = None  # of an epoch; None: once through the training split
    solver: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    scale_learning_rate: bool = True
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    norm_weight_decay: Annotated[float, Field(ge=0)] | None = None  # of gamma and beta; None: as of weights
    bias_weight_decay: Annotated[float, Field(ge=0)] | None = None  # of other biases
    bias_learning_rate: Annotated[float, Field(ge=0)] = 1.0  # times that of weights
    decay: Literal["step", "cosine", "poly", "linear", "constant"] = "cosine"
    decay_milestones: _Parts = (0.3, 0.6, 0.9)  # of step: parts of training
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the learning rate
    logit_learning_rate: Annotated[float, Field(ge=0)] = 1.0
    logit_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    logit_gradient_clip: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def task_head(self) -> Head | None:
        """The head that the network has; None for a classifier."""
        return self.head or next(iter(HEADS[self.task]), None)

    @property
    def norms(self) -> dict[str, str]:
        """The norm of each role that the network has, the backbone first; `none` for a head without norm layers."""
        heads = {role: getattr(self, f"{role}_norm") or self.norm for role in HEAD_ROLES[self.task_head]}
        if self.box_head == "mlp" and "box_head" in heads:
            heads["box_head"] = NO_NORM
        return {"backbone": self.norm, **heads}

    @property
    def gradient_batch(self) -> int:
        """Samples a gradient is averaged over, G * B."""
        return self.chunks * self.batch_size

    @property
    def statistics_batch(self) -> int:
        """Samples that batch statistics are taken over: B, or G * B where they are synchronized."""
        return self.gradient_batch if self.sync_statistics else self.batch_size

    @property
    def base_learning_rate(self) -> float:
        """The learning rate that is used: scaled linearly with the gradient batch from a reference of 256."""
        return self.learning_rate * (self.gradient_batch / 256 if self.scale_learning_rate else 1.0)

    def identity_fields(self) -> dict[str, Any]:
        """The fields that differ from their defaults: what the hash in the trial's id is made of."""
        return self.model_dump(exclude_defaults=True)


def trial_id(config: TrialConfig, factors: Sequence[str], joint: Mapping[str, str] | None = None) -> str:
    """Names a cell by its science: a slug of its factor levels and a hash of all that differs from the defaults.

    joint: the levels of factors that are no field of the config.
    """
    parts = []
    for factor in factors:
        level = joint[factor] if joint and factor in joint else getattr(config, factor)
        text = f"{level:.4g}" if isinstance(level, float) else str(level)
        parts.append(text if isinstance(level, str) else f"{factor}{text}")
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(parts)).strip("-")[:80]
    canonical = json.dumps(config.identity_fields(), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


# ---------------------------------------------------------------------------------------------- a study


class Range(_StrictModel):
    """A numeric interval that a search draws from. Whole bounds give whole numbers."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, got low {self.low}")
        return self


class StartConfig(_StrictModel):
    """What trials with a start rule start from: by default the trial of their own cell at `start_rule: scratch`.

    cell: levels in which the start trial's cell differs from the trial's own, at the same replicate.
    trial: the folder of a finished trial of any study instead: `.../<trial id>`, at the same replicate, or
        `.../<trial id>/r0`, that one for all.
    checkpoint: a file of weights instead.
    rule: the base's `start_rule`. epoch, fresh, thaw: `start_epoch` and so on, of the trials whose rule has them.
    base: settings of the trials that start from another, over the study's base: `{epochs: 0}`.
    source: what `trial` was trained with, or the digest of `checkpoint`. It follows from them.
    """

    cell: dict[str, Any] = {}
    trial: str | None = None
    checkpoint: str | None = None
    rule: StartRule | None = Field(default=None, exclude=True)  # moved to the base when a study is read
    epoch: Annotated[int, Field(ge=0)] | None = None
    fresh: bool | None = None
    thaw: bool | None = None
    base: dict[str, Any] = {}
    source: dict[str, Any] | str | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether trials start from something outside of their study."""
        return self.trial is not None or self.checkpoint is not None

    @property
    def pinned(self) -> int | None:
        """The replicate of `trial` that every trial starts from; None for its own."""
        found = re.search(r"/r(\d+)/*$", self.trial or "")
        return int(found[1]) if found else None

    def settings(self, rule: StartRule) -> dict[str, Any]:
        """What is set for trials of this rule alone."""
        given = {"start_epoch": self.epoch, "start_fresh": self.fresh, "start_thaw": self.thaw}
        options = {name: value for name, value in given.items() if value is not None and rule in START_OPTIONS[name]}
        return {**self.base, **options}


class SearchConfig(_StrictModel):
    """An Optuna search over the factors instead of the full grid.

    Suggestions are made in rounds of `round_size` trials, told in order: the search gives the same trials for any
    number of workers, and after any interruption.
    """

    sampler: Literal["tpe", "random"]
    n_trials: Annotated[int, Field(ge=1)]
    objective: Literal["val_accuracy", "val_score", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    round_size: Annotated[int, Field(ge=1)] = 4
    pruner: Literal["none", "median"] = "none"


class AnalysisConfig(_StrictModel):
    """Which questions the report answers, on what. A score is the main metric of a trial's task."""

    questions: list[Literal["useful", "impacts", "tasks"]] = ["useful", "impacts"]
    metric: Literal["val_accuracy", "test_accuracy", "val_score", "test_score"] | None = None  # None: by the tasks
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class RunConfig(_StrictModel):
    """How trials are run on this machine. No part of a trial's identity."""

    threads: Annotated[int, Field(ge=1)] = 1
    max_attempts: Annotated[int, Field(ge=1)] = 3
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 5.0
    data_root: str | None = None
    loader_workers: Annotated[int, Field(ge=0)] = 2  # processes a device that read streamed images; 0: the trial itself
    device: Literal["auto", "cpu", "cuda"] = "auto"
    trials_per_device: Annotated[int, Field(ge=1)] = 1  # on a GPU, which one small network leaves idle
    devices_per_trial: Annotated[int, Field(ge=1)] = 1  # (G, B) over so many real devices
    accumulate: Annotated[int, Field(ge=1)] = 1  # parts that a device takes its share of a gradient batch in


Launcher = Literal["local", "slurm", "ray"]
LAUNCHERS = get_args(Launcher)


class LaunchConfig(_StrictModel):
    """Where trials run, and what each job asks of a cluster. No part of a trial's identity."""

    launcher: Launcher = "local"
    cpus: Annotated[int, Field(ge=1)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0  # a fraction of one is for Ray alone
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]B?$")] | None = None
    requeues: Annotated[int, Field(ge=0)] = 20  # a job that is preempted, or out of time, goes on so often

    # Slurm
    partition: str | None = None
    minutes: Annotated[int, Field(ge=1)] = 60  # of a job; trials go on in its next life
    trials_per_job: Annotated[int, Field(ge=1)] = 1
    jobs: Annotated[int, Field(ge=1)] = 1000  # at once
    warning_seconds: Annotated[int, Field(ge=1)] = 60  # between the warning and the end of the time limit
    sbatch: dict[str, str | int | bool] = {}  # further options: {account: me, constraint: a100}
    setup: list[str] = []  # shell lines before Python starts

    # Ray
    address: str | None = None  # of a cluster; without one, the cluster this machine is part of


class TrackingConfig(_StrictModel):
    """Weights & Biases. `auto` is online for a user who is logged in and reaches the server, else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "normalizer-study"
    entity: str | None = None


class StudyConfig(_StrictModel):
    """One study: a question, a base, factors, replicates, and how it is run and analysed.

    joint: by factor and level, the fields that go with the level. A factor that is no field of a trial has its levels
        here alone: each names several fields at once.
    blocks: each a list of factors that are crossed, with all others at their base level; the plan is their union.
        Without blocks all factors are crossed.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    scale: str
    title: str
    question: str
    base: TrialConfig
    factors: dict[str, list[Any] | Range]
    joint: dict[str, dict[str, dict[str, Any]]] = {}
    blocks: list[list[str]] = []
    replicates: Annotated[int, Field(ge=1)]
    start: StartConfig = StartConfig()
    search: SearchConfig | None = None
    analysis: AnalysisConfig = AnalysisConfig()
    run: RunConfig = RunConfig()
    launch: LaunchConfig = LaunchConfig()
    tracking: TrackingConfig = TrackingConfig()

    def cell(self, levels: Mapping[str, Any]) -> TrialConfig:
        """The trial of one level of every factor."""
        base, own = self.base.model_dump(), self.settings(levels)
        config = TrialConfig(**{**base, **own})
        if config.start_rule != "scratch":
            settings = {**self.start.settings(config.start_rule), "start_source": self._source_id(levels)}
            config = TrialConfig(**{**base, **settings, **own})
        if config.fixed_gradient_batch is None:
            return config
        return config.model_copy(update={"chunks": max(1, config.fixed_gradient_batch // config.batch_size)})

    def source_levels(self, levels: Mapping[str, Any]) -> dict[str, Any] | None:
        """The cell of this study that a trial of these levels starts from; None for one that starts elsewhere.

        The cell that others start from may have a start rule itself, and starts from scratch then: there is no cycle.
        """
        if self.start.elsewhere:
            return None
        own = {"start_rule": self.base.start_rule, **levels}
        source = {**own, "start_rule": "scratch", **self.start.cell}
        return source if source != own else {**own, "start_rule": "scratch"}

    def source_config(self, levels: Mapping[str, Any]) -> TrialConfig | None:
        """What the trial that a trial of these levels starts from was trained with; None for a file of weights."""
        cell, source = self.source_levels(levels), self.start.source
        if cell is not None:
            return self.cell(cell)
        return TrialConfig(**source) if isinstance(source, dict) else None

    def _source_id(self, levels: Mapping[str, Any]) -> str:
        """Names a start by its science, in whichever study and folder it lies."""
        config = self.source_config(levels)
        if config is None:
            return str(self.start.source)
        return trial_id(config, []) + ("" if self.start.pinned is None else f"-r{self.start.pinned}")

    def settings(self, levels: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a trial that these levels set: their own, and what goes with them."""
        fields: dict[str, Any] = {}
        for factor, level in levels.items():
            fields |= self.joint.get(factor, {}).get(str(level), {})
        # A level's own last: what starts from scratch does so, whatever start rule goes with another of its levels.
        return fields | {factor: level for factor, level in levels.items() if factor in TrialConfig.model_fields}

    def cell_id(self, config: TrialConfig, levels: Mapping[str, Any]) -> str:
        """The id of a cell's trials: `trial_id`, with the names of levels that are no field's."""
        joint = {factor: level for factor, level in levels.items() if factor not in TrialConfig.model_fields}
        return trial_id(config, list(self.factors), joint)

    def base_level(self, factor: str) -> Any:
        """The level of a factor where others vary: the base's, if it is one of its levels; else the first."""
        levels = self.factors[factor]
        assert isinstance(levels, list)
        base = getattr(self.base, factor, None)
        return base if base in levels else levels[0]

    def fields_of(self, factor: str) -> list[str]:
        """The fields of a trial in which the levels of a factor differ."""
        levels = self.factors[factor]
        if isinstance(levels, Range):
            return [factor]
        first, *others = (self.cell({factor: level}).model_dump() for level in levels)
        return [name for name in first if any(other[name] != first[name] for other in others)]

    def values(self, field: str) -> list[Any]:
        """Every value that a field may have in the study's trials, the base's first; of a range its ends."""
        given = self.factors.get(field, [getattr(self.base, field)])
        found = given if isinstance(given, list) else [given.low, given.high]
        for settings in self.joint.values():
            found = [*found, *(fields[field] for fields in settings.values() if field in fields)]
        return [value for number, value in enumerate(found) if value not in found[:number]]

    @property
    def metric(self) -> str:
        """What trials are compared by: the validation accuracy of classifiers; of other tasks, their score."""
        return self.analysis.metric or ("val_accuracy" if self.values("task") == ["classification"] else "val_score")


# ---------------------------------------------------------------------------------------------- loading


SCORE_MARGIN = 0.005  # accuracy; a gain below half a point in a hundred is no practical gain

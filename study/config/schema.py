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
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from study.config.datasets import DATASETS
from study.config.yaml_input import UserError, allowed_names, check_mapping, parse_yaml, read_yaml
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


class _Closed(BaseModel):
    """Frozen, without unknown keys, and without silent conversion (`true` is not 1 epoch)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_Parts = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),  # YAML has lists alone
]
_HeadNorm = Annotated[str | None, AfterValidator(_check_head_norm)]  # None: the backbone's; "none": no norm


class TrialConfig(_Closed):
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

    def science(self) -> dict[str, Any]:
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
    canonical = json.dumps(config.science(), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    return f"{slug}-{digest}" if slug else digest


ROLES = ("init", "data", "split")


def derive_seeds(replicate: int) -> dict[str, int]:
    """A seed for each role of randomness. They depend on the replicate alone: equal replicates are paired."""
    return {role: derive_seed(role, replicate) for role in ROLES}


def derive_seed(*parts: int | str) -> int:
    """Hashes a counter (seed, role, epoch, ...) to 63 bits. The same on every machine and version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# ---------------------------------------------------------------------------------------------- a study


class Range(_Closed):
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


class StartConfig(_Closed):
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


class SearchConfig(_Closed):
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


class AnalysisConfig(_Closed):
    """Which questions the report answers, on what. A score is the main metric of a trial's task."""

    questions: list[Literal["useful", "impacts", "tasks"]] = ["useful", "impacts"]
    metric: Literal["val_accuracy", "test_accuracy", "val_score", "test_score"] | None = None  # None: by the tasks
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class RunConfig(_Closed):
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


class LaunchConfig(_Closed):
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


class TrackingConfig(_Closed):
    """Weights & Biases. `auto` is online for a user who is logged in and reaches the server, else offline."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "normalizer-study"
    entity: str | None = None


class StudyConfig(_Closed):
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

CONFIG_FOLDERS = (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")
DEFAULT_SCALE = "laptop"


def config_folder() -> Path:
    """Where the studies and scales lie: beside the package in a checkout, inside it when installed."""
    for folder in CONFIG_FOLDERS:
        if folder.is_dir():
            return folder
    raise UserError(f"no configs folder: looked for {' and '.join(map(str, CONFIG_FOLDERS))}")


def available(kind: Literal["studies", "scales"]) -> dict[str, Path]:
    """Name to file of every study or scale."""
    return {path.stem: path for path in sorted((config_folder() / kind).glob("*.yaml"))}


def load_study(study: str, scale: str = DEFAULT_SCALE, overrides: Sequence[str] = ()) -> StudyConfig:
    """Reads a study (a name, or the path of a YAML file) at a scale, with `key=value` overrides applied.

    Raises `UserError`, one line, for anything that a user can get wrong.
    """
    study_file, scale_file = _find("studies", study), _find("scales", scale)
    scale_layer, study_layer = read_yaml(scale_file), read_yaml(study_file)
    origin: dict[str, str] = {"": str(study_file)}
    merged: dict[str, Any] = {"name": study_file.stem, "scale": scale_file.stem}
    # A scale offers levels for any factor; a study takes those of the factors it names (with an empty value). What goes
    # with a level, it takes for whatever factors it has.
    offered = check_mapping(scale_layer.pop("factors", {}), "factors", scale_file)
    spare = set(check_mapping(scale_layer.get("joint", {}), "joint", scale_file))
    spare -= set(check_mapping(study_layer.get("joint", {}), "joint", study_file))
    wanted = check_mapping(study_layer.pop("factors", {}), "factors", study_file)
    _overlay(merged, scale_layer, str(scale_file), origin)
    for described in (merged, origin):
        described.pop("title", None)  # a scale's own line in the listing
    _overlay(merged, study_layer, str(study_file), origin)
    merged["factors"] = {}
    for factor, levels in wanted.items():
        source = study_file
        if levels is None:
            if factor in TrialConfig.model_fields and factor not in offered:
                raise UserError(f"{scale_file}: factors.{factor}: no levels here, and {study_file} leaves them open")
            levels, source = offered.get(factor, list(merged.get("joint", {}).get(factor, {}))), scale_file
        _overlay(merged, {"factors": {factor: levels}}, str(source), origin)
    for override in overrides:
        layer = _read_override(override, merged)
        _overlay(merged, layer, f"--set {override}", origin)
        spare -= set(layer["joint"]) if isinstance(layer.get("joint"), dict) else set()
    if isinstance(merged["factors"], dict) and isinstance(merged.get("joint"), dict):
        for factor in spare - merged["factors"].keys():
            merged["joint"].pop(factor, None)
    _drop_offered_start(merged, {path for path, source in origin.items() if source == str(scale_file)})
    if isinstance(merged.get("start"), dict) and merged["start"].get("source") is not None:
        raise UserError(f"{_source('start.source', origin)}: start.source: it follows from start.trial or checkpoint")
    from study.plan.warm_start import resolve_start  # which reads trials, and those know what a trial is from here

    return resolve_start(_validate(merged, origin), _source("start", origin))


def _drop_offered_start(merged: dict[str, Any], offered: set[str]) -> None:
    """Drops what a scale has of a start cell where the study has no such factor, or starts from elsewhere."""
    start = merged.get("start")
    cell = start.get("cell") if isinstance(start, dict) else None
    if not isinstance(start, dict) or not isinstance(cell, dict):
        return
    elsewhere = start.get("trial") is not None or start.get("checkpoint") is not None
    start["cell"] = {
        factor: level for factor, level in cell.items()
        if f"start.cell.{factor}" not in offered or not (elsewhere or factor not in merged["factors"])
    }  # fmt: skip


def study_from_dict(data: dict[str, Any], source: str) -> StudyConfig:
    """A study from its resolved form, as `study.yaml` of a run holds it."""
    return _validate({str(key): value for key, value in data.items()}, {"": source})


def _find(kind: Literal["studies", "scales"], name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"{name}: no such file")
        return Path(name)
    files = available(kind)
    if name not in files:
        flag = {"studies": "study", "scales": "scale"}[kind]
        raise UserError(f"--{flag} {name}: unknown {flag}; {allowed_names(name, files)}")
    return files[name]


def _overlay(target: dict[str, Any], layer: dict[str, Any], source: str, origin: dict[str, str], at: str = "") -> None:
    """Merges `layer` into `target` key by key and remembers which source set what."""
    for key, value in layer.items():
        key = str(key)  # of a level: 2, true
        path = f"{at}{key}"
        if isinstance(value, dict) and isinstance(target.get(key, {}), dict):
            _overlay(target.setdefault(key, {}), value, source, origin, f"{path}.")
        else:
            target[key] = value
        origin[path] = source


def _read_override(override: str, merged: dict[str, Any]) -> dict[str, Any]:
    """`key=value` as a layer."""
    key, separator, text = override.partition("=")
    if not separator:
        raise UserError(f"--set {override}: expected key=value")
    path, value = _resolve_key(key, merged), parse_yaml(text, f"--set {override}")
    if re.fullmatch(r"factors\.\w+", path) and not isinstance(value, (list, dict)):
        value = [value]  # one level
    return _nest(path, value)


def _nest(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


_SECTIONS: dict[str, type[BaseModel]] = {
    "base": TrialConfig,
    "start": StartConfig,
    "run": RunConfig,
    "launch": LaunchConfig,
    "tracking": TrackingConfig,
    "search": SearchConfig,
    "analysis": AnalysisConfig,
}


def _resolve_key(key: str, merged: dict[str, Any]) -> str:
    """A bare name may stand for a factor, a field of the base or of a section: `epochs` is `base.epochs`."""
    head = key.split(".")[0]
    if head in StudyConfig.model_fields:
        return key
    if head in merged["factors"]:
        return f"factors.{key}"
    for section, model in _SECTIONS.items():
        if head in model.model_fields and section != "start":  # whose names say nothing by themselves
            return f"{section}.{key}"
    names = [*StudyConfig.model_fields, *TrialConfig.model_fields, *RunConfig.model_fields]
    raise UserError(f"--set {key}: unknown key; {allowed_names(head, names)}")


def _validate(merged: dict[str, Any], origin: dict[str, str]) -> StudyConfig:
    if not isinstance(merged.get("factors", {}), dict):
        where = _source("factors", origin)
        raise UserError(f"{where}: factors: {merged['factors']!r}: expected factors and their levels")
    factors = {name: _read_range(name, levels, origin) for name, levels in merged.get("factors", {}).items()}
    start, base = merged.get("start"), merged.get("base", {})
    if isinstance(start, dict) and isinstance(base, dict) and start.get("rule") is not None:
        origin["base.start_rule"] = _source("start.rule", origin)
        merged = {**merged, "base": {**base, "start_rule": start["rule"]}}
    try:
        config = StudyConfig(**{**merged, "factors": factors})
    except ValidationError as error:
        raise UserError(_one_line(error, StudyConfig, origin)) from None
    if config.search and config.search.pruner != "none" and config.replicates > 1:
        where = _source("search.pruner", origin)
        raise UserError(f"{where}: search.pruner: a pruner compares single trials; it needs replicates: 1")
    _check_joint(config, origin)
    checked = {factor: _check_levels(config, factor, origin) for factor in config.factors}
    _check_blocks(config, origin)
    return _check_start(config.model_copy(update={"factors": checked}), origin)


def _check_start(study: StudyConfig, origin: dict[str, str]) -> StudyConfig:
    """The study with the levels of its start cell in their one spelling. Raises `UserError` where it makes no sense."""
    start, where = study.start, _source("start", origin)
    if study.values("start_source") != [None]:
        raise UserError(f"{_source('base.start_source', origin)}: start_source: it follows from the study's start")
    rules = [rule for rule in study.values("start_rule") if rule != "scratch"]
    if not rules:
        if start != StartConfig():
            raise UserError(f"{where}: start: nothing starts there; give start.rule, or levels of start_rule")
        return study
    if bool(start.cell) + bool(start.trial) + bool(start.checkpoint) > 1:
        raise UserError(f"{where}: start: one of cell, trial and checkpoint is allowed")
    if study.search is not None and not start.elsewhere:
        raise UserError(f"{where}: start: a search has no cells to start from; allowed: start.trial, start.checkpoint")
    for option, fitting in START_OPTIONS.items():
        name = option.removeprefix("start_")
        if getattr(start, name) and not set(rules) & set(fitting):
            raise UserError(f"{where}: start.{name}: of start_rule={' or '.join(fitting)}; here it is {rules[0]}")
    for name in start.base:
        if name not in TrialConfig.model_fields or name in study.factors or name.startswith("start_"):
            allowed = [known for known in TrialConfig.model_fields
                       if known not in study.factors and not known.startswith("start_")]  # fmt: skip
            raise UserError(f"{where}: start.base.{name}: {allowed_names(name, allowed)}")
    try:
        TrialConfig(**{**study.base.model_dump(), **start.base})
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: start.base.{first['loc'][0]}: {first['input']!r}: {_explain(first)}") from None
    cell = {}
    for factor, level in start.cell.items():
        if factor not in study.factors:
            raise UserError(f"{where}: start.cell.{factor}: is no factor; {allowed_names(factor, study.factors)}")
        alone = study.model_copy(update={"start": StartConfig()})
        cell[factor] = getattr(_check_level(alone, factor, level, f"{where}: start.cell.{factor}"), factor, level)
    return study.model_copy(update={"start": start.model_copy(update={"cell": cell, "rule": None})})


def _read_range(factor: str, levels: Any, origin: dict[str, str]) -> Any:
    """A range by itself, so that an error speaks of the range and not of the list that it might have been."""
    if not isinstance(levels, dict):
        return levels
    try:
        return Range(**levels)
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"type": "", "msg": str(error), "loc": ()}
        path = ".".join(["factors", factor, *map(str, first["loc"])])
        raise UserError(f"{_source(path, origin)}: {path}: {_explain(first)}; a range has low, high and log") from None


def _check_levels(config: StudyConfig, factor: str, origin: dict[str, str]) -> list[Any] | Range:
    """The levels of a factor in their one spelling: two names of one level would train one cell twice."""
    where = f"{_source(f'factors.{factor}', origin)}: factors.{factor}"
    if factor not in {*TrialConfig.model_fields, *config.joint}:
        raise UserError(f"{where}: unknown factor; {allowed_names(factor, [*config.joint, *TrialConfig.model_fields])}")
    given = config.factors[factor]
    if isinstance(given, Range) and config.search is None:
        raise UserError(f"{where}: a range needs a search section; a grid needs a list of levels")
    if isinstance(given, Range) and factor not in _CONTINUOUS:
        raise UserError(f"{where}: not every number between is allowed; give a list. Ranges: {', '.join(_CONTINUOUS)}")
    levels = [given.low, given.high] if isinstance(given, Range) else given
    alone = config.model_copy(update={"start": StartConfig()})  # what is wrong with a start is not the level's fault
    if not levels:
        raise UserError(f"{where}: no levels")
    cells: list[TrialConfig] = []
    for level in levels:
        cell = _check_level(alone, factor, level, where)
        if cell in cells:
            raise UserError(f"{where}: level {level!r} appears twice")
        cells.append(cell)
    spelled = [getattr(cell, factor, level) for cell, level in zip(cells, levels, strict=True)]
    return given if isinstance(given, Range) else spelled


def _check_level(config: StudyConfig, factor: str, level: Any, where: str) -> TrialConfig:
    """The cell of one level, others as in the base."""
    if factor not in TrialConfig.model_fields and (not isinstance(level, str) or level not in config.joint[factor]):
        raise UserError(f"{where}: {level!r}: {allowed_names(level, config.joint[factor])}")
    try:
        return config.cell({factor: level})
    except ValidationError as error:
        first = error.errors()[0]
        field = first["loc"][0] if first["loc"] else factor
        among = "" if field == factor else f"{field}: {first['input']!r}: "
        raise UserError(f"{where}: {level!r}: {among}{_explain(first)}") from None


def _check_joint(config: StudyConfig, origin: dict[str, str]) -> None:
    """What goes with a level is known, belongs to one factor, and to a level that there can be."""
    owners = {factor: factor for factor in config.factors if factor in TrialConfig.model_fields}
    for factor, settings in config.joint.items():
        where = f"{_source(f'joint.{factor}', origin)}: joint.{factor}"
        if factor not in config.factors:
            raise UserError(f"{where}: no such factor; {allowed_names(factor, config.factors)}")
        given = config.factors[factor]
        used = {str(level) for level in given} if isinstance(given, list) else set(settings)
        for level, fields in settings.items():
            for field in fields:
                if field not in TrialConfig.model_fields:
                    names = allowed_names(field, TrialConfig.model_fields)
                    raise UserError(f"{where}.{level}.{field}: unknown key; {names}")
                if level in used and (owners.setdefault(field, factor) != factor or field == factor):
                    raise UserError(f"{where}.{level}.{field}: the factor {owners[field]} sets it")
            value = parse_yaml(level, where) if factor in TrialConfig.model_fields else level
            _check_level(config, factor, value, f"{where}.{level}")


def _check_blocks(config: StudyConfig, origin: dict[str, str]) -> None:
    """Every factor is in a block, and every block names factors."""
    where = f"{_source('blocks', origin)}: blocks"
    if config.blocks and config.search is not None:
        raise UserError(f"{where}: a search suggests cells itself; allowed: none")
    for block in config.blocks:
        for name in block or ["no factor"]:
            if name not in config.factors:
                raise UserError(f"{where}: {block}: {name}: {allowed_names(name, config.factors)}")
    for factor in config.factors:
        if config.blocks and not any(factor in block for block in config.blocks):
            raise UserError(f"{where}: {factor} is in none of them; its levels would not be planned")


_CONTINUOUS = [name for name, field in TrialConfig.model_fields.items()
               if field.annotation in (int, float) and name != "depth"]  # fmt: skip


def _one_line(error: ValidationError, model: type[BaseModel], origin: dict[str, str]) -> str:
    """The first of pydantic's errors as file, key, value, what is allowed."""
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if str(part) in _all_keys() or not isinstance(part, str))
    if first["type"] == "extra_forbidden":
        *parents, key = map(str, first["loc"])
        holder = (_SECTIONS[parents[0]] if parents else model).model_fields
        dotted = ".".join([*parents, key])
        return f"{_source(dotted, origin)}: {dotted}: unknown key; {allowed_names(key, holder)}"
    value = "" if first["type"] == "missing" else f" {first['input']!r}:"
    return f"{_source(path, origin)}: {path}:{value} {_explain(first)}"


def _all_keys() -> set[str]:
    """Every real key; pydantic also puts names of union members into an error's location."""
    keys = set(StudyConfig.model_fields) | set(Range.model_fields)
    for section in _SECTIONS.values():
        keys |= set(section.model_fields)
    return keys


def _explain(error: Any) -> str:
    if error["type"] == "literal_error":
        return allowed_names(error["input"], re.findall(r"[\w.-]+", error["ctx"]["expected"].replace(" or ", " ")))
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"]).removeprefix("Input ")


def _source(path: str, origin: dict[str, str]) -> str:
    """The file or flag that set the key, or the nearest key above it."""
    while path and path not in origin:
        path = path.rpartition(".")[0]
    return origin.get(path, origin[""])

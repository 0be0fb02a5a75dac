"""Typed configuration of trials and studies.

A study is `configs/scales/<scale>.yaml`, overlaid by `configs/studies/<study>.yaml`, overlaid by `--set key=value`
(see `study.plan.loading`). The string below a field documents it; `docs/configuration.md` is generated from these
strings. This module does not import torch, so that `plan` and `status` start fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from study.config.datasets import DATASETS, compute_split_sizes
from study.config.errors import allowed_names
from study.config.seeds import MAX_REPLICATES, SeedRole
from study.norms.names import DEFAULT_POOL, effective_pool, parse_norm

SMALL_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
"""ResNets for small images (He et al., 2016, section 4.2): three stages."""
LARGE_DEPTHS = (18, 34, 50, 101, 152)
"""ResNets for images of ImageNet's size: four stages."""
MAX_EPOCHS, MAX_BATCH, MAX_RATE, MAX_PROCESSES = 100_000, 100_000, 1e30, 1024
"""Upper limits of epochs, of numbers of samples or groups, of rates, whose products float32 must hold, and of numbers
of processes, threads or devices."""
_NAME, _MEMORY = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", r"^\d+[KMGT]B?$"
_INTERFACE = r"^[\w.:@-]+(,[\w.:@-]+)*$"
PATTERNS = {
    _NAME: "letters, digits, `_`, `.` and `-`; it cannot begin with `.` or `-`",
    _INTERFACE: "the names of network interfaces, separated by commas",
    _MEMORY: "a whole number with the unit K, M, G or T",
}
"""What texts of a limited form may be, in words."""
NO_NORM = "none"
"""The norm of a head without norm layers."""

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
"""The parts of a network outside its backbone that have norm layers, by head."""

StartRule = Literal["scratch", "fine_tune", "argmax", "frozen", "transplant", "permute", "shared"]
Launcher = Literal["local", "slurm", "ray", "env"]
LAUNCHERS = get_args(Launcher)


def _normalize_norm(name: str) -> str:
    """The one spelling of a norm, so that a cell has one id: `sn[in,ln,bn]` is `sn`."""
    spec = parse_norm(name)
    return name.partition("[")[0] if spec.pool == DEFAULT_POOL else name


def _normalize_head_norm(name: str | None) -> str | None:
    return name if name in (None, NO_NORM) else _normalize_norm(str(name))


def _check_depth(depth: int) -> int:
    if depth not in SMALL_DEPTHS + LARGE_DEPTHS:
        allowed = sorted(SMALL_DEPTHS + LARGE_DEPTHS)
        nearest = min(allowed, key=lambda known: abs(known - depth))
        raise ValueError(f"allowed: {', '.join(map(str, allowed))}; nearest: {nearest}")
    return depth


def _check_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no text: it has half of a surrogate pair at character {error.start + 1}") from None
    return text


def _check_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(allowed_names(name, DATASETS))
    return name


_Items = TypeVar("_Items", bound=Sequence[Any])


def _check_distinct(values: _Items) -> _Items:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{value} appears twice")
    return values


def _check_increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    for one, other in pairwise(values):
        if other <= one:
            raise ValueError(f"{other} follows {one}; each must be above the one before")
    return values


Text = Annotated[str, AfterValidator(_check_text)]
Dataset = Annotated[str, AfterValidator(_check_dataset), Field(json_schema_extra={"enum": [*DATASETS]})]
Depth = Annotated[
    int, AfterValidator(_check_depth), Field(json_schema_extra={"enum": sorted(SMALL_DEPTHS + LARGE_DEPTHS)})
]
Name = Annotated[str, Field(max_length=100)]
Norm = Annotated[Name, AfterValidator(_normalize_norm)]
HeadNorm = Annotated[Name | None, AfterValidator(_normalize_head_norm)]
Fractions = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...],
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),  # YAML has no tuples
    AfterValidator(_check_increasing),
]


class StrictModel(BaseModel):
    """Frozen, without unknown keys, and without silent conversion (`true` is not 1 epoch)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------------------------------------- a trial


class TrialConfig(StrictModel):
    """Everything that determines the result of one training run, apart from its seeds.

    Every field is part of the trial's id, and nothing else is. A factor of a study is one of these fields.
    """

    # Data
    dataset: Dataset = "digits"
    """Data set to train and evaluate on."""
    train_samples: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Number of training images; by default all that remain after the validation split."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the published training images that is held out for validation."""
    augmentation: Literal["none", "shift", "shift_flip", "flip", "random_resized_crop", "scale_flip", "crop_flip"] = (
        "shift"
    )
    """Random transformation of training images: shifts by up to an eighth of the width, horizontal flips, or the crops
    and scales of the ImageNet, ADE20K and Cityscapes recipes. Each data set allows some of them."""
    color: Literal["none", "lighting", "jitter"] = "none"
    """Random change of colors with `random_resized_crop`: PCA lighting, or PCA lighting and jitter of brightness,
    contrast and saturation."""
    mild_epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 0
    """Number of final epochs in which `random_resized_crop` is replaced by a resize and a center crop."""

    # Task
    task: Task = "classification"
    """What the network is trained for."""
    head: Head | None = None
    """Head on top of the backbone; by default `fcn` for segmentation and `mask_rcnn` for detection."""
    output_stride: Literal[1, 2, 4, 8, 16] | None = None
    """Stride of the last feature map of a segmentation backbone, reached by dilation; by default no dilation."""
    deep_supervision: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Loss weight of a second segmentation decoder on the next-to-last stage; 0 means no second decoder."""
    box_head: Literal["conv", "mlp"] = "conv"
    """Box head of a detector: four convolutions with norm layers and a linear layer, or two linear layers."""
    decoder_norm: HeadNorm = None
    """Norm of the segmentation decoder: a norm, or `none` for no norm layers; by default that of the backbone."""
    fpn_norm: HeadNorm = None
    """Norm of the feature pyramid of a detector: a norm or `none`; by default that of the backbone."""
    box_head_norm: HeadNorm = None
    """Norm of the box head of a detector: a norm or `none`; by default that of the backbone."""
    mask_head_norm: HeadNorm = None
    """Norm of the mask head of a detector: a norm or `none`; by default that of the backbone."""
    freeze_stages: Annotated[int, Field(ge=0, le=5)] = 0
    """Number of leading backbone stages that are not trained; the stem is the first stage."""

    # Network
    depth: Depth = 20
    """Number of layers of the ResNet: 18, 34, 50, 101 and 152 as for ImageNet, the others as for CIFAR."""
    width: Annotated[float, Field(ge=0.01, le=64)] = 1.0
    """Factor on the number of channels of every layer."""
    zero_last_gamma: bool = True
    """Whether the last norm layer of every residual branch starts with gamma 0, so that the block starts as the
    identity."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability before the last layer of a classifier or a segmentation decoder."""
    initialization: Literal["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal"] = "he_normal"
    """Distribution that the initial weights of convolutions are drawn from; He uses the fan-out."""

    # Normalization
    norm: Norm = "sn"
    """Norm of every layer: `bn`, `gn`, `in`, `ln`, a switch norm `sn` or `ssn`, or a control such as `sn-shared`; a
    switch norm takes its pool in brackets, as in `sn[in,ln]`."""
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32
    """B, the number of samples that batch statistics are computed over."""
    chunks: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 8
    """G, the number of chunks of B samples per step; gradients are averaged over G * B samples."""
    fixed_gradient_batch: Annotated[int, Field(ge=1, le=MAX_BATCH)] | None = None
    """G * B, held constant while B varies: `chunks` is then computed from it and `batch_size`. By default `chunks` is
    used as given."""
    logit_init: Literal["ones", "random"] = "ones"
    """Initial switch logits: `ones` for equal weights, `random` for weights drawn uniformly from the simplex."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the current batch in the running statistics, as in PyTorch."""
    bn_statistics: Literal["moving", "batch", "batch_total"] = "moving"
    """Batch statistics in evaluation: the moving averages of training, or statistics that are recomputed over training
    batches before every evaluation. `batch` averages the variances within batches, which moving averages estimate;
    `batch_total` takes the variance of all values of these batches, as the code of the SN authors does."""
    sync_statistics: bool = False
    """Whether batch statistics are computed over all G * B samples (SyncBN, SyncSN) instead of B."""
    correction: Literal[0, 1] = 0
    """Variance estimator of switch norms: 0 as in the formula of the SN paper (biased), 1 as in the authors' code."""
    gn_groups: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 32
    """Number of groups of `gn`; a layer with C channels uses gcd(`gn_groups`, C)."""

    # Warm start
    start_rule: StartRule = "scratch"
    """What the trial takes from its start trial or weight file, which the section `start` names (docs/starts.md)."""
    start_source: str | None = None
    """Id of the start trial or digest of the weight file. Computed from the section `start`; it cannot be set."""
    start_epoch: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 0
    """Epoch from which the rule `frozen` fixes the switch weights; 0 fixes them from the beginning."""
    start_fresh: bool = False
    """Whether only the switch weights are taken from the start, and all other weights are initialized anew."""
    start_thaw: bool = False
    """Whether switch weights that a sparse norm (`ssn`) has fixed are trained again."""

    # Optimization
    epochs: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] = 100
    """Number of training epochs; 0 only evaluates, which is allowed for trials with a warm start."""
    epoch_steps: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Number of optimizer steps per epoch; by default one pass over the training split, without an incomplete last
    batch."""
    solver: Literal["sgd", "nesterov", "adam", "adamw", "rmsprop"] = "sgd"
    """Optimizer; `nesterov` is SGD with Nesterov momentum."""
    learning_rate: Annotated[float, Field(gt=0, le=MAX_RATE)] = 0.1
    """Peak learning rate, for a gradient batch of 256 if `scale_learning_rate` is true."""
    scale_learning_rate: bool = True
    """Whether the learning rate is multiplied by the gradient batch / 256."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the optimizer; beta 1 of `adam` and `adamw`."""
    weight_decay: Annotated[float, Field(ge=0, le=MAX_RATE)] = 1e-4
    """Weight decay of all parameters that have no weight decay of their own below."""
    norm_weight_decay: Annotated[float, Field(ge=0, le=MAX_RATE)] | None = None
    """Weight decay of gamma and beta; by default `weight_decay`."""
    bias_weight_decay: Annotated[float, Field(ge=0, le=MAX_RATE)] | None = None
    """Weight decay of the biases of convolutions and linear layers; by default `weight_decay`."""
    bias_learning_rate: Annotated[float, Field(ge=0, le=MAX_RATE)] = 1.0
    """Factor on the learning rate for the biases of convolutions and linear layers."""
    decay: Literal["step", "cosine", "poly", "linear", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up: division by 10 at every milestone, cosine to 0, polynomial of
    power 0.9 to 0, linear to 0, or constant."""
    decay_milestones: Fractions = (0.3, 0.6, 0.9)
    """Milestones of the decay `step`, as fractions of all training steps."""
    warmup_epochs: Annotated[float, Field(ge=0, le=MAX_EPOCHS)] = 0.0
    """Length of the linear warm-up of the learning rate, in epochs; fractions are allowed."""
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the start of the warm-up, as a fraction of the peak."""
    logit_learning_rate: Annotated[float, Field(ge=0, le=MAX_RATE)] = 1.0
    """Factor on the learning rate for the switch logits; short runs need more than 1 for the logits to move."""
    logit_weight_decay: Annotated[float, Field(ge=0, le=MAX_RATE)] = 0.0
    """Weight decay of the switch logits. It pulls the switch weights towards uniform, so it is 0 by default."""
    logit_gradient_clip: Annotated[float, Field(gt=0, le=MAX_RATE)] | None = None
    """Maximum norm of the gradient of all switch logits; by default the gradient is not clipped."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Floating-point format of training: `bfloat16` and `float16` are automatic mixed precision."""

    @property
    def task_head(self) -> Head | None:
        """The head of the network, its default resolved; None for a classifier."""
        return self.head or next(iter(HEADS[self.task]), None)

    @property
    def norms(self) -> dict[str, str]:
        """The norm of each role, the backbone first; `none` for a head without norm layers."""
        heads = {role: getattr(self, f"{role}_norm") or self.norm for role in HEAD_ROLES[self.task_head]}
        if self.box_head == "mlp" and "box_head" in heads:
            heads["box_head"] = NO_NORM
        return {"backbone": self.norm, **heads}

    @property
    def pools(self) -> dict[str, tuple[str, ...]]:
        """The pool of each role that has norm layers, without bn over one sample.

        Raises `ValueError` for a pool of bn alone over one sample.
        """
        return {role: effective_pool(norm, self.statistics_batch)
                for role, norm in self.norms.items() if norm != NO_NORM}  # fmt: skip

    @property
    def gradient_batch(self) -> int:
        """G * B, the number of samples that a gradient is averaged over."""
        return self.chunks * self.batch_size

    @property
    def statistics_batch(self) -> int:
        """The number of samples that batch statistics are computed over: B, or G * B if they are synchronized."""
        return self.gradient_batch if self.sync_statistics else self.batch_size

    @property
    def split_sizes(self) -> tuple[int, int, int]:
        """Number of images in the training, validation and test split."""
        return compute_split_sizes(self.dataset, self.validation_fraction, self.train_samples)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch. An incomplete last batch is dropped, so that every batch has G chunks of B."""
        return self.epoch_steps or self.split_sizes[0] // self.gradient_batch

    @property
    def base_learning_rate(self) -> float:
        """The peak learning rate, scaled linearly with the gradient batch from a reference of 256."""
        return self.learning_rate * (self.gradient_batch / 256 if self.scale_learning_rate else 1.0)

    def identity_fields(self) -> dict[str, Any]:
        """The fields that differ from their defaults, which the hash in the trial's id is computed from."""
        return self.model_dump(exclude_defaults=True)


def trial_id(config: TrialConfig, factors: Sequence[str], joint: Mapping[str, str] | None = None) -> str:
    """Builds the id of a cell: a slug of its factor levels, and a hash of all fields that differ from their defaults.

    joint: the levels of factors that are not fields of the config.
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


def build_joint_key(level: Any) -> str:
    """Builds the text that `joint` names a level by. A list-valued level is a tuple, which YAML does not have."""
    return str(list(level) if isinstance(level, tuple) else level)


# ---------------------------------------------------------------------------------------------- a study


class Range(StrictModel):
    """A numeric interval that a search samples a factor from; integers, if the setting is one."""

    low: int | float
    """Smallest value."""
    high: int | float
    """Largest value; it must be above `low`."""
    log: bool = False
    """Whether values are drawn on a logarithmic scale; `low` must then be above 0."""

    @model_validator(mode="after")
    def _check_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, got low {self.low}")
        return self


class StartConfig(StrictModel):
    """What trials with a `start_rule` other than `scratch` start from (docs/starts.md).

    By default it is the trial of the same cell and replicate with `start_rule: scratch`. At most one of `cell`, `trial`
    and `checkpoint` can be set.
    """

    cell: dict[str, Any] = {}
    """Factor levels in which the start trial's cell differs from the trial's own, for example `{depth: 8}`."""
    trial: str | None = None
    """Folder of a finished trial of any study: `.../<trial id>` to start each replicate from the same replicate, or
    `.../<trial id>/r0` to start all of them from that one."""
    checkpoint: str | None = None
    """File of weights: a `last.ckpt`, a published SN or SSN file, or another state dict."""
    rule: StartRule | None = Field(default=None, exclude=True)
    """Short for the base's `start_rule`."""
    epoch: Annotated[int, Field(ge=0, le=MAX_EPOCHS)] | None = None
    """`start_epoch` of the trials with the rule `frozen`; by default that of the base."""
    fresh: bool | None = None
    """`start_fresh` of the trials with the rules `argmax`, `frozen`, `permute` and `shared`; by default that of the
    base."""
    thaw: bool | None = None
    """`start_thaw` of the trials with the rules `fine_tune` and `frozen`; by default that of the base."""
    base: dict[str, Any] = {}
    """Settings that replace those of `base` for trials with a warm start, for example `{epochs: 0}`."""
    source: dict[str, Any] | str | None = None
    """Config of the trial that `trial` names, or digest of the file `checkpoint`. Computed; it cannot be set."""


class SeedsConfig(StrictModel):
    """Which seeds are also varied apart from each other, to divide the effect of another seed among its sources."""

    apart: Annotated[list[SeedRole], AfterValidator(_check_distinct)] = []
    """Seeds that are varied alone: initialization (`init`), order and augmentation of the training data (`data`), data
    split (`split`). For each of them, every cell is trained again with this seed of each further replicate and all
    other seeds of the first. These runs are compared with each other only; by default there are none."""


class SearchConfig(StrictModel):
    """An Optuna search over the factors instead of the full grid.

    Trials are suggested in rounds, and results are reported in a fixed order: the search suggests the same trials for
    any number of workers, and after any interruption.
    """

    sampler: Literal["tpe", "random"]
    """Optuna sampler: the tree-structured Parzen estimator, or random search."""
    n_trials: Annotated[int, Field(ge=1, le=100_000)]
    """Number of cells to suggest; each is trained with all replicates."""
    objective: Literal["val_accuracy", "val_score", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
    """Metric of the last epoch that the search optimizes, averaged over replicates."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether the objective is maximized or minimized."""
    round_size: Annotated[int, Field(ge=1, le=100_000)] = 4
    """Number of cells per round; the results of a round are known before the next one is suggested."""
    pruner: Literal["none", "median"] = "none"
    """Early stopping of trials that are worse than the median of earlier ones; it needs `replicates: 1`."""


class MarginConfig(StrictModel):
    """The smallest differences that count as practical. A verdict compares intervals with them.

    The margin of a metric is never below the resolution of its split, which is 1 / the number of images.
    """

    accuracy: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Difference in accuracy, from 0 to 1: half a percentage point, about the smallest difference between norms that
    the papers discuss."""
    miou: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Difference in mean intersection over union, from 0 to 1: one percentage point. Segmentation has fewer images
    than classification, and its results are usually reported to a tenth of a point."""
    box_ap: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Difference in average precision of boxes, from 0 to 1: one point. Runs of the same detector that differ only in
    their seeds commonly differ by some tenths of a point."""
    displacement: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Distance that a factor moves what layers choose, as a Jensen-Shannon distance from 0 to 1: about five points of
    weight moved per layer (at uniform weights over three members, 0.048 moved from one member to another; at one-hot
    weights, 0.005)."""


class AnalysisConfig(StrictModel):
    """What the report answers. The first run records it as a plan, and later changes are listed in the report."""

    questions: Annotated[list[Literal["useful", "impacts", "tasks"]], AfterValidator(_check_distinct)] = [
        "useful", "impacts",
    ]  # fmt: skip
    """Questions that the report answers: is choosing useful, what impacts the choice, do tasks choose differently."""
    metric: Literal["val_accuracy", "test_accuracy", "val_score", "test_score"] | None = None
    """Metric that trials are compared by; a score is the main metric of a task. By default `val_accuracy` if all trials
    are classifiers, and `val_score` otherwise."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of all intervals. Each time that replicates are added after results existed, 1 - confidence is
    halved."""
    margins: MarginConfig = MarginConfig()
    """The smallest differences that count as practical."""
    tuned: list[str] = []
    """Factors, such as `learning_rate`, whose level is chosen on validation for each norm and cell before norms are
    compared, for each replicate on the others. `norm` itself cannot be tuned."""


class RunConfig(StrictModel):
    """How trials are run on a machine. Nothing here is part of a trial's id."""

    threads: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    """CPU threads per process."""
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 3
    """How often a trial that fails is started; after that it stays failed until `--retry-failed`."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=10**6)] = 5.0
    """Least time between two checkpoints of a trial, in seconds; checkpoints are also written within epochs."""
    data_root: str | None = None
    """Folder that contains the data sets; by default small ones are downloaded to `data/`."""
    own_data: bool = False
    """Accepts files of Fashion-MNIST with other content than the published one, of the same format and size."""
    loader_workers: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] = 2
    """Processes per device that read images of streamed data sets; 0 reads them in the trial's own process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; `auto` uses all visible GPUs, or the CPU if there are none."""
    trials_per_device: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    """Number of trials that share a GPU; a small network uses only a part of it."""
    devices_per_trial: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    """Number of devices that train one trial together, each with an equal share of the G chunks."""
    accumulate: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    """Number of parts in which a device processes its share of a gradient batch, to save memory."""
    fuse: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = "auto"
    """Number of trials with networks of one shape that a process trains as one; 1 trains each by itself. `auto` takes
    up to 8 where networks and batches are so small that it is faster on a CPU. Detectors, and trials with dropout or in
    float16, are always trained by themselves."""


class LaunchConfig(StrictModel):
    """Where trials run, and what each job requests from a cluster. Nothing here is part of a trial's id."""

    launcher: Launcher = "local"
    """Where trials run: on this machine, as Slurm jobs, as Ray tasks, or in the processes that torchrun or srun has
    started (`env`). `--launcher` sets it, too."""
    cpus: Annotated[float, Field(gt=0, le=4096)] = 1
    """CPU cores per job; Ray also takes a fraction of one."""
    gpus: Annotated[float, Field(ge=0, le=MAX_PROCESSES)] = 0
    """GPUs per job; Ray also takes a fraction of one."""
    memory: Annotated[str, Field(pattern=_MEMORY)] | None = None
    """Memory per job, for example `16G`; by default the cluster decides."""
    requeues: Annotated[int, Field(ge=0, le=10_000)] = 20
    """How often a job that was preempted or has reached its time limit is resumed."""
    nodes: Annotated[int, Field(ge=1, le=MAX_PROCESSES)] = 1
    """Nodes per job of Slurm or Ray, each with `cpus`, `gpus` and `memory`. They train one trial at a time together,
    each with an equal share of `run.devices_per_trial`."""
    interface: Annotated[str, Field(pattern=_INTERFACE)] | None = None
    """Network interface over which the nodes of a trial exchange gradients, such as `ib0`, or several: `ib0,ib1`. By
    default that of `$GLOO_SOCKET_IFNAME` and `$NCCL_SOCKET_IFNAME`, or of the host's name."""

    # Slurm
    partition: str | None = None
    """Slurm partition; by default that of the cluster."""
    minutes: Annotated[int, Field(ge=1, le=525_600)] = 60
    """Time limit of a Slurm job, in minutes; unfinished trials resume when the job is requeued."""
    trials_per_job: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of trials per Slurm job; as many run at once as its cores or GPUs allow."""
    jobs: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Number of Slurm jobs that may run at once."""
    warning_seconds: Annotated[int, Field(ge=1, le=86_400)] = 60
    """Time between Slurm's warning signal and the time limit, in seconds, for trials to write a checkpoint."""
    sbatch: Annotated[dict[str, str | int | bool], Field(exclude=True)] = {}
    """Further `sbatch` options, for example `{account: me, constraint: a100}`. Not written into records."""
    setup: Annotated[list[str], Field(exclude=True)] = []
    """Shell commands that a Slurm job runs before Python. Not written into records, because they may hold passwords."""

    # Ray
    address: Annotated[str | None, Field(exclude=True)] = None
    """Address of the Ray cluster, `HOST:PORT`; by default the cluster that this machine belongs to. Not written into
    records."""


class TrackingConfig(StrictModel):
    """Where trials are recorded on Weights & Biases."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto` follows `$WANDB_MODE`; without it, it is online if the user is logged in and the server answers, and
    offline otherwise."""
    project: str = "normalizer-study"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; by default that of the login."""
    system_metrics: bool = True
    """Whether runs have the use of GPU, CPU and memory, and describe the machine."""
    checkpoints: Literal["none", "last"] = "none"
    """`last` uploads the last checkpoint of every trial as an artifact of its run."""


class StudyConfig(StrictModel):
    """One study: a question, a base, factors, replicates, and how it is run and analysed."""

    name: Annotated[str, Field(pattern=_NAME)]
    """Name of the study and of its folder in `runs/`; the name of the study's file if it is not given."""
    scale: str
    """Name of the scale, as in `--scale`."""
    title: Text
    """One line that says what the study is about."""
    question: Text
    """The question in full, as the report prints it."""
    base: TrialConfig
    """Settings of every trial; a factor's levels replace the base's value."""
    factors: dict[str, list[Any] | Range]
    """Factors and their levels: `depth: [8, 14]`. An empty factor takes the levels that the scale offers; in a search a
    factor may be a range `{low: 0.01, high: 1.0, log: true}`. A factor has at most 1000 levels, a study at most 10,000
    cells and 100,000 trials."""
    joint: dict[str, dict[str, dict[str, Any]]] = {}
    """Further settings that go with a level, by factor and level: `{solver: {adamw: {learning_rate: 0.01}}}`. A factor
    that is not a setting itself has its levels here: `{size: {small: {depth: 8}, large: {depth: 20}}}`."""
    blocks: list[list[str]] = []
    """Lists of factors that are crossed with each other, all other factors at their base level; the plan is the union
    of the blocks. By default all factors are crossed."""
    replicates: Annotated[int, Field(ge=1, lt=MAX_REPLICATES)]
    """Number of training runs of every cell, each with its own seeds."""
    seeds: SeedsConfig = SeedsConfig()
    """Seeds that are also varied apart from each other."""
    start: StartConfig = StartConfig()
    """What trials with a warm start start from."""
    search: SearchConfig | None = None
    """Search instead of the full grid; by default there is none."""
    analysis: AnalysisConfig = AnalysisConfig()
    """What the report answers."""
    run: RunConfig = RunConfig()
    """How trials are run on a machine."""
    launch: LaunchConfig = LaunchConfig()
    """Where trials run, and what each job requests."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""

    def apply_levels(self, levels: Mapping[str, Any], start_settings: Mapping[str, Any] | None = None) -> TrialConfig:
        """The base with the levels of a cell applied. Raises pydantic's `ValidationError` for a value not allowed.

        start_settings: what a warm start sets, over the base and below the levels. `study.plan.warm_start.build_config`
        fills it in; without it the config of a cell with a start rule is incomplete.
        """
        fields = {**self.base.model_dump(), **(start_settings or {}), **self.collect_fields(levels)}
        config = TrialConfig(**fields)
        if config.fixed_gradient_batch is None:
            return config
        return config.model_copy(update={"chunks": max(1, config.fixed_gradient_batch // config.batch_size)})

    def collect_fields(self, levels: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a trial that these levels set: the factors, and what `joint` adds to their levels."""
        fields: dict[str, Any] = {}
        for factor, level in levels.items():
            fields |= self.joint.get(factor, {}).get(build_joint_key(level), {})
        # Factors come last: the level `start_rule: scratch` wins over a start rule that `joint` adds to another level.
        return fields | {factor: level for factor, level in levels.items() if factor in TrialConfig.model_fields}

    def build_trial_id(self, config: TrialConfig, levels: Mapping[str, Any]) -> str:
        """The id of a cell's trials: `trial_id` with the levels of factors that are not fields of a trial."""
        joint = {factor: level for factor, level in levels.items() if factor not in TrialConfig.model_fields}
        return trial_id(config, list(self.factors), joint)

    def list_values(self, field: str) -> list[Any]:
        """Every value that a field has in the study's trials, that of the base first; the ends of a range."""
        given = self.factors[field] if field in self.factors else [getattr(self.base, field)]
        values = given if isinstance(given, list) else [given.low, given.high]
        for settings in self.joint.values():
            values = [*values, *(fields[field] for fields in settings.values() if field in fields)]
        return [value for number, value in enumerate(values) if value not in values[:number]]

    @property
    def metric(self) -> str:
        """The metric that trials are compared by, the default of `analysis.metric` resolved."""
        only_classifiers = self.list_values("task") == ["classification"]
        return self.analysis.metric or ("val_accuracy" if only_classifiers else "val_score")


SECTIONS: dict[str, type[StrictModel]] = {
    "base": TrialConfig,
    "start": StartConfig,
    "seeds": SeedsConfig,
    "run": RunConfig,
    "launch": LaunchConfig,
    "tracking": TrackingConfig,
    "search": SearchConfig,
    "analysis": AnalysisConfig,
}
"""The sections of a study file."""

"""Which trials of a study are trained as one (study/training/fused.py): those whose networks have the same shape.

The groups follow from the plan alone. They are the same after an interruption, on another machine and for any number of
workers, because a trial's last bits depend on the number of networks that are computed as one. Only GPUs make a
difference: on them, groups are formed on request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from study.config.datasets import DATASETS
from study.config.schema import StudyConfig, TrialConfig
from study.plan.trials import PlannedTrial

AUTO_SIZE = 8  # more need more memory and gain little (`bench fuse`)
# Pixels of a gradient batch x width. Steps of 512 (the laptop scale) gain clearly on a CPU; steps of 8,000 and more,
# such as 28x28 pixels at a gradient batch of 32, took eight networks as long as one by one.
AUTO_WORK = 2048

# What trials of a group may differ in: what is not in the network's forward pass.
FREE_FIELDS = frozenset({
    "initialization", "zero_last_gamma", "logit_init",
    "solver", "learning_rate", "scale_learning_rate", "momentum", "decay", "decay_milestones",
    "warmup_epochs", "warmup_start", "bias_learning_rate", "logit_learning_rate",
    "weight_decay", "norm_weight_decay", "bias_weight_decay", "logit_weight_decay", "logit_gradient_clip",
    "start_source",
})  # fmt: skip


def plan_groups(trials: Sequence[PlannedTrial], study: StudyConfig, *, gpu: bool) -> dict[str, tuple[str, ...]]:
    """The keys of the trials of each group, by the key of each of its trials; those trained alone are left out.

    gpu: whether trials run on GPUs, where `auto` forms no groups: what it gains there has not been measured.
    """
    size = AUTO_SIZE if study.run.fuse == "auto" else study.run.fuse
    if size == 1 or study.run.devices_per_trial > 1 or study.run.accumulate > 1:
        return {}
    alike = defaultdict(list)
    for trial in trials:
        small = not gpu and _step_work(trial.config) <= AUTO_WORK
        if can_be_fused(trial.config) and (small or study.run.fuse != "auto"):
            alike[_shape(trial)].append(trial.key)
    groups = [tuple(keys[start : start + size]) for keys in alike.values() for start in range(0, len(keys), size)]
    return {key: group for group in groups if len(group) > 1 for key in group}


def can_be_fused(config: TrialConfig) -> bool:
    """Whether the trial's networks can be computed as one with others.

    Detectors sample boxes image by image, dropout draws from one global generator, and float16 scales every loss by
    itself. Choices that are fixed during training change which parameters are trained.
    """
    return (
        config.task in ("classification", "segmentation")
        and not config.dropout
        and config.precision != "float16"
        and not (config.start_rule == "frozen" and config.start_epoch)
    )


def _shape(trial: PlannedTrial) -> str:
    return trial.config.model_dump_json(exclude=set(FREE_FIELDS))


def _step_work(config: TrialConfig) -> float:
    return config.gradient_batch * DATASETS[config.dataset].image_size ** 2 * config.width

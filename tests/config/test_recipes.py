"""The recipes of scale `paper` against the published ones: optimizer, schedule, network and transforms as built."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from study.data.transforms import Lighting, build_evaluation_transform, build_training_transform
from study.models import build_network, count_norms, get_backbone
from study.models.geometry import is_norm
from study.norms import switch_parameters
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.tasks import TASKS
from study.tasks.optimizers import build_optimizer, build_schedule
from study.training.cost_estimate import measure_cell

COCO = ("coco-faster", "coco-mask", "coco-faster-scratch", "coco-mask-scratch")
DENSE = (*COCO, "ade20k", "cityscapes")


@cache
def recipe(setting: str, *overrides: str) -> PlannedTrial:
    """The trial of a setting, at (8, 2) unless overridden."""
    study = load_study("tasks", "paper", ["replicates=1", "batch_size=2", *overrides])
    (found,) = (trial for trial in plan_trials(study) if trial.levels["setting"] == setting)
    return found


def imagenet(depth: int = 50, *overrides: str) -> PlannedTrial:
    """The trial of a ResNet on ImageNet at (8, 32)."""
    setting = f"imagenet-r{depth}"
    return recipe(setting, f"setting=[{setting}]", "batch_size=32", *overrides)


def network_of(trial: PlannedTrial) -> Any:
    """The network on the meta device; it would take seconds to initialize."""
    with torch.device("meta"):
        return build_network(trial.config, 0)


def build_rate(trial: PlannedTrial) -> Callable[[int], float]:
    """The learning rate of weights as a function of the step."""
    optimizer = build_optimizer(nn.Linear(1, 1), trial.config)
    schedule = build_schedule(optimizer, trial.config, trial.steps_per_epoch)
    return lambda step: schedule.base_lrs[0] * schedule.lr_lambdas[0](step)


def read_groups(trial: PlannedTrial) -> dict[str, set[tuple[float, float]]]:
    """Learning rates and weight decays of weights, biases, gammas and betas, and logits; 0 if frozen."""
    network = build_network(trial.config, 0)
    settings = {
        id(parameter): (round(group["lr"], 9), group["weight_decay"])
        for group in build_optimizer(network, trial.config).param_groups
        for parameter in group["params"]
    }
    logits = {id(parameter) for parameter in switch_parameters(network)}
    found: dict[str, set[tuple[float, float]]] = {"weight": set(), "bias": set(), "norm": set(), "logit": set()}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            kind = "logit" if id(parameter) in logits else "norm" if is_norm(module) else name
            if parameter.requires_grad:
                found[kind].add(settings.pop(id(parameter)) if id(parameter) in settings else (0, 0))
    assert not settings, "the optimizer has frozen parameters, or some that the network does not have"
    return found


def parts(transform: Any) -> dict[type, Any]:
    return {type(part): part for part in transform.transforms}


# ------------------------------------------------------------------------------------------------- ImageNet


@pytest.mark.parametrize("depth", [50, 101])
def test_imagenet_takes_100_epochs_and_divides_by_10_at_30_60_and_90(depth: int) -> None:
    trial = imagenet(depth)
    rate, epoch = build_rate(trial), trial.steps_per_epoch
    assert (trial.gradient_batch, trial.statistics_batch, trial.steps) == (256, 32, 100 * epoch)
    at = [0, 30 * epoch - 1, 30 * epoch, 60 * epoch - 1, 60 * epoch, 90 * epoch - 1, 90 * epoch]
    assert [rate(step) for step in at] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


@pytest.mark.parametrize(("batch_size", "expected"), [(4, 0.0125), (1, 0.003125)])
def test_imagenet_learning_rates_are_linear_in_the_gradient_batch(batch_size: int, expected: float) -> None:
    assert build_rate(imagenet(50, f"batch_size={batch_size}"))(0) == pytest.approx(expected)


def test_the_longer_imagenet_recipe_is_cosine_with_a_linear_warm_up() -> None:
    trial = imagenet(50, "base.decay=cosine", "epochs=120", "warmup_epochs=5")
    rate, epoch = build_rate(trial), trial.steps_per_epoch
    assert trial.steps == 120 * epoch
    assert [rate(0), rate(5 * epoch // 2), rate(5 * epoch)] == pytest.approx([0, 0.05, 0.1], abs=1e-4)
    assert rate(trial.steps) == pytest.approx(0)


def test_imagenet_has_one_learning_rate_and_weight_decay_for_all_parameters() -> None:
    assert read_groups(imagenet()) == {kind: {(0.1, 1e-4)} for kind in ("weight", "bias", "norm", "logit")}


def test_the_imagenet_network_starts_as_published() -> None:
    network: Any = build_network(imagenet().config, 0)
    block = network.layer1[0]
    assert block.bn3.weight.eq(0).all()
    assert block.bn2.weight.eq(1).all()
    assert block.bn2.mean_weight.eq(1).all()
    assert float(block.conv2.weight.detach().std()) == pytest.approx((2 / (3 * 3 * 64)) ** 0.5, rel=0.02)
    assert (network.conv1.kernel_size, network.layer2[0].conv2.stride) == ((7, 7), (2, 2))
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.5]


def test_imagenet_images_are_cropped_milder_in_the_last_5_epochs() -> None:
    config = imagenet().config
    early, late = (parts(build_training_transform(config, config.augmentation, epoch)) for epoch in (94, 95))
    crop = early[v2.RandomResizedCrop]
    assert (crop.size, tuple(crop.scale)) == ((224, 224), (0.08, 1))
    assert v2.RandomResizedCrop not in late
    assert (late[v2.Resize].size, late[v2.CenterCrop].size) == ([256], (224, 224))
    for each in (early, late):
        assert each[v2.RandomHorizontalFlip].p == 0.5
        assert each[Lighting].std == 0.1
        assert v2.ColorJitter not in each
    evaluation = parts(build_evaluation_transform("imagenet"))
    assert (evaluation[v2.Resize].size, evaluation[v2.CenterCrop].size) == ([256], (224, 224))


def test_ssn_logits_have_a_lower_learning_rate_no_decay_and_clipped_gradients_and_colors_are_jittered() -> None:
    settings = ["replicates=1", "blocks=[]", "norm=[ssn]", "batch_size=32", "start_rule=scratch"]
    (trial,) = plan_trials(load_study("distinct", "paper", settings))
    found = read_groups(trial)
    assert found["weight"] == found["norm"] == {(0.1, 1e-4)}
    assert found["logit"] == {(0.01, 0.0)}
    assert trial.config.logit_gradient_clip == 1.0
    jitter = parts(build_training_transform(trial.config, trial.config.augmentation, 0))[v2.ColorJitter]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.6, 1.4)


# ----------------------------------------------------------------------------------------------------- COCO


@pytest.mark.parametrize("setting", DENSE)
def test_dense_tasks_take_16_images_of_which_2_share_their_statistics(setting: str) -> None:
    trial = recipe(setting)
    assert (trial.config.chunks, trial.statistics_batch, trial.gradient_batch) == (8, 2, 16)
    assert recipe(setting, "batch_size=16").gradient_batch == 16


@pytest.mark.parametrize(
    ("settings", "total", "first", "second"),
    [(COCO[:2], 180_000, 120_000, 160_000), (COCO[2:], 270_000, 210_000, 250_000)],
)
def test_coco_warms_up_from_a_third_and_divides_by_10_twice(
    settings: tuple[str, ...], total: int, first: int, second: int
) -> None:
    for setting in settings:
        trial = recipe(setting)
        rate = build_rate(trial)
        assert trial.steps == total
        at = [0, 250, 499, 500, first - 1, first, second - 1, second]
        expected = [0.02 / 3, 0.04 / 3, 0.02, 0.02, 0.02, 0.002, 0.002, 0.0002]
        assert [rate(step) for step in at] == pytest.approx(expected, rel=2e-3)


def test_coco_has_weight_decay_on_weights_only_and_twice_the_learning_rate_for_biases() -> None:
    found = read_groups(recipe("coco-mask"))
    assert found == {
        "weight": {(0.02, 1e-4)}, "bias": {(0.04, 0.0)}, "norm": {(0.02, 0.0)}, "logit": {(0.02, 0.0)},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "heads"),
    [
        ("imagenet-r50", {}),
        ("coco-faster", {"fpn": 8}),
        ("coco-mask", {"fpn": 8, "box_head": 4, "mask_head": 4}),
        ("ade20k", {"decoder": 2}),  # one of them for deep supervision
    ],
)
def test_every_norm_is_switchable_wherever_the_authors_have_one(setting: str, heads: dict[str, int]) -> None:
    counts = count_norms(network_of(recipe(setting)))
    assert counts == {role: {"SwitchNorm2d": count} for role, count in {"backbone": 53, **heads}.items()}


def test_resnet_101_has_104_norms() -> None:
    assert count_norms(network_of(imagenet(101))) == {"backbone": {"SwitchNorm2d": 104}}


@pytest.mark.parametrize("setting", COCO)
def test_fine_tuning_on_coco_freezes_stem_and_first_stage(setting: str) -> None:
    network = network_of(recipe(setting)).train()
    body: Any = get_backbone(network)
    frozen = {name.split(".")[0] for name, value in body.named_parameters() if not value.requires_grad}
    trained = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert trained >= {"backbone", "rpn", "roi_heads"}
    assert frozen == (set() if setting.endswith("scratch") else {"conv1", "bn1", "layer1"})
    assert body.layer1.training == setting.endswith("scratch")
    assert body.layer2.training


def test_coco_has_the_sizes_of_detectron() -> None:
    network = network_of(recipe("coco-mask"))
    assert (network.transform.min_size, network.transform.max_size) == ((800,), 1_333)
    assert network.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    transform = parts(build_training_transform(recipe("coco-mask").config, "flip", 0))
    assert transform[v2.RandomHorizontalFlip].p == 0.5
    normalize = transform[v2.Normalize]
    assert (list(normalize.mean), list(normalize.std)) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize("setting", DENSE)
def test_dense_tasks_start_from_imagenet_of_the_same_statistics_batch(setting: str) -> None:
    trial = recipe(setting)
    if setting.endswith("scratch"):
        assert (trial.config.start_rule, trial.waits_for) == ("scratch", None)
    else:
        assert (trial.config.start_rule, trial.waits_for) == ("fine_tune", recipe("imagenet-r50").key)


def test_the_cost_estimate_of_a_large_detector_is_measured_on_the_network_itself() -> None:
    size = measure_cell(recipe("coco-faster"))
    parameters = sum(parameter.numel() for parameter in network_of(recipe("coco-faster")).parameters())
    assert (size.parameters, size.norm_layers) == (parameters, 61)
    assert size.seconds == pytest.approx(180_000 * size.step_seconds)


# --------------------------------------------------------------------------------------------- segmentation


def test_ade20k_decays_by_the_power_of_0_9_over_100_000_steps() -> None:
    trial = recipe("ade20k")
    rate = build_rate(trial)
    assert (trial.config.epochs, trial.steps) == (20, 100_000)
    assert [rate(0), rate(50_000), rate(100_000)] == pytest.approx([0.02, 0.02 * 0.5**0.9, 0])


def test_ade20k_has_weight_decay_on_the_weights_of_convolutions_only() -> None:
    assert read_groups(recipe("ade20k")) == {
        "weight": {(0.02, 1e-4)}, "bias": {(0.02, 0.0)}, "norm": {(0.02, 0.0)}, "logit": {(0.02, 0.0)},
    }  # fmt: skip


def test_ade20k_has_output_stride_8_and_one_convolution_before_the_classifier() -> None:
    network: Any = build_network(recipe("ade20k").config, 0).eval()
    maps = network.backbone(torch.zeros(1, 3, 64, 64))
    assert maps["last"].shape == (1, 2048, 8, 8)
    assert [type(part).__name__ for part in network.decoder] == ["Conv2dNormActivation", "Conv2d"]


def test_ade20k_adds_two_fifths_of_the_second_decoders_loss() -> None:
    config = recipe("ade20k").config
    module = TASKS["segmentation"](nn.Identity(), config, steps_per_epoch=1, seed=0)
    logits = torch.zeros(16, 150, 2, 2)
    loss, _ = module.compute_loss((logits, logits), torch.zeros(16, 2, 2, dtype=torch.long))
    assert float(loss) == pytest.approx(1.4 * math.log(150))


def test_ade20k_images_have_the_published_sizes() -> None:
    config = recipe("ade20k").config
    resize = parts(build_training_transform(config, config.augmentation, 0))[v2.RandomShortestSize]
    assert (sorted(resize.min_size), resize.max_size) == ([300, 375, 450, 525, 575], 1_000)
    evaluation = parts(build_evaluation_transform("ade20k"))[v2.Resize]
    assert (evaluation.size, evaluation.max_size) == ([450], 1_000)


# --------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("setting", ["imagenet-r50", *DENSE])
def test_every_recipe_is_sgd_with_momentum_0_9_and_without_nesterov(setting: str) -> None:
    optimizer: Any = build_optimizer(nn.Linear(1, 1), recipe(setting).config)
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, False)


def test_settings_can_be_crossed_with_norms_and_started_from_a_published_file(tmp_path: Any) -> None:
    crossed = plan_trials(load_study("tasks", "paper", ["factors.norm=[sn, gn]", "replicates=1"]))
    assert len(crossed) == 2 * 2 * 8
    torch.save({}, tmp_path / "sn.pth")
    study = load_study("tasks", "paper", [f"start.checkpoint={tmp_path / 'sn.pth'}", "setting=[coco-mask]"])
    assert {trial.waits_for for trial in plan_trials(study)} == {None}

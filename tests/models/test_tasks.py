"""Properties of the networks of every task: backbone, norms, seed, and a training step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from study.models import build_network, count_norms, get_backbone
from study.models.norm_counts import check_norms
from study.norms import average_statistics, switch_parameters, switch_weights
from tests.models.samples import NORMS, TASKS, build_config, build_images, compute_training_loss

HEAD_LAYERS = {
    "fcn": {"decoder": 2},  # with deep supervision
    "deeplabv3": {"decoder": 8},
    "faster_rcnn": {"fpn": 4, "box_head": 4},
    "mask_rcnn": {"fpn": 4, "box_head": 4, "mask_head": 4},
}
KINDS = {"bn": "BatchNorm2d", "ssn": "SparseSwitchNorm2d", "gn": "_GroupNorm", "in": "_GroupNorm", "ln": "_GroupNorm"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("head", TASKS)
def test_all_norm_layers_are_of_the_given_norm(head: str, norm: str) -> None:
    network = build_network(build_config(head, norm=norm, deep_supervision=0.4), seed=0)
    kind = KINDS.get(norm, "SwitchNorm2d")
    assert count_norms(network) == {role: {kind: count} for role, count in {"backbone": 9, **HEAD_LAYERS[head]}.items()}


def test_each_role_can_have_its_own_norm() -> None:
    config = build_config("mask_rcnn", norm="sn", fpn_norm="none", box_head_norm="gn", mask_head_norm="bn")
    counts = {"backbone": {"SwitchNorm2d": 9}, "box_head": {"_GroupNorm": 4}, "mask_head": {"BatchNorm2d": 4}}
    assert count_norms(build_network(config, seed=0)) == counts


def test_linear_layers_of_a_box_head_have_no_norm() -> None:
    config = build_config("faster_rcnn", norm="gn", box_head="mlp")
    assert count_norms(build_network(config, seed=0)) == {"backbone": {"_GroupNorm": 9}, "fpn": {"_GroupNorm": 4}}


@pytest.mark.parametrize(
    ("head", "parent", "leftover", "named"),
    [
        ("fcn", "decoder.conv", nn.BatchNorm2d, r"decoder.conv.1 \(decoder\): found BatchNorm2d, expected _GroupNorm"),
        ("mask_rcnn", "backbone.body", FrozenBatchNorm2d, r"backbone.body.1 \(elsewhere\): found FrozenBatchNorm2d"),
        ("mask_rcnn", "rpn.head.conv.0", nn.InstanceNorm2d, r"rpn.head.conv.0.1 \(elsewhere\): found InstanceNorm2d"),
    ],
)
def test_a_norm_layer_of_another_class_is_refused_by_name(head: str, parent: str, leftover: Any, named: str) -> None:
    network = build_network(build_config(head, norm="gn"), seed=0)
    kind = type(get_backbone(network).bn1)
    kinds = dict.fromkeys(build_config(head).norms, kind)
    check_norms(network, kinds)
    setattr(network.get_submodule(parent), "1", leftover(4))
    with pytest.raises(AssertionError, match=named):
        check_norms(network, kinds)


@pytest.mark.parametrize("norm", ["sn", "gn", "sn-random"])
@pytest.mark.parametrize("head", TASKS)
def test_backbones_start_from_the_same_weights_for_every_task_and_norm(head: str, norm: str) -> None:
    reference = build_network(build_config(None, norm="sn"), seed=5).state_dict()
    ours = get_backbone(build_network(build_config(head, norm=norm), seed=5))
    weights = {name: value for name, value in ours.state_dict().items() if value.dim() == 4}
    assert len(weights) == 9
    assert all(torch.equal(value, reference[name]) for name, value in weights.items())


@pytest.mark.parametrize("head", TASKS)
def test_random_logits_of_the_backbone_do_not_depend_on_the_task(head: str) -> None:
    fields = {"norm": "sn", "logit_init": "random"}
    reference = switch_weights(build_network(build_config(None, **fields), seed=5))
    ours = switch_weights(get_backbone(build_network(build_config(head, **fields), seed=5)))
    assert list(ours) == list(reference)
    assert all(torch.equal(ours[layer].mean, reference[layer].mean) for layer in ours)


@pytest.mark.parametrize("head", [None, *TASKS])
def test_weights_depend_on_the_seed_and_not_on_the_global_generator(head: str | None) -> None:
    config = build_config(head, deep_supervision=0.4)
    torch.manual_seed(1)
    first = build_network(config, seed=0).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = build_network(config, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = build_network(config, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name, value in first.items() if value.dim() > 1]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize(("norm", "batch_size"), [*((norm, 2) for norm in NORMS), ("bn", 1), ("sn", 1)])
@pytest.mark.parametrize("head", TASKS)
def test_a_training_step_is_finite(head: str, norm: str, batch_size: int) -> None:
    network = build_network(build_config(head, norm=norm, batch_size=batch_size, deep_supervision=0.4), seed=0)
    loss = compute_training_loss(network, build_images(batch_size))
    loss.backward()
    assert torch.isfinite(loss)
    learned = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in learned.values())


@pytest.mark.parametrize("head", TASKS)
def test_sn_shared_has_one_choice_in_the_whole_network(head: str) -> None:
    network = build_network(build_config(head, norm="sn-shared"), seed=0)
    assert len(switch_parameters(network)) == 2


def test_stages_of_the_backbone_and_heads_each_share_a_choice() -> None:
    network = build_network(build_config("mask_rcnn", norm="sn-stage", mask_head_norm="sn"), seed=0)
    pairs = 4 + 2 + 4  # stem and three stages, two heads, and the four layers of the mask head
    assert len(switch_parameters(network)) == 2 * pairs


@pytest.mark.parametrize("norm", ["bn", "sn", "sn-shared"])
@pytest.mark.parametrize("head", ["fcn", "mask_rcnn"])
def test_frozen_stages_do_not_change(head: str, norm: str) -> None:
    network = build_network(build_config(head, norm=norm, freeze_stages=2, zero_last_gamma=False), seed=0).train()
    before = {name: value.clone() for name, value in get_backbone(network).state_dict().items()}
    solver = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], 0.1, weight_decay=0.1)
    compute_training_loss(network, build_images()).backward()
    solver.step()
    after = get_backbone(network).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("conv1.", "bn1.", "layer1."))}
    shared = {name for name in frozen if norm == "sn-shared" and name.endswith(("mean_weight", "var_weight"))}
    assert moved & frozen == shared
    assert {"layer2.0.conv1.weight", "layer2.0.bn1.bias", "layer2.0.bn1.running_mean"} <= moved


def test_re_estimating_statistics_does_not_change_frozen_stages() -> None:
    network = build_network(build_config("fcn", norm="bn", freeze_stages=2), seed=0)
    average_statistics(network, [build_images()])
    assert network.backbone.layer1[0].bn1.running_mean.eq(0).all()
    assert network.backbone.layer2[0].bn1.running_mean.ne(0).any()

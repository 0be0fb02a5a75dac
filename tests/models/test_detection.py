"""Detection networks: outputs, sizes, and images without objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from study.models import build_network, count_norms, get_backbone
from study.models.detection import DetectionTransform
from study.norms import average_statistics
from tests.models.samples import NORMS, SIZE, build_config, build_images, build_targets, compute_training_loss


@pytest.mark.parametrize("head", ["faster_rcnn", "mask_rcnn"])
def test_detections_are_boxes_labels_scores_and_masks_in_pixels(head: str) -> None:
    network = build_network(build_config(head), seed=0).eval()
    first, second = network(list(build_images()))
    assert len(first["boxes"]) == len(first["labels"]) == len(first["scores"]) > 0
    assert first["boxes"].min() >= 0
    assert first["boxes"].max() <= SIZE
    assert set(second["labels"].tolist()) <= set(range(1, 11))
    assert ("masks" in first) == (head == "mask_rcnn")
    if head == "mask_rcnn":
        assert first["masks"].shape == (len(first["boxes"]), 1, SIZE, SIZE)


@pytest.mark.parametrize(("head", "losses"), [("faster_rcnn", 4), ("mask_rcnn", 5)])
def test_training_returns_the_losses_of_torchvision(head: str, losses: int) -> None:
    given = build_network(build_config(head), seed=0)(list(build_images()), build_targets())
    assert len(given) == losses
    assert ("loss_mask" in given) == (head == "mask_rcnn")


def running_statistics(network: nn.Module) -> Iterator[torch.Tensor]:
    return (value for name, value in network.named_buffers() if "running" in name)


@pytest.mark.parametrize("norm", NORMS)
def test_images_without_objects_give_finite_losses_and_gradients(norm: str) -> None:
    network = build_network(build_config("mask_rcnn", norm=norm), seed=0)
    before = [value.clone() for value in running_statistics(network.roi_heads.mask_head)]
    loss = compute_training_loss(network, build_images(), objects=0)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad)
    assert all(map(torch.equal, before, running_statistics(network.roi_heads.mask_head)))
    assert all(value.isfinite().all() for value in running_statistics(network))
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_batches_without_regions_do_not_count_in_re_estimated_statistics(norm: str) -> None:
    head = build_network(build_config("mask_rcnn", norm=norm), seed=0).roi_heads.mask_head
    regions = torch.randn(3, 16, 8, 8)
    average_statistics(head, [regions])
    alone = [value.clone() for value in running_statistics(head)]
    average_statistics(head, [regions[:0], regions, regions[:0]])
    for mine, expected in zip(running_statistics(head), alone, strict=True):
        torch.testing.assert_close(mine, expected)


def test_a_large_detector_has_the_sizes_of_torchvisions() -> None:
    network = build_network(build_config("mask_rcnn", dataset="coco", depth=18, width=1.0, norm="gn"), seed=0)
    counts = {"backbone": 20, "fpn": 8, "box_head": 4, "mask_head": 4}
    assert count_norms(network) == {role: {"_GroupNorm": count} for role, count in counts.items()}
    assert network.roi_heads.box_predictor.cls_score.out_features == 81
    assert get_backbone(network)["conv1"].kernel_size == (7, 7)


def test_large_images_are_resized_to_800_and_at_most_1333() -> None:
    transform = DetectionTransform(800).eval()
    images = [torch.zeros(3, 400, 500), torch.zeros(3, 400, 1000)]
    assert transform(images)[0].image_sizes == [(800, 1000), (533, 1333)]


def test_predictors_are_initialized_as_in_torchvision() -> None:
    network = build_network(build_config("mask_rcnn", width=1.0), seed=0)
    proposals = network.rpn.head.conv[0][0]
    assert proposals.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert proposals.bias.eq(0).all()
    lateral = network.backbone.fpn.layer_blocks[0][0].weight
    assert lateral.std().item() == pytest.approx((1 / lateral[0].numel()) ** 0.5, rel=0.05)  # as in Caffe2

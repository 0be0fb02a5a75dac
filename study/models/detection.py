"""Object detection and instance masks: torchvision's Faster and Mask R-CNN with FPN, using the study's norm.

torchvision's builder functions always use BatchNorm, frozen or not. The parts they are built from accept a norm layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from study.config.datasets import DATASETS
from study.config.schema import SMALL_DEPTHS, TrialConfig
from study.models.resnet import Backbone, NormLayer, build_resnet, count_output_channels, get_stages

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
HEAD_CONVOLUTIONS = 4


@dataclass(frozen=True, kw_only=True)
class DetectionSizes:
    """The sizes of a detector.

    levels: stages that the feature pyramid uses; one more level is pooled from the last.
    channels: of the pyramid and of the convolutions in heads. representation: features of a box head's linear layers.
    anchors: side of the anchors in pixels, for each level including the pooled one.
    canonical: (side in pixels, level): regions of this side are taken from the level with stride 2 ** level.
    box_pool, mask_pool: height and width of a region's pooled map; the predicted masks are twice as large.
    proposals: (before, after) non-maximum suppression in training, per level before and per image after.
    test_proposals: the same in evaluation.
    anchor_batch, box_batch: anchors and regions per image that the losses are computed on.
    detections: maximum per image.
    """

    levels: tuple[str, ...]
    channels: int
    representation: int
    anchors: tuple[int, ...]
    canonical: tuple[int, int]
    box_pool: int
    mask_pool: int
    proposals: tuple[int, int]
    test_proposals: tuple[int, int]
    anchor_batch: int
    box_batch: int
    detections: int


LARGE_SIZES = DetectionSizes(
    levels=("layer1", "layer2", "layer3", "layer4"), channels=256, representation=1024,
    anchors=(32, 64, 128, 256, 512), canonical=(224, 4), box_pool=7, mask_pool=14,
    proposals=(2000, 2000), test_proposals=(1000, 1000), anchor_batch=256, box_batch=512, detections=100,
)  # fmt: skip
"""The sizes of Detectron and torchvision."""


def choose_small_sizes(channels: int) -> DetectionSizes:
    """Sizes for images of 32 pixels and stages of stride 1, 2 and 4.

    The stage of stride 1 is left out, because it would cost more than all other levels together.
    """
    return DetectionSizes(
        levels=("layer2", "layer3"), channels=channels, representation=4 * channels,
        anchors=(10, 16, 24), canonical=(16, 2), box_pool=5, mask_pool=8,
        proposals=(60, 30), test_proposals=(60, 30), anchor_batch=32, box_batch=16, detections=10,
    )  # fmt: skip


def build_detection(config: TrialConfig, norms: Mapping[str, NormLayer | None]) -> nn.Module:
    """The network of a detection trial: a torchvision detector that expects normalized images and labels from 1."""
    assert norms["backbone"] is not None
    facts = DATASETS[config.dataset]
    resnet = build_resnet(config, norms["backbone"])
    stages = get_stages(resnet)
    small = config.depth in SMALL_DEPTHS
    sizes = choose_small_sizes(count_output_channels(stages["layer3"])) if small else LARGE_SIZES
    outputs = {level: str(number) for number, level in enumerate(sizes.levels)}
    inputs = [count_output_channels(stages[level]) for level in sizes.levels]
    pyramid = FeaturePyramidNetwork(inputs, sizes.channels, LastLevelMaxPool(), norm_layer=norms["fpn"])
    body = Backbone(resnet, outputs, freeze_stages=config.freeze_stages)
    anchors = AnchorGenerator([(side,) for side in sizes.anchors], (ASPECT_RATIOS,) * len(sizes.anchors))
    options: dict[str, Any] = {
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": sizes.proposals[0],
        "rpn_post_nms_top_n_train": sizes.proposals[1],
        "rpn_pre_nms_top_n_test": sizes.test_proposals[0],
        "rpn_post_nms_top_n_test": sizes.test_proposals[1],
        "rpn_batch_size_per_image": sizes.anchor_batch,
        "box_roi_pool": _build_region_pool(sizes, sizes.box_pool),
        "box_head": _build_box_head(config, sizes, norms["box_head"]),
        "box_predictor": FastRCNNPredictor(sizes.representation, facts.classes + 1),
        "box_batch_size_per_image": sizes.box_batch,
        "box_detections_per_img": sizes.detections,
    }
    if config.task_head == "mask_rcnn":
        layers = [sizes.channels] * HEAD_CONVOLUTIONS
        options |= {
            "mask_roi_pool": _build_region_pool(sizes, sizes.mask_pool),
            "mask_head": MaskHead(sizes.channels, layers, 1, norm_layer=norms["mask_head"]),
            "mask_predictor": MaskRCNNPredictor(sizes.channels, sizes.channels, facts.classes + 1),
        }
    detector = MaskRCNN if config.task_head == "mask_rcnn" else FasterRCNN
    network: Any = detector(PyramidBackbone(body, pyramid, sizes.channels), **options)
    network.transform = DetectionTransform(facts.image_size if facts.streamed else None)
    return network  # type: ignore[no-any-return]


def _build_region_pool(sizes: DetectionSizes, side: int) -> MultiScaleRoIAlign:
    names = [str(number) for number in range(len(sizes.levels))]
    scale, level = sizes.canonical
    return MultiScaleRoIAlign(names, side, sampling_ratio=2, canonical_scale=scale, canonical_level=level)


def _build_box_head(config: TrialConfig, sizes: DetectionSizes, norm_layer: NormLayer | None) -> nn.Module:
    if config.box_head == "mlp":
        return TwoMLPHead(sizes.channels * sizes.box_pool**2, sizes.representation)  # type: ignore[no-any-return]
    convolutions = [sizes.channels] * HEAD_CONVOLUTIONS
    region = (sizes.channels, sizes.box_pool, sizes.box_pool)
    return FastRCNNConvFCHead(  # type: ignore[no-any-return]
        region, convolutions, [sizes.representation], norm_layer=norm_layer
    )


class PyramidBackbone(nn.Module):
    """A backbone and its feature pyramid, with the number of channels that torchvision's detectors ask for."""

    def __init__(self, body: Backbone, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the levels of the pyramid by name."""
        return self.fpn(self.body(images))  # type: ignore[no-any-return]


class MaskHead(MaskRCNNHeads):  # type: ignore[misc]  # torchvision has no types
    """torchvision's mask head, which also accepts no regions: an image may contain no objects."""

    def forward(self, regions: Tensor) -> Tensor:
        """(regions, C, H, W) -> the same shape."""
        if len(regions):
            return super().forward(regions)  # type: ignore[no-any-return]
        # Without regions the norms have no statistics, so they run in evaluation mode. All parameters still get a
        # gradient, of 0, as they must when several devices average their gradients.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        maps: Tensor = super().forward(regions)
        for module, mode in modes:
            module.training = mode
        return maps


class DetectionTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's transform for images that are already normalized, and without `side` already resized.

    side: length of the short side in pixels; the long side is at most 5 / 3 of it.
    """

    def __init__(self, side: int | None) -> None:
        super().__init__(side or 1, (side or 1) * 5 // 3, [0.0], [1.0])
        self.resizes = side is not None

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return super().resize(image, target) if self.resizes else (image, target)

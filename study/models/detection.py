"""Detection and instance masks: torchvision's Faster and Mask R-CNN with FPN, with the study's norm where it belongs.

torchvision's builders put BatchNorm, frozen or not, whatever norm they are given; its parts take the norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from study.config.datasets import DATASETS
from study.config.schema import SMALL_DEPTHS, TrialConfig
from study.models.resnet import Backbone, NormLayer, build_resnet, output_channels, stages_of

ASPECTS = (0.5, 1.0, 2.0)  # height over width of anchors
HEAD_CONVOLUTIONS = 4


@dataclass(frozen=True, kw_only=True)
class DetectionSizes:
    """What a detector's size is made of.

    levels: stages that the feature pyramid reads; one more level is pooled from the last.
    channels: of the pyramid, and of convolutions in heads. representation: of a box head's linear layers.
    anchors: a side in pixels for each level, the pooled one too.
    canonical: regions of this side, in pixels, are taken from the level of that stride, as a power of 2.
    box_pool, mask_pool: a side of a region's map; masks have twice as many pixels a side.
    proposals, test_proposals: of a level before and of an image after suppression.
    anchor_batch, box_batch: anchors and regions of an image that the losses are taken over.
    detections: of an image, at most.
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


LARGE = DetectionSizes(
    levels=("layer1", "layer2", "layer3", "layer4"), channels=256, representation=1024,
    anchors=(32, 64, 128, 256, 512), canonical=(224, 4), box_pool=7, mask_pool=14,
    proposals=(2000, 2000), test_proposals=(1000, 1000), anchor_batch=256, box_batch=512, detections=100,
)  # fmt: skip
"""Those of Detectron and torchvision."""


def small_sizes(channels: int) -> DetectionSizes:
    """For images of 32 pixels, and stages of stride 1, 2 and 4: a level of stride 1 would cost more than all others."""
    return DetectionSizes(
        levels=("layer2", "layer3"), channels=channels, representation=4 * channels,
        anchors=(10, 16, 24), canonical=(16, 2), box_pool=5, mask_pool=8,
        proposals=(60, 30), test_proposals=(60, 30), anchor_batch=32, box_batch=16, detections=10,
    )  # fmt: skip


def build_detection(config: TrialConfig, norms: Mapping[str, NormLayer | None]) -> nn.Module:
    """The network of a detection trial, as torchvision's: images and targets to losses, images to detections.

    Images are normalized already. Labels start from 1.
    """
    assert norms["backbone"] is not None
    facts = DATASETS[config.dataset]
    resnet = build_resnet(config, norms["backbone"])
    stages = stages_of(resnet)
    small = config.depth in SMALL_DEPTHS
    sizes = small_sizes(output_channels(stages["layer3"])) if small else LARGE
    outputs = {level: str(number) for number, level in enumerate(sizes.levels)}
    inputs = [output_channels(stages[level]) for level in sizes.levels]
    backbone = BackboneWithFPN(resnet, outputs, inputs, sizes.channels, norm_layer=norms["fpn"])
    backbone.body = Backbone(resnet, outputs, freeze_stages=config.freeze_stages)
    options: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator([(side,) for side in sizes.anchors], (ASPECTS,) * len(sizes.anchors)),
        "rpn_pre_nms_top_n_train": sizes.proposals[0],
        "rpn_post_nms_top_n_train": sizes.proposals[1],
        "rpn_pre_nms_top_n_test": sizes.test_proposals[0],
        "rpn_post_nms_top_n_test": sizes.test_proposals[1],
        "rpn_batch_size_per_image": sizes.anchor_batch,
        "box_roi_pool": _region_pool(sizes, sizes.box_pool),
        "box_head": _box_head(config, sizes, norms["box_head"]),
        "box_predictor": FastRCNNPredictor(sizes.representation, facts.classes + 1),
        "box_batch_size_per_image": sizes.box_batch,
        "box_detections_per_img": sizes.detections,
    }
    if config.task_head == "mask_rcnn":
        layers = [sizes.channels] * HEAD_CONVOLUTIONS
        options |= {
            "mask_roi_pool": _region_pool(sizes, sizes.mask_pool),
            "mask_head": _MaskHead(sizes.channels, layers, 1, norm_layer=norms["mask_head"]),
            "mask_predictor": MaskRCNNPredictor(sizes.channels, sizes.channels, facts.classes + 1),
        }
    network: Any = (MaskRCNN if config.task_head == "mask_rcnn" else FasterRCNN)(backbone, **options)
    network.transform = _Transform(facts.image_size if facts.streamed else None)
    return network  # type: ignore[no-any-return]


def _region_pool(sizes: DetectionSizes, side: int) -> MultiScaleRoIAlign:
    names = [str(number) for number in range(len(sizes.levels))]
    scale, level = sizes.canonical
    return MultiScaleRoIAlign(names, side, sampling_ratio=2, canonical_scale=scale, canonical_level=level)


def _box_head(config: TrialConfig, sizes: DetectionSizes, norm_layer: NormLayer | None) -> nn.Module:
    if config.box_head == "mlp":
        return TwoMLPHead(sizes.channels * sizes.box_pool**2, sizes.representation)  # type: ignore[no-any-return]
    convolutions = [sizes.channels] * HEAD_CONVOLUTIONS
    region = (sizes.channels, sizes.box_pool, sizes.box_pool)
    return FastRCNNConvFCHead(  # type: ignore[no-any-return]
        region, convolutions, [sizes.representation], norm_layer=norm_layer
    )


class _MaskHead(MaskRCNNHeads):  # type: ignore[misc]
    """torchvision's, for no regions too: an image may have no objects, or a network not see any."""

    def forward(self, regions: Tensor) -> Tensor:
        """(regions, C, H, W) to the same."""
        if len(regions):
            return super().forward(regions)  # type: ignore[no-any-return]
        # Norms have nothing to take statistics of, but all parameters get a gradient, of 0, as those of other devices.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        maps: Tensor = super().forward(regions)
        for module, mode in modes:
            module.training = mode
        return maps


class _Transform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's for images that are normalized already, and as large as they should be without a `side`.

    side: pixels of the short side; the long one has 5 / 3 as many at most.
    """

    def __init__(self, side: int | None) -> None:
        super().__init__(side or 1, (side or 1) * 5 // 3, [0.0], [1.0])
        self.resizes = side is not None

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return super().resize(image, target) if self.resizes else (image, target)

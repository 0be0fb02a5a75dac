"""Object detection with instance masks, as torchvision's R-CNNs define their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision

from study.config.seeds import derive_seed
from study.tasks.base import DivergedError, TrainingModule, build_mean

LOSSES = {  # torchvision's names, and ours
    "loss_objectness": "proposal_loss", "loss_rpn_box_reg": "proposal_box_loss",
    "loss_classifier": "class_loss", "loss_box_reg": "box_loss", "loss_mask": "mask_loss",
}  # fmt: skip
MASK_THRESHOLD = 0.5


class Detection(TrainingModule):
    """Batches are lists of images (C, H, W) and of targets (boxes, labels, masks).

    The network gives a dictionary of losses in training, and boxes, labels, scores and masks in evaluation. `box_ap`
    and `mask_ap` are COCO's average precision over a whole split; a split without objects has none.
    """

    main_metric = "box_ap"
    uses_rng = True  # which anchors and regions a step learns from

    @property
    def has_masks(self) -> bool:
        return self.config.task_head == "mask_rcnn"

    @property
    def losses(self) -> list[str]:
        return [name for name in LOSSES if self.has_masks or name != "loss_mask"]

    def build_training_metrics(self) -> dict[str, Metric]:
        return {LOSSES[name]: build_mean() for name in self.losses}

    def build_evaluation_metrics(self) -> dict[str, Metric]:
        return {"ap": AveragePrecision(masks=self.has_masks)}

    def compute_loss(self, images: Any, targets: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum of the network's losses; each of them for the metrics."""
        losses = self.network(images, targets)
        parts = [losses[name] for name in self.losses]
        return torch.stack(parts).sum(), tuple(part.detach() for part in parts)

    def forward_norms(self, images: Any, targets: Any) -> None:
        # With targets: heads are to see regions as in training, not what the network takes for objects.
        torch.manual_seed(derive_seed("statistics", self.seed, self.global_step))
        network: Any = self.network
        parts = (network, network.rpn, network.roi_heads)
        for part in parts:
            part.training = True
        network(images, targets)
        for part in parts:
            part.training = False

    def update_training(self, metrics: Any, seen: Sequence[Tensor]) -> None:
        for name, values in zip(self.losses, seen, strict=True):
            metrics[LOSSES[name]].update(values)

    def update_evaluation(self, metrics: Any, images: Any, targets: Any) -> None:
        found = self(images)
        if not all(torch.isfinite(one["boxes"]).all() and torch.isfinite(one["scores"]).all() for one in found):
            raise DivergedError("boxes or scores were not finite in evaluation")
        if self.has_masks:
            found = [{**one, "masks": one["masks"].squeeze(1) > MASK_THRESHOLD} for one in found]
            targets = [{**one, "masks": one["masks"].bool()} for one in targets]
        metrics["ap"].update(found, targets)


class AveragePrecision(MeanAveragePrecision):
    """COCO's average precision of boxes and masks, with NaN instead of -1 where there is nothing to find."""

    def __init__(self, *, masks: bool) -> None:
        super().__init__(iou_type=("bbox", "segm") if masks else "bbox", backend="faster_coco_eval")
        self.kinds = {"box": "bbox_", "mask": "segm_"} if masks else {"box": ""}

    def compute(self) -> dict[str, Tensor]:
        """By `box_ap`, `box_ap50`, `mask_ap`, `mask_ap50`; from 0 to 1."""
        found: dict[str, Any] = super().compute()
        values = {
            f"{kind}_{ours}": found[f"{prefix}{theirs}"].float()
            for kind, prefix in self.kinds.items()
            for ours, theirs in (("ap", "map"), ("ap50", "map_50"))
        }
        return {name: value.where(value >= 0, torch.nan) for name, value in values.items()}

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        # torchmetrics exchanges image by image, and waits for ever for a rank that has fewer.
        own = apply_to_collection({name: getattr(self, name) for name in self._defaults}, Tensor, Tensor.cpu)
        states: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(states, own, group=process_group)
        for name in own:
            setattr(self, name, [image for state in states for image in state[name]])

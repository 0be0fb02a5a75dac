"""Object detection with instance masks, with the losses of torchvision's R-CNNs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.detection import MeanAveragePrecision

from study.config.seeds import derive_seed
from study.tasks.base import DivergedError, TrainingModule, build_mean

LOSSES = {  # torchvision's name of each loss, and the name of its metric
    "loss_objectness": "proposal_loss", "loss_rpn_box_reg": "proposal_box_loss",
    "loss_classifier": "class_loss", "loss_box_reg": "box_loss", "loss_mask": "mask_loss",
}  # fmt: skip
MASK_THRESHOLD = 0.5


class Detection(TrainingModule):
    """Batches are lists of images (C, H, W) and of targets (boxes, labels, masks).

    The network returns a dictionary of losses in training, and boxes, labels, scores and masks in evaluation. `box_ap`
    and `mask_ap` are COCO's average precision over a whole split, NaN for a split without objects.
    """

    main_metric = "box_ap"
    uses_rng = True  # the network samples the anchors and regions of a step

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
        values = [losses[name] for name in self.losses]
        return torch.stack(values).sum(), tuple(value.detach() for value in values)

    def forward_norms(self, images: Any, targets: Any) -> None:
        # In training mode and with targets, so that the heads get sampled regions and not detected objects.
        torch.manual_seed(derive_seed("statistics", self.seed, self.steps_taken))
        network: Any = self.network
        modules = (network, network.rpn, network.roi_heads)
        for module in modules:
            module.training = True
        network(images, targets)
        for module in modules:
            module.training = False

    def update_training_metrics(self, metrics: Any, outputs: Sequence[Tensor]) -> None:
        for name, values in zip(self.losses, outputs, strict=True):
            metrics[LOSSES[name]].update(values)

    def update_evaluation_metrics(self, metrics: Any, images: Any, targets: Any) -> None:
        detections = self(images)
        if not all(torch.isfinite(one[name]).all() for one in detections for name in ("boxes", "scores")):
            raise DivergedError("boxes or scores were not finite in evaluation")
        if self.has_masks:
            detections = [{**one, "masks": one["masks"].squeeze(1) > MASK_THRESHOLD} for one in detections]
            targets = [{**one, "masks": one["masks"].bool()} for one in targets]
        metrics["ap"].update(detections, targets)


class AveragePrecision(MeanAveragePrecision):
    """COCO's average precision of boxes and masks over the images of all ranks, NaN where there is no object.

    On several ranks, `reset` must follow `compute`. torchmetrics would synchronize with one exchange per image and wait
    forever for a rank that has fewer images (Lightning-AI/torchmetrics#3336), so `compute` gathers them at once.
    """

    def __init__(self, *, masks: bool) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox", backend="faster_coco_eval", sync_on_compute=False
        )
        self.prefixes = {"box": "bbox_", "mask": "segm_"} if masks else {"box": ""}

    def compute(self) -> dict[str, Tensor]:
        """By `box_ap`, `box_ap50`, `mask_ap`, `mask_ap50`; from 0 to 1."""
        if dist.is_initialized():
            self.gather_images()
        found: dict[str, Any] = super().compute()
        values = {
            f"{kind}_{ours}": found[f"{prefix}{theirs}"].float()
            for kind, prefix in self.prefixes.items()
            for ours, theirs in (("ap", "map"), ("ap50", "map_50"))
        }
        return {name: value.where(value >= 0, torch.nan) for name, value in values.items()}

    def gather_images(self) -> None:
        """Replaces the state, a list with an entry per image for each name, by that of all ranks in order of rank."""
        own = {
            name: [entry.cpu() if isinstance(entry, Tensor) else entry for entry in entries]
            for name, entries in self.metric_state.items()
        }
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        for name in own:
            setattr(self, name, [entry for state in states for entry in state[name]])

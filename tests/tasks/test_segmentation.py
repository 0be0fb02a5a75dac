"""The metrics and the loss of segmentation."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from study.data.batches import IGNORED
from study.tasks.segmentation import PixelMetrics, _cross_entropy


def test_pixel_metrics_are_those_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = PixelMetrics(5)
    theirs = {
        "miou": MulticlassJaccardIndex(5, average="macro", ignore_index=IGNORED),
        "pixel_accuracy": MulticlassAccuracy(5, average="micro", ignore_index=IGNORED),
    }
    for _ in range(3):
        predictions, targets = torch.randint(4, (2, 2, 6, 7), generator=generator)  # the fifth class does not occur
        targets[:, 0] = IGNORED
        for metric in (ours, *theirs.values()):
            metric.update(predictions, targets)
    found = ours.compute()
    for name, metric in theirs.items():
        assert found[name] == pytest.approx(float(metric.compute()))


def test_a_class_that_is_only_predicted_counts_and_one_that_does_not_occur_does_not() -> None:
    metric = PixelMetrics(4)
    metric.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 0, 0]]]))
    assert metric.compute()["miou"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_split_without_pixels_that_count_has_no_score() -> None:
    metric = PixelMetrics(2)
    metric.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), IGNORED))
    assert all(torch.isnan(value) for value in metric.compute().values())


def test_the_loss_is_the_mean_over_devices_of_their_pixels() -> None:
    logits = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(3, (4, 5, 5), generator=torch.Generator().manual_seed(1))
    targets[0, :4] = IGNORED  # the first device has fewer pixels that count, and the same weight
    own = [torch.nn.functional.cross_entropy(logits[part].float(), targets[part], ignore_index=IGNORED)
           for part in (slice(2), slice(2, 4))]  # fmt: skip
    assert float(_cross_entropy(logits, targets, 2)) == pytest.approx(float(sum(own)) / 2)
    assert float(_cross_entropy(logits, torch.full_like(targets, IGNORED), 2)) == 0.0

"""Cells that cannot be trained: each is refused with one line that names the cell and the setting."""

from __future__ import annotations

import pytest

from study.config.errors import UserError
from study.plan.loading import load_study
from study.plan.trials import plan_trials

DETECTION = ("task=detection", "dataset=scenes", "depth=8")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["batch_size=[4096]"], "gradient batch 32768"),
        (['norm=["sn[bn]"]', "batch_size=1"], "norm=sn[bn]"),
        (["depth=[18]", "width=0.5"], "width=0.5"),
        (["augmentation=random_resized_crop"], "augmentation=random_resized_crop does not fit digits; allowed: none"),
        (["epochs=0"], "epochs=0"),
        (["task=segmentation"], "digits has no labels for task=segmentation; allowed: scenes"),
        (["head=fcn"], "head=fcn does not fit task=classification; allowed: none"),
        (
            ["output_stride=8", "task=segmentation", "dataset=scenes"],
            "output_stride=8: allowed for segmentation at depth 8: 1, 2, 4",
        ),
        (["validation_fraction=0.0001"], "validation_fraction=0.0001"),
        (["solver=nesterov", "momentum=0.0"], "nesterov"),
        (["precision=float16", "logit_gradient_clip=1.0"], "logit_gradient_clip"),
        (["fixed_gradient_batch=24", "batch_size=16"], "not a multiple of batch_size 16"),
        (["devices_per_trial=3"], "run.devices_per_trial=3: does not divide its 8 chunks"),
        (["devices_per_trial=4", "accumulate=4"], "run.devices_per_trial=4 x run.accumulate=4: does not divide"),
        (["sync_statistics=true", "task=detection", "dataset=scenes"], "regions differ in size between devices"),
        (["sync_statistics=true", "accumulate=2"], "run.accumulate=2"),
        ([*DETECTION, "norm=sn", "fpn_norm=sn[in,ln]"], "backbone in+ln+bn, fpn in+ln, box_head in+ln+bn"),
        ([*DETECTION, "norm=bn", "fpn_norm=sn[in,ln]", "mask_head_norm=ssn"], "fpn in+ln, mask_head in+ln+bn"),
        ([*DETECTION, "freeze_stages=5"], "allowed for detection at depth 8: at most 4"),
        (["freeze_stages=1"], "allowed for classification at depth 8: at most 0"),
        ([*DETECTION, "dropout=0.5"], "dropout=0.5"),
        (["color=jitter"], "color=jitter: not used with task=classification, head=None and augmentation=shift"),
        (["mild_epochs=1"], "mild_epochs=1"),
        (["fpn_norm=gn"], "fpn_norm=gn"),
        (["box_head=mlp"], "box_head=mlp"),
        ([*DETECTION, "deep_supervision=0.4"], "deep_supervision=0.4"),
        ([*DETECTION, "head=faster_rcnn", "mask_head_norm=gn"], "mask_head_norm=gn"),
        ([*DETECTION, "box_head=mlp", "box_head_norm=gn"], "box_head_norm=gn"),  # linear layers have no norm
    ],
)
def test_a_cell_that_cannot_be_trained_is_named(overrides: list[str], part: str) -> None:
    with pytest.raises(UserError, match="cell") as caught:
        plan_trials(load_study("depth_vs_batch", "smoke", overrides))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)

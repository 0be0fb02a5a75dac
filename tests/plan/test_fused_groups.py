"""Which trials are trained as one: networks of one shape, in groups that follow from the plan alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from study.plan.fused_groups import plan_groups
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials


def plan(*overrides: str, gpu: bool = False, scale: str = "laptop") -> tuple[list[PlannedTrial], dict[str, Any]]:
    study = load_study("depth_vs_batch", scale, ["replicates=4", *overrides])
    trials = plan_trials(study)
    return trials, plan_groups(trials, study, gpu=gpu)


def sizes(groups: dict[str, Any]) -> Counter[int]:
    return Counter(map(len, set(groups.values())))


def test_groups_are_disjoint_and_hold_networks_of_one_shape() -> None:
    trials, groups = plan("replicates=5")
    config = {trial.key: trial.config for trial in trials}
    for key, group in groups.items():
        assert key in group
        assert all(groups[other] == group for other in group)
        same = {(config[k].norm, config[k].depth, config[k].batch_size, config[k].gradient_batch) for k in group}
        assert len(same) == 1
        assert len({(config[k].initialization, k.rpartition("-r")[2]) for k in group}) == len(group)
    assert sizes(groups) == {8: 8, 2: 8}  # 10 alike trials in each of the 8 cells of norm, depth and B
    assert set(groups) == {trial.key for trial in trials}


def test_more_replicates_leave_full_groups_as_they_are() -> None:
    few, many = plan("replicates=4")[1], plan("replicates=6")[1]
    assert all(many[key] == group for key, group in few.items())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run.fuse=1"], {}),
        (["replicates=1", "initialization=he_normal"], {}),  # nothing is alike
        (["run.fuse=3"], {3: 16, 2: 8}),
        (["fixed_gradient_batch=32", "run.devices_per_trial=2"], {}),
        (["dropout=0.1"], {}),
        (["precision=float16"], {}),
        (["fixed_gradient_batch=256"], {}),  # a step keeps a core busy
        (["fixed_gradient_batch=256", "run.fuse=8"], {8: 8}),
        (["task=segmentation", "dataset=scenes"], {}),
        (["task=segmentation", "dataset=scenes", "run.fuse=8"], {8: 8}),
        (["task=detection", "dataset=scenes", "fixed_gradient_batch=null", "run.fuse=8"], {}),
        (["factors.learning_rate=[0.1, 0.2]", "run.fuse=16"], {16: 8}),
        (["factors.decay=[cosine, step]", "factors.solver=[sgd, adamw]", "run.fuse=64"], {32: 8}),
    ],
)
def test_sizes_of_groups(overrides: list[str], expected: dict[int, int]) -> None:
    assert sizes(plan(*overrides)[1]) == expected


def test_on_gpus_groups_are_formed_on_request_only() -> None:
    assert plan(gpu=True)[1] == {}
    assert sizes(plan("run.fuse=8", gpu=True)[1]) == {8: 8}


def test_large_networks_are_trained_one_by_one() -> None:
    assert plan(scale="workstation")[1] == {}

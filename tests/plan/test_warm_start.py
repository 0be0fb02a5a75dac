"""Warm starts in the plan: ids, order and what is refused. `tests/sweep/test_warm_start.py` trains some."""

from __future__ import annotations

import pytest

from study.config.errors import UserError
from study.plan.loading import load_study
from study.plan.trials import PlannedTrial, plan_trials
from study.plan.warm_start import list_required_cells

SMALL = ["norm=sn", "batch_size=2", "train_samples=64"]


def planned(*overrides: str) -> list[PlannedTrial]:
    return plan_trials(load_study("depth_vs_batch", "smoke", [*SMALL, *overrides]))


def test_an_id_depends_on_the_start_trial_and_not_on_its_folder() -> None:
    rules = "factors.start_rule=[scratch, argmax]"
    scratch, argmax = planned(rules)
    (without_starts,) = planned()
    assert argmax.waits_for == scratch.key
    assert argmax.config.start_source == scratch.trial_id.rpartition("-")[2]
    assert scratch.trial_id.rpartition("-")[2] == without_starts.trial_id.rpartition("-")[2]
    _, other = planned(rules, "start.base={learning_rate: 0.1}")
    _, slower = planned(rules, "learning_rate=0.1")  # also of the start trial
    assert len({trial.trial_id for trial in (argmax, other, slower)}) == 3


def test_the_cells_that_a_cell_needs_are_listed_in_the_order_of_training() -> None:
    rules = ("factors.start_rule=[scratch, fine_tune, argmax]", "start.cell={start_rule: fine_tune}")
    study = load_study("depth_vs_batch", "smoke", [*SMALL, *rules])
    for number, trial in enumerate(plan_trials(study), 1):
        cells = list_required_cells(study, trial.levels)
        assert [cell["start_rule"] for cell in cells] == ["scratch", "fine_tune", "argmax"][:number]
        assert cells[-1] == trial.levels


def test_every_replicate_starts_from_the_same_replicate() -> None:
    trials = planned("factors.start_rule=[scratch, shared]", "replicates=2")
    assert [trial.waits_for for trial in trials if trial.waits_for] == [trial.key for trial in trials[::2]]


def test_a_start_trial_may_have_a_start_trial_itself() -> None:
    scratch, tuned, argmax = planned(
        "factors.start_rule=[scratch, fine_tune, argmax]", "start.cell={start_rule: fine_tune}"
    )
    assert (tuned.waits_for, argmax.waits_for) == (scratch.key, tuned.key)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["start.rule=argmax"], "start_rule=scratch is not a level"),
        (
            ["factors.part=[a, b]", "joint.part={a: {}, b: {start_rule: fine_tune}}"],
            "start_rule=scratch is not a level; add it, or name another in start.cell",
        ),
        (["factors.start_rule=[scratch, transplant]", "start.cell={depth: 14}"], "depth=14 is not a level"),
        (["start.fresh=true"], "no trial has a start rule"),
        (["factors.start_rule=[scratch, argmax]", "start.epoch=1"], "start.epoch: needs start_rule=frozen"),
        (["factors.start_rule=[scratch, frozen]", "start.epoch=2"], "more epochs than that; here are 2"),
        (["start_source=x"], "it cannot be set"),
        (["start.cell={depth: 8}", "start.trial=x", "start.rule=argmax"], "one of cell, trial and checkpoint"),
        (["factors.start_rule=[scratch, argmax]", "start.cell={solver: sgd}"], "start.cell.solver: is not a factor"),
        (["factors.start_rule=[scratch, argmax]", "start.base={epoch: 1}"], "nearest: epochs"),
        (["factors.start_rule=[scratch, argmax]", "norm=[sn, bn]"], "norm=bn has no choice for each layer"),
        (["factors.start_rule=[scratch, shared]", "depth=[8, 14]", "start.cell={depth: 8}"], "depth=14 does not fit"),
        (["factors.start_rule=[scratch, transplant]", "batch_size=[1, 2]", "start.cell={batch_size: 2}"], "its pool"),
        (["start.rule=argmax", "start.trial=nowhere"], "nowhere/r0 does not exist"),
        (["start.rule=argmax", "start.checkpoint=nowhere.pt"], "nowhere.pt: cannot be read"),
        (
            ["factors.start_rule=[scratch, argmax]", "search.sampler=random", "search.n_trials=2"],
            "a search has no cells to start from",
        ),
        (["factors.start_rule=[scratch, argmax]", "start.source=x"], "start.source: computed from start.trial"),
    ],
)
def test_a_start_that_cannot_work_is_refused_in_one_line(overrides: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        planned(*overrides)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)

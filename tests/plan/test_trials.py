"""The plan: cells, and the numbers that follow from them."""

from __future__ import annotations

import pytest

from study.plan.loading import load_study
from study.plan.trials import MAX_CORNERS, find_base_level, find_factor_fields, plan_corners, plan_trials

DETECTION = ("task=detection", "dataset=scenes", "depth=8")


def test_a_plan_holds_every_cell_once_at_every_replicate_in_replicate_order() -> None:
    study = load_study("depth_vs_batch", "laptop", ["replicates=3"])
    trials = plan_trials(study)
    cells = 1
    for levels in study.factors.values():
        assert isinstance(levels, list)
        cells *= len(levels)
    assert len(trials) == 3 * cells == len({trial.key for trial in trials})
    assert [trial.replicate for trial in trials] == sorted(trial.replicate for trial in trials)


def test_the_three_batch_numbers_and_the_learning_rate() -> None:
    study = load_study("depth_vs_batch", "smoke", ["norm=sn", "batch_size=16", "chunks=4", "learning_rate=0.1"])
    (trial,) = plan_trials(study)
    assert (trial.statistics_batch, trial.gradient_batch, trial.device_batch) == (16, 64, 64)
    assert trial.config.base_learning_rate == pytest.approx(0.1 * 64 / 256)


def test_devices_and_parts_share_the_gradient_batch_and_do_not_change_the_id() -> None:
    overrides = ["norm=sn", "batch_size=16", "chunks=8"]
    (one,) = plan_trials(load_study("depth_vs_batch", "smoke", overrides))
    (many,) = plan_trials(load_study("depth_vs_batch", "smoke", [*overrides, "devices_per_trial=2", "accumulate=2"]))
    assert (many.statistics_batch, many.gradient_batch, many.device_batch) == (16, 128, 32)
    assert many.key == one.key


def test_with_a_fixed_gradient_batch_only_b_varies() -> None:
    study = load_study("depth_vs_batch", "smoke", ["fixed_gradient_batch=32", "batch_size=[2, 4, 32]"])
    trials = plan_trials(study)
    assert {trial.gradient_batch for trial in trials} == {32}
    assert {trial.steps for trial in trials} == {16}
    assert {(trial.statistics_batch, trial.config.chunks) for trial in trials} == {(2, 16), (4, 8), (32, 1)}


def test_steps_count_full_batches_only() -> None:
    study = load_study("depth_vs_batch", "smoke", ["norm=sn", "batch_size=16", "train_samples=255", "epochs=3"])
    (trial,) = plan_trials(study)
    assert (trial.steps_per_epoch, trial.steps) == (1, 3)  # 255 // 128


def test_paired_cells_share_their_seeds() -> None:
    trials = plan_trials(load_study("depth_vs_batch", "smoke", ["replicates=2"]))
    seeds = {replicate: [t.seeds for t in trials if t.replicate == replicate] for replicate in (0, 1)}
    assert all(seed == seeds[0][0] for seed in seeds[0])
    assert seeds[0][0] != seeds[1][0]


def test_at_statistics_batch_one_bn_leaves_the_pool() -> None:
    study = load_study("depth_vs_batch", "smoke", ["batch_size=[1, 2]", "norm=[sn, bn]"])
    pools = {(t.levels["norm"], t.levels["batch_size"]): t.pool for t in plan_trials(study)}
    assert pools["sn", 1] == ("in", "ln")
    assert pools["sn", 2] == ("in", "ln", "bn")
    assert pools["bn", 1] == ("bn",)


def test_synchronized_statistics_are_over_the_gradient_batch_so_bn_stays_in_the_pool_at_one_sample() -> None:
    study = load_study("depth_vs_batch", "smoke", ["batch_size=[1, 2]", "chunks=4", "sync_statistics=true", "norm=sn"])
    one, two = plan_trials(study)
    assert (one.statistics_batch, two.statistics_batch) == (4, 8)
    assert one.pool == two.pool == ("in", "ln", "bn")


def test_a_detector_processes_b_samples_at_a_time() -> None:
    trial, *_ = plan_trials(load_study("depth_vs_batch", "smoke", ["task=detection", "dataset=scenes", "batch_size=2"]))
    assert (trial.device_batch, trial.gradient_batch) == (2, 16)


def test_levels_and_replicates_do_not_change_the_ids_of_other_trials() -> None:
    few = plan_trials(load_study("depth_vs_batch", "smoke"))
    many = plan_trials(load_study("depth_vs_batch", "smoke", ["replicates=2", "depth=[8, 14]"]))
    assert {trial.key for trial in few} < {trial.key for trial in many}


@pytest.mark.parametrize(
    ("norms", "pool"),
    [
        (["norm=bn", "mask_head_norm=sn[in,bn]"], ("in", "bn")),
        (["norm=ssn", "fpn_norm=gn", "box_head_norm=none"], ("in", "ln", "bn")),
        (["norm=gn"], ("gn",)),
        (["norm=bn", "box_head=mlp"], ("bn",)),
    ],
)
def test_the_pool_is_that_of_the_layers_that_choose_in_backbone_or_heads(
    norms: list[str], pool: tuple[str, ...]
) -> None:
    (trial, *_) = plan_trials(load_study("depth_vs_batch", "smoke", [*DETECTION, "batch_size=2", *norms]))
    assert trial.pool == pool


# ------------------------------------------------------------------------------------------ blocks, joint levels

ONE_CELL = ["blocks=[]", "norm=sn", "batch_size=2", "start_rule=scratch", "replicates=1"]  # of `distinct`
ADAMW = "joint.solver.adamw={learning_rate: 0.05, weight_decay: 0.01}"
SOLVERS = ["factors.solver=[sgd, adamw]", "learning_rate=1.2", ADAMW]
SETTINGS = ["joint.setting={plain: {}, wide: {width: 1.0, epochs: 3}}", "factors.setting=[plain, wide]"]


def _cells(overrides: list[str]) -> list[tuple[object, ...]]:
    study = load_study("depth_vs_batch", "laptop", ["replicates=1", *overrides])
    return [tuple(trial.levels.values()) for trial in plan_trials(study)]


def test_a_block_is_crossed_at_the_base_levels_of_other_factors_and_the_plan_is_the_union() -> None:
    cells = _cells(["blocks=[[depth, batch_size], [initialization, batch_size], [norm]]", "base.batch_size=16"])
    assert cells == [
        *[("sn", depth, batch, "he_normal") for depth in (8, 14) for batch in (2, 16)],
        *[("sn", 8, batch, "xavier_uniform") for batch in (2, 16)],
        ("bn", 8, 16, "he_normal"),  # B of the base, not the first level
    ]


def test_the_base_level_is_the_first_level_if_the_base_has_none_of_them() -> None:
    cells = _cells(["blocks=[[norm], [initialization, depth, batch_size]]", "norm=[bn, gn]", "depth=[20, 14]"])
    assert cells[:2] == [("bn", 20, 2, "he_normal"), ("gn", 20, 2, "he_normal")]
    assert len(cells) == 1 + 8


def test_one_block_of_all_factors_is_the_full_grid() -> None:
    assert _cells(["blocks=[[initialization, norm, depth, batch_size]]"]) == _cells([])


def test_blocks_do_not_change_the_ids_of_cells() -> None:
    few = plan_trials(load_study("depth_vs_batch", "laptop", ["blocks=[[norm, depth], [batch_size, initialization]]"]))
    many = plan_trials(load_study("depth_vs_batch", "laptop"))
    assert {trial.key for trial in few} < {trial.key for trial in many}


def test_joint_settings_apply_to_their_level_only() -> None:
    sgd, adamw = plan_trials(load_study("distinct", "laptop", [*SOLVERS, *ONE_CELL]))
    assert (sgd.config.solver, sgd.config.learning_rate, sgd.config.weight_decay) == ("sgd", 1.2, 1e-4)
    assert (adamw.config.solver, adamw.config.learning_rate, adamw.config.weight_decay) == ("adamw", 0.05, 0.01)
    assert "adamw" in adamw.trial_id


def test_a_factor_of_several_fields_has_named_levels() -> None:
    study = load_study("distinct", "laptop", [*SETTINGS, *ONE_CELL])
    plain, wide = plan_trials(study)
    assert [plain.levels["setting"], wide.levels["setting"]] == ["plain", "wide"]
    assert (plain.config.width, wide.config.width, wide.config.epochs) == (0.5, 1.0, 3)
    assert wide.trial_id.startswith("sn-batch_size2-scratch-wide-")
    (alone,) = plan_trials(load_study("distinct", "laptop", ["width=1.0", "epochs=3", *ONE_CELL]))
    assert alone.config == wide.config
    assert alone.trial_id[-8:] == wide.trial_id[-8:]


def test_the_fields_of_a_factor_include_its_joint_settings_and_those_of_a_warm_start() -> None:
    assert find_factor_fields(load_study("distinct", "laptop", [*SOLVERS, "blocks=[]"]), "solver") == [
        "solver", "learning_rate", "weight_decay",
    ]  # fmt: skip
    assert find_factor_fields(load_study("distinct", "laptop"), "start_rule") == ["start_rule", "start_source"]


def test_distinct_starts_from_the_finished_switch_network_only() -> None:
    trials = plan_trials(load_study("distinct", "laptop", ["replicates=1"]))
    assert len(trials) == 11 * 2 + 5 * 2
    started = [trial for trial in trials if trial.waits_for]
    assert {trial.config.norm for trial in started} == {"sn"}
    assert {trial.waits_for for trial in started} == {
        trial.key for trial in trials if trial.config.norm == "sn" and not trial.waits_for
    }


def test_impacts_varies_each_weak_factor_alone_and_at_every_batch_size() -> None:
    study = load_study("impacts", "laptop", ["replicates=1"])
    trials = plan_trials(study)
    assert len(trials) == 4 + 2 + 2 * 2 + 2 * 2  # depth x B, and at each B the other levels of the three
    base = {factor: find_base_level(study, factor) for factor in study.factors}
    changed = [{factor for factor, level in trial.levels.items() if level != base[factor]} for trial in trials]
    assert all(len(factors - {"depth", "batch_size"}) <= 1 for factors in changed)
    sgd_rate = study.base.learning_rate
    assert {trial.config.learning_rate for trial in trials if trial.config.solver == "sgd"} == {sgd_rate}
    assert all(trial.config.learning_rate < sgd_rate for trial in trials if trial.config.solver != "sgd")


@pytest.mark.parametrize("scale", ["smoke", "laptop", "workstation"])
def test_settings_of_tasks_share_a_recipe_and_separate_task_and_data_set(scale: str) -> None:
    trials = plan_trials(load_study("tasks", scale, ["replicates=1"]))
    settings = {(trial.config.task, trial.config.dataset) for trial in trials}
    tasks = {task for task, _ in settings}
    assert tasks == {"classification", "segmentation", "detection"}
    assert any({task for task, dataset in settings if dataset == one} == tasks for _, one in settings)
    assert len({dataset for task, dataset in settings if task == "classification"}) == 2
    if scale != "smoke":
        assert len({(trial.steps, trial.config.learning_rate, trial.gradient_batch) for trial in trials}) == 1


def test_a_search_of_many_factors_is_checked_at_every_level_but_not_in_every_combination() -> None:
    real = ("learning_rate", "weight_decay", "dropout", "width", "momentum", "warmup_epochs", "warmup_start")
    ranges = [f"factors.{name}={{low: 0.25, high: 0.5}}" for name in real]
    lists = [f"factors.{name}=[1, 2]" for name in ("epochs", "chunks", "gn_groups")]
    search = ["search.sampler=random", "search.n_trials=2", "batch_size=[2, 4]", "norm=[sn, bn]", "depth=8"]
    study = load_study("depth_vs_batch", "smoke", [*search, *ranges, *lists])
    corners = plan_corners(study)
    assert len(corners) < MAX_CORNERS
    for factor, levels in study.factors.items():
        ends = levels if isinstance(levels, list) else [levels.low, levels.high]
        assert {trial.levels[factor] for trial in corners} == set(ends)

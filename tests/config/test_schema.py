"""Configuration: layers, one-line errors, identity, seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from study.config.errors import UserError
from study.config.schema import TrialConfig, trial_id
from study.config.seeds import derive_seeds
from study.config.validation import study_from_dict
from study.config.yaml_input import parse_yaml, read_yaml
from study.plan.loading import available, load_study


def write_study(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


SEARCH = ["search.sampler=tpe", "search.n_trials=4", "factors.learning_rate=[0.1]"]
MINIMAL = "title: t\nquestion: q\nfactors: {norm: [sn]}\n"


@pytest.mark.parametrize("study", available("studies"))
@pytest.mark.parametrize("scale", available("scales"))
def test_every_study_loads_at_every_scale(study: str, scale: str) -> None:
    config = load_study(study, scale)
    assert config.name == study
    assert config.scale == scale
    assert all(config.factors.values())


def test_set_overrides_study_overrides_scale(tmp_path: Path) -> None:
    path = write_study(tmp_path / "mine.yaml", MINIMAL + "base: {epochs: 7, solver: adam}\n")
    config = load_study(path, "smoke", ["epochs=9", "depth=14"])
    assert (config.base.epochs, config.base.solver, config.base.depth) == (9, "adam", 14)
    assert config.base.dataset == "digits"  # from the scale


def test_an_empty_factor_takes_the_levels_of_the_scale() -> None:
    assert load_study("depth_vs_batch", "laptop").factors["depth"] == [8, 14]
    assert load_study("depth_vs_batch", "paper").factors["depth"] == [50, 101]


def test_an_empty_factor_of_several_fields_has_all_levels_that_are_described(tmp_path: Path) -> None:
    text = "title: t\nquestion: q\nfactors: {size: }\njoint: {size: {small: {}, large: {width: 1.0}}}\n"
    config = load_study(write_study(tmp_path / "mine.yaml", text), "smoke")
    assert config.factors["size"] == ["small", "large"]
    assert study_from_dict(config.model_dump(mode="json"), "here") == config


def test_a_scale_offers_what_goes_with_a_level_to_studies_that_have_the_factor(tmp_path: Path) -> None:
    scale = write_study(
        tmp_path / "tiny.yaml", "title: t\nreplicates: 1\nbase: {}\njoint: {depth: {14: {epochs: 9}}}\n"
    )
    assert load_study("distinct", scale).joint == {}
    study = load_study("distinct", scale, ["blocks=[]", "factors.depth=[8, 14]", "joint.depth.14.width=0.5"])
    assert study.joint == {"depth": {"14": {"epochs": 9, "width": 0.5}}}
    assert study.cell({"depth": 14}).epochs == 9
    assert study.values("epochs") == [100, 9]


def test_a_scale_offers_a_start_cell_to_studies_that_have_its_factors(tmp_path: Path) -> None:
    text = "title: t\nreplicates: 1\nbase: {}\nstart: {cell: {setting: a}}\n"
    scale = write_study(tmp_path / "tiny.yaml", text)
    assert load_study("distinct", scale).start.cell == {}
    settings = ["factors.setting=[a, b]", "joint.setting={a: {}, b: {epochs: 3, start_rule: fine_tune}}"]
    minimal = write_study(tmp_path / "mine.yaml", "title: t\nquestion: q\nfactors: {norm: [sn]}\n")
    assert load_study(minimal, scale, settings).start.cell == {"setting": "a"}
    with pytest.raises(UserError, match=r"start.cell.depth: is no factor"):
        load_study(minimal, scale, [*settings, "start.cell.depth=8"])


def test_what_goes_with_a_level_may_be_another_factors_where_the_level_is_not_used() -> None:
    study = load_study("distinct", "smoke", ["joint.norm.ssn={batch_size: 4}", "norm=[sn, bn]"])
    assert study.factors["norm"] == ["sn", "bn"]
    with pytest.raises(UserError, match="the factor batch_size sets it"):
        load_study("distinct", "smoke", ["joint.norm.ssn={batch_size: 4}"])


def test_classifiers_are_compared_by_accuracy_and_other_tasks_by_their_score() -> None:
    assert load_study("distinct", "smoke").metric == "val_accuracy"
    assert load_study("distinct", "smoke", ["task=detection", "dataset=scenes"]).metric == "val_score"
    assert (
        load_study("distinct", "smoke", ["blocks=[]", "factors.task=[classification, detection]"]).metric == "val_score"
    )
    assert load_study("distinct", "smoke", ["analysis.metric=test_score"]).metric == "test_score"


def test_one_level_may_be_given_bare() -> None:
    assert load_study("depth_vs_batch", "smoke", ["depth=14"]).factors["depth"] == [14]


def test_scientific_notation_is_a_number() -> None:
    assert parse_yaml("1e-4", "x") == 1e-4
    assert load_study("distinct", "smoke", ["weight_decay=5e-4"]).base.weight_decay == 5e-4


def test_a_resolved_study_reads_back_equal() -> None:
    study = load_study("depth_vs_batch", "laptop")
    assert study_from_dict(study.model_dump(mode="json"), "here") == study


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["epocs=3"], ["epocs", "nearest: epochs"]),
        (["base.epocs=3"], ["--set base.epocs=3", "base.epocs", "nearest: epochs"]),
        (["epochs=-1"], ["--set epochs=-1", "base.epochs", "-1", "greater than or equal to 0"]),
        (["epochs=true"], ["base.epochs", "integer"]),
        (["solver=sgdd"], ["base.solver", "'sgdd'", "allowed: sgd, nesterov, adam", "nearest: sgd"]),
        (["depth=[8, 21]"], ["factors.depth", "21", "nearest: 20"]),
        (["norm=[sm]"], ["factors.norm", "'sm'", "sn"]),
        (["dataset=mnits"], ["base.dataset", "'mnits'", "digits"]),
        (["factors.nope=[1]"], ["factors.nope", "unknown factor"]),
        (["depth=[]"], ["factors.depth", "no levels"]),
        (["depth=[8,8]"], ["factors.depth", "twice"]),
        (["depth={low: 8, high: 20}"], ["factors.depth", "search"]),
        (["search.sampler=tpee"], ["search.sampler", "tpe, random"]),
        (["replicates=0"], ["replicates", "0"]),
        (["epochs"], ["expected key=value"]),
        (["base=["], ["not valid YAML"]),
        (["title=2020-99-99"], ["--set title", "not valid YAML"]),
        (["factors=3"], ["factors", "expected factors"]),
        (["base=3"], ["base", "3"]),
        (["width=.inf"], ["base.width", "finite"]),
        (["name=.."], ["name", "'..'"]),
        (['norm=["sn", "sn[in,ln,bn]"]'], ["factors.norm", "appears twice"]),
        ([*SEARCH, "learning_rate={low: 2, high: 1}"], ["factors.learning_rate", "low must be below high"]),
        ([*SEARCH, "learning_rate={low: 0, high: 1, log: true}"], ["logarithmic", "above 0"]),
        ([*SEARCH, "learning_rate={lo: 0, high: 1}"], ["factors.learning_rate", "low, high and log"]),
        ([*SEARCH, "depth={low: 8, high: 20}"], ["factors.depth", "give a list"]),
        ([*SEARCH, "search.objective=val_acuracy"], ["search.objective", "nearest: val_accuracy"]),
        ([*SEARCH, "search.objective=test_accuracy"], ["search.objective", "allowed: val_accuracy"]),
        ([*SEARCH, "search.pruner=median", "replicates=2"], ["search.pruner", "replicates: 1"]),
        (["blocks=[[depht]]"], ["--set blocks", "depht", "allowed: norm, depth", "nearest: depth"]),
        (["blocks=[[]]"], ["blocks", "no factor"]),
        (["blocks=[depth]"], ["blocks.0", "'depth'", "list"]),
        (["blocks=[[norm, depth, batch_size]]"], ["blocks", "initialization", "would not be planned"]),
        ([*SEARCH, "blocks=[[norm]]"], ["blocks", "a search suggests"]),
        (["joint.solver.adam={learning_rate: 0.1}"], ["joint.solver", "no such factor"]),
        (["joint.norm.sm={epochs: 3}"], ["joint.norm.sm", "'sm'"]),
        (["joint.norm.sn={epocs: 3}"], ["joint.norm.sn.epocs", "nearest: epochs"]),
        (["joint.norm.sn={epochs: -3}"], ["joint.norm.sn", "epochs: -3", "greater than or equal to 0"]),
        (["joint.norm.sn={depth: 8}"], ["joint.norm.sn.depth", "the factor depth sets it"]),
        (["joint.norm=3"], ["joint", "dictionary"]),
        (["joint=3"], ["joint", "3", "dictionary"]),
        (["joint.size={a: {width: 1.0}}", "factors.size=[b]"], ["factors.size", "'b'", "allowed: a"]),
        (["joint.size={a: {width: 1.0}, b: {width: 1.0}}", "factors.size=[a, b]"], ["factors.size", "'b'", "twice"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_allowed(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_study("depth_vs_batch", "smoke", overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("title: [", ["mine.yaml", "line 1"]),
        (MINIMAL + "bse: {epochs: 3}", ["mine.yaml", "bse", "nearest: base"]),
        (MINIMAL + "base: {epochs: many}", ["mine.yaml", "base.epochs", "'many'"]),
        (MINIMAL + "title: again", ["mine.yaml", "'title' appears twice"]),
        ("title: t\nquestion: q\nfactors: {momentum: }\n", ["smoke.yaml", "factors.momentum"]),
        ("just text", ["mine.yaml", "expected keys and values"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write_study(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        load_study(path, "smoke")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("study", "scale"), [("depth_vs_bach", "smoke"), ("distinct", "smokey"), ("no.yaml", "smoke")])
def test_unknown_names_are_refused(study: str, scale: str) -> None:
    with pytest.raises(UserError):
        load_study(study, scale)


# Identity: these ids name folders and W&B runs of finished studies. They change only on purpose.
@pytest.mark.parametrize(
    ("fields", "factors", "expected"),
    [
        ({}, [], "44136fa3"),
        ({"norm": "bn"}, ["norm"], "bn-6b737c3b"),
        ({"norm": "sn[in,ln]", "batch_size": 2}, ["norm", "batch_size"], "sn-in-ln-batch_size2-29f1da5e"),
        ({"depth": 8, "initialization": "orthogonal"}, ["depth", "initialization"], "depth8-orthogonal-bbab58b9"),
    ],
)
def test_trial_ids_are_pinned(fields: dict[str, object], factors: list[str], expected: str) -> None:
    assert trial_id(TrialConfig(**fields), factors) == expected  # type: ignore[arg-type]


def test_a_default_spelled_out_does_not_change_the_id() -> None:
    assert trial_id(TrialConfig(epochs=100), []) == trial_id(TrialConfig(), [])


def test_every_field_of_a_trial_is_part_of_its_id() -> None:
    other = {"dataset": "cifar10", "train_samples": 5, "validation_fraction": 0.3, "augmentation": "none", "depth": 8,
             "width": 0.5, "zero_last_gamma": False, "dropout": 0.1, "initialization": "orthogonal", "norm": "bn",
             "batch_size": 2, "chunks": 1, "fixed_gradient_batch": 64, "logit_init": "random",
             "norm_momentum": 0.2, "bn_statistics": "batch", "sync_statistics": True, "correction": 1, "gn_groups": 4,
             "epochs": 3,
             "solver": "adam", "learning_rate": 0.2, "scale_learning_rate": False, "momentum": 0.8, "weight_decay": 0.0,
             "decay": "step", "warmup_epochs": 1.0, "logit_learning_rate": 2.0, "logit_weight_decay": 0.1,
             "logit_gradient_clip": 1.0, "precision": "bfloat16", "color": "jitter", "mild_epochs": 5,
             "task": "segmentation", "head": "fcn", "output_stride": 8, "deep_supervision": 0.4, "box_head": "mlp",
             "decoder_norm": "gn", "fpn_norm": "gn", "box_head_norm": "gn", "mask_head_norm": "gn", "freeze_stages": 2,
             "start_rule": "argmax", "start_source": "x", "start_epoch": 2, "start_fresh": True, "start_thaw": True,
             "epoch_steps": 100, "norm_weight_decay": 0.0, "bias_weight_decay": 0.0, "bias_learning_rate": 2.0,
             "decay_milestones": (0.5,), "warmup_start": 0.3}  # fmt: skip
    assert other.keys() == TrialConfig.model_fields.keys()
    ids = {trial_id(TrialConfig(**{field: value}), []) for field, value in other.items()}  # type: ignore[arg-type]
    assert len(ids) == len(other)


def test_seeds_differ_by_role_and_replicate_and_zero_is_a_seed() -> None:
    seeds = [tuple(derive_seeds(replicate).values()) for replicate in range(20)]
    assert len({seed for row in seeds for seed in row}) == 60
    assert derive_seeds(0) == {
        "init": 6227323262129794652,
        "data": 2473657950632210693,
        "split": 4719946621281231735,
    }


def test_planning_imports_no_torch() -> None:
    modules = "study.plan.trials, study.record.layout, study.sweep.executors.base, study.plan.job, study.cli.main"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["studies", "scales"])
def test_every_file_has_a_title_for_the_listing(kind: str) -> None:
    for path in available(kind).values():  # type: ignore[arg-type]
        assert read_yaml(path)["title"]

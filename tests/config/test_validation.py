"""Validation: every mistake is one line that names the setting, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from study.config.errors import UserError
from study.config.schema import SECTIONS, MarginConfig, Range, StudyConfig
from study.plan.loading import load_study, study_from_dict

SEARCH = ["search.sampler=tpe", "search.n_trials=4", "factors.learning_rate=[0.1]"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["epocs=3"], ["epocs", "nearest: epochs"]),
        (["base.epocs=3"], ["--set base.epocs=3", "base.epocs", "nearest: epochs"]),
        (["run.fuse=65"], ["run.fuse: 65: allowed: auto, or should be less than or equal to 64"]),
        (["run.fuse=true"], ["run.fuse: True: allowed: auto, or should be a valid integer"]),
        (["epochs=-1"], ["--set epochs=-1", "base.epochs", "-1", "greater than or equal to 0"]),
        (["epochs=true"], ["base.epochs", "integer"]),
        (["epochs=yes"], ["base.epochs", "'yes'", "integer"]),
        (["launch.minutes=4:00:00"], ["launch.minutes", "'4:00:00'", "integer"]),
        (["batch_size=[010, 016]"], ["--set batch_size", "010: a number cannot start with 0; write 10"]),
        (["launch.sbatch={account: 0512}"], ["--set launch.sbatch", "write 512, or '0512' for text"]),
        (["replicates=100000000"], ["replicates: 100000000", "less than 1000"]),
        (["replicates=999", "factors.width=[0.1, 0.2]", f"factors.epochs={[*range(1, 101)]}"], ["are 799200 trials"]),
        ([*SEARCH, "search.n_trials=100000000"], ["search.n_trials: 100000000", "equal to 100000"]),
        (
            [f"factors.epochs={[*range(1, 101)]}", f"factors.gn_groups={[*range(1, 101)]}"],
            ["40000 cells; allowed: at most 10000"],
        ),
        ([f"factors.epochs={[*range(1, 3001)]}"], ["factors.epochs: 3000 levels; allowed: at most 1000"]),
        (["norm=" + "s" * 100_000], ["factors.norm: 'sss", "at most 100 characters"]),
        (["base" + ".a" * 50_000 + "=1"], ["a key of 50001 parts"]),
        (["solver='\\u2028'"], ["allowed: sgd"]),
        (['solver="\\e]0;x\\a\\nsgd"'], ["base.solver: '\\x1b]0;x\\x07\\nsgd'", "nearest: sgd"]),
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
        (["title=!!timestamp x"], ["--set title", "line 1, column 1", "the tag", "not allowed"]),
        (["factors=3"], ["factors", "expected factors"]),
        (["factors=3", "depth=[8]"], ["--set factors=3", "expected factors"]),
        (["base=3"], ["base", "3"]),
        (["margins.acuracy=0.1"], ["analysis.margins.acuracy", "allowed: accuracy, miou", "nearest: accuracy"]),
        (["margins.accuracy=-0.1"], ["analysis.margins.accuracy", "-0.1", "greater than or equal to 0"]),
        (["margins=3"], ["analysis.margins", "3"]),
        (["tuned=[learning_rate]"], ["analysis.tuned", "learning_rate: no such factor", "depth"]),
        (["tuned=[norm]"], ["analysis.tuned", "norm: norms are compared"]),
        (["tuned=[depth, depth]"], ["analysis.tuned", "depth appears twice"]),
        (["width=.inf"], ["base.width", "finite"]),
        (["width=1e308"], ["base.width", "1e+308", "less than or equal to 64"]),
        ([*SEARCH, "learning_rate={low: 0.1, high: 1e308}"], ["factors.learning_rate", "1e+308", "less than or equal"]),
        (['title="a \\ud800"'], ["title", "not valid YAML"]),
        (["joint.norm.'sn[in,ln,bn]'={epochs: 3}", "joint.norm.sn={epochs: 3}"], ["joint.norm", "appears twice"]),
        (["name=.."], ["--set name=..: name: '..': allowed: letters, digits, `_`, `.` and `-`"]),
        (["memory=16 GB"], ["launch.memory: '16 GB': allowed: a whole number with the unit K, M, G or T"]),
        (["depth=8,14"], ["factors.depth: '8,14'", "integer; a list is written in brackets: [8,14]"]),
        (["norm=sn,sn[in,ln]"], ["factors.norm", "; a list is written in brackets: [sn,sn[in,ln]]"]),
        (["questions=useful,impacts"], ["analysis.questions", "; a list is written in brackets: [useful,impacts]"]),
        (['norm=["sn", "sn[in,ln,bn]"]'], ["factors.norm", "appears twice"]),
        ([*SEARCH, "learning_rate={low: 2, high: 1}"], ["factors.learning_rate", "low must be below high"]),
        ([*SEARCH, "learning_rate={low: 0, high: 1, log: true}"], ["logarithmic", "above 0"]),
        ([*SEARCH, "learning_rate={lo: 0, high: 1}"], ["factors.learning_rate", "low, high and log"]),
        ([*SEARCH, "learning_rate={low: .nan, high: 1}"], ["factors.learning_rate.low: should be a finite number"]),
        ([*SEARCH, "factors.epochs={low: 0.5, high: 4}"], ["factors.epochs: 0.5", "integer"]),
        ([*SEARCH, "depth={low: 8, high: 20}"], ["factors.depth", "give a list"]),
        ([*SEARCH, "search.objective=val_acuracy"], ["search.objective", "nearest: val_accuracy"]),
        ([*SEARCH, "search.objective=test_accuracy"], ["search.objective", "allowed: val_accuracy"]),
        ([*SEARCH, "search.pruner=median", "replicates=2"], ["search.pruner", "replicates: 1"]),
        (["blocks=[[depht]]"], ["--set blocks", "depht", "allowed: norm, depth", "nearest: depth"]),
        (["blocks=[[]]"], ["blocks", "no factor"]),
        (["blocks=[[batch_size, batch_size], [norm, depth, initialization]]"], ["blocks", "batch_size appears twice"]),
        (["blocks=[[norm, depth], [depth, norm], [batch_size, initialization]]"], ["the block appears twice"]),
        (["decay_milestones=[0.5, 0.5]"], ["decay_milestones", "0.5 follows 0.5; each must be above the one before"]),
        (["factors.decay_milestones=[[0.6, 0.3]]"], ["factors.decay_milestones: [0.6, 0.3]: 0.3 follows 0.6"]),
        (["analysis.questions=[useful, useful]"], ["analysis.questions", "useful appears twice"]),
        (["replicates=2", "seeds.apart=[init, init]"], ["seeds.apart", "init appears twice"]),
        (["=1"], ["a part of the key is empty", "epochs=3"]),
        (["base..epochs=1"], ["a part of the key is empty"]),
        (["base.replicates=1"], ["base.replicates: unknown key; replicates belongs at the top level of the study"]),
        (["base.threads=1"], ["base.threads: unknown key; threads belongs under run"]),
        (["epochs=[1, 2]"], ["base.epochs: [1, 2]", "to vary it, give levels: factors.epochs"]),
        (["blocks=[depth]"], ["blocks.0", "'depth'", "list"]),
        (["blocks=[[norm, depth, batch_size]]"], ["blocks", "initialization", "would not be planned"]),
        ([*SEARCH, "blocks=[[norm]]"], ["blocks", "a search suggests"]),
        (["joint.solver.adam={learning_rate: 0.1}"], ["joint.solver", "no such factor"]),
        (["joint.norm.sm={epochs: 3}"], ["joint.norm.sm", "'sm'"]),
        (["joint.norm.sn={epocs: 3}"], ["joint.norm.sn.epocs", "nearest: epochs"]),
        (["joint.norm.sn={epochs: -3}"], ["joint.norm.sn", "epochs: -3", "greater than or equal to 0"]),
        (["joint.norm.sn={depth: 8}"], ["joint.norm.sn.depth", "the factor depth sets it"]),
        (["joint.norm=3"], ["joint", "expected keys and values"]),
        (["joint=3"], ["joint", "3", "expected keys and values"]),
        (["joint.size={a: {width: 1.0}}", "factors.size=[b]"], ["factors.size", "'b'", "allowed: a"]),
        (["joint.size={a: {width: 1.0}, b: {width: 1.0}}", "factors.size=[a, b]"], ["factors.size", "'b'", "twice"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_value_and_what_is_allowed(overrides: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_study("depth_vs_batch", "smoke", overrides)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1500
    for part in parts:
        assert part in message


def list_numbers(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The path and the allowed values of every setting of a model that is a number, if nothing else."""
    for name, field in schema["properties"].items():
        for kind in field.get("anyOf", [field]):
            if kind.get("type") in ("integer", "number") and "enum" not in kind:
                yield f"{path}{name}", kind


NUMBERS = {name: kind for model in (StudyConfig, MarginConfig, *SECTIONS.values())
           for name, kind in list_numbers(model.model_json_schema(), f"{model.__name__}.")}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_and_an_upper_limit(name: str) -> None:
    kind = NUMBERS[name]
    assert {"minimum", "exclusiveMinimum"} & kind.keys()
    assert {"maximum", "exclusiveMaximum"} & kind.keys()


@pytest.mark.parametrize(
    ("factor", "levels", "key", "expected"),
    [
        ("learning_rate", "[1, 2]", "1", 1.0),
        ("decay_milestones", "[[0.5], [0.3, 0.6]]", "'[0.30, 0.6]'", (0.3, 0.6)),
        ("norm", '["sn[in,ln,bn]", bn]', "'sn[in,ln,bn]'", "sn"),
        ("logit_gradient_clip", "[null, 1]", "null", None),
        ("zero_last_gamma", "[true, false]", "false", False),
        ("weight_decay", "[0.00001, 1e-3]", "1e-5", 1e-5),
    ],
)
def test_joint_settings_act_at_their_level_in_any_spelling(
    factor: str, levels: str, key: str, expected: object
) -> None:
    given = load_study(
        "depth_vs_batch", "smoke", [f"factors.{factor}={levels}", f"joint.{factor}={{{key}: {{momentum: 0.5}}}}"]
    )
    for study in (
        given,
        study_from_dict(given.model_dump(mode="json"), "study.yaml"),
    ):
        found = [level for level in study.factors[factor] if study.apply_levels({factor: level}).momentum == 0.5]
        assert found == [expected]


def test_joint_settings_may_name_another_factor_if_their_level_is_not_used() -> None:
    study = load_study("distinct", "smoke", ["joint.norm.ssn={batch_size: 4}", "norm=[sn, bn]"])
    assert study.factors["norm"] == ["sn", "bn"]
    with pytest.raises(UserError, match="the factor batch_size sets it"):
        load_study("distinct", "smoke", ["joint.norm.ssn={batch_size: 4}"])


def test_the_kind_of_a_range_follows_the_type_of_its_setting() -> None:
    ranges = ["factors.weight_decay={low: 0, high: 1}", "factors.epochs={low: 1, high: 4, log: true}"]
    factors = load_study("depth_vs_batch", "smoke", [*SEARCH, *ranges]).factors
    decay, epochs = factors["weight_decay"], factors["epochs"]
    assert isinstance(decay, Range)
    assert isinstance(epochs, Range)
    assert [type(end) for end in (decay.low, decay.high, epochs.low, epochs.high)] == [float, float, int, int]

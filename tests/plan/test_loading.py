"""Loading: layers, overrides, what a scale offers, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.config.errors import UserError
from study.config.yaml_input import read_yaml
from study.plan.loading import list_configs, load_study, study_from_dict

MINIMAL = "title: t\nquestion: q\nfactors: {norm: [sn]}\n"


def write_study(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("study", list_configs("studies"))
@pytest.mark.parametrize("scale", list_configs("scales"))
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


def test_an_empty_factor_of_several_fields_has_all_levels_under_joint(tmp_path: Path) -> None:
    text = "title: t\nquestion: q\nfactors: {size: }\njoint: {size: {small: {}, large: {width: 1.0}}}\n"
    config = load_study(write_study(tmp_path / "mine.yaml", text), "smoke")
    assert config.factors["size"] == ["small", "large"]
    assert study_from_dict(config.model_dump(mode="json"), "here") == config


def test_a_scale_offers_joint_settings_to_studies_that_have_the_factor(tmp_path: Path) -> None:
    scale = write_study(
        tmp_path / "tiny.yaml", "title: t\nreplicates: 1\nbase: {}\njoint: {depth: {14: {epochs: 9}}}\n"
    )
    assert load_study("distinct", scale).joint == {}
    study = load_study("distinct", scale, ["blocks=[]", "factors.depth=[8, 14]", "joint.depth.14.width=0.5"])
    assert study.joint == {"depth": {"14": {"epochs": 9, "width": 0.5}}}
    assert study.apply_levels({"depth": 14}).epochs == 9
    assert study.list_values("epochs") == [100, 9]


def test_a_scale_offers_a_start_cell_to_studies_that_have_its_factors(tmp_path: Path) -> None:
    text = "title: t\nreplicates: 1\nbase: {}\nstart: {cell: {setting: a}}\n"
    scale = write_study(tmp_path / "tiny.yaml", text)
    assert load_study("distinct", scale).start.cell == {}
    settings = ["factors.setting=[a, b]", "joint.setting={a: {}, b: {epochs: 3, start_rule: fine_tune}}"]
    minimal = write_study(tmp_path / "mine.yaml", MINIMAL)
    assert load_study(minimal, scale, settings).start.cell == {"setting": "a"}
    with pytest.raises(UserError, match=r"start.cell.depth: is not a factor"):
        load_study(minimal, scale, [*settings, "start.cell.depth=8"])


def test_one_level_needs_no_brackets() -> None:
    assert load_study("depth_vs_batch", "smoke", ["depth=14"]).factors["depth"] == [14]


def test_a_resolved_study_reads_back_equal() -> None:
    study = load_study("depth_vs_batch", "laptop")
    assert study_from_dict(study.model_dump(mode="json"), "here") == study


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("title: [", ["mine.yaml", "line 1"]),
        (MINIMAL + "bse: {epochs: 3}", ["mine.yaml", "bse", "nearest: base"]),
        (MINIMAL + "epochs: 1", ["mine.yaml: epochs: unknown key; epochs belongs under base"]),
        (MINIMAL + "base: {epochs: many}", ["mine.yaml", "base.epochs", "'many'"]),
        (MINIMAL + "title: again", ["mine.yaml", "'title' appears twice"]),
        ("title: t\nquestion: q\nfactors: {momentum: }\n", ["smoke.yaml", "factors.momentum"]),
        ("just text", ["mine.yaml", "expected keys and values"]),
        (MINIMAL + "scale: paper", ["mine.yaml: scale: cannot be set here; --scale chooses it"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write_study(tmp_path / "mine.yaml", text)
    with pytest.raises(UserError) as caught:
        load_study(path, "smoke")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(("study", "scale"), [("depth_vs_bach", "smoke"), ("distinct", "smokey"), ("no.yaml", "smoke")])
def test_unknown_names_are_refused(study: str, scale: str) -> None:
    with pytest.raises(UserError):
        load_study(study, scale)


@pytest.mark.parametrize("kind", ["studies", "scales"])
def test_every_file_has_a_title_for_the_listing(kind: str) -> None:
    for path in list_configs(kind).values():  # type: ignore[arg-type]
        assert read_yaml(path)["title"]


def test_a_study_on_record_has_the_same_limits() -> None:
    recorded = load_study("distinct", "smoke").model_dump(mode="json")
    with pytest.raises(UserError, match=r"distinct: .* trials; allowed: at most 100000"):
        study_from_dict({**recorded, "replicates": 999, "factors": {"norm": ["sn"], "epochs": [*range(1, 1000)]},
                         "blocks": [], "joint": {}, "start": {}}, "study.yaml")  # fmt: skip

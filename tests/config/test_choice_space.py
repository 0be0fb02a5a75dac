"""What layers choose from, as study.yaml describes it: written and read back, and refused if it is damaged."""

from __future__ import annotations

from typing import Any

import pytest

from study.config.choice_space import NORMALIZATION, Axis, ChoiceSpace, Member
from study.config.errors import UserError

ACTIVATION = ChoiceSpace(
    name="activation",
    noun="activation",
    members=(Member(name="relu", colour="#E69F00"), Member(name="tanh", colour="#009E73")),
    axes=(Axis(name="output", label="activation weights", target="outputs"),),
    tracked=("relu", "ReLU"),
)


@pytest.mark.parametrize("space", [NORMALIZATION, ACTIVATION])
def test_a_space_is_read_back(space: ChoiceSpace) -> None:
    assert ChoiceSpace.from_dict(space.to_dict(), "study.yaml") == space


def test_older_studies_without_a_space_are_about_normalization() -> None:
    assert ChoiceSpace.from_dict(None, "study.yaml") is NORMALIZATION


def test_a_study_from_before_a_normalizer_was_added_is_about_normalization() -> None:
    older = NORMALIZATION.to_dict()
    older["members"] = older["members"][:-1]
    assert ChoiceSpace.from_dict(older, "study.yaml") is NORMALIZATION
    recoloured = {**older, "members": [{**older["members"][0], "colour": "#000000"}, *older["members"][1:]]}
    assert ChoiceSpace.from_dict(recoloured, "study.yaml") != NORMALIZATION


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": []}, ["member", "none"]),
        ({"members": [{"name": "relu", "colour": "#E69F00"}] * 2}, ["member", "relu, relu"]),
        ({"members": [{"name": "relu", "colour": "red; x"}]}, ["relu", "red; x", "hex"]),
        ({"members": [{"name": "relu"}]}, ["colour"]),
        ({"axes": []}, ["axis", "none"]),
        ({"axes": "output"}, ["not a description"]),
        ({"tracked": ["rulu", "ReLU"]}, ["tracked", "nearest: relu"]),
        ({"tracked": "b"}, ["not a description"]),
        ({"tracked": {"relu": "ReLU"}}, ["not a description"]),
        ({"noun": None}, ["expected text, not None"]),
    ],
)
def test_a_damaged_space_gives_one_line(change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        ChoiceSpace.from_dict({**ACTIVATION.to_dict(), **change}, "study.yaml")
    message = str(error.value)
    assert message.startswith("study.yaml: choice_space: ")
    assert "\n" not in message
    for word in words:
        assert word in message

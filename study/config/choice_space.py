"""What the layers of a network choose from: the one description that record, analysis, report and dashboard share."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from study.config.errors import UserError, allowed_names, format_value
from study.config.schema import TrialConfig
from study.norms.names import NORMALIZERS


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the things that a layer chooses from; `colour` is a hex code, the same in every figure."""

    name: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One of the choices that a layer makes, a softmax over the members.

    label: names its weights ("mean weights"). target: what they are for ("means").
    """

    name: str
    label: str
    target: str


@dataclass(frozen=True, kw_only=True)
class ChoiceSpace:
    """What every layer of a network chooses from.

    name: identifies the space in records. noun: what a member is called ("normalizer").
    tracked: the member whose share is followed over the levels of a factor, and its name in a sentence ("BN").
    pool: the members that the layers of a trial may choose from, by the trial's config; by default all of them.
    """

    name: str
    noun: str
    members: tuple[Member, ...]
    axes: tuple[Axis, ...]
    tracked: tuple[str, str]
    pool: Callable[[TrialConfig], tuple[str, ...]] | None = field(default=None, compare=False)

    @property
    def member_names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def axis_names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def colours(self) -> dict[str, str]:
        return {member.name: member.colour for member in self.members}

    @property
    def labels(self) -> dict[str, str]:
        """The label of each axis."""
        return {axis.name: axis.label for axis in self.axes}

    def find_pool(self, config: TrialConfig) -> tuple[str, ...]:
        """The members that the layers of a trial may choose from. Raises `ValueError` where none is left."""
        return self.member_names if self.pool is None else self.pool(config)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `study.yaml` of a run holds them."""
        values = asdict(self)
        del values["pool"]
        return {**values, "members": list(values["members"]), "axes": list(values["axes"]),
                "tracked": list(self.tracked)}  # fmt: skip

    def find_fault(self) -> str:
        """What is wrong with the description, in words; empty if nothing is."""
        for kind, names in (("member", self.member_names), ("axis", self.axis_names)):
            if not names or len(set(names)) < len(names):
                return f"needs at least one {kind}, each with a name of its own, has: {', '.join(names) or 'none'}"
        wrong = next((each for each in self.members if not re.fullmatch("#[0-9a-fA-F]{6}", each.colour)), None)
        if wrong is not None:
            return f"{wrong.name}: colour {format_value(wrong.colour)} is not a hex code like #0072B2"
        if self.tracked[0] not in self.member_names:
            return f"tracked: {allowed_names(self.tracked[0], self.member_names)}"
        return ""

    @classmethod
    def from_dict(cls, values: Any, source: str) -> ChoiceSpace:
        """The space that `study.yaml` describes; `NORMALIZATION` where it describes none, as older ones do.

        A description of normalization with fewer members is that of a version before a normalizer was added.
        Raises `UserError`, which names the `source`, for anything else.
        """
        if values is None or _is_older(values, NORMALIZATION.to_dict()):
            return NORMALIZATION
        try:
            tracked, label = values["tracked"]
            space = cls(
                name=_read_text(values["name"]), noun=_read_text(values["noun"]),
                members=tuple(Member(**_read_texts(each)) for each in values["members"]),
                axes=tuple(Axis(**_read_texts(each)) for each in values["axes"]),
                tracked=(_read_text(tracked), _read_text(label)),
            )  # fmt: skip
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{source}: choice_space: not a description of what layers choose from: {error}") from None
        fault = space.find_fault()
        if fault:
            raise UserError(f"{source}: choice_space: {fault}")
        return space


def _is_older(values: Any, now: dict[str, Any]) -> bool:
    """Whether a description lacks nothing but members that are there now."""
    if not isinstance(values, dict) or not isinstance(values.get("members"), list):
        return False
    same = {**values, "members": None} == {**now, "members": None}
    return same and bool(values["members"]) and all(member in now["members"] for member in values["members"])


def _read_texts(values: dict[str, Any]) -> dict[str, str]:
    return {key: _read_text(value) for key, value in values.items()}


def _read_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, not {format_value(value)}")
    return value


def _find_normalizer_pool(config: TrialConfig) -> tuple[str, ...]:
    """The pool of the backbone, or of the first head whose layers have a choice; bn is not in it over one sample."""
    pools = list(config.pools.values())
    return next((pool for pool in pools if len(pool) > 1), pools[0])


# Okabe and Ito (2008): told apart with every kind of colour vision, on white and on black.
_COLOURS = {"in": "#E69F00", "ln": "#009E73", "bn": "#0072B2", "gn": "#CC79A7"}

NORMALIZATION = ChoiceSpace(
    name="normalization",
    noun="normalizer",
    members=tuple(Member(name=name, colour=_COLOURS[name]) for name in NORMALIZERS),
    axes=(
        Axis(name="mean", label="mean weights", target="means"),
        Axis(name="var", label="variance weights", target="variances"),
    ),
    tracked=("bn", "BN"),
    pool=_find_normalizer_pool,
)
"""The choice of a switchable normalization layer: normalizers, for its means and for its variances."""

"""Profiles: what a network chose, at positions that networks of different depth have in common.

Profiles are arrays (axis, position, member): the axes and members of the choice space. Layers are matched by what they
are. Weights differ much between the places in a block (first norm, second norm, shortcut), and these places fall at
other relative depths in networks of other depth: matched by relative depth, two networks that choose the same at every
place would seem to differ. So would they where the first block of a stage, which changes the size of its input, chooses
differently from later blocks, if these were averaged: deeper networks have more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from study.analysis.statistics.intervals import Floats
from study.config.choice_space import ChoiceSpace
from study.plan.analysis_plan import ALIGNMENT

Alignment = Literal["stage and place", "stage", "relative depth", "place"]
LATER = " of later blocks"  # at the end of the place of a layer that is not in the first block of its stage
FPN_PLACES = ("lateral", "output")
DEPTH_GRID = np.linspace(0, 1, 11)  # relative depths at which networks are compared by relative depth


@dataclass(frozen=True, kw_only=True)
class Profiles(Mapping[str, Floats]):
    """The profile of every network by its key: arrays (axis, position, member), weights of members sum to 1.

    positions: their names ("stage 1, norm1"). left_out: positions that some of the networks do not have.
    """

    positions: tuple[str, ...] = ()
    networks: Mapping[str, Floats]
    left_out: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Floats:
        return self.networks[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.networks)

    def __len__(self) -> int:
        return len(self.networks)


def build_profiles(switch: pd.DataFrame, space: ChoiceSpace, alignment: Alignment = ALIGNMENT) -> Profiles:
    """The profiles of networks, at the positions that all of them have.

    switch: rows of one epoch and one role of each trial: key, layer_index, stage, place, depth_fraction (within the
    role), statistic, normalizer, weight. Layers at one position, such as those of later blocks, are averaged; a member
    outside of the pool has weight 0.
    """
    if switch.empty:
        return Profiles(networks={})
    if alignment == "relative depth":
        return _interpolate(switch, space)
    if alignment == "stage and place":
        switch = _split_blocks(switch)
    columns = {"stage and place": ["stage", "place"], "stage": ["stage"], "place": ["place"]}[alignment]
    table = _tabulate(switch, columns, space)
    order = switch.groupby(columns)["layer_index"].min().sort_values().index  # whatever the depth of the networks
    counts = table.groupby(level=columns).size()
    keys = table.index.unique("key")
    common = [position for position in order if counts[position] == len(keys)]
    if not common:
        return Profiles(networks={}, left_out=tuple(_name_position(columns, position) for position in order))
    wanted = [(key, *np.atleast_1d(np.asarray(position, dtype=object))) for key in keys for position in common]
    arrays = table.loc[wanted].to_numpy(float).reshape(len(keys), len(common), len(space.axes), len(space.members))
    return Profiles(
        positions=tuple(_name_position(columns, position) for position in common),
        networks=dict(zip(map(str, keys), arrays.swapaxes(1, 2), strict=True)),
        left_out=tuple(_name_position(columns, position) for position in order if position not in set(common)),
    )


def _split_blocks(switch: pd.DataFrame) -> pd.DataFrame:
    """The rows with places that tell the first block of a stage from later ones.

    The first layer with a place in a stage is in the first block, whatever the names of layers. The layers of an FPN
    are not split: each belongs to one of its inputs, and not to a block.
    """
    place = switch["place"].astype(str)
    by = [switch["key"].astype(str), switch["stage"], place]
    is_first = switch["layer_index"].eq(switch.groupby(by)["layer_index"].transform("min")) | place.isin(FPN_PLACES)
    split: pd.DataFrame = switch.assign(place=place.where(is_first, place + LATER))
    return split


def _tabulate(switch: pd.DataFrame, columns: list[str], space: ChoiceSpace) -> pd.DataFrame:
    """Mean weights: one row per key and position, one column per axis and member."""
    wanted = pd.MultiIndex.from_product([space.axis_names, space.member_names])
    means = switch.groupby(["key", *columns, "statistic", "normalizer"], observed=True)["weight"].mean()
    table: pd.DataFrame = means.unstack(["statistic", "normalizer"]).reindex(columns=wanted).fillna(0.0)
    return table


def _name_position(columns: list[str], position: object) -> str:
    """`stage 1, norm2`, `stage 1` or `norm2`."""
    values = position if isinstance(position, tuple) else (position,)
    return ", ".join(
        f"stage {value}" if name == "stage" else str(value) for name, value in zip(columns, values, strict=True)
    )


def _interpolate(switch: pd.DataFrame, space: ChoiceSpace) -> Profiles:
    """Profiles at the relative depths of `DEPTH_GRID`, interpolated between layers."""
    table = _tabulate(switch, ["depth_fraction"], space).sort_index()
    keys, depths = (table.index.get_level_values(level) for level in ("key", "depth_fraction"))
    networks, starts = np.unique(keys.to_numpy(dtype=str), return_index=True)
    parts = zip(
        networks, np.split(depths.to_numpy(float), starts[1:]), np.split(table.to_numpy(float), starts[1:]), strict=True
    )
    return Profiles(
        positions=tuple(f"relative depth {depth:.1f}" for depth in DEPTH_GRID),
        networks={str(key): _interpolate_network(depths, weights, space) for key, depths, weights in parts},
    )


def _interpolate_network(depths: Floats, weights: Floats, space: ChoiceSpace) -> Floats:
    """The profile of one network from weights (layer, axis and member) at `depths`."""
    columns = [np.interp(DEPTH_GRID, depths, column) for column in weights.T]
    profile = np.stack(columns).reshape(len(space.axes), len(space.members), DEPTH_GRID.size).swapaxes(1, 2)
    return np.asarray(profile / profile.sum(axis=-1, keepdims=True), dtype=float)

"""What the networks of a plan chose: every planned cell and replicate, with whatever is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.analysis.records import StudyRecords
from study.analysis.statistics.contrasts import Contrast, find_contrasts, find_ends, find_pair_contrasts
from study.analysis.statistics.distances import Distance
from study.analysis.statistics.intervals import Floats, Numbers, cell_numbers
from study.analysis.statistics.profiles import Profiles
from study.analysis.wording import join_words
from study.config.choice_space import ChoiceSpace

ALL_LEVELS = " (all levels)"  # follows the name of a factor where all its numeric levels are compared, not the ends


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the networks of a plan chose: every planned cell and replicate, with whatever is missing.

    cells: one row per planned cell, one column per factor. replicates: their numbers.
    values: (cell, replicate, axis, position, member), NaN for a network without a result.
    rows: rows of the trial table (cell, replicate), -1 where no trial is planned. states: those of the trials, alike.
    """

    space: ChoiceSpace
    profiles: Profiles
    cells: pd.DataFrame
    replicates: tuple[int, ...]
    values: Floats
    rows: Numbers
    states: pd.DataFrame

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each network has a result: (cell, replicate)."""
        return np.asarray(np.isfinite(self.values).all(axis=(2, 3, 4)) & (self.values.shape[3] > 0), dtype=bool)

    @property
    def n_replicates(self) -> int:
        return int(self.present.any(axis=0).sum())

    @property
    def factors(self) -> list[str]:
        """The factors that vary."""
        return [str(name) for name in self.cells if self.cells[name].map(repr).nunique() > 1]

    @cached_property
    def contrasts(self) -> dict[str, list[Contrast]]:
        """The comparisons of cells that differ in a factor alone, for each factor that has any."""
        found = {name: find_contrasts(self.cells, name) for name in self.factors}
        return {name: each for name, each in found.items() if each}

    @cached_property
    def between(self) -> dict[str, list[Contrast]]:
        """The same over all pairs of levels, for factors with numeric levels between the ends that are compared."""
        return {
            name: find_contrasts(self.cells, name, all_levels=True) for name in self.contrasts
            if self.cells[name].map(repr).nunique() > 2 and find_ends(self.cells[name].tolist())
        }  # fmt: skip

    @cached_property
    def pairs(self) -> dict[str, dict[tuple[str, str], list[Contrast]]]:
        """The same of every two levels, for factors with more than two levels that are not numbers."""
        found = {name: find_pair_contrasts(self.cells, name) for name in self.contrasts}
        return {name: each for name, each in found.items() if each}

    @cached_property
    def comparisons(self) -> dict[str, list[Contrast]]:
        """`contrasts` by factor, and `between` by factor and `ALL_LEVELS`."""
        return {**self.contrasts, **{name + ALL_LEVELS: each for name, each in self.between.items()}}

    @cached_property
    def networks(self) -> Floats:
        """The networks with results: (network, axis, position, member)."""
        return np.asarray(self.values[self.present])

    def measure(self, distance: Distance) -> Floats:
        """Squared distances (cell, replicate, cell, replicate, axis), NaN where a network is missing."""
        table = np.full((self.present.size, self.present.size, self.values.shape[2]), np.nan)
        where = np.flatnonzero(self.present)
        if where.size:
            table[np.ix_(where, where)] = distance.squared(self.networks)
        return table.reshape(*self.present.shape, *self.present.shape, self.values.shape[2])


def select_choices(records: StudyRecords) -> pd.DataFrame:
    """The planned trials of the reference norm whose layers may choose from its whole pool.

    At B = 1 the member bn leaves the pool (there BN is IN): a rule, not a choice, so those trials are left out.
    """
    trials: pd.DataFrame = records.from_scratch[records.from_scratch["norm"].eq(records.reference_norm or "")]
    members = trials["pool"].str.len()  # the pools of one norm are nested
    whole: pd.DataFrame = trials[members.eq(members.max())]
    return whole


def collect_choices(
    profiles: Profiles, trials: pd.DataFrame, factors: Sequence[str], space: ChoiceSpace
) -> Choices:  # fmt: skip
    """The profiles of finished trials, by planned cell and replicate.

    trials: rows of the trial table, with its index. factors: columns of `trials`.
    """
    table = trials.assign(cell=cell_numbers(trials, ["trial_id"]), row=trials.index).reset_index(drop=True)
    grid = table.assign(place=table.index).pivot(index="cell", columns="replicate", values="place")
    places = grid.fillna(-1).to_numpy(dtype=np.intp)
    usable = table["key"].where(table["state"].eq("done") & table["key"].isin(list(profiles)))
    values = np.full((places.size, len(space.axes), len(profiles.positions), len(space.members)), np.nan)
    for number, place in enumerate(places.ravel()):
        if place >= 0 and isinstance(usable[place], str):
            values[number] = profiles[usable[place]]
    cells = pd.DataFrame({name: table.groupby("cell")[name].first() for name in factors}, index=grid.index)
    return Choices(
        space=space, profiles=profiles, cells=cells, replicates=tuple(int(number) for number in grid.columns),
        values=values.reshape(*places.shape, *values.shape[1:]),
        rows=np.where(places >= 0, table["row"].to_numpy(dtype=np.intp)[places], -1),
        states=table[["cell", "replicate", "row", "state"]],
    )  # fmt: skip


def find_empty_cells(choices: Choices) -> list[int]:
    """The numbers of planned cells without any result."""
    return [int(number) for number in np.flatnonzero(~choices.present.any(axis=1))]


def name_cell(levels: pd.Series, factors: Sequence[str]) -> str:
    """`depth = 14 and batch_size = 2`: a cell by its levels of these factors."""
    return join_words(f"{name} = {levels[name]}" for name in factors) if len(factors) else "the one cell"

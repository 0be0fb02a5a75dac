"""Plans a study: its factors and replicates become a table of trials, with the numbers that follow from each cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.config.errors import MAX_VALUE, UserError, shorten
from study.config.schema import Range, StudyConfig, TrialConfig
from study.config.seeds import derive_seeds, list_seed_runs
from study.plan.checks import check_cell
from study.plan.warm_start import StartSource, build_config, find_source
from study.plan.warm_start_checks import check_source_is_planned, check_start


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One training run of the plan: a cell (`levels` of every factor) at one replicate.

    device_batch: number of samples that a device processes at a time: the gradient batch, divided by the devices of the
        trial and by the parts that each of them accumulates. A detector processes B samples at a time, because its
        heads see regions, whose number differs from image to image.
    source: what the trial starts from; None for a start from scratch.
    space: what the layers of its network choose from.
    """

    trial_id: str
    replicate: int
    levels: dict[str, Any]
    config: TrialConfig
    device_batch: int
    source: StartSource | None = None
    space: ChoiceSpace = NORMALIZATION

    @property
    def key(self) -> str:
        """Names the trial within its study, and its W&B run: the id of the cell and the replicate."""
        return f"{self.trial_id}-r{self.replicate}"

    @property
    def waits_for(self) -> str | None:
        """The key of the trial of the same study that it starts from, which has to be trained before."""
        return self.source.key(self.replicate) if self.source else None

    @property
    def seeds(self) -> dict[str, int]:
        """A seed for each role: init, data, split."""
        return derive_seeds(self.replicate)

    @property
    def pool(self) -> tuple[str, ...]:
        """What a layer of this trial chooses from: the members of `space` that its config leaves in the pool."""
        return self.space.find_pool(self.config)

    @property
    def statistics_batch(self) -> int:
        """The number of samples that batch statistics are computed over: B, or G * B if they are synchronized."""
        return self.config.statistics_batch

    @property
    def gradient_batch(self) -> int:
        """G * B, the number of samples that a gradient is averaged over."""
        return self.config.gradient_batch

    @property
    def split(self) -> tuple[int, int, int]:
        """Number of images in the training, validation and test split."""
        return self.config.split_sizes

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return self.config.steps_per_epoch

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole trial."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def cost(self) -> float:
        """Relative duration, for estimates of the time left. Up to 64 samples a step takes equally long."""
        return self.steps * self.config.depth * max(1.0, self.gradient_batch / 64)


MAX_TRIALS, MAX_CELLS = 100_000, 10_000
"""Numbers of trials and of cells of a study. Every verb plans all cells first, which takes some seconds for as many."""
MAX_CORNERS = 1000


def check_size(study: StudyConfig) -> None:
    """Raises `UserError` for a study of more than `MAX_TRIALS` trials or `MAX_CELLS` cells, without planning them."""
    runs = study.replicates + len(list_seed_runs(study.seeds.apart, study.replicates))
    if study.search is None:
        blocks = study.blocks or [list(study.factors)]
        levels = {factor: len(given) for factor, given in study.factors.items() if isinstance(given, list)}
        cells = sum(math.prod(levels[factor] for factor in block) for block in blocks)
        if cells > MAX_CELLS:
            raise UserError(f"{study.name}: {cells} cells; allowed: at most {MAX_CELLS}")
    else:
        cells = study.search.n_trials
    if cells * runs > MAX_TRIALS:
        count = f"{cells} cells x {runs} runs of each are {cells * runs} trials"
        raise UserError(f"{study.name}: {count}; allowed: at most {MAX_TRIALS}")


def plan_trials(study: StudyConfig, space: ChoiceSpace = NORMALIZATION) -> list[PlannedTrial]:
    """Returns every trial of a grid study, replicate by replicate, so that an unfinished study covers all its cells.

    Runs with seeds that are varied apart come last.

    Raises `UserError` for a cell that cannot be trained.
    """
    if study.search is not None:
        raise UserError(f"{study.name}: a search has no fixed plan; its trials are suggested as it goes")
    first = [plan_trial(study, levels, 0) for levels in plan_cells(study)]  # other replicates differ in seeds only
    planned = {trial.trial_id for trial in first}
    for trial in first:
        try:
            check_source_is_planned(study, trial.levels, trial.source, planned)
        except ValueError as error:
            raise UserError(f"{study.name}: cell {_format_cell(trial.levels)}: {error}") from None
    replicates = [*range(study.replicates), *list_seed_runs(study.seeds.apart, study.replicates)]
    return [replace(trial, replicate=replicate, space=space) for replicate in replicates for trial in first]


def count_search_trials(study: StudyConfig, repeated: int) -> int:
    """Returns how many trials a search trains if `repeated` of its suggestions repeat an earlier cell."""
    assert study.search is not None
    return max(0, study.search.n_trials - repeated) * study.replicates


def plan_cells(study: StudyConfig) -> list[dict[str, Any]]:
    """Returns the cells of a grid study, each with a level of every factor: the union of its crossed blocks."""
    cells: dict[str, dict[str, Any]] = {}
    for block in study.blocks or [list(study.factors)]:
        levels = [study.factors[factor] if factor in block else [find_base_level(study, factor)]
                  for factor in study.factors]  # fmt: skip
        for combination in itertools.product(*levels):
            cells.setdefault(repr(combination), dict(zip(study.factors, combination, strict=True)))
    return list(cells.values())


def plan_corners(study: StudyConfig) -> list[PlannedTrial]:
    """Returns the trials at the corners of a search space, as a sample of what the search may suggest.

    Raises `UserError` for a cell that cannot be trained, or whose task does not have the objective.
    """
    assert study.search is not None
    others = [task for task in study.list_values("task") if task != "classification"]
    if others and study.search.objective.endswith("_accuracy"):
        raise UserError(f"{study.name}: search.objective={study.search.objective}: {others[0]} has no accuracy; "
                        "allowed: val_score, val_loss, train_loss")  # fmt: skip
    return [plan_trial(study, cell, 0) for cell in list_corners(study, list(study.factors))]


def list_corners(study: StudyConfig, factors: Sequence[str]) -> list[dict[str, Any]]:
    """Returns all combinations of the levels of some factors of a search; of a range, its ends are the levels.

    Of more than `MAX_CORNERS`, only those in which at most one factor is not at its first level.
    """
    given = {factor: study.factors[factor] for factor in factors}
    ends = {name: levels if isinstance(levels, list) else [levels.low, levels.high] for name, levels in given.items()}
    if math.prod(map(len, ends.values())) <= MAX_CORNERS:
        return [dict(zip(ends, cell, strict=True)) for cell in itertools.product(*ends.values())]
    first = {factor: levels[0] for factor, levels in ends.items()}
    return [first, *({**first, factor: level} for factor, levels in ends.items() for level in levels[1:])]


def plan_trial(study: StudyConfig, levels: Mapping[str, Any], replicate: int) -> PlannedTrial:
    """Returns the trial of one cell and replicate. Raises `UserError` if the cell cannot be trained."""
    where = f"{study.name}: cell {_format_cell(levels)}"
    try:
        config = build_config(study, levels)
        check_cell(config, study.run)
        check_start(study, levels, config)
    except ValidationError as error:
        raise UserError(f"{where}: {error.errors()[0]['msg']}") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    parts = config.chunks if config.task == "detection" else study.run.devices_per_trial * study.run.accumulate
    return PlannedTrial(
        trial_id=study.build_trial_id(config, levels), replicate=replicate, levels=dict(levels), config=config,
        device_batch=config.gradient_batch // parts, source=find_source(study, levels, config),
    )  # fmt: skip


def find_base_level(study: StudyConfig, factor: str) -> Any:
    """Returns the level of a factor where only others vary: the base's value if it is a level, else the first level."""
    levels = study.factors[factor]
    assert isinstance(levels, list)
    base = getattr(study.base, factor, None)
    return base if base in levels else levels[0]


def find_factor_fields(study: StudyConfig, factor: str) -> list[str]:
    """Returns the fields of a trial in which the levels of a factor differ."""
    levels = study.factors[factor]
    if isinstance(levels, Range):
        return [factor]
    first, *others = (build_config(study, {factor: level}).model_dump() for level in levels)
    return [name for name in first if any(other[name] != first[name] for other in others)]


def _format_cell(levels: Mapping[str, Any]) -> str:
    return ", ".join(f"{factor}={shorten(str(level), MAX_VALUE)}" for factor, level in levels.items()) or "the base"

"""Trials that are trained as one: each has the numbers that it has by itself, and its own record, log and end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from study.config.schema import TrialConfig
from study.models import build_network
from study.models.fused import FusedNetworks
from study.plan.job import Job
from study.plan.trials import PlannedTrial
from study.record.io import write_json
from study.record.layout import TrialFolder
from study.tasks import TASKS, TrainingModule
from study.tasks.base import OWN_PASSES, Passes
from study.tasks.optimizers import build_optimizer, build_schedule
from study.training.fused import FusedTrial, _copy, run_fused, run_fused_jobs
from tests.training.trials import SHORT, STEPS, job, numbers, send_sigterm, smoke_trial

FACTORS: list[list[str]] = [
    [],
    ["initialization=orthogonal", "logit_init=random", "zero_last_gamma=false"],
    ["solver=adam", "learning_rate=0.01", "decay=step", "warmup_epochs=1", "logit_gradient_clip=0.1"],
]  # fmt: skip


def group(path: Path, *overrides: str, factors: Sequence[Sequence[str]] = FACTORS) -> list[Job]:
    """A group of trials, which differ in `factors` and replicates."""
    trials = [
        replace(smoke_trial(*SHORT, *overrides, *settings), replicate=replicate)
        for replicate, settings in enumerate(factors)
    ]
    keys = tuple(trial.key for trial in trials)
    return [replace(job(trial, path / trial.trial_id / f"r{trial.replicate}"), group=keys) for trial in trials]


def records(jobs: Sequence[Job]) -> list[TrialFolder]:
    return [TrialFolder(each.folder) for each in jobs]


def act_at(monkeypatch: pytest.MonkeyPatch, jobs: Sequence[Job], seed: int, step: int, act: Callable[[], None]) -> None:
    """Trains a group, and calls `act` once, when the trial with a data seed has taken `step` steps."""
    original, calls = TrainingModule._take_step, []

    def take_step(module: TrainingModule, *arguments: Any) -> None:
        if (module.seed, module.steps_taken) == (seed, step) and not calls:
            calls.append(step)
            act()
        original(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "_take_step", take_step)
        run_fused_jobs(jobs)
    assert calls


# ---------------------------------------------------------------------------------------------------------- numbers


def train_steps(trial: PlannedTrial, passes: Passes, losses: list[float]) -> None:
    """Twenty training steps in float64, with the module, solver and schedule of a trial."""
    config, generator = trial.config, torch.Generator().manual_seed(trial.replicate)
    network = build_network(config, trial.replicate).double()
    module = TASKS["classification"](network, config, steps_per_epoch=10, seed=trial.replicate)
    module.passes = passes
    optimizer = build_optimizer(network, config)
    schedule = build_schedule(optimizer, config, 10)
    for number in range(20):
        images = torch.randn(config.gradient_batch, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(10, (config.gradient_batch,), generator=generator)
        module._take_step((images, labels), number % 10, optimizer)
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        schedule.step()
        module.steps_taken += 1
        losses.append(float(module.pending_losses[-1][-1]))
    losses += [float(value.double().norm()) for value in network.state_dict().values()]


SWITCHES = ["sn", "ssn", "sn-shared", "sn-stage", "sn-tied", "sn-uniform", "sn-random", "sn[in,ln,bn,gn]"]


@pytest.mark.parametrize("norm", ["bn", "gn", "in", "ln", *SWITCHES])
def test_twenty_steps_in_float64_equal_those_of_a_trial_alone(tmp_path: Path, norm: str) -> None:
    """For every solver and initialization, in one group; rounding grows with the steps."""
    base = {"dataset": "digits", "depth": 8, "width": 0.5, "norm": norm, "batch_size": 2, "chunks": 4, "epochs": 2}
    solvers = ["sgd", "nesterov", "adam", "adamw", "rmsprop"]
    starts = ["he_normal", "he_uniform", "xavier_normal", "xavier_uniform", "orthogonal"]
    trials = [
        PlannedTrial(
            trial_id=solver, replicate=number, levels={}, device_batch=8,
            config=TrialConfig(**base, solver=solver, initialization=start, learning_rate=0.001 * (number + 1),
                               weight_decay=0.01 * number, logit_gradient_clip=0.5 if number else None),
        )
        for number, (solver, start) in enumerate(zip(solvers, starts, strict=True))
    ]  # fmt: skip
    alone: list[list[float]] = [[] for _ in trials]
    fused: list[list[float]] = [[] for _ in trials]
    for trial, losses in zip(trials, alone, strict=True):
        train_steps(trial, OWN_PASSES, losses)
    run_fused(
        {
            place: FusedTrial(lambda passes, p=place: train_steps(trials[p], passes, fused[p]), tmp_path / "log", 5)
            for place in range(5)
        },
        5,
    )
    for one, other in zip(alone, fused, strict=True):
        assert len(one) == len(other) > 20
        assert other == pytest.approx(one, rel=1e-6)


def test_trials_in_a_group_have_complete_records_near_those_of_trials_alone(tmp_path: Path) -> None:
    jobs = group(tmp_path / "fused")
    run_fused_jobs(jobs)
    alone = [replace(each, group=(), folder=tmp_path / "alone" / f"r{number}") for number, each in enumerate(jobs)]
    for number, (record, one) in enumerate(zip(records(jobs), alone, strict=True)):
        one.folder.mkdir(parents=True)
        run_fused_jobs([replace(one, group=(one.trial.key,))])
        single, result = TrialFolder(one.folder).read_result(), record.read_result()
        assert single is not None
        assert result is not None
        assert not record.damaged_files()
        assert result["metrics"].keys() == single["metrics"].keys()
        assert result["metrics"]["train_loss"] == pytest.approx(single["metrics"]["train_loss"], rel=0.05)
        assert json.loads(record.environment.read_text())["group"] == {"trials": 3, "place": number}


SCENES = ["task=segmentation", "dataset=scenes", "deep_supervision=0.4", "epochs=1", "train_samples=64"]


@pytest.mark.parametrize("overrides", [[], SCENES], ids=["classification", "segmentation"])
def test_the_numbers_of_a_trial_do_not_depend_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    together, alone = group(tmp_path / "together", *overrides), group(tmp_path / "alone", *overrides)
    monkeypatch.setattr("study.training.fused._compute_each", None)  # so that no pass is of single networks
    run_fused_jobs(together)
    for each in alone:
        run_fused_jobs([each])
    assert list(map(numbers, records(alone))) == list(map(numbers, records(together)))


# ------------------------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize("norm", ["sn", "ssn"])
def test_a_group_that_is_stopped_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    whole, stopped = (group(tmp_path / name, f"norm={norm}") for name in ("whole", "stopped"))
    run_fused_jobs(whole)
    seed = stopped[0].trial.seeds["data"]
    act_at(monkeypatch, stopped, seed, 5, send_sigterm)
    assert {record.status()[0] for record in records(stopped)} == {"stale"}
    run_fused_jobs(stopped[:1])  # goes ahead of the others, and ends before them
    act_at(monkeypatch, stopped[1:], stopped[1].trial.seeds["data"], STEPS + 3, send_sigterm)
    run_fused_jobs(stopped)
    assert list(map(numbers, records(stopped))) == list(map(numbers, records(whole)))


def test_a_trial_that_diverges_fails_or_is_pruned_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors = [*FACTORS, ["learning_rate=1e15"], [], []]
    jobs, whole = group(tmp_path / "jobs", factors=factors), group(tmp_path / "whole", factors=factors)
    run_fused_jobs(whole)
    write_json(TrialFolder(jobs[4].folder).prune, {"epoch": 1})

    def fail() -> None:
        raise RuntimeError("out of luck")

    act_at(monkeypatch, jobs, jobs[5].trial.seeds["data"], 3, fail)
    found = [record.status()[0] for record in records(jobs)]
    assert found == ["done", "done", "done", "diverged", "pruned", "failed"]
    assert records(jobs)[5].read_state()["reason"] == "RuntimeError: out of luck"
    run_fused_jobs(jobs[5:])
    assert [*map(numbers, records(jobs)[:4]), numbers(records(jobs)[5])] == [
        *map(numbers, records(whole)[:4]), numbers(records(whole)[5]),
    ]  # fmt: skip


def test_each_trial_records_a_failed_pass_as_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FusedNetworks, "backward", fail)
    jobs = group(tmp_path)
    run_fused_jobs(jobs)
    states = [record.read_state() for record in records(jobs)]
    assert {state["reason"] for state in states} == {"RuntimeError: out of memory"}
    assert len({state["traceback"] for state in states}) == 1


def test_trials_at_different_steps_share_their_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluates once before it trains, so that it would want a forward pass when the others want backward."""
    built, original = [], FusedNetworks.__init__

    def count(fused: FusedNetworks, networks: Sequence[Any]) -> None:
        built.append(len(networks))
        original(fused, networks)

    def run(passes: FusedTrial, place: int) -> None:
        images = torch.ones(8, 1, 8, 8)
        network = build_network(TrialConfig(dataset="digits", depth=8, width=0.5, batch_size=2, chunks=4), place)
        if place == 0:
            with torch.no_grad():
                passes.forward(network, images)
        for _ in range(6):
            passes.backward(passes.forward(network, images).sum())

    monkeypatch.setattr(FusedNetworks, "__init__", count)
    run_fused({p: FusedTrial(partial(run, place=p), tmp_path / "log", 3) for p in range(3)}, 3)
    assert len(built) <= 4  # not one or two for every step


def test_a_copy_of_a_network_has_no_memory_of_the_others() -> None:
    config = TrialConfig(dataset="digits", depth=8, width=0.5, batch_size=2, chunks=4)
    networks = [build_network(config, seed) for seed in range(3)]
    FusedNetworks(networks)
    for tensor in (*(copied := _copy(networks[1])).parameters(), *copied.buffers()):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    for name, value in networks[1].state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)


def test_networks_that_have_no_fused_form_are_computed_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.models.fused._CHANNEL_WISE", ())
    jobs = group(tmp_path)
    run_fused_jobs(jobs)
    alone = [
        replace(each, group=(each.trial.key,), folder=tmp_path / f"alone{n}" / "r0") for n, each in enumerate(jobs)
    ]
    for each in alone:
        run_fused_jobs([each])
    assert [numbers(record)[1] for record in records(jobs)] == [numbers(record)[1] for record in records(alone)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_trial_whose_folder_cannot_be_written_takes_nobody_along(tmp_path: Path) -> None:
    jobs = group(tmp_path, "epochs=1", factors=[[], [], []])
    jobs[0].folder.parent.mkdir(parents=True)
    jobs[0].folder.touch()
    TrialFolder(jobs[1].folder).log.mkdir(parents=True)
    run_fused_jobs(jobs)
    assert [record.status()[0] for record in records(jobs)[1:]] == ["done", "done"]


def test_of_networks_that_have_no_fused_form_one_that_fails_takes_nobody_along(tmp_path: Path) -> None:
    jobs = [replace(each, build_network=build_hooked) for each in group(tmp_path, "epochs=1", factors=[[], []])]
    run_fused_jobs(jobs)
    assert [record.status()[0] for record in records(jobs)] == ["failed", "done"]


def build_hooked(job: Job) -> torch.nn.Module:
    """A network of a user's own, whose forward pass fails in the first replicate once it trains."""

    def fail(module: torch.nn.Module, _: Any) -> None:
        if module.training and not job.trial.replicate:
            raise RuntimeError("out of luck")

    network = build_network(job.trial.config, 0)
    network.register_forward_pre_hook(fail)
    return network


def test_each_trial_has_its_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.on_train_epoch_start

    def speak(module: TrainingModule) -> None:
        for output in (sys.stdout, sys.stderr):
            print(f"seed {module.seed}", file=output)
        original(module)

    jobs = group(tmp_path)
    with monkeypatch.context() as patch, open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
        patch.setattr(sys, "stdout", out)  # buffered, as in a process whose output is a file; pytest replaces them
        patch.setattr(sys, "stderr", err)
        patch.setattr(TrainingModule, "on_train_epoch_start", speak)
        run_fused_jobs(jobs)
    for each in jobs:
        lines = [line for line in TrialFolder(each.folder).log.read_text().splitlines() if line.startswith("seed")]
        assert lines == 4 * [f"seed {each.trial.seeds['data']}"]


def test_checkpoints_hold_the_trial_alone(tmp_path: Path) -> None:
    jobs = group(tmp_path)
    run_fused_jobs(jobs)
    run_fused_jobs([replace(jobs[0], group=(jobs[0].trial.key,), folder=tmp_path / "alone" / "r0")])
    sizes = [
        TrialFolder(folder).last_checkpoint.stat().st_size for folder in (jobs[0].folder, tmp_path / "alone" / "r0")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_every_trial_has_a_wandb_run(tmp_path: Path) -> None:
    jobs = [replace(each, wandb_mode="offline") for each in group(tmp_path, factors=[[], []])]
    run_fused_jobs(jobs)
    for record in records(jobs):
        assert record.status()[0] == "done"
        assert len(list(record.wandb.glob("offline-run-*/*.wandb"))) == 1

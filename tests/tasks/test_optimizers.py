"""Optimizers, their parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math

import pytest
import torch

from study.config.schema import TrialConfig
from study.models import build_network
from study.norms import switch_parameters
from study.tasks.optimizers import build_optimizer, build_schedule, learning_rate_factor

SOLVERS = ("sgd", "nesterov", "adam", "adamw", "rmsprop")


def config(**fields: object) -> TrialConfig:
    return TrialConfig(**{"depth": 8, "batch_size": 2, "chunks": 2, **fields})  # type: ignore[arg-type]


def test_switch_logits_are_a_group_of_their_own_and_every_parameter_is_in_one_group() -> None:
    network = build_network(config(), seed=0)
    settings = config(logit_learning_rate=10.0, weight_decay=0.01)
    rest, logits = build_optimizer(network, settings).param_groups
    assert {id(p) for p in logits["params"]} == {id(p) for p in switch_parameters(network)}
    assert len(rest["params"]) + len(logits["params"]) == len(list(network.parameters()))
    assert logits["lr"] == pytest.approx(10 * rest["lr"])
    assert (rest["weight_decay"], logits["weight_decay"]) == (0.01, 0.0)


def test_a_network_without_switches_has_one_group() -> None:
    network = build_network(config(norm="gn"), seed=0)
    assert len(build_optimizer(network, config(norm="gn")).param_groups) == 1


def test_norms_and_biases_can_have_their_own_rates() -> None:
    network = build_network(config(), seed=0)
    settings = config(
        weight_decay=0.1, norm_weight_decay=0.0, bias_weight_decay=0.2, bias_learning_rate=2.0, learning_rate=1.0,
        scale_learning_rate=False,
    )  # fmt: skip
    groups = build_optimizer(network, settings).param_groups
    of = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    found = {name: of[id(parameter)] for name, parameter in network.named_parameters()}
    assert found["conv1.weight"] == found["fc.weight"] == (1.0, 0.1)
    assert found["bn1.weight"] == found["layer3.0.bn2.bias"] == (1.0, 0.0)
    assert found["fc.bias"] == (2.0, 0.2)
    assert found["bn1.mean_weight"] == (1.0, 0.0)


def test_a_warm_up_may_start_above_zero_and_steps_fall_at_milestones() -> None:
    def factor(step: int) -> float:
        return learning_rate_factor(
            step, decay="step", total=180_000, warmup=500, milestones=(2 / 3, 0.888889), start=1 / 3
        )

    assert [factor(step) for step in (0, 250, 500)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [factor(step) for step in (119_999, 120_000, 159_999, 160_000)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_fixed_ratios_are_not_trained() -> None:
    network = build_network(config(norm="sn-uniform"), seed=0)
    assert len(build_optimizer(network, config(norm="sn-uniform")).param_groups) == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_reduces_a_loss(solver: str) -> None:
    torch.manual_seed(0)
    rate = 0.05 if solver in ("sgd", "nesterov") else 0.002
    settings = config(solver=solver, learning_rate=rate, scale_learning_rate=False)
    network = build_network(settings, seed=0)
    optimizer = build_optimizer(network, settings)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", {0: 1, 50: 1, 99: 1}),
        ("linear", {0: 1, 50: 0.5, 99: 0.01}),
        ("cosine", {0: 1, 50: 0.5, 99: (1 + math.cos(math.pi * 0.99)) / 2}),
        ("poly", {0: 1, 50: 0.5**0.9}),
        ("step", {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 89: 0.01, 90: 0.001}),
    ],
)
def test_decay_over_a_hundred_steps(decay: str, expected: dict[int, float]) -> None:
    for step, factor in expected.items():
        assert learning_rate_factor(step, decay=decay, total=100, warmup=0) == pytest.approx(factor)


@pytest.mark.parametrize("warmup", [5, 4.5])
def test_warm_up_rises_linearly_and_meets_the_decay(warmup: float) -> None:
    factors = [learning_rate_factor(step, decay="cosine", total=100, warmup=warmup) for step in range(100)]
    rising = factors[: math.ceil(warmup)]
    assert rising[0] > 0
    assert rising == sorted(rising)
    assert max(factors) <= 1
    assert factors[math.ceil(warmup)] > 0.99
    assert factors[-1] < 0.01


def test_the_schedule_scales_both_groups_by_the_same_factor() -> None:
    settings = config(epochs=2, decay="linear", logit_learning_rate=10.0)
    optimizer = build_optimizer(build_network(settings, seed=0), settings)
    schedule = build_schedule(optimizer, settings, steps_per_epoch=5)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    rest, logits = optimizer.param_groups
    assert rest["lr"] == pytest.approx(0.5 * settings.base_learning_rate)
    assert logits["lr"] == pytest.approx(10 * rest["lr"])

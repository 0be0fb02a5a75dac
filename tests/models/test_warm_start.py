"""How a network starts from another one, on small networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from study.config.schema import TrialConfig
from study.models import build_network, trace_geometry
from study.models.warm_start import (
    Choices,
    ChosenLayer,
    StartError,
    fix_choices,
    freeze_choices,
    harden_choices,
    load_weights,
    matches_state_dict,
    permute_choices,
    read_choices,
    share_choices,
    transplant_choices,
)
from study.norms import set_radius, switch_parameters


def network(depth: int = 8, seed: int = 0, **fields: Any) -> nn.Module:
    """A network whose layers all have different choices."""
    small = {"depth": depth, "width": 0.25, "chunks": 1, "batch_size": 4, "logit_init": "random"}
    return build_network(TrialConfig(**{**small, **fields}), seed)


def rows(choices: Choices) -> list[tuple[float, ...]]:
    return [tuple(torch.cat(choice).tolist()) for choice in choices.values()]


@pytest.mark.parametrize("norm", ["sn", "ssn"])
def test_hardened_layers_choose_the_largest_weight(norm: str) -> None:
    one = network(norm=norm)
    before = read_choices(one)
    fix_choices(one, harden_choices(before))
    for name, (mean, var) in read_choices(one).items():
        for after, given in zip((mean, var), before[name], strict=True):
            assert sorted(after.tolist()) == [0.0, 0.0, 1.0]
            assert after.argmax() == given.argmax()


@pytest.mark.parametrize("norm", ["sn", "ssn"])
def test_fixed_choices_are_not_trained(norm: str) -> None:
    one = network(norm=norm)
    fix_choices(one, harden_choices(read_choices(one)))
    before = read_choices(one)
    assert switch_parameters(one) == []
    images = torch.randn(4, 1, 8, 8)
    solver = torch.optim.SGD([each for each in one.parameters() if each.requires_grad], lr=0.1, weight_decay=0.1)
    for step in range(3):
        set_radius(one, step / 3)
        torch.autograd.backward(one(images).square().sum())
        solver.step()
    assert rows(read_choices(one)) == rows(before)
    assert all(torch.isfinite(each).all() for each in one.parameters())


@pytest.mark.parametrize("norm", ["sn", "ssn"])
def test_frozen_choices_stay_bit_equal_at_any_radius(norm: str) -> None:
    one = network(norm=norm)
    set_radius(one, 0.3)
    before = read_choices(one)
    freeze_choices(one, list(before))
    set_radius(one, 0.7)
    assert rows(read_choices(one)) == rows(before)
    assert switch_parameters(one) == []


def test_permuted_choices_are_the_same_choices_in_other_layers() -> None:
    one = network()
    layers, choices = trace_geometry(one), read_choices(one)
    permuted = permute_choices(choices, layers, seed=3)
    assert sorted(rows(permuted)) == sorted(rows(choices))
    assert all(not torch.equal(permuted[name][0], choices[name][0]) for name in choices)
    assert rows(permute_choices(choices, layers, seed=3)) == rows(permuted)
    assert rows(permute_choices(choices, layers, seed=4)) != rows(permuted)


def test_shared_choices_are_the_mean_in_every_layer() -> None:
    one = network()
    choices = read_choices(one)
    mean = torch.stack([torch.cat(choice) for choice in choices.values()]).mean(0)
    fix_choices(one, share_choices(choices, trace_geometry(one)))
    for row in rows(read_choices(one)):
        torch.testing.assert_close(torch.tensor(row), mean)


def test_a_transplant_takes_the_nearest_depth_fraction_of_the_role() -> None:
    def choice(number: int) -> tuple[Tensor, Tensor]:
        return torch.full((3,), float(number)), torch.zeros(3)

    source = [ChosenLayer("backbone", index / 8, choice(index)) for index in range(9)]  # ResNet-8 has 9 norm layers
    source.append(ChosenLayer("decoder", 0.5, choice(99)))
    layers = trace_geometry(network(depth=14))
    chosen = transplant_choices(layers, source)
    # Layer i of 15 lies at i / 14, the nearest of j / 8 is that of j = 8 i / 14.
    expected = [0, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 7, 8]
    assert [int(chosen[layer.layer][0][0]) for layer in layers] == expected


def test_loading_all_weights_of_a_network_reproduces_it() -> None:
    one, other = network(seed=1), network(seed=2)
    images = torch.randn(4, 1, 8, 8)
    assert matches_state_dict(one, other.state_dict())
    load_weights(one, other.state_dict())
    assert torch.equal(one(images), other(images))


@pytest.mark.parametrize(
    ("fields", "part"),
    [({"depth": 14}, "it has no layer1.1"), ({"width": 0.5}, "conv1.weight is (4, 1, 3, 3) there and (8, 1, 3, 3)")],
)
def test_weights_that_do_not_fit_are_named(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(StartError) as caught:
        load_weights(network(**fields), network().state_dict())
    assert part in str(caught.value)

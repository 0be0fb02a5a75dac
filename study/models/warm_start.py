"""How a network starts from another one: it loads weights by name, and its switch layers take choices over.

A choice of a switch layer is a pair of weights (K,) over its pool: one for means, one for variances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from study.config.errors import UserError
from study.config.seeds import derive_seed
from study.models.geometry import LayerGeometry
from study.norms import switch_weights

Choice = tuple[Tensor, Tensor]
Choices = dict[str, Choice]  # by layer
UNUSED_BUFFER = "num_batches_tracked"  # of torch's batch norms; some files lack it, and nothing here reads it


class ChosenLayer(NamedTuple):
    """The choice of a layer of another network, and the layer's position there."""

    role: str
    depth_fraction: float
    choice: Choice


class StartError(UserError):
    """The weights or choices that a trial starts from cannot be read, or do not fit its network."""


# ------------------------------------------------------------------------------------------------- weights


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, skip_prefix: str | None = None) -> None:
    """Sets all parameters and buffers, except those whose name starts with `skip_prefix`.

    Raises `StartError` if one is missing in `weights` or has another shape there.
    """
    own = {
        name: value
        for name, value in network.state_dict().items()
        if skip_prefix is None or not name.startswith(skip_prefix)
    }
    for name, value in own.items():
        given = weights.get(name)
        if given is None and not name.endswith(UNUSED_BUFFER):
            raise StartError(f"does not fit: it has no {name}")
        if given is not None and given.shape != value.shape:
            raise StartError(f"does not fit: {name} is {(*given.shape,)} there and {(*value.shape,)} here")
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def matches_state_dict(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether `weights` has exactly the names and shapes of the network's state dict, its head included."""
    own = network.state_dict()
    return own.keys() == weights.keys() and all(weights[name].shape == value.shape for name, value in own.items())


# ------------------------------------------------------------------------------------------------- choices


def read_choices(network: nn.Module, part: nn.Module | None = None) -> Choices:
    """The current choices of the switch layers of `network`, or of those inside its module `part`."""
    inside = set((part or network).modules())
    return {
        name: (layer.mean, layer.var)
        for name, layer in switch_weights(network).items()
        if network.get_submodule(name) in inside
    }


def fix_choices(network: nn.Module, choices: Choices) -> None:
    """Sets the choices of layers, whose logits are not trained from now on."""
    for name, choice in choices.items():
        layer: Any = network.get_submodule(name)
        layer.fix_weights(*choice)


def freeze_choices(network: nn.Module, names: Sequence[str]) -> None:
    """Freezes layers at their current choices, to the last bit."""
    for name in names:
        layer: Any = network.get_submodule(name)
        layer.freeze()


def harden_choices(choices: Choices) -> Choices:
    """One-hot choices at the largest weight, or at the first of several largest ones."""
    return {
        name: (one_hot(mean.argmax(), len(mean)).to(mean), one_hot(var.argmax(), len(var)).to(var))
        for name, (mean, var) in choices.items()
    }


def share_choices(choices: Choices, layers: Sequence[LayerGeometry]) -> Choices:
    """Gives all layers of a role the mean of their choices."""
    shared: Choices = {}
    for names in _group_by_role(choices, layers):
        mean, var = (torch.stack([choices[name][statistic] for name in names]).mean(0) for statistic in (0, 1))
        shared |= dict.fromkeys(names, (mean, var))
    return shared


def permute_choices(choices: Choices, layers: Sequence[LayerGeometry], seed: int) -> Choices:
    """Permutes the choices of the layers of a role. No layer keeps its own, unless it is the only one."""
    generator = torch.Generator().manual_seed(derive_seed("permute", seed))
    permuted: Choices = {}
    for names in _group_by_role(choices, layers):
        order = _draw_derangement(len(names), generator)
        permuted |= {name: choices[names[other]] for name, other in zip(names, order, strict=True)}
    return permuted


def transplant_choices(layers: Sequence[LayerGeometry], source: Sequence[ChosenLayer]) -> Choices:
    """Gives each layer the choice of another network's layer of the same role at the nearest depth fraction.

    If two are equally near, the shallower one is taken. Roles that the other network does not have are left out.
    """
    chosen: Choices = {}
    for layer in layers:
        candidates = [other for other in source if other.role == layer.role]
        if candidates:
            distances = [round(abs(other.depth_fraction - layer.depth_fraction), 9) for other in candidates]
            chosen[layer.layer] = candidates[distances.index(min(distances))].choice
    return chosen


def _group_by_role(choices: Choices, layers: Sequence[LayerGeometry]) -> list[list[str]]:
    """The names of the layers that have a choice, grouped by role, in order of execution."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        if layer.layer in choices:
            names[layer.role].append(layer.layer)
    return list(names.values())


def _draw_derangement(size: int, generator: torch.Generator) -> list[int]:
    """A permutation that moves every element, uniformly drawn by rejection; about one draw in three is accepted."""
    while True:
        order: list[int] = torch.randperm(size, generator=generator).tolist()
        if size < 2 or all(place != index for index, place in enumerate(order)):
            return order

"""How a network starts from another one: its weights by name, and rules for what its layers are to choose.

What a layer chooses is a pair of weights (K,) over its pool, for means and for variances.
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
COUNTER = "num_batches_tracked"  # of torch's batch norms, without a use here; other files lack it


class ChosenLayer(NamedTuple):
    """What a layer of another network chose, and where it sits there."""

    role: str
    depth_fraction: float
    choice: Choice


class StartError(UserError):
    """What a trial is to start from cannot be read, or does not fit its network."""


# ------------------------------------------------------------------------------------------------- weights


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, leave: str | None = None) -> None:
    """Sets all parameters and buffers but those whose name starts with `leave`.

    Raises `StartError` where one is missing or has another shape.
    """
    own = {name: value for name, value in network.state_dict().items() if leave is None or not name.startswith(leave)}
    for name, value in own.items():
        given = weights.get(name)
        if given is None and not name.endswith(COUNTER):
            raise StartError(f"does not fit: it has no {name}")
        if given is not None and given.shape != value.shape:
            raise StartError(f"does not fit: {name} is {(*given.shape,)} there and {(*value.shape,)} here")
    network.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def fits(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether `weights` are those of such a network, head and all."""
    own = network.state_dict()
    return own.keys() == weights.keys() and all(weights[name].shape == value.shape for name, value in own.items())


# ------------------------------------------------------------------------------------------------- choices


def read_choices(network: nn.Module, part: nn.Module | None = None) -> Choices:
    """What the switch layers of `network` choose now, or those of them that are in `part`."""
    inside = set((part or network).modules())
    return {
        name: (layer.mean, layer.var)
        for name, layer in switch_weights(network).items()
        if network.get_submodule(name) in inside
    }


def fix_choices(network: nn.Module, choices: Choices) -> None:
    """Has layers choose `choices` from now on: their logits learn no more."""
    for name, choice in choices.items():
        layer: Any = network.get_submodule(name)
        layer.fix_weights(*choice)


def freeze_choices(network: nn.Module, names: Sequence[str]) -> None:
    """Has layers choose from now on what they choose now."""
    for name in names:
        layer: Any = network.get_submodule(name)
        layer.freeze()


def harden_choices(choices: Choices) -> Choices:
    """One-hot at the largest weight, the first where several are."""
    return {
        name: (one_hot(mean.argmax(), len(mean)).to(mean), one_hot(var.argmax(), len(var)).to(var))
        for name, (mean, var) in choices.items()
    }


def share_choices(choices: Choices, layers: Sequence[LayerGeometry]) -> Choices:
    """The mean over the layers of a role, in each of them."""
    shared: Choices = {}
    for names in _by_role(choices, layers):
        mean, var = (torch.stack([choices[name][statistic] for name in names]).mean(0) for statistic in (0, 1))
        shared |= dict.fromkeys(names, (mean, var))
    return shared


def permute_choices(choices: Choices, layers: Sequence[LayerGeometry], seed: int) -> Choices:
    """The same choices dealt to other layers of their role: no layer keeps its own, unless it is alone."""
    generator = torch.Generator().manual_seed(derive_seed("permute", seed))
    dealt: Choices = {}
    for names in _by_role(choices, layers):
        order = _derange(len(names), generator)
        dealt |= {name: choices[names[other]] for name, other in zip(names, order, strict=True)}
    return dealt


def transplant_choices(layers: Sequence[LayerGeometry], source: Sequence[ChosenLayer]) -> Choices:
    """What the layers of another network chose, at the nearest depth within the role; of two, the shallower.

    Roles that the other network lacks are left out.
    """
    chosen: Choices = {}
    for layer in layers:
        theirs = [other for other in source if other.role == layer.role]
        if theirs:
            distances = [round(abs(other.depth_fraction - layer.depth_fraction), 9) for other in theirs]
            chosen[layer.layer] = theirs[distances.index(min(distances))].choice
    return chosen


def _by_role(choices: Choices, layers: Sequence[LayerGeometry]) -> list[list[str]]:
    """The layers that have a choice, role by role, in order of execution."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        if layer.layer in choices:
            names[layer.role].append(layer.layer)
    return list(names.values())


def _derange(size: int, generator: torch.Generator) -> list[int]:
    """A permutation that leaves nothing in its place, all of them equally likely: about one draw in three is one."""
    while True:
        order: list[int] = torch.randperm(size, generator=generator).tolist()
        if size < 2 or all(place != index for index, place in enumerate(order)):
            return order

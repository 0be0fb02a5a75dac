"""The protocol of switch layers: what makes a module one, and what a model's switch layers have in common.

Switch layers are found by their method `switch_weights`, never by class or by name.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class SwitchWeights(NamedTuple):
    """The current weights of one layer: (K,) over its pool, for means and for variances, detached."""

    pool: tuple[str, ...]
    mean: Tensor
    var: Tensor


@runtime_checkable
class SwitchLayer(Protocol):
    """A layer that chooses from a pool. Its logits are `mean_weight` and `var_weight`.

    A layer that chooses from something else than normalizers returns its own tuple, with `pool` and a field (K,) for
    each axis of its choice, and has a method `switch_logits()` that returns its logits.
    """

    def switch_weights(self) -> Any:
        """Returns the weights over the pool, after the mixing rule, as a `SwitchWeights`."""


def switch_weights(model: nn.Module) -> dict[str, SwitchWeights]:
    """Returns the current weights of every switch layer by module path, in the order of `model.named_modules()`."""
    return {path: layer.switch_weights() for path, layer in _named_switch_layers(model)}


def switch_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable logits of all switch layers, each once, for a parameter group of their own."""
    logits = (logit for _, layer in _named_switch_layers(model) for logit in _list_logits(layer))
    return list(dict.fromkeys(logit for logit in logits if logit.requires_grad))


def share_switches(model: nn.Module, key: Callable[[str], Hashable]) -> None:
    """Makes switch layers whose `key(module path)` is equal share the logits of the first of them, in place.

    ValueError if two layers that would share logits have different pools.
    """
    first_layers: dict[Hashable, tuple[str, Any]] = {}
    for path, layer in _named_switch_layers(model):
        first_path, first = first_layers.setdefault(key(path), (path, layer))
        pools = first.switch_weights().pool, layer.switch_weights().pool
        if pools[0] != pools[1]:
            raise ValueError(f"{first_path!r} and {path!r} cannot share logits: their pools are {pools}")
        share_logits(first, layer)


def share_logits(source: nn.Module, layer: nn.Module) -> None:
    """Replaces the logits of `layer` by those of `source`, which are then trained if those of either were."""
    for name in ("mean_weight", "var_weight"):
        logits = getattr(source, name)
        logits.requires_grad_(logits.requires_grad or getattr(layer, name).requires_grad)
        setattr(layer, name, logits)


def is_switch_layer(module: nn.Module) -> bool:
    """Whether `module` is a `SwitchLayer`."""
    # Not isinstance: with a protocol it takes as long as a small layer.
    return callable(getattr(type(module), "switch_weights", None))


def _list_logits(layer: Any) -> tuple[nn.Parameter, ...]:
    logits: tuple[nn.Parameter, ...] = (
        layer.switch_logits() if hasattr(layer, "switch_logits") else (layer.mean_weight, layer.var_weight)
    )
    return logits


def _named_switch_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, module) for path, module in model.named_modules() if is_switch_layer(module))

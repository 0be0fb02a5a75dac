"""Where each norm layer sits: index, depth fraction, stage, role and receptive field, computed from the network."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from study.norms import switch_weights

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """The place of one norm layer. `receptive_field` is in input pixels; `depth_fraction` runs from 0 to 1."""

    layer: str
    layer_index: int
    depth_fraction: float
    stage: int
    role: str
    receptive_field: int


def trace_geometry(network: nn.Module) -> list[LayerGeometry]:
    """The geometry of every norm layer, in order of execution.

    The network is traced symbolically; along the graph a window of kernel k, stride s and dilation d widens the
    receptive field by (k - 1) d times the product of the strides before it, and where branches meet the widest counts.
    """
    switches = switch_weights(network)
    graph = _Tracer().trace(network)
    fields: dict[torch.fx.Node, tuple[int, int]] = {}  # receptive field and jump of each node's output
    norms: list[tuple[str, int]] = []
    for node in graph.nodes:
        incoming = [fields[source] for source in node.all_input_nodes]
        field, jump = max(incoming, default=(1, 1))
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _WINDOWS):
            sizes = (getattr(module, name, 1) for name in ("kernel_size", "stride", "dilation"))
            kernel, stride, dilation = map(_first, sizes)
            field, jump = field + (kernel - 1) * dilation * jump, jump * stride
        fields[node] = field, jump
        if str(node.target) in switches or (module is not None and is_norm(module)):
            norms.append((str(node.target), field))
    last = max(1, len(norms) - 1)
    return [
        LayerGeometry(
            layer=name,
            layer_index=index,
            depth_fraction=index / last,
            stage=stage_of(name),
            role="backbone",
            receptive_field=field,
        )
        for index, (name, field) in enumerate(norms)
    ]


def stage_of(layer: str) -> int:
    """The stage of a ResNet's layer by its path: 0 the stem, then `layer1`, `layer2`, ..."""
    found = re.match(r"layer(\d+)\.", layer)
    return int(found[1]) if found else 0


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: torch's own kinds, and every layer that chooses."""
    native = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
    return isinstance(module, native) or hasattr(module, "switch_weights")


class _Tracer(torch.fx.Tracer):
    """Keeps norm layers whole, whose inside is not part of the network's geometry, and convolutions of any class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or isinstance(m, _WINDOWS) or super().is_leaf_module(m, module_qualified_name)


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]

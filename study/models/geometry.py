"""Where each norm layer sits: index, depth fraction, stage, role and receptive field, computed from the network."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_NATIVE = (
    *(_BatchNorm, nn.modules.instancenorm._InstanceNorm, FrozenBatchNorm2d),
    *(nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm),
)
_ROLES = {
    "backbone.fpn.": "fpn",
    "roi_heads.box_head.": "box_head",
    "roi_heads.mask_head.": "mask_head",
    "decoder.": "decoder",
    "auxiliary.": "decoder",
}
_BACKBONE = re.compile(r"^(backbone\.(body\.)?)?(?=(conv|bn|layer)\d)")


@dataclass(frozen=True, kw_only=True)
class LayerGeometry:
    """The place of one norm layer.

    layer_index: in order of execution, over all of the network. depth_fraction: from 0 to 1 within its role.
    stage: of a ResNet, 0 the stem; of a head, one more than the last.
    receptive_field: in input pixels; None for the whole image, and behind the pooling of regions.
    """

    layer: str
    layer_index: int
    depth_fraction: float
    stage: int
    role: str
    receptive_field: int | None


def trace_geometry(network: nn.Module) -> list[LayerGeometry]:
    """The geometry of every norm layer, in order of execution.

    The network is traced symbolically, in the mode it is in; along the graph a window of kernel k, stride s and
    dilation d widens the receptive field by (k - 1) d times the product of the strides before it, and where branches
    meet the widest counts.
    """
    fields = _trace_fields(network)
    last = max((stage_of(layer) for layer in fields), default=0)
    lengths, places = Counter(map(role_of, fields)), Counter[str]()
    geometry = []
    for index, (layer, field) in enumerate(fields.items()):
        role = role_of(layer)
        geometry.append(
            LayerGeometry(
                layer=layer,
                layer_index=index,
                depth_fraction=places[role] / max(1, lengths[role] - 1),
                stage=stage_of(layer) if role == "backbone" else last + 1,
                role=role,
                receptive_field=None if math.isinf(field) else int(field),
            )
        )
        places[role] += 1
    return geometry


def backbone_path(layer: str) -> str | None:
    """A layer's path inside the backbone, which is the same for all tasks; None outside of it."""
    path, found = _BACKBONE.subn("", layer)
    return path if found else None


def role_of(layer: str) -> str:
    """What a layer is part of, by its path: backbone, decoder, fpn, box_head, mask_head, or elsewhere."""
    if backbone_path(layer):
        return "backbone"
    return next((role for prefix, role in _ROLES.items() if layer.startswith(prefix)), "elsewhere")


def stage_of(layer: str) -> int:
    """The stage of a ResNet's layer by its path: 0 the stem, then `layer1`, `layer2`, ..."""
    found = re.match(r"layer(\d+)\.", backbone_path(layer) or "")
    return int(found[1]) if found else 0


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes: torch's and torchvision's own kinds, and every layer that chooses."""
    return isinstance(module, _NATIVE) or hasattr(module, "switch_weights")


def _trace_fields(network: Any) -> dict[str, float]:
    """The receptive field of every norm layer by its path, in order of execution."""
    if not hasattr(network, "roi_heads"):
        return _trace_module(network, "")
    # Of a detector, what comes behind the maps decides by their values, which cannot be traced: its heads are chains.
    heads = {
        f"roi_heads.{name}": math.inf
        for name, layer in network.roi_heads.named_modules()
        if is_norm(layer)
    }  # fmt: skip
    return {**_trace_module(network.backbone, "backbone."), **heads}


def _trace_module(network: nn.Module, prefix: str) -> dict[str, float]:
    fields: dict[torch.fx.Node, tuple[float, int]] = {}  # receptive field and jump of each node's output
    norms: dict[str, float] = {}
    for node in _Tracer().trace(network).nodes:
        incoming = [fields[source] for source in node.all_input_nodes]
        field, jump = max(incoming, default=(1, 1))
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _WINDOWS):
            sizes = (getattr(module, name, 1) for name in ("kernel_size", "stride", "dilation"))
            kernel, stride, dilation = map(_first, sizes)
            field, jump = field + (kernel - 1) * dilation * jump, jump * stride
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            field = math.inf
        elif node.target is interpolate:  # to the grid that it takes its size from
            jump = fields[node.kwargs["size"]][1]
        fields[node] = field, jump
        if module is not None and is_norm(module):
            norms[prefix + str(node.target)] = field
    return norms


class _Tracer(torch.fx.Tracer):
    """Keeps norm layers whole, whose inside is not part of the network's geometry, and convolutions of any class."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or isinstance(m, _WINDOWS) or super().is_leaf_module(m, module_qualified_name)


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]

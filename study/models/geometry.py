"""The position of each norm layer in a network: index, depth fraction, stage, place, role, receptive field."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch.fx
from torch import nn
from torch.nn.functional import interpolate

from study.config.layer_places import name_place

_WINDOWS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_NORMS_WITHOUT_STATISTICS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
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
    """The position of one norm layer.

    layer: path of the module. layer_index: in order of execution, over the whole network.
    depth_fraction: from 0 to 1 within its role.
    stage: in a ResNet, 0 is the stem; layers of a head have one more than the last stage.
    place: in the block or head, such as `norm1` or `shortcut`; see `name_place`.
    receptive_field: in input pixels; None for the whole image, and for layers that see pooled regions.
    """

    layer: str
    layer_index: int
    depth_fraction: float
    stage: int
    place: str
    role: str
    receptive_field: int | None


def trace_geometry(network: nn.Module) -> list[LayerGeometry]:
    """The geometry of every norm layer, in order of execution.

    The network is traced symbolically, in its current mode. Along the graph, a window of kernel size k, stride s and
    dilation d widens the receptive field by (k - 1) d times the product of the preceding strides; where branches meet,
    the widest field counts.
    """
    fields = _trace_receptive_fields(network)
    last_stage = max((get_stage(layer) for layer in fields), default=0)
    lengths, positions = Counter(map(get_role, fields)), Counter[str]()
    geometry = []
    for index, (layer, field) in enumerate(fields.items()):
        role = get_role(layer)
        geometry.append(
            LayerGeometry(
                layer=layer,
                layer_index=index,
                depth_fraction=positions[role] / max(1, lengths[role] - 1),
                stage=get_stage(layer) if role == "backbone" else last_stage + 1,
                place=name_place(layer, role),
                role=role,
                receptive_field=None if math.isinf(field) else int(field),
            )
        )
        positions[role] += 1
    return geometry


def get_backbone_path(layer: str) -> str | None:
    """A layer's path within the backbone, which is the same for all tasks; None for layers outside the backbone."""
    path, found = _BACKBONE.subn("", layer)
    return path if found else None


def get_role(layer: str) -> str:
    """The part of the network that a layer belongs to: backbone, decoder, fpn, box_head, mask_head or elsewhere."""
    if get_backbone_path(layer):
        return "backbone"
    return next((role for prefix, role in _ROLES.items() if layer.startswith(prefix)), "elsewhere")


def get_stage(layer: str) -> int:
    """The stage of a ResNet that a layer belongs to: 0 for the stem, then 1 for `layer1`, 2 for `layer2`, and so on."""
    found = re.match(r"layer(\d+)\.", get_backbone_path(layer) or "")
    return int(found[1]) if found else 0


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm layer: one of torch or torchvision, or a switch layer.

    Batch and instance norms of any class, frozen ones included, have the attribute `running_mean`, which may be None.
    """
    has_statistics = hasattr(module, "running_mean")
    return has_statistics or isinstance(module, _NORMS_WITHOUT_STATISTICS) or hasattr(module, "switch_weights")


def _trace_receptive_fields(network: Any) -> dict[str, float]:
    """The receptive field of every norm layer by path, in order of execution."""
    if not hasattr(network, "roi_heads"):
        return _trace_module(network, "")
    # Behind its feature maps a detector branches on values, which cannot be traced. Its heads are plain sequences.
    heads = {
        f"roi_heads.{name}": math.inf
        for name, layer in network.roi_heads.named_modules()
        if is_norm(layer)
    }  # fmt: skip
    return {**_trace_module(network.backbone, "backbone."), **heads}


def _trace_module(network: nn.Module, prefix: str) -> dict[str, float]:
    fields: dict[torch.fx.Node, tuple[float, int]] = {}  # receptive field and stride of the output of each node
    norms: dict[str, float] = {}
    for node in _Tracer().trace(network).nodes:
        incoming = [fields[source] for source in node.all_input_nodes]
        field, total_stride = max(incoming, default=(1, 1))
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _WINDOWS):
            sizes = (getattr(module, name, 1) for name in ("kernel_size", "stride", "dilation"))
            kernel, stride, dilation = map(_first, sizes)
            field, total_stride = field + (kernel - 1) * dilation * total_stride, total_stride * stride
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            field = math.inf
        elif node.target is interpolate:  # to the grid of the map whose size it takes
            total_stride = fields[node.kwargs["size"]][1]
        fields[node] = field, total_stride
        if module is not None and is_norm(module):
            norms[prefix + str(node.target)] = field
    return norms


class _Tracer(torch.fx.Tracer):
    """A tracer that does not look inside norm layers, nor inside convolutions and poolings of any subclass."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or isinstance(m, _WINDOWS) or super().is_leaf_module(m, module_qualified_name)


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]

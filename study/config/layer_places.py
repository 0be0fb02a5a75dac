"""The place of a norm layer: its name within its block or head, the same in networks of every depth.

The name follows from the layer's path and role alone, so that records without places can get them. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_Naming = tuple[str, Callable[[re.Match[str]], str]]


def name_place(layer: str, role: str) -> str:
    """The place of the layer with this path and role.

    Backbone: `stem`; `norm1`, `norm2`, `norm3` by order inside the block; `shortcut`, the norm on the projection of the
    skip connection; `output`, after the last block of a pre-activation ResNet.
    FPN: `lateral` after the 1x1 convolutions, `output` after the 3x3 ones. Box and mask head: `norm1`, `norm2`, ... by
    order. Decoder: `pyramid_point`, `pyramid_atrous1` to `pyramid_atrous3` and `pyramid_pool` for the branches of
    DeepLabV3, `project` after the 1x1 convolution that joins them, `conv` after the last 3x3 convolution, which FCN has
    too; `auxiliary` in the second decoder.
    Any other layer, as in a user's own network: the last component of the path.
    """
    for pattern, name in _PLACES.get(role, ()):
        found = re.fullmatch(pattern, layer)
        if found:
            return name(found)
    return layer.rpartition(".")[2]


def _fixed(place: str) -> Callable[[re.Match[str]], str]:
    return lambda found: place


def _numbered(place: str, *, first: int = 0) -> Callable[[re.Match[str]], str]:
    """The place with the number in the path, counted from 1; the first one has number `first` in the path."""
    return lambda found: f"{place}{int(found[1]) + 1 - first}"


# The paths are those of torchvision, of `study.models` and of `study.norms.official`.
_BACKBONE = r"(?:backbone\.(?:body\.)?)?"
_BLOCK = rf"{_BACKBONE}layer\d+\.\d+"
_PLACES: Mapping[str, Sequence[_Naming]] = {
    "backbone": (
        (rf"{_BACKBONE}bn1", _fixed("stem")),
        (rf"{_BLOCK}\.bn(\d+)", _numbered("norm", first=1)),
        (rf"{_BLOCK}\.downsample\.\d+", _fixed("shortcut")),
        (rf"{_BACKBONE}layer\d+\.bn_out", _fixed("output")),
    ),
    "fpn": (
        (r"backbone\.fpn\.inner_blocks\.\d+\.1", _fixed("lateral")),
        (r"backbone\.fpn\.layer_blocks\.\d+\.1", _fixed("output")),
    ),
    "box_head": ((r"roi_heads\.box_head\.(\d+)\.1", _numbered("norm")),),
    "mask_head": ((r"roi_heads\.mask_head\.(\d+)\.1", _numbered("norm")),),
    "decoder": (
        (r"decoder\.pyramid\.point\.1", _fixed("pyramid_point")),
        (r"decoder\.pyramid\.atrous\.(\d+)\.1", _numbered("pyramid_atrous")),
        (r"decoder\.pyramid\.pool\.1\.1", _fixed("pyramid_pool")),
        (r"decoder\.project\.1", _fixed("project")),
        (r"decoder\.conv\.1", _fixed("conv")),
        (r"auxiliary\.conv\.1", _fixed("auxiliary")),
    ),
}

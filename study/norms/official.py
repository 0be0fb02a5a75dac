"""Loads the SN and SSN networks that the papers' authors published: ResNet-50 and ResNet-101.

Written from the contents of the files and from the papers' formulas. Nothing is taken from the authors' code
(Switchable-Normalization, which is under CC-BY-NC 4.0, and Sparse_SwitchNorm of github.com/switchablenorms).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from study.norms.layers import SwitchNorm2d
from study.norms.names import DEFAULT_POOL
from study.norms.sparse import SparseSwitchNorm2d

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Number of blocks in each stage, by depth."""

_POOLS = {3: DEFAULT_POOL, 2: ("in", "ln")}  # by number of logits; the authors' (8, 1) models have no bn
_State = dict[str, Tensor]


def load_official(path: str | Path) -> OfficialResNet:
    """Loads the network of a published file, in evaluation mode and in the file's precision.

    Its outputs are those of the last version of the authors' code. The file contains a state_dict, or a dictionary with
    one under the key `state_dict`; names may start with `module.`. Sparse layers whose weights were not fixed yet use
    the radius that is stored in the file, which is that of the last training step.

    ValueError (one line) for a file that cannot be read or has other contents.
    """
    state = _read_state(path)
    try:
        network = OfficialResNet(**_infer_arguments(state)).to(state["conv1.weight"].dtype)
        network.load_state_dict(_convert_state(state, network))
    except ValueError as error:
        raise ValueError(f"{path}: not an official SN or SSN ResNet: {error}") from None
    return network.eval()


class OfficialResNet(nn.Module):
    """A ResNet of the SN papers: maps (N, channels, H, W) to logits (N, classes). Names are torchvision's.

    Version 1 is torchvision's ResNet with a switch norm for every norm, and can load its state_dict. In version 2 the
    norms come before the convolutions (He et al., 1603.05027), shortcuts have no norm, and one more norm,
    `layer4.bn_out`, follows the last block. Variances are those of the authors' code (`correction=1`); networks with
    sparse layers pool without padding and measure radii from the centre of the support (`centre="support"`).

    Args:
        depth: 50 or 101.
        version: version of the blocks.
        kind: `sn` or `ssn`.
        pool: pool of every layer.
        width: channels of the stem; 64 in the published networks.
        channels: channels of the images.
        classes: number of classes.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        version: Literal[1, 2] = 1,
        kind: Literal["sn", "ssn"] = "sn",
        pool: tuple[str, ...] = DEFAULT_POOL,
        width: int = 64,
        channels: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.depth, self.version, self.kind, self.pool = depth, version, kind, pool
        # The authors' momentum is the weight of the old statistics: 0.9, and 0.997 in sparse layers.
        norm: Any = partial(SwitchNorm2d, momentum=0.1, pool=pool, correction=1)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        if kind == "ssn":
            norm = partial(SparseSwitchNorm2d, momentum=0.003, pool=pool, correction=1, centre="support")
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        in_channels, stages = width, []
        for stage, blocks in enumerate(BLOCKS[depth]):
            stages.append(nn.Sequential())
            for block in range(blocks):
                planes, stride = width * 2**stage, 2 if stage and not block else 1
                stages[-1].append(_Bottleneck(in_channels, planes, stride, norm, norm_first=version == 2))
                in_channels = 4 * planes
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if version == 2:
            self.layer4.add_module("bn_out", norm(in_channels))
            self.layer4.add_module("relu", nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, channels, H, W) to logits (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits


class _Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 with the stride, and 1x1 to 4 * planes channels, each with its norm after or before it."""

    def __init__(self, in_channels: int, planes: int, stride: int, norm: Any, *, norm_first: bool) -> None:
        super().__init__()
        out_channels = 4 * planes
        self.norm_first = norm_first
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn1 = norm(in_channels if norm_first else planes)
        self.bn2 = norm(planes)
        self.bn3 = norm(planes if norm_first else out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = shortcut if norm_first else nn.Sequential(shortcut, norm(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.norm_first:
            normalized = self.relu(self.bn1(x))
            y = self.relu(self.bn2(self.conv1(normalized)))
            y = self.conv3(self.relu(self.bn3(self.conv2(y))))
            return y + (x if self.downsample is None else self.downsample(normalized))
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y


def _read_state(path: str | Path) -> _State:
    """Reads the tensors of a file, by name."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch.load raises many kinds of error for other files
        raise ValueError(f"{path}: is not a file of tensors that torch.load(weights_only=True) can read") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: contains no state_dict, neither at the top level nor under the key state_dict")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _infer_arguments(state: _State) -> dict[str, Any]:
    """Infers the arguments of `OfficialResNet` from a file's tensors."""
    for name in ("conv1.weight", "sn1.mean_weight", "fc.weight"):
        if name not in state:
            raise ValueError(f"it has no {name}")
    matches = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in state)
    places = {(int(match[1]), int(match[2])) for match in matches if match}
    blocks = tuple(sum(place[0] == stage for place in places) for stage in range(1, 5))
    depth = next((depth for depth, known in BLOCKS.items() if known == blocks), None)
    if depth is None:
        raise ValueError(f"its stages have {blocks} blocks; published are {BLOCKS[50]} (50) and {BLOCKS[101]} (101)")
    logits = state["sn1.mean_weight"].numel()
    if logits not in _POOLS:
        raise ValueError(f"sn1.mean_weight has {logits} logits; published are 3 (in, ln, bn) and 2 (in, ln)")
    width, channels = state["conv1.weight"].shape[:2]
    return {
        "depth": depth,
        "version": 2 if "sn_out.weight" in state else 1,
        "kind": "ssn" if "sn1.radius" in state else "sn",
        "pool": _POOLS[logits],
        "width": width,
        "channels": channels,
        "classes": len(state["fc.weight"]),
    }


def _convert_state(state: _State, network: OfficialResNet) -> _State:
    """Renames and reshapes a file's tensors to a state_dict of `network`. ValueError if one is missing or unknown."""
    names = {name: _official_name(name) for name in network.state_dict() if not name.endswith("_choice")}
    if unknown := [name for name in state if name not in names.values()]:
        raise ValueError(f"{unknown[0]} is not part of a ResNet-{network.depth} of version {network.version}")
    converted = {}
    for name, value in network.state_dict().items():
        if name.endswith("_choice"):
            converted[name] = _read_choice(state, _official_name(name.removesuffix("_choice")))
            continue
        official = state.get(names[name])
        if official is None:
            raise ValueError(f"it has no {names[name]}")
        # In the files, values by channel are (1, C, 1, 1) or (1, C, 1), and flags and radii are (1,).
        if official.shape != value.shape and (value.dim() > 1 or official.numel() != value.numel()):
            raise ValueError(f"{names[name]} has shape {tuple(official.shape)}, not {tuple(value.shape)}")
        converted[name] = official.reshape(value.shape)
    return converted


def _official_name(name: str) -> str:
    return re.sub(r"\bbn(?=[123]\.)", "sn", name).replace("layer4.bn_out.", "sn_out.")


def _read_choice(state: _State, statistic: str) -> Tensor:
    """Returns the fixed one-hot weights of a sparse layer, which the files store as its logits; 0 if not fixed."""
    logits = state[f"{statistic}_weight"]
    if not state[f"{statistic}_fixed"].any():
        return torch.zeros_like(logits)
    choice = one_hot(logits.argmax(), len(logits)).to(logits)
    if not torch.allclose(logits, choice, atol=1e-3):
        raise ValueError(f"{statistic}_weight is fixed at {logits.tolist()}, which is not one-hot")
    return choice

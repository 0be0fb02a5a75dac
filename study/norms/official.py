"""Networks that the papers' authors published: SN and SSN ResNet-50 and 101, read from their files.

Written from what the files hold and from the papers' formulas; of the authors' code (Switchable-Normalization and
Sparse_SwitchNorm of github.com/switchablenorms, the first under CC-BY-NC 4.0) there is nothing here.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from study.norms.layers import SparseSwitchNorm2d, SwitchNorm2d
from study.norms.names import DEFAULT_POOL

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of each stage, by depth."""

_POOLS = {3: DEFAULT_POOL, 2: ("in", "ln")}  # by the number of logits; the authors' (8, 1) models have no bn
_State = dict[str, Tensor]


def load_official(path: str | Path) -> OfficialResNet:
    """The network of a published file, in evaluation: the outputs of the authors' code, in the file's precision.

    The file holds a state_dict, or one under the key `state_dict`; names may start with `module.`. Choices that a
    sparse layer had not fixed are mixed at the radius in the file, that of its last step.

    ValueError, one line, for a file that cannot be read or that holds something else.
    """
    state = _read_state(path)
    try:
        network = OfficialResNet(**_describe(state)).to(state["conv1.weight"].dtype)
        network.load_state_dict(_translate(state, network))
    except ValueError as error:
        raise ValueError(f"{path}: no official SN or SSN ResNet: {error}") from None
    return network.eval()


class OfficialResNet(nn.Module):
    """A ResNet of the SN papers, for (N, channels, H, W): logits (N, classes). Names are torchvision's.

    Version 1 is torchvision's ResNet with a switch norm for every norm, and takes its state_dict. Version 2 normalizes
    before it convolves (He et al., 1603.05027), has no norm in its shortcuts, and one, `layer4.bn_out`, after its last
    block. Variances are those of the authors' code (`correction=1`); networks of sparse layers pool without padding.

    Args:
        depth: 50 or 101.
        version: of the blocks.
        kind: `sn` or `ssn`.
        pool: of every layer.
        width: channels of the stem; published are 64.
        channels: of images.
        classes: of images.
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
        # Their momentum is what is kept of the running statistics: 0.9, and 0.997 of sparse layers.
        norm: Any = partial(SwitchNorm2d, momentum=0.1, pool=pool, correction=1)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        if kind == "ssn":
            norm = partial(SparseSwitchNorm2d, momentum=0.003, pool=pool, correction=1)
            self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        inputs, stages = width, []
        for stage, blocks in enumerate(BLOCKS[depth]):
            stages.append(nn.Sequential())
            for block in range(blocks):
                planes, stride = width * 2**stage, 2 if stage and not block else 1
                stages[-1].append(_Bottleneck(inputs, planes, stride, norm, first_norm=version == 2))
                inputs = 4 * planes
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if version == 2:
            self.layer4.add_module("bn_out", norm(inputs))
            self.layer4.add_module("relu", nn.ReLU(inplace=True))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.dropout(self.avgpool(x).flatten(1)))
        return logits


class _Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times as many channels; each with its norm after it, or before it."""

    def __init__(self, inputs: int, planes: int, stride: int, norm: Any, *, first_norm: bool) -> None:
        super().__init__()
        outputs = 4 * planes
        self.first_norm = first_norm
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn1 = norm(inputs if first_norm else planes)
        self.bn2 = norm(planes)
        self.bn3 = norm(planes if first_norm else outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = shortcut if first_norm else nn.Sequential(shortcut, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.first_norm:
            normed = self.relu(self.bn1(x))
            y = self.relu(self.bn2(self.conv1(normed)))
            y = self.conv3(self.relu(self.bn3(self.conv2(y))))
            return y + (x if self.downsample is None else self.downsample(normed))
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y


def _read_state(path: str | Path) -> _State:
    """The tensors of a file by name."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever a file of another kind does to the reader
        raise ValueError(f"{path}: is no file of tensors that torch.load(weights_only=True) reads") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: holds no state_dict: neither tensors by name nor such under the key state_dict")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _describe(state: _State) -> dict[str, Any]:
    """What the network of a file is: the arguments of `OfficialResNet`."""
    for name in ("conv1.weight", "sn1.mean_weight", "fc.weight"):
        if name not in state:
            raise ValueError(f"it has no {name}")
    found = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in state)
    names = {(int(each[1]), int(each[2])) for each in found if each}
    blocks = tuple(sum(stage == wanted for stage, _ in names) for wanted in range(1, 5))
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


def _translate(state: _State, network: OfficialResNet) -> _State:
    """The state in the names and shapes of `network`; every tensor has a place, and every place a tensor."""
    places = {name: _their_name(name) for name in network.state_dict() if not name.endswith("_choice")}
    if strange := [name for name in state if name not in places.values()]:
        raise ValueError(f"{strange[0]} is no part of a ResNet-{network.depth} of version {network.version}")
    translated = {}
    for name, value in network.state_dict().items():
        if name.endswith("_choice"):
            translated[name] = _choice(state, _their_name(name.removesuffix("_choice")))
            continue
        theirs = state.get(places[name])
        if theirs is None:
            raise ValueError(f"it has no {places[name]}")
        # Values by channel are (1, C, 1, 1) or (1, C, 1) there, flags and radii (1,).
        if theirs.shape != value.shape and (value.dim() > 1 or theirs.numel() != value.numel()):
            raise ValueError(f"{places[name]} has shape {tuple(theirs.shape)}, not {tuple(value.shape)}")
        translated[name] = theirs.reshape(value.shape)
    return translated


def _their_name(name: str) -> str:
    return re.sub(r"\bbn(?=[123]\.)", "sn", name).replace("layer4.bn_out.", "sn_out.")


def _choice(state: _State, statistic: str) -> Tensor:
    """The one-hot weights that a sparse layer has fixed; they are where its logits were."""
    logits = state[f"{statistic}_weight"]
    if not state[f"{statistic}_fixed"].any():
        return torch.zeros_like(logits)
    choice = one_hot(logits.argmax(), len(logits)).to(logits)
    if not torch.allclose(logits, choice, atol=1e-3):
        raise ValueError(f"{statistic}_weight is fixed at {logits.tolist()}, which is not one-hot")
    return choice

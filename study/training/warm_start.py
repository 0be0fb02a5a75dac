"""How a trial's network starts from another trial, or from a file of weights, by the rule of its config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import lightning.pytorch as L
import pyarrow as pa
import torch
from torch import Tensor, nn

from study.config.schema import TrialConfig
from study.config.yaml_input import read_yaml
from study.models import build_network, get_backbone, trace_geometry
from study.models.warm_start import (
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
from study.norms import unfreeze_switches
from study.norms.official import load_official
from study.record.checkpoint import find_damage
from study.record.layout import TrialFolder
from study.record.switch_weights import read_last_weights, select_switch_layers

HEAD = "fc."  # what a classifier has and a backbone lacks


def start_network(network: nn.Module, config: TrialConfig, seed: int, path: Path) -> None:
    """Applies `config.start_rule` to a network as it was drawn, in place. `seed` deals the choices of `permute`.

    path: the folder of the trial to start from, or a file of weights. What is fixed here learns no more, and belongs
    into no solver. Raises `StartError` where the start cannot be read or does not fit.
    """
    rule, layers = config.start_rule, select_switch_layers(network, trace_geometry(network))
    if rule == "transplant":
        fix_choices(network, transplant_choices(layers, read_chosen_layers(TrialFolder(path))))
        return
    # Fresh: the choices are taken, and the weights are not.
    donor = deepcopy(network) if config.start_fresh else network
    choices = read_choices(donor, take_weights(donor, config, path))
    if rule == "fine_tune" or config.start_epoch:
        if config.start_thaw:
            unfreeze_switches(donor)
        return  # they learn, to the end or until `FreezeSwitchWeights`
    if rule == "frozen" and not config.start_fresh:
        freeze_choices(network, list(choices))  # to the last bit
        return
    if rule == "argmax":
        choices = harden_choices(choices)
    elif rule == "shared":
        choices = share_choices(choices, layers)
    elif rule == "permute":
        choices = permute_choices(choices, layers, seed)
    fix_choices(network, choices)


class FreezeSwitchWeights(L.Callback):
    """Fixes all switch weights from the start of an epoch on; a resumed trial, too."""

    def __init__(self, network: nn.Module, epoch: int) -> None:
        self.network, self.epoch = network, epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= self.epoch:
            # The solver has their logits, and leaves alone what has no gradient.
            freeze_choices(self.network, list(read_choices(self.network)))


def take_weights(network: nn.Module, config: TrialConfig, path: Path) -> nn.Module:
    """Loads what lies at `path` into `network`, or into its backbone where the head is another; returns which."""
    folder = TrialFolder(path)
    source = TrialConfig(**read_yaml(folder.trial)["config"]) if path.is_dir() else None
    file = path if source is None else folder.last_checkpoint
    weights = read_weights(file)
    same_head = source is None or all(
        getattr(source, name) == getattr(config, name) for name in ("task", "task_head", "dataset")
    )
    try:
        if same_head and matches_state_dict(network, weights):
            load_weights(network, weights)
            return network
        if source is not None and source.task != "classification":
            theirs = build_network(source, 0)
            load_weights(theirs, weights)
            weights = get_backbone(theirs).state_dict()
        backbone = get_backbone(network)
        load_weights(backbone, weights, skip_prefix=HEAD)
        return backbone
    except StartError as error:
        raise StartError(f"{file}: {error}") from None


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """The parameters and buffers in a checkpoint of ours, a published SN or SSN file or any other state dict.

    By the names that ours have.

    Raises `StartError` where it cannot be read, or not without running code that it holds.
    """
    # Files of before 2020 are no archives, and have no checksums.
    problem = find_damage(file) if is_zipfile(file) else None
    try:
        content: Any = None if problem else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind raises almost anything
        problem = type(error).__name__
    if problem is not None:
        raise StartError(f"{file}: cannot be read as weights ({problem})")
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    named = content.items() if isinstance(content, dict) else ()
    weights = {str(name).removeprefix("module."): value for name, value in named if isinstance(value, Tensor)}
    ours = {name.removeprefix("network."): value for name, value in weights.items() if name.startswith("network.")}
    if "sn1.mean_weight" in weights:  # as the authors of SN name it
        return load_official(file).state_dict()
    if not weights:
        raise StartError(f"{file}: holds no weights by name")
    return ours or weights


def check_checkpoint(file: Path, configs: Iterable[TrialConfig]) -> None:
    """Raises `StartError` where a file of weights cannot be read, or does not fit a trial that starts from it."""
    different = {(config.depth, config.width, config.norm): config for config in configs}
    for config in different.values():
        if config.start_rule != "scratch":
            take_weights(build_network(config, 0), config, file)


def read_chosen_layers(folder: TrialFolder) -> list[ChosenLayer]:
    """What the layers of a finished trial chose in the end, from its record."""
    try:
        places, weights = read_last_weights(folder.switch_weights)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StartError(f"{folder.switch_weights}: cannot be read: {str(error).splitlines()[0]}") from None
    return [
        ChosenLayer(str(place["role"]), float(str(place["depth_fraction"])), (mean, var))
        for place, (mean, var) in zip(places, torch.tensor(weights), strict=True)
    ]

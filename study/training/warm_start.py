"""Starts a trial's network from another trial, or from a file of weights, by the start rule of its configuration."""

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

HEAD = "fc."  # parameters of a classifier that its backbone does not have


def start_network(network: nn.Module, config: TrialConfig, seed: int, path: Path) -> None:
    """Applies `config.start_rule` to a freshly initialized network, in place.

    Switch weights that the rule fixes are no longer parameters, so this must come before the optimizer is built.

    seed: draws the permutation of the rule `permute`.
    path: the folder of the trial to start from, or a file of weights.
    Raises `StartError` where the start cannot be read or does not fit the network.
    """
    rule, layers = config.start_rule, select_switch_layers(network, trace_geometry(network))
    if rule == "transplant":
        fix_choices(network, transplant_choices(layers, read_chosen_layers(TrialFolder(path))))
        return
    # With `start_fresh`, only the choices are used, so the weights are loaded into a copy.
    donor = deepcopy(network) if config.start_fresh else network
    choices = read_choices(donor, load_start_weights(donor, config, path))
    if rule == "fine_tune" or config.start_epoch:
        if config.start_thaw:
            unfreeze_switches(donor)
        return  # switch weights are trained, to the end or until `FreezeSwitchWeights` stops it
    if rule == "frozen" and not config.start_fresh:
        freeze_choices(network, list(choices))  # keeps the weights to the last bit, as `fix_choices` would not
        return
    if rule == "argmax":
        choices = harden_choices(choices)
    elif rule == "shared":
        choices = share_choices(choices, layers)
    elif rule == "permute":
        choices = permute_choices(choices, layers, seed)
    fix_choices(network, choices)


class FreezeSwitchWeights(L.Callback):
    """Freezes all switch weights when `epoch` starts."""

    def __init__(self, network: nn.Module, epoch: int) -> None:
        self.network, self.epoch = network, epoch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A trial that resumes within an epoch has no `on_train_epoch_start` for it.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch >= self.epoch:
            # Their logits stay in the optimizer, which skips parameters without a gradient.
            freeze_choices(self.network, list(read_choices(self.network)))


def load_start_weights(network: nn.Module, config: TrialConfig, path: Path) -> nn.Module:
    """Loads the weights at `path` into `network`, or only into its backbone where the start has another head.

    Returns the module that was loaded: `network` or its backbone.
    """
    folder = TrialFolder(path)
    source = TrialConfig(**read_yaml(folder.trial, recorded=True)["config"]) if path.is_dir() else None
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
            start = build_network(source, 0)
            load_weights(start, weights)
            weights = get_backbone(start).state_dict()
        backbone = get_backbone(network)
        load_weights(backbone, weights, skip_prefix=HEAD)
        return backbone
    except StartError as error:
        raise StartError(f"{file}: {error}") from None


def read_weights(file: Path) -> Mapping[str, Tensor]:
    """The parameters and buffers in a checkpoint of a trial, a published SN or SSN file, or another state dict.

    Their names are those of our networks. Raises `StartError` where the file cannot be read without running code.
    """
    # Only files of zip archives, which torch has written since 2020, have checksums to test.
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
    if "sn1.mean_weight" in weights:  # a name in the published files
        return load_official(file).state_dict()
    if not weights:
        raise StartError(f"{file}: contains no weights with names")
    return ours or weights


def check_checkpoint(file: Path, configs: Iterable[TrialConfig]) -> None:
    """Raises `StartError` where a file of weights cannot be read, or does not fit a trial that starts from it."""
    different = {(config.depth, config.width, config.norm): config for config in configs}
    for config in different.values():
        if config.start_rule != "scratch":
            load_start_weights(build_network(config, 0), config, file)


def read_chosen_layers(folder: TrialFolder) -> list[ChosenLayer]:
    """The layers of a finished trial with their last switch weights, from its record."""
    try:
        places, weights = read_last_weights(folder.switch_weights)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StartError(f"{folder.switch_weights}: cannot be read: {str(error).splitlines()[0]}") from None
    return [
        ChosenLayer(str(place["role"]), float(str(place["depth_fraction"])), (mean, var))
        for place, (mean, var) in zip(places, torch.tensor(weights), strict=True)
    ]

"""`python -m study.cli.import_published 8,32=FILE ...`: imports published networks as a study, for `report` to draw.

A file holds a network and what its layers chose; the command line gives the (G, B) it was trained with. No file holds
the recipe, accuracy or seeds: metrics are null, and a note in the record explains why.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.cli.main import run_reporting_errors
from study.config.errors import ArgumentParser, UserError, parse_count
from study.config.schema import MAX_BATCH, StudyConfig
from study.models import trace_geometry
from study.norms.official import OfficialResNet, load_official
from study.plan.loading import read_study_file, study_from_dict
from study.plan.trials import PlannedTrial, plan_trial
from study.record.environment import describe_environment, format_command
from study.record.io import file_digest, write_bytes, write_json, write_yaml
from study.record.layout import StudyFolder
from study.record.outcome import write_result
from study.record.switch_weights import encode_parquet, snapshot_weights
from study.sweep.study_file import write_study

UNKNOWN = ("val_accuracy", "val_loss", "train_accuracy", "train_loss", "fit_accuracy", "fit_loss", "test_accuracy",
           "test_loss", "generalization_gap")  # fmt: skip
NOTE = "a published network: its seeds and all of config that is not in levels are unknown; epoch 0 is its last epoch"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published file, its network, and the factor levels of its cell."""

    path: Path
    network: OfficialResNet
    levels: dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    """Writes the study folder and returns 0. UserError for bad input."""
    parser = ArgumentParser(prog="python -m study.cli.import_published", description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("files", metavar="G,B=FILE", nargs="+", help="devices, samples per device, published file")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/official"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "study.cli.import_published", *arguments])
    folder = StudyFolder(options.out)
    import_networks([_load_published(argument) for argument in options.files], folder, command)
    report = format_command(["report", "--study", folder.path.name, "--out", str(folder.path.parent)])
    print(f"{folder.path} is written. To draw it: {report}")
    return 0


def import_networks(networks: Sequence[Published], folder: StudyFolder, command: str) -> None:
    """Writes a study with one finished trial per network.

    UserError for two networks in the same cell, or a folder that holds another study.
    """
    study = _plan_study(networks, folder.path.name)
    if folder.config.exists() and read_study_file(folder.config).study != study:
        raise UserError(f"{folder.config}: holds other networks; choose another folder with --out")
    cells = [_plan_cell(study, published) for published in networks]
    environment = {**describe_environment(command), "device": "the authors' devices"}
    write_study(study, folder, environment)
    for trial, published in zip(cells, networks, strict=True):
        _write_record(folder, trial, published, study.name, environment)


def _load_published(argument: str) -> Published:
    found = re.fullmatch(r"(\w+),(\w+)=(.+)", argument)
    if found is None:
        raise UserError(f"{argument}: expected G,B=FILE: devices, samples per device, and a published file")
    (chunks, batch_size), path = (parse_count(each, argument, MAX_BATCH) for each in found.groups()[:2]), Path(found[3])
    try:
        network = load_official(path)
    except ValueError as error:
        raise UserError(str(error)) from None
    levels = {"norm": network.kind, "depth": network.depth, "chunks": chunks, "batch_size": batch_size}
    return Published(path=path, network=network, levels=levels)


def _plan_study(networks: Sequence[Published], name: str) -> StudyConfig:
    for index, published in enumerate(networks):
        for before in networks[:index]:
            if published.network.version != before.network.version:
                raise UserError(
                    f"{published.path}: a ResNet v{published.network.version}, and {before.path} is a "
                    f"v{before.network.version}; allowed: one version per study"
                )
            if published.levels == before.levels:
                raise UserError(
                    f"{published.path}: {before.path} has the same norm, depth and (G, B); allowed: one file per cell"
                )
    version = networks[0].network.version
    return study_from_dict({
        "name": name, "scale": "published", "replicates": 1,
        "title": f"Published SN networks, ResNet v{version}",
        "question": "What did the layers of the papers' own networks choose?",
        "base": {"dataset": "imagenet", "augmentation": "random_resized_crop", "dropout": 0.5, "correction": 1},
        "factors": {factor: sorted({published.levels[factor] for published in networks})
                    for factor in networks[0].levels},
        "analysis": {"questions": ["impacts"]},
    }, "published networks")  # fmt: skip


def _plan_cell(study: StudyConfig, published: Published) -> PlannedTrial:
    trial = plan_trial(study, published.levels, 0)
    if trial.pool != published.network.pool:
        raise UserError(
            f"{published.path}: its layers choose from {','.join(published.network.pool)}; expected at "
            f"B = {trial.statistics_batch}: {','.join(trial.pool)}"
        )
    return trial


def _write_record(
    folder: StudyFolder, trial: PlannedTrial, published: Published, study: str, environment: dict[str, Any]
) -> None:
    record, network = folder.trial(trial.trial_id, trial.replicate), published.network
    layers = trace_geometry(network)
    description = {
        "trial_id": trial.trial_id, "replicate": trial.replicate, "study": study, "levels": trial.levels,
        "config": trial.config.model_dump(mode="json"), "statistics_batch": trial.statistics_batch,
        "gradient_batch": trial.gradient_batch, "device_batch": trial.config.batch_size, "pool": list(trial.pool),
        "parameters": sum(parameter.numel() for parameter in network.parameters()), "norm_layers": len(layers),
        "source": {"file": str(published.path), "version": network.version, **(file_digest(published.path) or {})},
        "command": environment["command"],
    }  # fmt: skip
    history = snapshot_weights(network, layers, trial.space)[None].numpy()
    write_yaml(record.trial, description)
    write_json(record.environment, environment)
    write_bytes(record.metrics, b"")
    table = encode_parquet(history, [0], layers, trial.pool, trial.space, trial.trial_id, trial.replicate)
    write_bytes(record.switch_weights, table)
    write_result(record, description, {
        "status": "done", "reason": None, "epochs": 0, "steps": 0, "seconds": None, "attempts": 0,
        "metrics": dict.fromkeys(UNKNOWN), "notes": [NOTE],
    })  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_reporting_errors(lambda: main(sys.argv[1:])))

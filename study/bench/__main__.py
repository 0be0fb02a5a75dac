"""`python -m study.bench NAME`: measures, prints a table, writes JSON."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from study.bench.result import print_result, write_result
from study.config.errors import ArgumentParser, UserError, allowed_names
from study.record.environment import hide_passwords

BENCHES = {
    "norms": "time and peak memory of the norm layers over the layer shapes of ResNet-20 and ResNet-50",
    "step": "a training step of ResNet-20 and ResNet-18 with every norm",
    "trial": "the harness against a bare loop that does the same training, and the fixed cost of a trial",
    "scale": "plan, status and report on 100, 1,000 and 10,000 synthetic records",
    "verdicts": "how often the answers are wrong, on synthetic studies of which the truth is known",
    "driver": "the driver with 10,000 trials of which 1,000 run at a time, on an engine that only sleeps",
    "faults": "a study killed, stopped, starved and damaged in every way, against an undisturbed one",
}
MODULES = {
    **{name: f"study.bench.speed.{name}" for name in ("norms", "step", "trial", "scale", "driver")},
    **{name: f"study.bench.{name}.campaign" for name in ("verdicts", "faults")},
}
FAULT_FLAGS = {
    "--launcher": ("NAME", "where trials run: local, slurm or ray (default: local)"),
    "--set": ("KEY=VALUE", "change a setting of the study; repeatable"),
    "--out": ("DIR", "where studies are run (default: runs/bench)"),
    "--only": ("FAULT,...", "these faults alone"),
    "--storage": ("URL", "Optuna storage (default: SQLite in the study's folder)"),
    "--restart-storage": ("COMMAND", "restarts the server of --storage"),
}


def run(arguments: Sequence[str]) -> int:
    """Runs one benchmark. A bar that is missed is printed, and no error. UserError for bad input."""
    parser = ArgumentParser(
        prog="python -m study.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="benchmarks:\n" + "\n".join(f"  {name:8}{text}" for name, text in BENCHES.items()),
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of: " + ", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds, to see that it works")
    parser.add_argument("--threads", metavar="N", type=int, help="threads of torch (default: the benchmark's own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: runs/bench/NAME.json")
    of_faults = parser.add_argument_group("of faults alone")
    for flag, (metavar, text) in FAULT_FLAGS.items():
        action = "append" if flag == "--set" else "store"
        of_faults.add_argument(flag, metavar=metavar, help=text, action=action)
    options = parser.parse_args(arguments)
    if options.name is None:
        parser.print_help()
        return 0
    if options.name not in BENCHES:
        raise UserError(f"{options.name}: unknown benchmark; {allowed_names(options.name, BENCHES)}")
    if options.threads is not None and options.threads < 1:
        raise UserError(f"--threads {options.threads}: must be at least 1")
    _check_device(options.device)
    own = {flag.strip("-").replace("-", "_"): value for flag in FAULT_FLAGS if (value := _given(options, flag))}
    if own and options.name != "faults":
        flag = next(flag for flag in FAULT_FLAGS if _given(options, flag))
        raise UserError(f"{flag}: unknown flag of {options.name}; faults has it")
    command = hide_passwords(shlex.join(["python", "-m", "study.bench", *arguments]))
    module = importlib.import_module(MODULES[options.name])
    result = module.measure(quick=options.quick, threads=options.threads, device=options.device, **own)
    print_result(Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200), result, command)
    path = options.json or Path("runs/bench") / f"{options.name}.json"
    write_result(path, result, command)
    print(path)
    return 0


def _given(options: argparse.Namespace, flag: str) -> Any:
    return getattr(options, flag.strip("-").replace("-", "_"))


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; allowed: cpu")


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

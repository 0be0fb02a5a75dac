"""Command line of the benchmarks: `python -m study.bench NAME` measures, prints a table and writes JSON."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from study.bench.result import print_result, write_result
from study.config.errors import ArgumentParser, UserError, allowed_names, describe_error, parse_count
from study.config.schema import MAX_PROCESSES
from study.record.environment import hide_passwords, program_name


class Flag(NamedTuple):
    """A command-line flag that only one benchmark has."""

    metavar: str
    help: str
    action: str = "store"


class Benchmark(NamedTuple):
    """A module of `study.bench` with `measure(quick, threads, device, **own flags)`, and its line in the help text."""

    module: str
    help: str
    flags: Mapping[str, Flag] = {}


SET = Flag("KEY=VALUE", "change a setting of the study; repeatable", "append")
OUT = Flag("DIR", "folder for what is trained (default: runs/bench)")
FAULT_FLAGS = {
    "--launcher": Flag("NAME", "where trials run: local, slurm or ray (default: local)"),
    "--set": SET,
    "--out": OUT,
    "--only": Flag("FAULT,...", "inject only these faults"),
    "--storage": Flag("URL", "Optuna storage (default: SQLite in the study's folder)"),
    "--restart-storage": Flag("COMMAND", "command that restarts the server of --storage"),
}
VERDICT_FLAGS = {"--scenario": Flag("TEXT", "draw only the scenarios whose name contains this text")}
RECIPE_FLAGS = {
    "--scale": Flag("NAME", "scale whose recipe is chosen: smoke, laptop or workstation (default: laptop)"),
    "--set": SET,
    "--out": OUT,
    "--replicates": Flag("N", "replicates of every candidate (default: 1)"),
    "--workers": Flag("N", "trials at once (default: one per core, or per GPU)"),
}
BENCHMARKS = {
    "norms": Benchmark("speed.norms", "time and peak memory of norm layers at the layer shapes of ResNet-20 and -50"),
    "step": Benchmark("speed.step", "a training step of ResNet-20 and ResNet-18 with every norm"),
    "trial": Benchmark("speed.trial", "the harness against a bare training loop, and the fixed cost of a trial"),
    "fuse": Benchmark("speed.fuse", "trials per hour one by one and fused, against a plain harness"),
    "scale": Benchmark("speed.scale", "plan, status and report on 100 to 10,000 synthetic records"),
    "driver": Benchmark("speed.driver", "the driver with 10,000 simulated trials (1,000 at once) that do no training"),
    "recipes": Benchmark(
        "recipes",
        "candidate recipes of a scale, with the same budget for every norm, and simple baselines",
        RECIPE_FLAGS,
    ),
    "verdicts": Benchmark(
        "verdicts.campaign", "how often the answers are wrong, on studies with a known truth", VERDICT_FLAGS
    ),
    "faults": Benchmark(
        "faults.campaign", "faults injected into a running study, against an undisturbed run", FAULT_FLAGS
    ),
}


def run(arguments: Sequence[str]) -> int:
    """Runs one benchmark and returns 0, even if a result misses its target. Raises `UserError` for bad input."""
    options = _build_parser().parse_args(arguments)
    if options.name is not None and options.name not in BENCHMARKS:
        raise UserError(f"{options.name}: unknown benchmark; {allowed_names(options.name, BENCHMARKS)}")
    if options.help:
        print(_build_parser(options.name).format_help(), end="")
        return 0
    if options.name is None:
        print(_list_benchmarks())
        print(f"\nTo run one: {program_name()} bench NAME. NAME --help shows its flags.")
        return 0
    if options.threads is not None:
        options.threads = parse_count(options.threads, f"--threads {options.threads}", MAX_PROCESSES)
    _check_device(options.device)
    own_flags = _select_own_flags(options)
    path = options.json or Path("runs/bench") / f"{options.name}.json"
    if options.json is not None:
        path.parent.mkdir(parents=True, exist_ok=True)  # fails before anything is measured
    command = hide_passwords(shlex.join(["python", "-m", "study.bench", *arguments]))
    module = importlib.import_module(f"study.bench.{BENCHMARKS[options.name].module}")
    result = module.measure(quick=options.quick, threads=options.threads, device=options.device, **own_flags)
    print_result(Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200), result, command)
    write_result(path, result, command)
    print(path)
    return 0


def _list_benchmarks() -> str:
    return "benchmarks:\n" + "\n".join(f"  {name:10}{benchmark.help}" for name, benchmark in BENCHMARKS.items())


def _build_parser(name: str | None = None) -> ArgumentParser:
    """The parser of all benchmarks; with a name, one that prints the help of this benchmark."""
    parser = ArgumentParser(
        prog=f"{program_name()} bench {name or ''}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=BENCHMARKS[name].help if name else None,
        epilog=None if name else _list_benchmarks(),
        allow_abbrev=False,
        add_help=False,
    )
    if name is None:
        parser.add_argument("name", metavar="NAME", nargs="?", help="one of: " + ", ".join(BENCHMARKS))
    parser.add_argument("-h", "--help", action="store_true", help="show this help; NAME --help: of one benchmark")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds, to check that it works")
    threads = "threads of torch, or processes of verdicts (default: the benchmark's own)"
    parser.add_argument("--threads", metavar="N", help=threads)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="default: runs/bench/NAME.json")
    owners: dict[str, list[str]] = {}
    for owner, benchmark in BENCHMARKS.items():
        for flag in benchmark.flags:
            owners.setdefault(flag, []).append(owner)
    for flag, names in owners.items():
        if name is None or name in names:
            metavar, text, action = BENCHMARKS[name or names[0]].flags[flag]
            text = text if name else f"only for {' and '.join(names)}: {text}"
            parser.add_argument(flag, metavar=metavar, help=text, action=action)
    return parser


def _select_own_flags(options: argparse.Namespace) -> dict[str, object]:
    """Values of the given flags that only one benchmark has, by parameter.

    Raises `UserError` if a flag belongs to another benchmark.
    """
    values: dict[str, object] = {}
    for flag in dict.fromkeys(flag for benchmark in BENCHMARKS.values() for flag in benchmark.flags):
        parameter = flag.strip("-").replace("-", "_")
        if value := getattr(options, parameter):
            owners = [name for name, benchmark in BENCHMARKS.items() if flag in benchmark.flags]
            if options.name not in owners:
                verb = "has" if len(owners) == 1 else "have"
                raise UserError(f"{flag}: not a flag of {options.name}; only {' and '.join(owners)} {verb} it")
            values[parameter] = value
    return values


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; allowed: cpu")


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:]))
    except (UserError, OSError) as error:
        code, line = describe_error(error)
        print(f"error: {hide_passwords(line)}", file=sys.stderr)
        sys.exit(code)

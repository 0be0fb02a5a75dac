"""What the files of a record may hold: schemas, and limits of size and depth. Files may come from other people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict  # pydantic requires it, and this one before Python 3.12

from study.config.errors import UserError
from study.config.yaml_input import parse_yaml
from study.record.io import read_file

SCHEMA_VERSION = 1  # of result.json and metrics.jsonl
FINISHED = ("done", "diverged", "pruned")  # statuses of a result; a failed trial has no result
MAX_DOCUMENT_BYTES, MAX_TABLE_BYTES = 2**22, 2**28
MAX_SHOWN = 1000  # characters of a reason, and of a name in a message


class DamagedFileError(UserError):
    """A file of a record that cannot be read. The message says which file, and why."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file, self.reason = file, reason


def _check_version(version: int) -> int:
    if version != SCHEMA_VERSION:
        raise ValueError(f"has schema {version}, but this version reads schema {SCHEMA_VERSION}")
    return version


Count = Annotated[int, Field(ge=0, lt=2**53)]
Epoch = Annotated[int, Field(ge=0, lt=2**31)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]
Fingerprint = Annotated[str, Field(pattern=r"^[\w:.-]{1,100}$")]


class _Contents(BaseModel):
    """Further keys are allowed: versions differ in what they write. A number is not read from text, nor the reverse."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Digest(_Contents):
    """Size and SHA-256 of a file."""

    bytes: Annotated[int, Field(ge=0, le=MAX_TABLE_BYTES)]
    sha256: str


def _check_scores(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Accuracies, scores and mIoU lie between 0 and 1; an average precision is -1 where there is nothing to find."""
    for name, value in metrics.items():
        least = -1 if name.endswith("_ap") else 0
        if value is not None and name.endswith(_SCORES) and not least <= value <= 1:
            raise ValueError(f"{name} is not between {least} and 1")
    return metrics


_SCORES = ("_accuracy", "_score", "_miou", "_ap")


class Result(_Contents):
    """result.json. `files` names no other files than those of the record.

    seconds: of all attempts together. An attempt that was killed left no end in attempts.jsonl and is not counted.
    """

    version: Annotated[int, AfterValidator(_check_version), Field(alias="schema")]
    status: Literal["done", "diverged", "pruned"]
    metrics: Annotated[dict[str, float | None], AfterValidator(_check_scores)]
    files: dict[Literal["trial.yaml", "environment.json", "metrics.jsonl", "switch_weights.parquet"], Digest]
    trial_id: str | None = None
    replicate: Count | None = None
    epochs: Count | None = None
    reason: str | None = None
    parameters: Count | None = None
    norm_layers: Count | None = None
    seconds: Seconds | None = None
    notes: list[str] = []


class State(_Contents):
    """state.json."""

    state: Literal["running", "interrupted", "failed"]
    reason: str | None = None
    attempt: Count = 0
    failures: Count = 0
    pid: Count | None = None
    host: str | None = None
    job: str | None = None
    started: Seconds | None = None


class WandbRun(_Contents):
    """The W&B run of a trial."""

    url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    run: str | None = None


class Environment(_Contents):
    """environment.json. data: the data set that was read, and the fingerprint of its files."""

    device: str | None = None
    commit: str | None = None
    data: dict[Fingerprint, Fingerprint] = {}
    wandb: WandbRun | None = None


class Description(_Contents):
    """trial.yaml. Nested values have a limited depth, and do not contain themselves."""

    levels: dict[str, JsonValue]
    config: dict[str, JsonValue]
    replicate: Count
    seeds: dict[str, JsonValue] = {}
    command: str | None = None


class MetricRow(TypedDict):
    """A line of metrics.jsonl."""

    epoch: Epoch
    name: str
    value: float | None


_COMMAND_LINES = re.compile(rb"^command:.*(\n[ \t].*)*", re.MULTILINE)
_ROWS: TypeAdapter[list[MetricRow]] = TypeAdapter(list[MetricRow], config=ConfigDict(strict=True, allow_inf_nan=False))


def read_document(path: Path, contents: type[BaseModel]) -> dict[str, Any] | None:
    """The values in a JSON file of a record; None where it is missing. Raises `DamagedFileError`."""
    try:
        values = _parse_json(read_file(path, MAX_DOCUMENT_BYTES))
        contents.model_validate(values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedFileError(path.name, _format_reason(error)) from None
    assert isinstance(values, dict)
    return values


def read_description(path: Path) -> dict[str, Any]:
    """The values in trial.yaml. Raises `DamagedFileError`, also where it is missing."""
    try:
        values = _parse_yaml(read_file(path, MAX_DOCUMENT_BYTES), path.name)
        Description.model_validate(values)
    except (OSError, ValueError) as error:
        raise DamagedFileError(path.name, _format_reason(error)) from None
    assert isinstance(values, dict)
    return values


def read_command(path: Path) -> str | None:
    """The command in trial.yaml; None where there is none. Raises `DamagedFileError`.

    Only its own lines are parsed: the whole file would take most of a report's time.
    """
    try:
        lines = _COMMAND_LINES.search(read_file(path, MAX_DOCUMENT_BYTES))
        command = _parse_yaml(lines[0], path.name)["command"] if lines else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedFileError(path.name, _format_reason(error)) from None
    if not isinstance(command, str | None):
        raise DamagedFileError(path.name, "command: expected text")
    return command


def read_metrics(path: Path) -> list[MetricRow]:
    """Rows of a metrics.jsonl, the last one of each (epoch, name), without incomplete lines.

    Raises `DamagedFileError` for lines that are complete and do not hold a metric.
    """
    try:
        lines = read_file(path, MAX_TABLE_BYTES).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DamagedFileError(path.name, _format_reason(error)) from None
    rows = {(row["epoch"], row["name"]): row for row in _parse_rows(lines, path.name)}
    return list(rows.values())


def _parse_rows(lines: list[bytes], file: str) -> list[MetricRow]:
    """Parsing all lines at once is several times faster; line by line, an incomplete one affects no other."""
    try:
        rows = _ROWS.validate_json(b"[%b]" % b",".join(lines))
        if len(rows) == len(lines):
            return rows
    except ValueError:
        pass
    return [row for number, line in enumerate(lines, 1) for row in _parse_row(line, file, number)]


def _parse_row(line: bytes, file: str, number: int) -> list[MetricRow]:
    try:
        if not isinstance(from_json(line), dict):
            return []
    except ValueError:
        return []
    try:
        return _ROWS.validate_json(b"[%b]" % line)
    except ValidationError as error:
        raise DamagedFileError(file, f"line {number}: {_format_reason(error)}") from None


def _parse_json(text: bytes) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _parse_yaml(data: bytes, name: str) -> Any:
    """Parses a recorded YAML file, within the limits of `parse_yaml`. Raises `ValueError` without the file's name."""
    try:
        return parse_yaml(data.decode(), name, recorded=True)
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"{name}: ")) from None


def _format_reason(error: Exception) -> str:
    """What is wrong with a file, in one line, which shows no more than the names of its values."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        where = ".".join(ascii(part).strip("'")[:MAX_SHOWN] for part in first["loc"] if part != "[key]")
        return f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    if isinstance(error, UnicodeDecodeError):
        return "not valid UTF-8"
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(error)

"""Switch weights as tables: read from the files of trials, joined, and reduced to the frames that analysis needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from study.config.choice_space import NORMALIZATION, ChoiceSpace
from study.record.switch_weights import SWITCH_WEIGHTS_SCHEMA, derive_places

BACKBONE = "backbone"  # the role that answers compare; heads are shown apart

MAX_ROWS = 20_000_000  # of one trial
_OPTIONAL = ("place", "receptive_field")  # columns that may have nulls

# Text that repeats in every row is dictionary-encoded: ten thousand trials have millions of rows.
_CODED = pa.dictionary(pa.int32(), pa.string())
_TEXT = [field.name for field in SWITCH_WEIGHTS_SCHEMA if field.type == pa.string()]
_CODED_SCHEMA = pa.schema(
    [(field.name, _CODED if field.name in _TEXT else field.type) for field in SWITCH_WEIGHTS_SCHEMA]
)


def read_switch_weights(file: Any, space: ChoiceSpace = NORMALIZATION) -> pa.Table:
    """The switch weights of one trial, every epoch, with text dictionary-encoded. Raises `ValueError` if damaged."""
    try:
        table = _read_table(file)
        table.validate(full=True)  # codes of text that are out of bounds fail only where they are used
        groups = table.group_by(["epoch", "layer_index", "statistic"], use_threads=False)
        sums = groups.aggregate([("weight", "sum")])["weight_sum"]
        values = {name: table[name].unique().to_pylist() for name in ("statistic", "normalizer")}
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from None
    if missing := [name for name in table.column_names if table[name].null_count and name not in _OPTIONAL]:
        raise ValueError(f"{', '.join(missing)}: has missing values")
    for name, allowed in (("statistic", space.axis_names), ("normalizer", space.member_names)):
        if unknown := set(values[name]) - set(allowed):
            raise ValueError(f"{name}: unknown: {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    weights, epochs = table["weight"].to_numpy(), table["epoch"].unique().to_numpy()
    if len(weights) and not (weights.min() >= 0 and weights.max() <= 1.001):
        raise ValueError("weight: is not between 0 and 1")
    if len(epochs) and (epochs.min() < 0 or epochs.max() != len(epochs) - 1):
        raise ValueError("epoch: some are missing")
    if not np.allclose(sums.to_numpy(), 1, atol=1e-3):
        raise ValueError(f"weight: does not sum to 1 over the {space.noun}s of a layer")
    return table


def join_weights(weights: Iterable[tuple[str, pa.Table]]) -> pa.Table:
    """The switch weights of several trials, given with their keys, in one table with a column `key`."""
    tables = [_CODED_SCHEMA.append(pa.field("key", _CODED)).empty_table()]
    for key, table in weights:
        keys = pa.DictionaryArray.from_arrays(np.zeros(table.num_rows, np.int32), pa.array([key]))
        tables.append(table.append_column("key", keys))
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def split_roles(weights: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows of backbones, and all others."""
    if weights["role"].unique().to_pylist() in ([], [BACKBONE]):  # avoids a copy
        return weights, weights.slice(0, 0)
    is_backbone = pc.equal(weights["role"].cast(pa.string()), BACKBONE)
    return weights.filter(is_backbone), weights.filter(pc.invert(is_backbone))


def select_last_epochs(weights: pa.Table) -> pd.DataFrame:
    """The rows of each trial's last epoch; `weights` has a column `key`."""
    epochs = weights["epoch"].to_pandas()
    last = epochs.groupby(weights["key"].combine_chunks().indices.to_numpy()).transform("max")
    frame: pd.DataFrame = _decode(weights.filter(pa.array(epochs.eq(last)))).to_pandas()
    return frame


def average_last_fifth(weights: pa.Table) -> pd.DataFrame:
    """Mean weights of the layers of backbones over the last fifth of each trial's epochs, at least two.

    Columns: trial_id, replicate, layer_index, stage, place, depth_fraction, statistic, normalizer, weight.
    weights: those of every epoch and role, text dictionary-encoded.
    """
    by = ["trial_id", "replicate", "layer_index", "stage", "place", "depth_fraction", "statistic", "normalizer"]
    trials = [weights["trial_id"].combine_chunks().indices.to_numpy(), weights["replicate"].to_numpy()]
    epochs = weights["epoch"].to_pandas()
    is_late = epochs.ge(find_first_late_epoch(epochs.groupby(trials).transform("max")))
    late = weights.filter(pa.array(is_late & weights["role"].to_pandas().eq(BACKBONE)))
    means: pd.DataFrame = _decode(late.group_by(by, use_threads=False).aggregate([("weight", "mean")])).to_pandas()
    means.columns = [*by, "weight"]
    return means


def find_first_late_epoch(last: pd.Series) -> pd.Series:
    """The first epoch of the last fifth, which has at least two epochs, of trials with these last epochs.

    Epoch 0 is the state before training, and is never one of them.
    """
    first: pd.Series = (last - np.ceil(last / 5).clip(lower=2) + 1).clip(lower=np.minimum(last, 1))
    return first


def compute_epoch_means(weights: pa.Table) -> pd.DataFrame:
    """Means over layers, each layer counted once, of the network and of every stage.

    Columns: key, epoch, statistic, normalizer, weight, scope ("network", "stage 1").
    """
    by, mean = ["key", "epoch", "statistic", "normalizer"], [("weight", "mean")]
    network, stages = (
        _decode(weights.group_by(names, use_threads=False).aggregate(mean)).to_pandas()
        for names in (by, [*by, "stage"])
    )
    network["scope"], stages["scope"] = "network", "stage " + stages.pop("stage").astype(str)
    means: pd.DataFrame = pd.concat([network, stages], ignore_index=True).rename(columns={"weight_mean": "weight"})
    return means


def _read_table(file: Any) -> pa.Table:
    """The columns of `SWITCH_WEIGHTS_SCHEMA`, with text dictionary-encoded; empty where layers have no choice.

    A file that was written before the column `place` existed gets it from the paths and roles of its layers.
    """
    metadata = pq.read_metadata(file)
    if metadata.num_rows > MAX_ROWS:
        raise ValueError(f"has {metadata.num_rows} rows; allowed: up to {MAX_ROWS}")
    columns = [name for name in SWITCH_WEIGHTS_SCHEMA.names if name in metadata.schema.names]
    if missing := set(SWITCH_WEIGHTS_SCHEMA.names) - {*columns, "place"}:
        raise ValueError(f"lacks the columns {', '.join(sorted(missing))}")
    found = metadata.schema.to_arrow_schema()
    for name in columns:  # the cast below would read numbers from text, and the reverse
        if _find_kind(found.field(name).type) != _find_kind(SWITCH_WEIGHTS_SCHEMA.field(name).type):
            raise ValueError(f"{name}: {found.field(name).type}, expected {SWITCH_WEIGHTS_SCHEMA.field(name).type}")
    if not metadata.num_rows:
        return _CODED_SCHEMA.empty_table()
    # One thread: distributing a small file over several takes longer than reading it.
    coded = [name for name in _TEXT if name in columns]
    with pq.ParquetFile(file, metadata=metadata, read_dictionary=coded) as source:
        table = source.read(columns, use_threads=False)
    if "place" not in columns:
        index = SWITCH_WEIGHTS_SCHEMA.get_field_index("place")
        table = table.add_column(index, "place", derive_places(table).dictionary_encode())
    return table if table.schema == _CODED_SCHEMA else table.cast(_CODED_SCHEMA)


def _find_kind(kind: pa.DataType) -> str:
    """`text`, `number` or the name of any other type."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else str(kind)


def _decode(table: pa.Table) -> pa.Table:
    """The table with plain instead of dictionary-encoded text."""
    fields = [(field.name, pa.string() if field.type == _CODED else field.type) for field in table.schema]
    return table.cast(pa.schema(fields))

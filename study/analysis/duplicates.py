"""Finds replicates that repeat the numbers of another replicate, and refuses them as results.

Copied records, or seeds that had no effect, would count as independent replicates and make every interval too narrow.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from study.analysis.trial_files import METRICS, RESULT_NUMBERS
from study.record.contents import FINISHED

REPEATED = "repeated"
"""The state of a replicate that repeats another one's numbers. Training it again would not change that."""

_LOSSES = ("train_loss", "val_loss")
"""Curves whose numbers do not repeat by chance. Learning rates and the initial switch weights are the same in all
replicates, and accuracies are multiples of 1 / the number of images, so these alone prove nothing."""


def find_duplicates(trials: pd.DataFrame, weights: pa.Table, curves: pd.DataFrame) -> pd.Series:
    """The replicate that a trial repeats, by row of the trial table; only rows that repeat one.

    Two finished trials of one cell are duplicates if they have the same curves and the same switch weights in every
    epoch, and at least one loss. The first of them is kept.
    weights: switch weights of every epoch, with the column `key`.
    """
    finished = trials[trials["state"].isin(FINISHED)]
    keys = pd.Index(finished["key"])
    places = keys.get_indexer(curves["key"])
    losses = curves["name"].isin(_LOSSES).to_numpy() & curves["value"].notna().to_numpy() & (places >= 0)
    learned = np.bincount(places[losses], minlength=len(keys)) > 0
    digests = finished[["key", "trial_id", "replicate"]].assign(
        curves=_sum_by_key(_hash_curves(curves), places, len(keys))
    )
    # Switch weights have many more rows, and are compared only where curves are the same.
    digests = digests[learned]
    digests = digests[digests.duplicated(["trial_id", "curves"], keep=False)]
    digests = digests.assign(weights=_digest_weights(weights, pd.Index(digests["key"])))
    groups = digests.sort_values("replicate", kind="stable").groupby(["trial_id", "curves", "weights"])
    original = groups["replicate"].transform("first").reindex(digests.index)
    repeated: pd.Series = original[original.ne(digests["replicate"])]
    return repeated


def mark_duplicates(trials: pd.DataFrame, repeated: pd.Series) -> pd.DataFrame:
    """The trial table with these trials (from `find_duplicates`) as `REPEATED`, without their results."""
    if repeated.empty:
        return trials
    marked: pd.DataFrame = trials.copy()
    marked.loc[repeated.index, "state"] = REPEATED
    marked.loc[repeated.index, "reason"] = [
        f"the same numbers as replicate {replicate}, so not an independent replicate" for replicate in repeated
    ]
    marked.loc[repeated.index, [*METRICS, *RESULT_NUMBERS]] = np.nan
    return marked


def _digest_weights(weights: pa.Table, keys: pd.Index) -> NDArray[np.uint64]:
    """A digest of all switch weights of each of these trials."""
    if not len(keys) or not weights.num_rows:
        return np.zeros(len(keys), np.uint64)
    column = weights["key"].combine_chunks()
    places = keys.get_indexer(pd.Index(column.dictionary.to_pylist(), dtype=object))[column.indices.to_numpy()]
    weights, places = weights.filter(pa.array(places >= 0)), places[places >= 0]
    if not weights.num_rows:  # the layers of some norms have no choice
        return np.zeros(len(keys), np.uint64)
    numbers = [_hash_numbers(weights[name].to_numpy()) for name in ("epoch", "layer_index", "weight")]
    texts = [_hash_text(weights[name]) for name in ("role", "statistic", "normalizer")]
    return _sum_by_key(_mix([*numbers, *texts]), places, len(keys))


def _hash_curves(curves: pd.DataFrame) -> NDArray[np.uint64]:
    """A hash of every row: epoch, name and value."""
    codes, names = pd.factorize(curves["name"])
    hashed_names = pd.util.hash_array(np.asarray(names, dtype=object))
    epochs, values = (_hash_numbers(curves[name].to_numpy(dtype=float)) for name in ("epoch", "value"))
    return _mix([epochs, values, hashed_names[codes] if len(names) else epochs])


def _hash_numbers(values: NDArray[np.generic]) -> NDArray[np.uint64]:
    return np.asarray(pd.util.hash_array(np.asarray(values, dtype=float) + 0.0), dtype=np.uint64)  # -0.0 is 0.0


def _hash_text(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Hashes of dictionary-encoded text, each word hashed once."""
    joined = column.combine_chunks()
    words = np.asarray(joined.dictionary.to_pylist(), dtype=object)
    hashed = np.asarray(pd.util.hash_array(words), dtype=np.uint64)
    return np.asarray(hashed[joined.indices.to_numpy()], dtype=np.uint64)


def _mix(columns: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """One hash a row from a hash a column. The order of columns counts."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = np.asarray(pd.util.hash_array(mixed * np.uint64(31) + column), dtype=np.uint64)
    return mixed


def _sum_by_key(hashes: NDArray[np.uint64], places: NDArray[np.intp], n_keys: int) -> NDArray[np.uint64]:
    """The sum modulo 2**64 of the hashes of each key: a digest that does not depend on the order of rows."""
    order = np.argsort(places, kind="stable")
    order = order[np.searchsorted(places[order], 0) :]
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes[order], dtype=np.uint64)])
    ends = np.searchsorted(places[order], np.arange(n_keys + 1))
    return np.asarray(np.diff(running[ends]), dtype=np.uint64)

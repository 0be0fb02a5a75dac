"""The history of the switch weights as a table: one row per (epoch, layer, statistic, normalizer)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

if TYPE_CHECKING:  # a table is written without torch
    from torch import Tensor, nn

    from study.models.geometry import LayerGeometry

STATISTICS = ("mean", "var")

WEIGHTS_SCHEMA = pa.schema([
    ("trial_id", pa.string()), ("replicate", pa.int32()), ("epoch", pa.int32()), ("step", pa.int64()),
    ("layer", pa.string()), ("layer_index", pa.int32()), ("depth_fraction", pa.float64()), ("stage", pa.int32()),
    ("role", pa.string()), ("receptive_field", pa.int32()), ("statistic", pa.string()),
    ("normalizer", pa.string()), ("weight", pa.float32()),
])  # fmt: skip


def select_switch_layers(network: nn.Module, layers: Sequence[LayerGeometry]) -> list[LayerGeometry]:
    """Those of the norm layers that choose.

    A pool of one leaves no choice: the core runs it where torch has no such layer, and there is nothing to record.
    """
    from study.norms import switch_weights

    weights = switch_weights(network)
    return [place for place in layers if place.layer in weights and len(weights[place.layer].pool) > 1]


def snapshot(network: nn.Module, layers: Sequence[LayerGeometry]) -> Tensor:
    """The switch weights of `layers` now, which choose: (layers, statistics, pool); (0, 2, 0) without a layer."""
    import torch

    from study.norms import switch_weights

    if not layers:
        return torch.empty(0, len(STATISTICS), 0)
    weights = switch_weights(network)
    chosen = (weights[place.layer] for place in layers)
    return torch.stack([torch.stack([layer.mean, layer.var]) for layer in chosen]).float().cpu()


def parquet_bytes(
    history: NDArray[np.float32],
    steps: Sequence[int],
    layers: Sequence[LayerGeometry],
    pool: Sequence[str],
    trial_id: str,
    replicate: int,
) -> bytes:
    """The table of a history (epochs, layers, statistics, pool), epoch 0 before training, as a parquet file.

    A receptive field that has no number is null.
    """
    epoch, layer, statistic, normalizer = (axis.ravel() for axis in np.indices(history.shape))
    rows = len(epoch)

    def of_layer(field: str) -> object:
        return pa.array([getattr(place, field) for place in layers], WEIGHTS_SCHEMA.field(field).type).take(
            pa.array(layer)
        )

    columns = {
        "trial_id": [trial_id] * rows, "replicate": np.full(rows, replicate), "epoch": epoch,
        "step": np.array(steps)[epoch] if rows else [],
        **{field: of_layer(field)
           for field in ("layer", "layer_index", "depth_fraction", "stage", "role", "receptive_field")},
        "statistic": np.array(STATISTICS)[statistic] if rows else [],
        "normalizer": np.array(pool)[normalizer] if rows else [],
        "weight": history.ravel(),
    }  # fmt: skip
    table = pa.table(
        {name: pa.array(columns[name], WEIGHTS_SCHEMA.field(name).type) for name in WEIGHTS_SCHEMA.names},
        schema=WEIGHTS_SCHEMA,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_last_weights(file: Path) -> tuple[list[dict[str, object]], NDArray[np.float32]]:
    """What the layers of a finished trial choose in the end: their places, and weights (layers, statistics, pool)."""
    table = pq.read_table(file, schema=WEIGHTS_SCHEMA)
    last = table.filter(pc.equal(table["epoch"], pc.max(table["epoch"])))
    layers = len(last["layer_index"].unique())
    weights = last["weight"].to_numpy().reshape(layers, len(STATISTICS), -1)
    rows = last.num_rows // max(1, layers)
    return last.take(np.arange(layers) * rows).to_pylist(), weights

"""The history of the switch weights: as tensors while a trial trains, and as a table in its record.

The table has one row per (epoch, layer, statistic, normalizer).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from study.config.choice_space import ChoiceSpace
from study.config.layer_places import name_place

if TYPE_CHECKING:  # the table is written and read without torch
    from torch import Tensor, nn

    from study.models.geometry import LayerGeometry

SWITCH_WEIGHTS_SCHEMA = pa.schema([
    ("trial_id", pa.string()), ("replicate", pa.int32()), ("epoch", pa.int32()), ("step", pa.int64()),
    ("layer", pa.string()), ("layer_index", pa.int32()), ("depth_fraction", pa.float64()), ("stage", pa.int32()),
    ("place", pa.string()), ("role", pa.string()), ("receptive_field", pa.int32()), ("statistic", pa.string()),
    ("normalizer", pa.string()), ("weight", pa.float32()),
])  # fmt: skip


def select_switch_layers(network: nn.Module, layers: Sequence[LayerGeometry]) -> list[LayerGeometry]:
    """The layers that choose between at least two members.

    A switch layer with a pool of one stands in for a norm that torch lacks, and has nothing to record.
    """
    from study.norms import switch_weights

    weights = switch_weights(network)
    return [layer for layer in layers if layer.layer in weights and len(weights[layer.layer].pool) > 1]


def snapshot_weights(network: nn.Module, layers: Sequence[LayerGeometry], space: ChoiceSpace) -> Tensor:
    """The current switch weights of switch layers: (layers, axes, pool), with an empty pool for no layers."""
    import torch

    from study.norms import switch_weights

    if not layers:
        return torch.empty(0, len(space.axes), 0)
    weights = switch_weights(network)
    chosen = (weights[layer.layer] for layer in layers)
    by_axis = [torch.stack([getattr(layer, axis) for axis in space.axis_names]) for layer in chosen]
    return torch.stack(by_axis).float().cpu()


def average_network(
    weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str], space: ChoiceSpace
) -> dict[str, float]:
    """Weights (layers, axes, pool) averaged over the layers of the backbone and over those of each head.

    Names are `switch/<statistic>/<normalizer>` for the backbone, which all tasks have, and
    `switch/<role>/<statistic>/<normalizer>` for a head.
    """
    return _average(
        weights, layers, pool, space, lambda layer: "switch" if layer.role == "backbone" else f"switch/{layer.role}"
    )


def average_stages(
    weights: Tensor, layers: Sequence[LayerGeometry], pool: Sequence[str], space: ChoiceSpace
) -> dict[str, float]:
    """Weights (layers, axes, pool) averaged over the layers of each stage of the backbone.

    Names are `switch/stage<k>/<statistic>/<normalizer>`.
    """
    return _average(
        weights, layers, pool, space, lambda layer: f"switch/stage{layer.stage}" if layer.role == "backbone" else None
    )


def _average(
    weights: Tensor,
    layers: Sequence[LayerGeometry],
    pool: Sequence[str],
    space: ChoiceSpace,
    name: Callable[[LayerGeometry], str | None],
) -> dict[str, float]:
    """Means over the layers that `name` gives the same prefix, without layers that it gives None."""
    names = [name(layer) for layer in layers]
    means: dict[str, float] = {}
    for prefix in dict.fromkeys(filter(None, names)):
        mean = weights[[index for index, other in enumerate(names) if other == prefix]].double().mean(0)
        means |= {
            f"{prefix}/{axis}/{member}": float(mean[a, k])
            for a, axis in enumerate(space.axis_names)
            for k, member in enumerate(pool)
        }
    return means


def encode_parquet(
    history: NDArray[np.float32],
    steps: Sequence[int],
    layers: Sequence[LayerGeometry],
    pool: Sequence[str],
    space: ChoiceSpace,
    trial_id: str,
    replicate: int,
) -> bytes:
    """The table of a history (epochs, layers, axes, pool) as a parquet file. Epoch 0 is before training.

    A layer whose receptive field is undefined has null there.
    """
    epoch, layer, statistic, normalizer = (axis.ravel() for axis in np.indices(history.shape))
    rows = len(epoch)

    def layer_column(field: str) -> object:
        values = pa.array([getattr(one, field) for one in layers], SWITCH_WEIGHTS_SCHEMA.field(field).type)
        return values.take(pa.array(layer))

    columns = {
        "trial_id": [trial_id] * rows, "replicate": np.full(rows, replicate), "epoch": epoch,
        "step": np.array(steps)[epoch] if rows else [],
        **{field: layer_column(field)
           for field in ("layer", "layer_index", "depth_fraction", "stage", "place", "role", "receptive_field")},
        "statistic": np.array(space.axis_names)[statistic] if rows else [],
        "normalizer": np.array(pool)[normalizer] if rows else [],
        "weight": history.ravel(),
    }  # fmt: skip
    table = pa.table(
        {field.name: pa.array(columns[field.name], field.type) for field in SWITCH_WEIGHTS_SCHEMA},
        schema=SWITCH_WEIGHTS_SCHEMA,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_last_weights(file: Path) -> tuple[list[dict[str, object]], NDArray[np.float32]]:
    """The last epoch of a table: a row for each layer, with its geometry, and weights (layers, axes, pool)."""
    table = pq.read_table(file, schema=SWITCH_WEIGHTS_SCHEMA)
    if table["place"].null_count:
        index = SWITCH_WEIGHTS_SCHEMA.get_field_index("place")
        table = table.set_column(index, SWITCH_WEIGHTS_SCHEMA.field(index), derive_places(table))
    last = table.filter(pc.equal(table["epoch"], pc.max(table["epoch"])))
    layers = len(last["layer_index"].unique())
    weights = last["weight"].to_numpy().reshape(layers, len(last["statistic"].unique()), -1)
    rows = last.num_rows // max(1, layers)
    return last.take(np.arange(layers) * rows).to_pylist(), weights


def derive_places(table: pa.Table) -> pa.Array:
    """The column `place` of a table that was written before this column existed, from each layer's path and role."""
    pairs = table.select(["layer", "role"]).group_by(["layer", "role"], use_threads=False).aggregate([])
    layers, roles = (pairs[name].cast(pa.string()).combine_chunks() for name in ("layer", "role"))
    places = pa.array(map(name_place, layers.to_pylist(), roles.to_pylist()), pa.string())
    rows = pc.index_in(table["layer"].cast(pa.string()), value_set=layers)
    return places.take(rows.combine_chunks())

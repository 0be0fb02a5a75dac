from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from study.analysis.statistics.profiles import DEPTH_GRID, LATER, Alignment, build_profiles
from study.bench.synthetic_records.contents import build_norm_layers
from study.config.choice_space import NORMALIZATION
from study.config.layer_places import name_place

ZIGZAG = {"stem": 0.05, "norm1": 0.5, "norm2": 0.6, "shortcut": 0.85}  # the weight of bn by place
ALIGNMENTS: tuple[Alignment, ...] = ("stage and place", "stage", "relative depth", "place")


def _paths(*blocks: int, bottleneck: bool = False) -> list[tuple[str, int]]:
    """The paths of a ResNet's norms, each with its stage. blocks: their number in every stage."""
    norms = ("bn1", "bn2", "bn3") if bottleneck else ("bn1", "bn2")
    found = [("bn1", 0)]
    for stage, number in enumerate(blocks, start=1):
        for block in range(number):
            projection = ["downsample.1"] * (block == 0 and (stage > 1 or bottleneck))
            found += [(f"layer{stage}.{block}.{norm}", stage) for norm in (*norms, *projection)]
    return found


def _switch(
    key: str, paths: Iterable[tuple[str, int]], bn_share: Callable[[SimpleNamespace], float], role: str = "backbone",
    others: tuple[str, ...] = ("in", "ln"),
) -> pd.DataFrame:  # fmt: skip
    """Rows of one network. bn_share: the weight of bn in a layer; the other members share the rest."""
    paths, rows = list(paths), []
    for index, (path, stage) in enumerate(paths):
        layer = SimpleNamespace(
            layer=path, layer_index=index, stage=stage, place=name_place(path, role),
            depth_fraction=index / max(len(paths) - 1, 1),
        )  # fmt: skip
        bn = bn_share(layer)
        rows += [
            {"key": key, **vars(layer), "statistic": statistic, "normalizer": name, "weight": weight}
            for statistic in ("mean", "var")
            for name, weight in [("bn", bn), *((name, (1 - bn) / len(others)) for name in others)]
        ]
    return pd.DataFrame(rows)


def _by_place(layer: SimpleNamespace) -> float:
    return ZIGZAG[layer.place]


def _by_index(layer: SimpleNamespace) -> float:
    return 0.1 + 0.04 * float(layer.layer_index)


def _bn(profiles: np.ndarray) -> list[float]:
    """The weight of bn at every position, on the first axis."""
    found: list[float] = profiles[0, :, NORMALIZATION.member_names.index("bn")].tolist()
    return found


# --------------------------------------------------------------------------------------------- matched layers


def test_a_pattern_by_place_is_the_same_at_every_depth() -> None:
    networks = pd.concat([_switch("shallow", _paths(1, 1, 1), _by_place), _switch("deep", _paths(4, 4, 4), _by_place)])
    matched = build_profiles(networks, NORMALIZATION)
    assert {name.partition(", ")[2] for name in matched.left_out} == {"norm1 of later blocks", "norm2 of later blocks"}
    np.testing.assert_allclose(matched["shallow"], matched["deep"], atol=1e-12)
    by_depth = build_profiles(networks, NORMALIZATION, "relative depth")
    assert np.abs(by_depth["shallow"] - by_depth["deep"]).max() > 0.2  # why layers are not matched by relative depth


def test_positions_have_names_in_the_order_of_layers() -> None:
    found = build_profiles(_switch("one", _paths(2, 1, 1), _by_place), NORMALIZATION)
    assert found.positions == (
        "stage 0, stem", "stage 1, norm1", "stage 1, norm2", "stage 1, norm1 of later blocks",
        "stage 1, norm2 of later blocks", "stage 2, norm1", "stage 2, norm2", "stage 2, shortcut",
        "stage 3, norm1", "stage 3, norm2", "stage 3, shortcut",
    )  # fmt: skip
    places = [name.partition(", ")[2].removesuffix(LATER) for name in found.positions]
    assert _bn(found["one"]) == pytest.approx([ZIGZAG[place] for place in places])


def test_a_first_block_that_differs_is_no_effect_of_depth() -> None:
    """Deeper networks have more later blocks, and the same choice in every layer that both have."""

    def by_block(layer: SimpleNamespace) -> float:
        return 0.8 if ".0." in layer.layer else 0.3

    networks = [_switch("shallow", _paths(1, 1), by_block), _switch("deep", _paths(3, 3), by_block)]
    found = build_profiles(pd.concat(networks), NORMALIZATION)
    np.testing.assert_allclose(found["shallow"], found["deep"], atol=1e-12)
    by_stage = build_profiles(pd.concat(networks), NORMALIZATION, "stage")
    assert np.abs(by_stage["shallow"] - by_stage["deep"]).max() > 0.1


def test_later_blocks_of_a_stage_are_averaged() -> None:
    found = build_profiles(
        _switch("one", _paths(3), _by_index), NORMALIZATION
    )  # stem, then norm1 and norm2 three times
    assert _bn(found["one"]) == pytest.approx([0.1 + 0.04 * layer for layer in (0, 1, 2, 4, 5)])


def test_by_stage_or_by_place_layers_are_averaged_over_the_other() -> None:
    rows = _switch("one", _paths(1, 1), _by_place)
    by_stage, by_place = (build_profiles(rows, NORMALIZATION, alignment) for alignment in ("stage", "place"))
    assert by_stage.positions == ("stage 0", "stage 1", "stage 2")
    assert _bn(by_stage["one"]) == pytest.approx([0.05, 0.55, 0.65])
    assert by_place.positions == ("stem", "norm1", "norm2", "shortcut")
    assert _bn(by_place["one"]) == pytest.approx(list(ZIGZAG.values()))


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_profiles_hold_weights_of_every_member_that_sum_to_one(alignment: Alignment) -> None:
    rows = pd.concat([_switch("a", _paths(1, 1), _by_index), _switch("b", _paths(2, 1), _by_index, others=("in",))])
    found = build_profiles(rows.sample(frac=1, random_state=0), NORMALIZATION, alignment)
    for key in ("a", "b"):
        assert found[key].shape == (2, len(found.positions), len(NORMALIZATION.members))
        np.testing.assert_allclose(found[key].sum(axis=-1), 1)
    assert found["b"][..., NORMALIZATION.member_names.index("ln")].max() == 0  # not in its pool


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_profiles_of_many_networks_are_those_of_each(alignment: Alignment) -> None:
    parts = {key: _switch(key, _paths(*blocks), _by_index) for key, blocks in (("b", (2, 2)), ("B", (3, 4)))}
    both = build_profiles(pd.concat(parts.values()).sample(frac=1, random_state=0), NORMALIZATION, alignment)
    assert set(both) == set(parts)
    for key, rows in parts.items():
        np.testing.assert_allclose(both[key], build_profiles(rows, NORMALIZATION, alignment)[key], atol=1e-12)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_no_network_has_no_profile(alignment: Alignment) -> None:
    found = build_profiles(_switch("one", _paths(1), _by_place)[:0], NORMALIZATION, alignment)
    assert (dict(found), found.positions, found.left_out) == ({}, (), ())


# ------------------------------------------------------------------------------- positions that some networks lack


def test_positions_that_only_some_networks_have_are_left_out_and_named() -> None:
    networks = [_switch("two stages", _paths(1, 1), _by_place), _switch("three stages", _paths(1, 1, 1), _by_place)]
    found = build_profiles(pd.concat(networks), NORMALIZATION)
    assert found.left_out == ("stage 3, norm1", "stage 3, norm2", "stage 3, shortcut")
    assert len(found.positions) == 6
    np.testing.assert_allclose(found["two stages"], found["three stages"])


def test_a_bottleneck_has_a_third_norm_and_a_first_shortcut() -> None:
    basic = _switch("basic", _paths(1, 1), _by_index)
    bottleneck = _switch("bottleneck", _paths(1, 1, bottleneck=True), _by_index)
    found = build_profiles(pd.concat([basic, bottleneck]), NORMALIZATION)
    assert found.left_out == ("stage 1, norm3", "stage 1, shortcut", "stage 2, norm3")
    alone = build_profiles(bottleneck, NORMALIZATION)
    assert alone.left_out == ()
    assert len(alone.positions) == 9


def test_networks_without_a_common_position_have_no_profile() -> None:
    decoder, box_head = (
        _switch(role, [(path, 4)], _by_index, role)
        for role, path in (("decoder", "decoder.conv.1"), ("box_head", "roi_heads.box_head.0.1"))
    )
    found = build_profiles(pd.concat([decoder, box_head]), NORMALIZATION)
    assert (dict(found), set(found.left_out)) == ({}, {"stage 4, conv", "stage 4, norm1"})


def test_layers_of_an_fpn_and_of_heads_are_matched_by_place() -> None:
    kinds = ("inner", "layer")
    fpn = {n: [(f"backbone.fpn.{kind}_blocks.{level}.1", 4) for kind in kinds for level in range(n)] for n in (3, 4)}
    found = build_profiles(
        pd.concat([_switch(str(n), paths, lambda layer: 0.4, "fpn") for n, paths in fpn.items()]), NORMALIZATION
    )
    assert found.positions == ("stage 4, lateral", "stage 4, output")
    np.testing.assert_allclose(found["3"], found["4"])
    head = [(f"roi_heads.mask_head.{number}.1", 4) for number in range(4)]
    names = build_profiles(_switch("one", head, _by_index, "mask_head"), NORMALIZATION).positions
    assert names == ("stage 4, norm1", "stage 4, norm2", "stage 4, norm3", "stage 4, norm4")


def test_synthetic_networks_of_all_depths_have_the_same_positions_but_for_later_blocks() -> None:
    positions = set()
    for depth in (14, 20):
        layers = build_norm_layers(SimpleNamespace(depth=depth, norms={}))  # type: ignore[arg-type]
        paths = [(layer.layer, layer.stage) for layer in layers]
        positions.add(build_profiles(_switch("one", paths, _by_place), NORMALIZATION).positions)
    assert len(positions) == 1


# --------------------------------------------------------------------------------------------- relative depth


def test_weights_that_change_linearly_with_relative_depth_align_by_it() -> None:
    networks = [_switch(str(n), _paths(n, n), lambda layer: 0.2 + 0.5 * float(layer.depth_fraction)) for n in (1, 2, 5)]
    found = build_profiles(pd.concat(networks), NORMALIZATION, "relative depth")
    for profile in found.values():
        assert _bn(profile) == pytest.approx((0.2 + 0.5 * DEPTH_GRID).tolist())


def test_a_network_of_one_layer_is_the_same_at_every_depth() -> None:
    found = build_profiles(_switch("one", _paths()[:1], lambda layer: 0.3), NORMALIZATION, "relative depth")
    assert _bn(found["one"]) == pytest.approx([0.3] * DEPTH_GRID.size)

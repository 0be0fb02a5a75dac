"""Several ranks against one process with the whole batch, with synchronized statistics and with those of each rank."""

import pytest
import torch

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, build_norm
from study.norms.names import NORM_NAMES
from tests.norms.rank_cases import (
    WORLD_SIZES,
    AverageCase,
    EmptyCase,
    LayerCase,
    NetworkCase,
    UnequalCase,
    run_groups,
    running_buffers,
)

LAYERS = (
    *(LayerCase(norm=norm) for norm in ("bn", "sn", "ssn", "sn[in,bn]", "sn[in,ln,bn,gn]", "sn-tied", "sn-uniform")),
    LayerCase(norm="sn-shared", layers=2),
    LayerCase(norm="ssn", layers=2, correction=1),
    *(LayerCase(norm=norm, pixels=(1, 1)) for norm in ("bn", "sn", "ssn")),
    *(LayerCase(norm=norm, samples=1) for norm in ("bn", "sn", "ssn")),
    LayerCase(samples=1, pixels=(1, 1)),
)
NETWORKS = [NetworkCase(norm=norm, sync=sync) for norm in NORM_NAMES for sync in (False, True)]
AVERAGES = [AverageCase(norm=norm, variance=rule) for norm in ("bn", "sn") for rule in ("within", "total")]
UNEQUAL = [UnequalCase(first=first) for first in (0, 1)]
EMPTY = [EmptyCase(norm=norm) for norm in ("bn", "sn", "ssn")]
OFFSETS = [LayerCase(norm=norm, offset=offset, dtype=torch.float32) for norm in ("bn", "sn") for offset in (1e3, 1e4)]
several = pytest.mark.parametrize("ranks", [ranks for ranks in WORLD_SIZES if ranks > 1])


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    all_cases = [*LAYERS, *NETWORKS, *AVERAGES, *OFFSETS, *UNEQUAL, *EMPTY]
    cases = {ranks: all_cases if ranks > 1 else LAYERS for ranks in WORLD_SIZES}
    return run_groups(tmp_path_factory.mktemp("ranks"), cases)


@pytest.mark.parametrize("case", LAYERS, ids=str)
@pytest.mark.parametrize("ranks", WORLD_SIZES)
def test_layers_compute_what_one_process_computes(groups, case, ranks):
    expected, results = case.run(ranks), groups[ranks][case]
    for name in ("y", "dx"):
        torch.testing.assert_close(torch.cat([result[name] for result in results]), expected[name])
    for result in results:
        assert result["gradients"].keys() == expected["gradients"].keys()
        torch.testing.assert_close(result["gradients"], expected["gradients"])
        torch.testing.assert_close(result["buffers"], expected["buffers"])


@several
@pytest.mark.parametrize("case", OFFSETS, ids=str)
def test_errors_at_large_means_are_those_of_a_rounded_mean(groups, case, ranks):
    expected = LayerCase(norm=case.norm, offset=case.offset).run(ranks)
    y = torch.cat([result["y"] for result in groups[ranks][case]])
    torch.testing.assert_close(y.double(), expected["y"], rtol=0, atol=8 * case.offset * 2**-24)


@several
@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_networks_compute_what_one_process_emulates(groups, case, ranks):
    """This also shows that DistributedDataParallel averages every gradient."""
    expected, results = case.run(ranks), groups[ranks][case]
    torch.testing.assert_close(torch.cat([result["y"] for result in results]), expected["y"])
    for result in results:
        torch.testing.assert_close(result["gradients"], expected["gradients"])
    for name, value in expected["buffers"].items():
        average = torch.stack([result["buffers"][name].double() for result in results]).mean(0)
        torch.testing.assert_close(average, value.double())


@several
@pytest.mark.parametrize("case", [case for case in NETWORKS if case.sync], ids=str)
def test_synchronized_running_statistics_are_equal_on_all_ranks(groups, case, ranks):
    first, *others = (result["buffers"] for result in groups[ranks][case])
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


@several
@pytest.mark.parametrize("case", AVERAGES, ids=str)
def test_batch_averages_are_those_of_one_process(groups, case, ranks):
    for buffers in groups[ranks][case]:
        torch.testing.assert_close(buffers, case.run(ranks))


@pytest.mark.parametrize(("ranks", "expected"), [(1, 0), (2, 1), (3, 1)])
def test_a_layer_needs_one_collective_in_each_direction(groups, ranks, expected):
    for case in LAYERS:
        for result in groups[ranks][case]:
            assert result["collectives"] == (expected * case.layers, expected * case.layers), case


def test_kernel_kind_of_several_ranks_is_plain(groups):
    assert [groups[ranks][LAYERS[0]][0]["kernel_kind"] for ranks in (1, 2, 3)] == ["fused", "plain", "plain"]


@several
@pytest.mark.parametrize("case", UNEQUAL, ids=str)
def test_batches_of_unequal_size_are_an_error_on_every_rank(groups, case, ranks):
    for message in groups[ranks][case]:
        assert "ranks differ in the size of their batch" in message


@several
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty_batches_change_nothing(groups, case, ranks):
    before = running_buffers(LayerCase(norm=case.norm).build(sync=True))
    for buffers, gradients in groups[ranks][case]:
        assert all(torch.equal(buffers[name], before[name]) for name in before)
        assert all(gradient.eq(0).all() for gradient in gradients)


@pytest.mark.parametrize("build", [SwitchNorm2d, SparseSwitchNorm2d, lambda _, **o: build_norm("bn", **o)])
def test_sync_is_not_allowed_with_chunks(build):
    with pytest.raises(ValueError, match="chunks 2 is not allowed with sync"):
        build(4, chunks=2, sync=True)

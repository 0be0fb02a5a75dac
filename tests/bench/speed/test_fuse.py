"""The plain harness that `bench fuse` compares with computes the same normalization."""

from __future__ import annotations

import pytest
import torch

from study.bench.speed.plain_harness import PlainSwitchNorm
from study.norms.layers import SwitchNorm2d


@pytest.mark.parametrize("training", [True, False])
def test_the_plain_layer_is_a_switch_norm_over_chunks(training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 5, 4, 4, dtype=torch.float64) + 1
    plain, ours = PlainSwitchNorm(5, chunks=4).double().train(training), SwitchNorm2d(5, chunks=4).double()
    for parameter in plain.parameters():
        parameter.data.add_(torch.randn(parameter.shape, dtype=torch.float64))
    ours.load_state_dict(plain.state_dict())
    assert torch.allclose(plain(x), ours.train(training)(x), atol=1e-10)
    assert torch.allclose(plain.running_mean, torch.as_tensor(ours.running_mean))

"""Switch layers of a model: how they are found, and logits that they share."""

import copy

import pytest
import torch
from torch import nn

from study.norms import SwitchNorm2d, build_norm, share_switches, switch_parameters, switch_weights
from study.norms.protocol import SwitchLayer, SwitchWeights


def build(name, count=2):
    factory = build_norm(name)
    return nn.Sequential(*[factory(4) for _ in range(count)])


def test_layers_follow_the_protocol():
    assert isinstance(SwitchNorm2d(4), SwitchLayer)
    assert not isinstance(nn.BatchNorm2d(4), SwitchLayer)


def test_switch_layers_are_found_by_protocol():
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean_weight = nn.Parameter(torch.ones(2))
            self.var_weight = nn.Parameter(torch.ones(2))

        def switch_weights(self):
            return SwitchWeights(("in", "ln"), self.mean_weight.detach(), self.var_weight.detach())

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sequential(Foreign()), SwitchNorm2d(1))
    assert list(switch_weights(model)) == ["1.0", "2"]
    assert len(switch_parameters(model)) == 4


def test_stages_share_their_logits():
    model = build("sn-stage", count=4)
    share_switches(model, key=lambda path: int(path) // 2)
    assert model[1].var_weight is model[0].var_weight
    assert model[2].var_weight is not model[0].var_weight
    assert len(switch_parameters(model)) == 4


def test_logits_stay_shared_in_a_deepcopy_and_a_state_dict():
    model = copy.deepcopy(build("sn-shared"))
    assert model[1].mean_weight is model[0].mean_weight
    build("sn-shared").load_state_dict(model.state_dict(), strict=True)


def test_only_layers_of_equal_pools_share_logits():
    model = nn.Sequential(SwitchNorm2d(4), SwitchNorm2d(4, pool=("in", "ln")))
    with pytest.raises(ValueError, match="'0' and '1' cannot share"):
        share_switches(model, key=lambda _: None)

"""Conversion of a network's norm layers."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from study.norms import SparseSwitchNorm2d, SwitchNorm2d, build_norm, convert_norms, switch_parameters, switch_weights


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_every_norm_of_a_resnet_is_replaced():
    model = convert_norms(resnet18(), "ssn", chunks=2)
    assert sum(isinstance(module, SparseSwitchNorm2d) for module in model.modules()) == 20
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(draw(2, 3, 32, 32)).isfinite().all()


def test_stages_are_the_children_of_the_model():
    with torch.device("meta"):
        model = convert_norms(resnet18(), "sn-stage")
    stages = {path.split(".")[0] for path in switch_weights(model)}
    assert stages == {"bn1", "layer1", "layer2", "layer3", "layer4"}
    assert len(switch_parameters(model)) == 2 * len(stages)
    assert model.layer2[0].bn1.mean_weight is model.layer2[1].bn2.mean_weight


def test_the_result_is_the_model_that_norm_layer_builds():
    with torch.device("meta"):
        built, converted = resnet18(norm_layer=build_norm("sn")), convert_norms(resnet18(), "sn")
    assert built.state_dict().keys() == converted.state_dict().keys()


def test_values_mode_and_dtype_are_kept():
    old = nn.BatchNorm2d(4).double().eval()
    for seed, tensor in enumerate((old.weight.data, old.bias.data, old.running_mean, old.running_var)):
        tensor.copy_(draw(4, seed=seed).exp())
    new = convert_norms(nn.Sequential(old), "sn[bn]")[0]
    x = draw(2, 4, 3, 3).double()
    torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize(
    "old",
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, affine=False),
        FrozenBatchNorm2d(4),
        SwitchNorm2d(4),
    ],
    ids=lambda module: type(module).__name__,
)
def test_every_kind_of_norm_is_replaced(old):
    new = convert_norms(nn.Sequential(old), "sn[in,ln]")[0]
    assert isinstance(new, SwitchNorm2d)
    assert (new.num_features, new.pool) == (4, ("in", "ln"))


def test_layer_norm_is_not_replaced():
    assert isinstance(convert_norms(nn.Sequential(nn.LayerNorm(4)), "sn")[0], nn.LayerNorm)


def test_a_layer_used_twice_stays_one_layer():
    norm = nn.BatchNorm2d(4)
    model = convert_norms(nn.Sequential(norm, norm, nn.Sequential(norm)), "sn")
    assert model[0] is model[1] is model[2][0]

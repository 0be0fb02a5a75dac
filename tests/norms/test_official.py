"""Published networks: outputs against the formulas, switch weights, and files that are rejected."""

import pytest
import torch
from torchvision import models

from study.norms import build_norm, harden, switch_weights
from study.norms.official import OfficialResNet, load_official
from tests.norms.official_files import official_logits, official_state, official_weights


def write(path, content):
    torch.save(content, path)
    return path


def images(seed=0):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("facts", "prefix"),
    [
        ({}, ""),
        ({"version": 2}, "module."),
        ({"version": 2, "bn": False, "depth": 101}, ""),
        ({"bn": False}, "module."),
        ({"kind": "ssn"}, "module."),
        ({"kind": "ssn", "fixed": False}, ""),
    ],
    ids=str,
)
def test_outputs_are_those_of_the_formulas(tmp_path, facts, prefix):
    state = official_state(**facts)
    content = {prefix + name: value for name, value in state.items()}
    network = load_official(write(tmp_path / "file.pth", {"epoch": 100, "state_dict": content} if prefix else content))
    torch.testing.assert_close(network(images()), official_logits(state, images()), rtol=1e-7, atol=1e-7)
    found = network.depth, network.version, network.kind
    assert found == (facts.get("depth", 50), facts.get("version", 1), facts.get("kind", "sn"))


@pytest.mark.parametrize("kind", ["sn", "ssn"])
def test_switch_weights_are_those_of_the_file(tmp_path, kind):
    state = official_state(version=2, kind=kind)
    found = switch_weights(load_official(write(tmp_path / "file.pth", state)))
    assert len(found) == 50
    assert {layer.pool for layer in found.values()} == {("in", "ln", "bn")}
    for name, official_name in {"bn1": "sn1", "layer3.5.bn2": "layer3.5.sn2", "layer4.bn_out": "sn_out"}.items():
        expected = official_weights(state, official_name)
        torch.testing.assert_close(found[name].mean, expected["mean"], rtol=0, atol=1e-15)
        torch.testing.assert_close(found[name].var, expected["var"], rtol=0, atol=1e-15)


@pytest.mark.parametrize("depth", [50, 101])
def test_version_1_has_the_state_dict_of_torchvision(depth):
    with torch.device("meta"):
        official, built = OfficialResNet(depth=depth), getattr(models, f"resnet{depth}")(norm_layer=build_norm("sn"))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (official, built)]
    assert shapes[0] == shapes[1]


def test_a_published_sparse_network_can_be_hardened(tmp_path):
    network = load_official(write(tmp_path / "file.pth", official_state(kind="ssn")))
    torch.testing.assert_close(harden(network)(images()), network(images()))


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains no state_dict"),
        ({"state_dict": {"epoch": 3}}, "contains no state_dict"),
        ({"conv1.weight": torch.zeros(1)}, "it has no sn1.mean_weight"),
        (without(official_state(), "layer2.1.sn3.running_var"), "it has no layer2.1.sn3.running_var"),
        (official_state() | {"layer1.0.sn4.weight": torch.ones(1)}, "layer1.0.sn4.weight is not part of a ResNet-50"),
        (official_state() | {"fc.bias": torch.ones(7)}, r"fc.bias has shape \(7,\), not \(5,\)"),
        (official_state() | {"sn1.mean_weight": torch.ones(4)}, "sn1.mean_weight has 4 logits"),
        (official_state() | {"layer1.3.conv1.weight": torch.ones(1)}, r"\(4, 4, 6, 3\) blocks"),
        (official_state(kind="ssn") | {"sn1.mean_weight": torch.ones(3)}, "sn1.mean_weight is fixed at"),
    ],
)  # fmt: skip
def test_the_error_for_other_contents_is_one_line(tmp_path, content, message):
    path = write(tmp_path / "file.pth", content)
    with pytest.raises(ValueError, match=message) as error:
        load_official(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, b"", b"no tensors", b"PK\x03\x04 torn"])
def test_the_error_for_an_unreadable_file_is_one_line(tmp_path, data):
    path = tmp_path / "file.pth"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"file.pth: (cannot be read|is not a file of tensors)") as error:
        load_official(path)
    assert "\n" not in str(error.value)


def test_a_file_that_would_run_code_is_rejected(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    with pytest.raises(ValueError, match="is not a file of tensors"):
        load_official(write(tmp_path / "file.pth", {"state_dict": Harmful()}))
    assert not (tmp_path / "harm").exists()

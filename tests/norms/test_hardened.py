"""A hardened network has the outputs of the network, consists of torch's own layers, and can be exported."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from study.models.resnet import SmallResNet
from study.norms import (
    SparseSwitchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    build_norm,
    convert_norms,
    harden,
    set_radius,
)
from study.norms.layers import SwitchNorm
from study.norms.protocol import SwitchWeights

POOL = ("in", "ln", "bn", "gn")
C = 4


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def trained(model):
    """The model in float64 and in evaluation mode, with different values in every layer, as after training."""
    model = model.double().eval()
    for seed, (name, value) in enumerate(model.state_dict().items()):
        if value.is_floating_point() and not name.endswith(("_weight", "_choice", "radius")):
            noise = draw(*value.shape, seed=seed)
            value.copy_(noise.square() + 0.5 if name.endswith("running_var") else value + 0.3 * noise)
    return model


def fixed(mean, var=None, layer_type=SwitchNorm2d, pool=POOL, **options):
    """A switch layer with one-hot weights."""
    layer = layer_type(C, pool=pool, groups=2, **options)
    rows = torch.eye(len(pool))
    layer.fix_weights(rows[pool.index(mean)], rows[pool.index(var or mean)])
    return layer


def layer_types(model):
    return {type(module) for module in model.modules()}


def assert_same(model, x):
    """Hardens the model and returns the copy, which must have equal outputs and no switch layer."""
    before = copy.deepcopy(model.state_dict())
    hardened = harden(model)
    torch.testing.assert_close(hardened(x), model(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    assert not any(isinstance(module, SwitchNorm) for module in hardened.modules())
    return hardened


@pytest.mark.parametrize("name", POOL)
def test_a_one_hot_layer_becomes_a_layer_of_torch(name):
    model = trained(nn.Sequential(nn.Conv2d(3, C, 3), fixed(name), nn.ReLU(), nn.Conv2d(C, 2, 1)))
    hardened = assert_same(model, draw(2, 3, 7, 6))
    assert isinstance(hardened[1], nn.Identity if name == "bn" else nn.GroupNorm)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("mean", POOL)
@pytest.mark.parametrize("var", POOL)
def test_every_choice_keeps_its_outputs(mean, var, correction):
    model = trained(nn.Sequential(nn.Conv2d(3, C, 3), fixed(mean, var, correction=correction)))
    assert_same(model, draw(2, 3, 7, 6))
    assert_same(model, draw(1, 3, 3, 3))  # maps of one pixel


def test_weights_that_are_not_one_hot_are_kept():
    model = trained(nn.Sequential(nn.Conv2d(3, C, 3), SwitchNorm2d(C, logit_init="random")))
    assert_same(model, draw(2, 3, 7, 6))


@pytest.mark.parametrize("pool", [("in", "ln", "bn"), ("in", "ln"), ("bn",)])
def test_a_sparse_layer_at_the_end_of_its_schedule(pool):
    layer = SparseSwitchNorm2d(C, pool=pool, logit_init="random", generator=torch.Generator().manual_seed(1))
    set_radius(layer, 1.0)
    assert_same(trained(nn.Sequential(nn.Conv2d(3, C, 3), layer)), draw(2, 3, 7, 6))


@pytest.mark.parametrize(
    ("layer_type", "convolution", "shape"),
    [(SwitchNorm1d, nn.Conv1d, (3, 3, 5)), (SwitchNorm3d, nn.Conv3d, (2, 3, 4, 3, 3))],
)
@pytest.mark.parametrize("name", POOL)
def test_other_dimensions(layer_type, convolution, shape, name):
    model = trained(nn.Sequential(convolution(3, C, 2, bias=False), fixed(name, layer_type=layer_type)))
    assert_same(model, draw(*shape))


def test_layers_without_a_convolution():
    assert isinstance(assert_same(trained(fixed("bn")), draw(2, C, 3, 3)), nn.BatchNorm2d)
    assert_same(trained(nn.Sequential(nn.Linear(3, C), fixed("bn", layer_type=SwitchNorm1d))), draw(5, 3))


@pytest.mark.parametrize("norm", ["sn", "sn-tied", "sn-shared", "ssn"])
def test_a_residual_network(norm):
    model = SmallResNet(8, build_norm(norm), channels=1, width=0.25)
    layers = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    for place, layer in enumerate(layers):
        choice = torch.eye(3)[(2 if norm == "sn-shared" else place) % 3]
        layer.fix_weights(choice, choice)
    hardened = assert_same(trained(model), draw(2, 1, 8, 8))
    folded = sum(isinstance(module, nn.Identity) for module in hardened.modules())
    assert folded == (len(layers) if norm == "sn-shared" else len(layers) // 3)


@pytest.mark.parametrize(
    "build",
    [build_norm("bn"), build_norm("bn", chunks=2), FrozenBatchNorm2d, lambda size: nn.BatchNorm2d(size, affine=False)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_batch_norms_of_torch_are_folded(build, bias):
    model = trained(nn.Sequential(nn.Conv2d(3, C, 3, bias=bias), build(C)))
    assert isinstance(assert_same(model, draw(2, 3, 7, 6))[1], nn.Identity)


class Tangled(nn.Module):
    """Convolutions that must not be folded: the output of one is used twice, two others are inputs of one norm."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.first, self.second = (nn.Conv2d(C, C, 3, padding=1) for _ in range(3))
        self.norm, self.joint = fixed("bn"), fixed("bn")

    def forward(self, x):
        y = self.read_twice(x)
        y = self.norm(y) + y
        return self.joint(self.first(y)) + self.joint(self.second(y))


class Standardized(nn.Conv2d):
    """A convolution that changes its weight in `forward`."""

    def forward(self, input):
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


def hooked(convolution):
    convolution.register_forward_hook(lambda module, inputs, output: output * 2)
    return convolution


@pytest.mark.parametrize(
    "model",
    [
        Tangled(),
        nn.Sequential(weight_norm(nn.Conv2d(C, C, 3)), fixed("bn")),
        nn.Sequential(Standardized(C, C, 3), fixed("bn")),
        nn.Sequential(hooked(nn.Conv2d(C, C, 3)), fixed("bn")),
        nn.Sequential(nn.ConvTranspose2d(C, C, 3), fixed("bn")),
    ],
    ids=["tangled", "parametrized", "own forward", "hook", "transposed"],
)
def test_what_must_not_be_folded_becomes_a_batch_norm(model):
    hardened = assert_same(trained(model), draw(2, C, 7, 6))
    assert nn.BatchNorm2d in layer_types(hardened)
    assert nn.Identity not in layer_types(hardened)


class Scale(nn.Module):
    """Stores its first input, as torchvision's pooling of regions does."""

    seen = None

    def forward(self, x):
        self.seen = x.amax() if self.seen is None else self.seen
        return x / self.seen


class UsedAgain(nn.Module):
    """Uses the convolution of its block without the norm."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), fixed("bn"))

    def forward(self, x):
        return self.block(x) + self.block[0](x)


class DependsOnData(UsedAgain):
    """Cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.mean() < 100 else x


class DependsOnType(UsedAgain):
    """Takes one branch for tensors and another one for placeholders, which are none."""

    def forward(self, x):
        return super().forward(x) if isinstance(x, torch.Tensor) else self.block(x[0])


class AsksTorch(UsedAgain):
    """Does the same with a function of torch."""

    def forward(self, x):
        return super().forward(x) if torch.is_tensor(x) else self.block(x[0])


class Optional(UsedAgain):
    """What follows depends on optional arguments."""

    def forward(self, x, other=None, twice=False):
        y = self.block[0](x)
        return self.block[1](y) + (0 if other is not None else y) + (y if twice else 0)


class Reads(UsedAgain):
    """Reads a parameter or a buffer of a layer that it also calls."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x):
        return self.block(x) * self.block.get_parameter(self.name).sum()


class ReadsStatistics(UsedAgain):
    """Reads a buffer of a layer that it also calls."""

    def forward(self, x):
        return self.block(x) * self.block[1].running_var.sum()


@pytest.mark.parametrize("part", [DependsOnData(), DependsOnType(), AsksTorch()], ids=lambda part: type(part).__name__)
def test_what_surrounds_a_part_that_cannot_be_traced_is_folded(part):
    model = nn.Sequential(nn.Conv2d(C, C, 1), fixed("bn"), Scale(), part, nn.Conv2d(C, C, 1), fixed("bn"))
    hardened = assert_same(trained(model), draw(2, C, 7, 6))
    assert [type(hardened[place]) for place in (1, 5)] == [nn.Identity] * 2
    assert isinstance(hardened[3].block[1], nn.BatchNorm2d)


def test_a_block_that_runs_twice_is_folded():
    block = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), fixed("bn"))
    assert nn.BatchNorm2d not in layer_types(assert_same(trained(nn.Sequential(block, block)), draw(2, C, 7, 6)))


def test_a_use_that_depends_on_a_flag_is_seen():
    model, x = trained(Optional()), draw(2, C, 7, 6)
    torch.testing.assert_close(harden(model)(x, x, twice=True), model(x, x, twice=True))


class TwoFlags(nn.Sequential):
    """Returns the convolution's output if one flag is given without the other."""

    def forward(self, x, early=False, late=False):
        y = self[0](x)
        return y if early and not late else self[1](y)


def test_a_use_that_depends_on_one_of_two_flags_is_seen():
    model, x = trained(TwoFlags(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))), draw(2, C, 7, 6)
    torch.testing.assert_close(harden(model)(x, early=True), model(x, early=True))


class Keeps(nn.Sequential):
    """Calls the child `index` through a list."""

    def __init__(self, index):
        super().__init__(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
        self.kept = [self[index]]

    def forward(self, x):
        return self[1](self.kept[0](x)) if self.kept[0] is not self[1] else self.kept[0](self[0](x))


class ReadsAll(nn.Sequential):
    """Computes with its parameters, not by name."""

    def forward(self, x):
        return super().forward(x) + sum(parameter.sum() for parameter in self.parameters())


def replaced(convolution, name):
    """A convolution one of whose methods is the caller's."""
    method = getattr(convolution, name)
    setattr(convolution, name, lambda *args: method(*args).relu())
    return convolution


class Called(nn.Conv2d):
    """Not the convolution alone, though its `forward` is."""

    def __call__(self, x):
        return super().__call__(x).relu()


class Standardized(nn.Conv2d):
    """Not the convolution by its weight."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean(), bias)


@pytest.mark.parametrize(
    "model",
    [
        UsedAgain(),
        DependsOnData(),
        DependsOnType(),
        Optional(),
        Reads("0.weight"),
        Reads("1.weight"),
        ReadsStatistics(),
        Keeps(0),
        Keeps(1),
        ReadsAll(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)),
        nn.Sequential(Called(C, C, 3), nn.BatchNorm2d(C)),
        nn.Sequential(replaced(nn.Conv2d(C, C, 3), "forward"), nn.BatchNorm2d(C)),
        nn.Sequential(replaced(nn.Conv2d(C, C, 3), "_conv_forward"), nn.BatchNorm2d(C)),
        nn.Sequential(Standardized(C, C, 3), nn.BatchNorm2d(C)),
        nn.Sequential(nn.Conv2d(C, C, 3), nn.InstanceNorm2d(C, track_running_stats=True)),
        convert_norms(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C, track_running_stats=False)), "sn[bn]"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_convolution_that_is_used_otherwise_is_not_folded(model):
    assert_same(trained(model), draw(2, C, 7, 6))


def test_every_batch_norm_of_a_resnet_of_torchvision_is_folded():
    assert nn.BatchNorm2d not in layer_types(assert_same(trained(resnet18()), draw(1, 3, 32, 32)))


def test_convolutions_that_share_a_weight_are_folded_separately():
    one, other = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)
    other.weight = one.weight
    assert_same(trained(nn.Sequential(one, fixed("bn"), other, fixed("bn"))), draw(2, C, 3, 3))


def test_a_switch_layer_with_hooks_is_an_error_and_a_batch_norm_with_hooks_is_kept():
    model = trained(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), SwitchNorm2d(C)))
    model[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    assert_same(model, draw(2, C, 3, 3))
    model[2].register_forward_hook(lambda layer, inputs, output: 2 * output)
    with pytest.raises(ValueError, match=r"^2: a SwitchNorm2d cannot be hardened: it has hooks"):
        harden(model)


def test_a_batch_norm_with_a_forward_of_its_own_is_kept():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    assert_same(trained(nn.Sequential(nn.Conv2d(C, C, 1), Doubled(C))), draw(2, C, 3, 3))


def test_a_switch_layer_of_another_package_is_an_error():
    class Foreign(nn.Module):
        def switch_weights(self):
            return SwitchWeights(("in",), torch.ones(1), torch.ones(1))

    with pytest.raises(ValueError, match=r"^1: a Foreign cannot be hardened"):
        harden(nn.Sequential(nn.Identity(), Foreign()))


@pytest.fixture(scope="module")
def exported():
    """A network with every kind of hardened layer, channels last, and an input."""
    model = nn.Sequential(
        *(nn.Conv2d(1, C, 3), fixed("bn"), nn.ReLU()),
        *(nn.Conv2d(C, C, 3), fixed("ln"), nn.ReLU()),
        *(nn.MaxPool2d(2), fixed("bn"), nn.Conv2d(C, C, 1)),
        *(fixed("in", "bn"), nn.Conv2d(C, C, 1), fixed("in", correction=1), nn.Flatten(), nn.Linear(4 * C, 3)),
    )
    model = trained(model).float().to(memory_format=torch.channels_last)
    return model, harden(model), draw(2, 1, 8, 8, dtype=torch.float32)


def test_an_exported_network_has_only_operations_of_torch(exported):
    model, hardened, x = exported
    program = torch.export.export(hardened, (x,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "switch_norm" in name]
    torch.testing.assert_close(program.module()(x), model(x))


def test_onnx_has_the_same_outputs(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, hardened, x = exported
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(hardened, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(3, 1, 8, 8, seed=1, dtype=torch.float32)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-4, atol=1e-5)

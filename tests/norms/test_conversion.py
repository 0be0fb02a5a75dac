"""Conversion of a network's norm layers."""

import copy
import functools
import inspect

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torchvision.models import get_model, get_model_builder, list_models, resnet18
from torchvision.ops import FrozenBatchNorm2d

from study.norms import (
    SparseSwitchNorm2d,
    SwitchNorm2d,
    build_norm,
    convert_norms,
    harden,
    switch_parameters,
    switch_weights,
)


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


# ------------------------------------------------------------------------------- networks of other libraries

WITHOUT_BATCH_NORMS = ("alexnet", "convnext", "squeezenet", "swin", "vit")
# Regnets compute their widths, so they cannot be built without memory; the larger ones have the same layers.
NETWORKS = [
    name
    for name in list_models()
    if not name.startswith(WITHOUT_BATCH_NORMS) and ("regnet" not in name or name.endswith("400mf"))
]
TIMM = ("densenet121", "mobilenetv3_small_050", "regnetx_002", "ghostnet_050", "mixnet_s", "levit_128s")


def randomize(model):
    """Gives every batch norm other running statistics than 0 and 1, which would hide errors."""
    for seed, module in enumerate(model.modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(draw(module.num_features, seed=seed) / 10)
            module.running_var.copy_(0.5 + draw(module.num_features, seed=seed + 1).abs())
    return model


def compute(model, x):
    torch.manual_seed(0)  # for dropout
    with torch.no_grad():
        y = model(x)
    return y if isinstance(y, torch.Tensor) else y[0]


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_batch_norms_is_not_changed_by_bn(name):
    has_backbone = "weights_backbone" in inspect.signature(get_model_builder(name)).parameters
    with torch.device("cpu" if "regnet" in name else "meta"):
        model = get_model(name, weights=None, **({"weights_backbone": None} if has_backbone else {}))
    others = [module for module in model.modules() if isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d))]
    before = {path: module for path, module in model.named_modules() if module not in others}
    convert_norms(model, "bn")
    after = dict(model.named_modules())
    assert all(after[path] is module for path, module in before.items())
    assert all(isinstance(after[path], nn.BatchNorm2d) for path in after.keys() - before.keys())
    assert len(after) == len(before) + len(others)


@pytest.mark.parametrize(
    "build",
    [
        *(lambda name=name: get_model(name, weights=None) for name in ("mobilenet_v2", "googlenet", "mnasnet0_5")),
        *(lambda name=name: timm.create_model(name) for name in TIMM),
    ],
    ids=["mobilenet_v2", "googlenet", "mnasnet0_5", *(f"timm: {name}" for name in TIMM)],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_a_pool_of_bn_computes_what_the_batch_norms_did(build):
    """With their eps, momentum and activations, in training and in evaluation."""
    torch.manual_seed(0)
    model = randomize(build()).double().eval()
    size = 64 if not getattr(model, "default_cfg", {}).get("fixed_input_size") else model.default_cfg["input_size"][1]
    x = draw(2, 3, size, size).double()
    converted = convert_norms(copy.deepcopy(model), "sn[bn]")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in converted.modules())
    torch.testing.assert_close(compute(converted, x), compute(model, x))
    torch.testing.assert_close(compute(harden(model), x), compute(model, x))
    torch.testing.assert_close(compute(converted.train(), x), compute(model.train(), x))
    after, before = (
        [module.running_var for module in network.modules() if hasattr(module, "running_var")]
        for network in (converted, model)
    )
    assert len(after) == len(before) > 0
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other)


def test_a_pool_of_gn_computes_what_the_group_norms_did():
    """In a network of timm, whose group norms hold the activation."""
    model, x = timm.create_model("resnetv2_50d_gn").double(), draw(2, 3, 64, 64).double()
    torch.testing.assert_close(compute(convert_norms(copy.deepcopy(model), "sn[gn]"), x), compute(model, x))


# ------------------------------------------------------------------------------------- settings are carried


@pytest.mark.parametrize("name", ["sn", "ssn", "bn", "gn", "sn[bn]"])
def test_eps_and_momentum_are_those_of_the_replaced_layer_unless_they_are_given(name):
    def convert(**options):
        return convert_norms(nn.Sequential(nn.BatchNorm2d(4, eps=0.25, momentum=0.5)), name, **options)[0]

    assert (convert().eps, getattr(convert(), "momentum", 0.5)) == (0.25, 0.5)
    given = convert(eps=0.125, momentum=0.75)
    assert (given.eps, getattr(given, "momentum", 0.75)) == (0.125, 0.75)


def test_every_layer_keeps_its_number_of_dimensions():
    layers = [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.InstanceNorm1d(4), nn.GroupNorm(2, 4)]
    model = convert_norms(nn.Sequential(*layers), "sn-shared[ln,bn]", dims=3)
    assert [max(layer.input_dims) - 2 for layer in model] == [1, 2, 3, 1, 3]
    assert len(switch_parameters(model)) == 2
    with pytest.raises(ValueError, match=r"^0: BatchNorm1d cannot be replaced: .*in 1 dimensions"):
        convert_norms(nn.Sequential(nn.BatchNorm1d(4)), "ssn")


def test_groups_are_kept_where_the_new_norm_has_groups():
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.BatchNorm2d(8))
    assert [layer.groups for layer in convert_norms(model, "sn[bn,gn]")] == [2, 8]
    assert [layer.groups for layer in convert_norms(model, "sn[bn,gn]", groups=4)] == [4, 4]


def test_parameters_stay_the_same_objects():
    """So tied ones stay tied, frozen ones stay frozen, and an optimizer still updates them."""
    first, second, frozen = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4).requires_grad_(False)
    second.weight = first.weight
    kept = first.weight, first.bias
    model = convert_norms(nn.Sequential(first, second, frozen), "sn")
    assert (model[0].weight, model[0].bias) == kept
    assert model[0].weight is model[1].weight
    assert not any(parameter.requires_grad for parameter in model[2].parameters())
    assert all(parameter.requires_grad for parameter in model[0].parameters())


def test_a_layer_without_affine_parameters_gets_none_that_are_trained():
    old = nn.BatchNorm2d(4, affine=False)
    (new,) = model = convert_norms(nn.Sequential(old), "sn[bn]")
    assert not new.weight.requires_grad
    assert not new.bias.requires_grad
    assert len(switch_parameters(model)) == 2
    x = draw(2, 4, 3, 3)
    torch.testing.assert_close(new(x), old(x))


def test_a_switch_layer_of_the_same_pool_stays():
    """With what it has learned."""
    sn, ssn = SwitchNorm2d(4), SparseSwitchNorm2d(4)
    assert convert_norms(nn.Sequential(sn), "sn")[0] is sn
    assert convert_norms(nn.Sequential(ssn), "ssn")[0] is ssn
    assert convert_norms(nn.Sequential(sn), "ssn")[0] is not sn
    assert convert_norms(nn.Sequential(sn), "sn[in,bn]")[0] is not sn


@pytest.mark.parametrize(("name", "trained"), [("sn-tied", 6), ("sn-shared", 6), ("sn-uniform", 0), ("sn-random", 0)])
def test_a_control_is_not_the_norm(name, trained):
    """Shared logits become each layer's own; logits that are not trained stay, which the report says."""
    model, lines = convert_norms(nn.Sequential(*map(nn.BatchNorm2d, (4, 4, 4))), name), []
    assert len(switch_parameters(convert_norms(model, "sn", report=lines.append))) == trained
    assert ("logits that are not trained" in lines[0]) == (not trained)
    assert len(switch_parameters(convert_norms(model, "sn", unfreeze=True))) == 6


def test_statistics_over_ranks_stay_over_ranks():
    assert convert_norms(nn.Sequential(nn.SyncBatchNorm(4)), "sn")[0].sync
    assert not convert_norms(nn.Sequential(nn.SyncBatchNorm(4)), "sn", sync=False, chunks=2)[0].sync


@pytest.mark.parametrize("name", ["sn[bn]", "bn"])
def test_a_layer_that_does_not_track_statistics_gets_one_that_does_not(name):
    old = nn.BatchNorm2d(4, track_running_stats=False).eval()
    (new,) = convert_norms(nn.Sequential(old), name, eps=old.eps)
    assert new.running_mean is None
    x = draw(2, 4, 3, 3)
    torch.testing.assert_close(new(x), old(x))
    (again,) = convert_norms(nn.Sequential(new), "sn[bn]", eps=old.eps)
    torch.testing.assert_close(again(x), old(x))


def test_statistics_go_on_where_they_were():
    old = nn.BatchNorm2d(4, momentum=None)
    old(draw(2, 4, 3, 3))
    (new,) = convert_norms(nn.Sequential(copy.deepcopy(old)), "bn", eps=old.eps)
    for layer in (old, new):
        layer(draw(2, 4, 3, 3, seed=1))
    assert new.num_batches_tracked == 2
    torch.testing.assert_close(new.running_var, old.running_var)


def test_statistics_that_do_not_move_stay():
    old = nn.BatchNorm2d(4)
    old(draw(2, 4, 3, 3) + 1)
    old.track_running_stats = False
    for name in ("sn[bn]", "bn"):
        (new,) = convert_norms(nn.Sequential(copy.deepcopy(old)), name, eps=old.eps)
        new(draw(2, 4, 3, 3, seed=1))
        torch.testing.assert_close(new.eval()(draw(2, 4, 3, 3)), old.eval()(draw(2, 4, 3, 3)))


@pytest.mark.parametrize("name", ["sn[bn]", "sn", "bn"])
def test_statistics_keep_their_dtype(name):
    """In that of half-precision parameters they could overflow."""
    old = nn.BatchNorm2d(4).half()
    old.running_var = torch.full((4,), 1e6)
    (new,) = convert_norms(nn.Sequential(old), name, eps=old.eps)
    assert (new.weight.dtype, new.running_var.dtype) == (torch.float16, torch.float32)
    assert new.running_var.tolist() == [1e6] * 4


@pytest.mark.parametrize("frozen", [0, 1])
def test_shared_logits_are_trained_if_one_of_their_layers_is(frozen):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[frozen].requires_grad_(False)
    assert len(switch_parameters(convert_norms(model, "sn-shared"))) == 2
    assert not switch_parameters(convert_norms(model.requires_grad_(False), "sn-shared"))


def test_hooks_of_parameters_stay():
    old, gradients = nn.BatchNorm2d(4), []
    old.weight.register_hook(gradients.append)
    convert_norms(nn.Sequential(old), "sn")(draw(2, 4, 3, 3)).sum().backward()
    assert len(gradients) == 1


@pytest.mark.parametrize("name", ["sn", "ssn", "bn", "gn"])
@pytest.mark.parametrize("old", [nn.BatchNorm2d(4), timm.layers.BatchNormAct2d(4)], ids=lambda old: type(old).__name__)
def test_the_input_may_be_given_by_its_name_in_torch(name, old):
    (new,) = convert_norms(nn.Sequential(copy.deepcopy(old)), name, eps=old.eps)
    x = draw(2, 4, 3, 3)
    torch.testing.assert_close(new(input=x), new(x))
    torch.testing.assert_close(harden(new)(input=x), harden(new)(x))


def test_group_norms_of_one_group_or_one_channel_are_ln_and_in():
    """So their number of groups is not that of a gn."""
    model = nn.Sequential(nn.GroupNorm(1, 64), nn.GroupNorm(64, 64), nn.GroupNorm(4, 64))
    ln, instance, gn = model
    assert convert_norms(nn.Sequential(*model), "ln")[0] is ln
    assert convert_norms(nn.Sequential(*model), "in")[1] is instance
    assert [layer.num_groups for layer in convert_norms(convert_norms(model, "gn"), "gn")] == [32, 32, 4]
    assert model[2] is gn


def test_instance_norms_of_torch_are_in():
    """With inputs that the group norms of this package do not allow: without a batch, and of any dtype."""
    old = nn.InstanceNorm2d(4)
    assert convert_norms(nn.Sequential(old), "in")[0] is old


def test_a_network_that_is_a_norm_itself():
    old = nn.BatchNorm2d(4, eps=0.5)
    new = convert_norms(old, "sn[bn]")
    assert isinstance(new, SwitchNorm2d)
    torch.testing.assert_close(new(draw(2, 4, 3, 3)), old(draw(2, 4, 3, 3)))


# --------------------------------------------------------------------------- what cannot be replaced, and what was


class ScaledBatchNorm(nn.BatchNorm2d):
    """A layer of a user, which does more."""

    def forward(self, x):
        return 2 * super().forward(x)


class AlwaysEvaluated(nn.BatchNorm2d):
    """A frozen layer of a user."""

    def train(self, mode=True):
        return super().train(False)


def hooked(register):
    layer = nn.BatchNorm2d(4)
    getattr(layer, register)(lambda *_: None)
    return layer


def added(register, *args):
    layer = nn.BatchNorm2d(4)
    getattr(layer, register)(*args)
    return layer


def patched(name):
    layer = nn.BatchNorm2d(4)
    setattr(layer, name, lambda *_: None)
    return layer


class Wrapped(nn.BatchNorm2d):
    """A layer whose `forward` says that it is torch's."""

    @functools.wraps(nn.BatchNorm2d.forward)
    def forward(self, input):
        return super().forward(input).relu()


class Called(nn.BatchNorm2d):
    """A layer that does more, though its `forward` does not."""

    def __call__(self, x):
        return super().__call__(x).relu()


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (ScaledBatchNorm(4), "ScaledBatchNorm cannot be replaced: its class has a forward of its own"),
        (hooked("register_forward_hook"), "it has hooks"),
        (hooked("register_forward_pre_hook"), "it has hooks"),
        (hooked("register_full_backward_hook"), "it has hooks"),
        (hooked("register_state_dict_pre_hook"), "it has hooks"),
        (hooked("register_load_state_dict_post_hook"), "it has hooks"),
        (added("register_buffer", "scale", torch.ones(1)), "it has scale, which no other norm has"),
        (added("add_module", "act", nn.ReLU()), "it has act, which no other norm has"),
        (Wrapped(4), "its class has a forward of its own"),
        (Called(4), "its class has a __call__ of its own"),
        (patched("forward"), "its forward has been replaced"),
        (patched("get_extra_state"), "its get_extra_state has been replaced"),
        (parametrizations.weight_norm(nn.BatchNorm2d(4), dim=None), "it has parametrizations"),
        (AlwaysEvaluated(4), "its class has a train of its own"),
        (nn.LazyBatchNorm2d(), "its number of channels is not known yet; run the network once"),
        (nn.LazyBatchNorm2d(affine=False), "its number of channels is not known yet; run the network once"),
        (FrozenBatchNorm2d(4), "it is frozen, and its successor would be trained; unfreeze=True allows this"),
        (nn.InstanceNorm2d(4, track_running_stats=True), "it keeps running statistics of instances"),
        (nn.BatchNorm2d(4, momentum=None), "momentum None is not allowed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_layer_that_does_more_is_refused_with_its_path_and_nothing_is_changed(layer, reason):
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layer))
    before = list(model.modules())
    with pytest.raises(ValueError, match=f"^1.0: .*{reason}"):
        convert_norms(model, "sn[bn]")
    assert all(one is other for one, other in zip(model.modules(), before, strict=True))
    if isinstance(layer, nn.BatchNorm2d):
        assert convert_norms(model, "bn")[1][0] is layer  # it is one already


def test_a_frozen_layer_stays_frozen_or_is_replaced_on_demand():
    old = FrozenBatchNorm2d(4, eps=0.5)
    old.running_var.fill_(3.0)
    assert convert_norms(nn.Sequential(old), "bn")[0] is old
    (new,) = convert_norms(nn.Sequential(old), "sn[bn]", unfreeze=True).eval()
    assert new.weight.requires_grad
    assert isinstance(convert_norms(nn.Sequential(old), "bn", unfreeze=True)[0], nn.BatchNorm2d)
    torch.testing.assert_close(new(draw(2, 4, 3, 3)), old(draw(2, 4, 3, 3)))


class Unrelated(nn.Module):
    """Has an attribute that batch norms have, too."""

    running_mean = None


def test_what_is_no_norm_is_left():
    model = nn.Sequential(Unrelated(), nn.LayerNorm(4))
    before = list(model)
    assert list(convert_norms(model, "sn")) == before


def test_a_layer_that_is_compiled_by_itself_is_refused():
    model = nn.Sequential(torch.compile(nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match=r"^0\._orig_mod: .* compiled by itself"):
        convert_norms(model, "sn")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
class Keeps(nn.Module):
    """Calls its norm through an attribute that torch does not know."""

    def __init__(self, keep):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.kept = keep(self.norm)


@pytest.mark.parametrize("keep", [lambda norm: [norm], lambda norm: {"norm": (norm,)}, lambda norm: norm.forward])
def test_a_layer_that_a_plain_attribute_holds_is_refused(keep):
    with pytest.raises(ValueError, match=r"^1\.norm: .* the attribute 1\.kept holds it, too"):
        convert_norms(nn.Sequential(nn.BatchNorm2d(4), Keeps(keep)), "sn")


def test_a_network_that_is_wrapped_already_is_refused(tmp_path):
    """The wrapper would not average the gradients of the new logits."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(nn.Sequential(nn.BatchNorm2d(4)))
        with pytest.raises(ValueError, match=r"^module\.0: .* wrap after the conversion"):
            convert_norms(wrapped, "sn")
        with pytest.raises(ValueError, match="cannot be hardened, as its copy waits for all ranks"):
            harden(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_a_layer_that_is_compiled_by_torchscript_is_refused():
    model = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match=r"^1: .* compiled by TorchScript; compile the network after the conversion"):
        convert_norms(model, "sn")


class Named(timm.layers.BatchNormAct2d):
    """A layer of a user that only has settings."""

    def __init__(self, size):
        super().__init__(size, eps=0.5, act_layer=nn.SiLU)


def test_a_class_with_settings_alone_is_replaced_as_its_base_class_is():
    old = Named(4)
    (new,) = convert_norms(nn.Sequential(copy.deepcopy(old)), "sn[bn]")
    torch.testing.assert_close(new(draw(2, 4, 3, 3)), old(draw(2, 4, 3, 3)))


def test_unbiased_variances_are_not_lost_without_a_word():
    model = nn.Sequential(SwitchNorm2d(4, pool=("ln",), correction=1))
    with pytest.raises(ValueError, match="its variances are unbiased"):
        convert_norms(model, "ln")
    assert isinstance(convert_norms(model, "ln", correction=0)[0], nn.GroupNorm)


def test_the_report_names_what_was_replaced_and_what_was_left():
    lines = []
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.LocalResponseNorm(2))
    model.extend([timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU), timm.layers.LayerNormAct(4)])
    convert_norms(model, "sn", report=lines.append)
    (report,) = lines
    assert report.splitlines() == [
        "2 BatchNorm2d -> SwitchNorm2d",
        "1 BatchNormAct2d -> SwitchNorm2d, SiLU",
        "left: 1 LayerNorm: normalizes every position by itself, over its features, the first at 2",
        "left: 1 LocalResponseNorm: is not a batch, group, instance or switch norm, the first at 3",
        "left: 1 LayerNormAct: normalizes every position by itself, over its features, the first at 5",
    ]
    convert_norms(nn.Sequential(nn.BatchNorm2d(4)), "bn", report=lines.append)
    assert lines[1] == "no layer was replaced\nleft: 1 BatchNorm2d: is of this norm already, the first at 0"

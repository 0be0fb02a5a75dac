"""Converts a trained network to fixed choices in torch's own layers, for measurements, export and serving."""

from __future__ import annotations

import copy
import inspect
import math
import sys
from collections import defaultdict
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from study.norms.conversion import convert_norm
from study.norms.kernels import dispatch, reference
from study.norms.known_layers import (
    find_change,
    find_hidden,
    find_obstacle,
    is_frozen,
    is_norm,
    list_children,
    list_extras,
)
from study.norms.layers import SwitchNorm
from study.norms.protocol import is_switch_layer

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def harden(model: nn.Module) -> nn.Module:
    """Returns a copy of `model` for evaluation, without switch layers and with the same outputs up to rounding.

    A switch layer whose weights for means and for variances are one-hot at the same normalizer is replaced by torch's
    layer. bn is folded into the convolution whose output only this layer uses, or becomes `nn.BatchNorm*d`; in, ln and
    gn become group norms. A switch layer with other weights (means and variances of different normalizers, weights that
    are not one-hot, and in, ln and gn of `correction` 1, which torch does not have) keeps its weights as constants and
    computes no member of weight 0. The network's own batch norms are folded as well. `torch.export.export` and
    `torch.onnx.export(dynamo=True)` see only torch's operations; a direct call runs layers that are not folded by the
    kernels of switch layers where these are faster.

    bn is folded only where symbolic tracing shows every use of the convolution. A convolution or a batch norm with
    hooks, with a parametrization or with a `forward` of its own is not folded, nor is one inside a module whose control
    flow depends on data; of timm's batch norms, the activation stays. In a network that cannot be traced by itself,
    such as a detector, nothing is folded: harden its parts, `model.backbone = harden(model.backbone)`.

    ValueError, with its path, for a switch layer whose class is not from `study.norms`, or with hooks or a `forward` of
    its own, and for a network in DistributedDataParallel.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise ValueError("DistributedDataParallel cannot be hardened, as its copy waits for all ranks: harden .module")
    hardened = copy.deepcopy(model).eval()
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in hardened.named_modules():
        if is_switch_layer(module) and not isinstance(module, SwitchNorm):
            raise ValueError(f"{path}: a {type(module).__name__} cannot be hardened: allowed are switch norms of study")
        if isinstance(module, SwitchNorm):
            if obstacle := find_obstacle(module):
                raise ValueError(f"{path}: a {type(module).__name__} cannot be hardened: {obstacle}")
            replaced[module] = _harden_layer(module)
    for convolution, norm in _find_foldable_pairs(hardened):
        new_norm = replaced.get(norm, norm)
        is_batch_norm = isinstance(new_norm, _BatchNorm) or is_frozen(new_norm)
        if is_batch_norm and isinstance(new_norm.running_mean, Tensor):
            extras = [extra for _, extra in list_extras(norm)]
            replaced |= {
                convolution: _fold(convolution, new_norm),
                norm: nn.Sequential(*extras) if extras else nn.Identity(),
            }
    for _, parent, name, child in [*list_children(hardened)]:
        if child in replaced:
            parent.register_module(name, replaced[child])
    return replaced.get(hardened, hardened).requires_grad_(False)


class _FixedNorm(nn.Module):
    """A switch layer in evaluation with constant weights, without members of weight 0. Exports as torch operations."""

    running_mean: Tensor | None
    running_var: Tensor | None
    mean_weights: Tensor
    var_weights: Tensor

    def __init__(self, layer: SwitchNorm) -> None:
        super().__init__()
        _, mean, var = layer.switch_weights()
        used = [index for index in range(len(layer.pool)) if mean[index] or var[index]]
        self.pool = tuple(layer.pool[index] for index in used)
        self.groups = layer.groups if "gn" in self.pool else 1
        self.correction, self.eps = layer.correction, layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("mean_weights", mean[used])
        self.register_buffer("var_weights", var[used])
        self.register_buffer("running_mean", layer.running_mean if "bn" in self.pool else None)
        self.register_buffer("running_var", layer.running_var if "bn" in self.pool else None)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, *spatial), with any number of spatial dimensions, to the same shape."""
        running = None
        if self.running_mean is not None and self.running_var is not None:
            running = self.running_mean, self.running_var
        normalize = reference.normalize if torch.compiler.is_exporting() else dispatch.normalize
        y, _ = normalize(
            input, (self.mean_weights, self.var_weights), (self.weight, self.bias), running,
            softmax=False, pool=self.pool, groups=self.groups, chunks=1, correction=self.correction, eps=self.eps,
        )  # fmt: skip
        return y


def _harden_layer(layer: SwitchNorm) -> nn.Module:
    """Returns torch's layer for the layer's choice, or a layer with constant weights where torch has none."""
    pool, mean, var = layer.switch_weights()
    choice = pool[int(mean.argmax())]
    one_hot = mean.amax() >= 1 and var.amax() >= 1 and mean.argmax() == var.argmax()
    if one_hot and (choice == "bn" or not layer.correction):
        return convert_norm(layer, choice, correction=0, chunks=1, sync=False)
    return _FixedNorm(layer)


def _find_foldable_pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Finds pairs (convolution, norm) where only the norm uses the convolution's output and has no other input."""
    users: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
    sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
    used_otherwise: set[nn.Module] = {*find_hidden(model)}
    # Modules may store what they see while they are traced, so a copy that shares all tensors is traced.
    traced = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    originals = dict(zip(traced.modules(), model.modules(), strict=True))
    with _Reads() as reads:
        graphs = _trace(traced)
    for graph in graphs:
        called = {
            node: originals[traced.get_submodule(str(node.target))] for node in graph.nodes if node.op == "call_module"
        }
        for node, module in called.items():
            if isinstance(module, _CONVOLUTIONS):
                users[module] |= {called.get(user) for user in node.users}
            elif is_norm(module) and not find_obstacle(module):
                sources[module] |= {called.get(source) for source in node.all_input_nodes}
            else:
                used_otherwise |= {*module.modules()}
        names = {str(node.target) for node in graph.nodes if node.op == "get_attr" and node.users}
        read = reads.tensors | {
            tensor for name, tensor in (*traced.named_parameters(), *traced.named_buffers()) if name in names
        }
        owned = {module: {*module._parameters.values(), *module._buffers.values()} for module in model.modules()}
        used_otherwise |= {module for module, tensors in owned.items() if tensors & read}
    pairs = [(next(iter(found)), norm) for norm, found in sources.items() if len(found) == 1]
    return [
        (source, norm)
        for source, norm in pairs
        if source and _is_foldable(source) and users[source] == {norm} and not {source, norm} & used_otherwise
    ]


def _trace(model: nn.Module) -> list[torch.fx.Graph]:
    """Records what `model` computes without its optional arguments, with each flag, and with all of them.

    Empty if it cannot be traced.
    """
    try:
        parameters = inspect.signature(model.forward).parameters
        defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
        flags = {name: default for name, default in defaults.items() if isinstance(default, bool)}
        flipped = {name: not flag for name, flag in flags.items()}
        settings = [flags, *({**flags, name: flag} for name, flag in flipped.items()), flipped]
        choices = [others | each for each in settings for others in (defaults, {})] if defaults else [{}]
        return [_Tracer().trace(model, concrete_args=choice or None) for choice in choices]
    except Exception:  # a forward may raise anything when it is given a placeholder
        return []


class _Reads(TorchFunctionMode):
    """Collects the real tensors that a traced forward computes with.

    An attribute gives a placeholder, so these are parameters that it got otherwise, such as from `parameters()`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[Tensor] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # Not isinstance, which a placeholder refuses. A shape or a dtype is no use of the values.
        if any(issubclass(type(each), Tensor) for each in tree_leaves(result)):
            self.tensors |= {each for each in tree_leaves((args, kwargs)) if issubclass(type(each), Tensor)}
        return result


class _Tracer(torch.fx.Tracer):
    """Does not trace into norms and convolutions, nor into modules whose control flow depends on data."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or isinstance(m, _CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        stack = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # see `_trace`
            self.module_stack = stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Placeholder(node, self)


class _Placeholder(torch.fx.Proxy):
    """A placeholder that does not say whether it is a tensor.

    `isinstance(x, Tensor)` would be false, and lead into a branch that tensors do not take.
    """

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        caller = sys._getframe(1)
        is_asked = "Tensor" in caller.f_code.co_names and not caller.f_globals["__name__"].startswith("torch.")
        if is_asked or caller.f_code.co_name == "is_tensor":
            raise torch.fx.proxy.TraceError("the type of a placeholder is not known")
        return type(self)


def _is_foldable(module: nn.Module) -> bool:
    """Whether a module is a convolution that only applies its weight and bias."""
    kind = next((kind for kind in _CONVOLUTIONS if type(module).forward is kind.forward), None)
    return kind is not None and not find_change(module, allowed="_conv_forward") and _is_plain(module, kind)


def _is_plain(convolution: Any, kind: Any) -> bool:
    """Whether a convolution with its own `_conv_forward` computes what torch's class `kind` does."""
    if getattr(convolution._conv_forward, "__func__", None) is kind._conv_forward:
        return True
    weight, bias = convolution.weight, convolution.bias
    sizes = (2 * size * dilation + 1 for size, dilation in zip(weight.shape[2:], convolution.dilation, strict=True))
    x = torch.linspace(-1, 1, 997, dtype=weight.dtype, device=weight.device)
    x = x.repeat(math.prod(shape := (1, convolution.in_channels, *sizes)) // 997 + 1)[: math.prod(shape)].view(shape)
    expected = kind._conv_forward(convolution, x, weight, bias)
    return torch.allclose(convolution._conv_forward(x, weight, bias), expected, rtol=1e-3, atol=1e-3)


def _fold(convolution: Any, norm: Any) -> nn.Module:
    """Merges a convolution and a batch norm in evaluation into one convolution. Computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.dim() - 1))
    folded: nn.Module = copy.deepcopy(convolution)  # with its own parameters: convolutions may share a weight
    folded.weight = nn.Parameter(weight.to(convolution.weight.dtype))
    folded.bias = nn.Parameter(shift.to(convolution.weight.dtype))
    return folded

"""A network with its choices made, in torch's own layers: to measure, to export, to serve."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from study.norms.factory import build_norm, convert, is_norm, is_switch
from study.norms.kernels import dispatch, reference
from study.norms.layers import SwitchNorm

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def harden(model: nn.Module) -> nn.Module:
    """A copy of `model` for evaluation, with the same outputs to rounding, whose layers choose no more.

    A switch layer whose weights are one-hot, for means and for variances at the same normalizer, becomes the native
    layer: bn is folded into the convolution whose output it alone takes, or is `nn.BatchNorm*d`; in, ln and gn are
    group norms. Any other one (means and variances of different normalizers, weights that are not one-hot, in, ln and
    gn of `correction` 1, which torch does not have) keeps its weights, fixed, and computes no member of weight 0. Batch
    norms that were native are folded, too. `torch.export.export` and `torch.onnx.export(dynamo=True)` find torch's own
    operations alone; called directly, what is not folded runs by the kernels of switch layers where those are faster.

    Convolutions are found by symbolic tracing; of a network that cannot be traced, in its parts that can. A convolution
    with hooks, with a parametrization or with a `forward` of its own is left alone.

    ValueError for a layer that chooses and is none of `study.norms`.
    """
    hardened = copy.deepcopy(model).eval()
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in hardened.named_modules():
        if is_switch(module) and not isinstance(module, SwitchNorm):
            raise ValueError(f"{path}: a {type(module).__name__} cannot be hardened: allowed are switch norms of study")
        if isinstance(module, SwitchNorm):
            replaced[module] = _native(module)
    for convolution, norm in _feeding(hardened):
        native = replaced.get(norm, norm)
        if isinstance(getattr(native, "running_mean", None), Tensor) and not isinstance(native, _FixedNorm):
            replaced |= {convolution: _fold(convolution, native), norm: nn.Identity()}
    for parent in list(hardened.modules()):
        for name, child in parent._modules.items():
            if child in replaced:
                parent._modules[name] = replaced[child]
    return replaced.get(hardened, hardened).requires_grad_(False)


class _FixedNorm(nn.Module):
    """A switch layer in evaluation, with fixed weights and no member of weight 0. Exported, in plain operations."""

    running_mean: Tensor | None
    running_var: Tensor | None
    mean_weights: Tensor
    var_weights: Tensor

    def __init__(self, layer: SwitchNorm) -> None:
        super().__init__()
        _, mean, var = layer.switch_weights()
        used = [place for place in range(len(layer.pool)) if mean[place] or var[place]]
        self.pool = tuple(layer.pool[place] for place in used)
        self.groups = layer.groups if "gn" in self.pool else 1
        self.correction, self.eps = layer.correction, layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("mean_weights", mean[used])
        self.register_buffer("var_weights", var[used])
        self.register_buffer("running_mean", layer.running_mean if "bn" in self.pool else None)
        self.register_buffer("running_var", layer.running_var if "bn" in self.pool else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) of any number of dimensions."""
        stored = None
        if self.running_mean is not None and self.running_var is not None:
            stored = self.running_mean, self.running_var
        normalize = reference.normalize if torch.compiler.is_exporting() else dispatch.normalize
        y, _ = normalize(
            x, (self.mean_weights, self.var_weights), (self.weight, self.bias), stored,
            softmax=False, pool=self.pool, groups=self.groups, chunks=1, correction=self.correction, eps=self.eps,
        )  # fmt: skip
        return y


def _native(layer: SwitchNorm) -> nn.Module:
    """The layer that torch has for a choice; fixed weights where it has none."""
    pool, mean, var = layer.switch_weights()
    choice = pool[int(mean.argmax())]
    one_hot = mean.amax() >= 1 and var.amax() >= 1 and mean.argmax() == var.argmax()
    if one_hot and (choice == "bn" or not layer.correction):
        dims = max(layer.input_dims) - 2
        return convert(layer, build_norm(choice, eps=layer.eps, groups=layer.groups, dims=dims))
    return _FixedNorm(layer)


def _feeding(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions whose output nothing but one norm takes, which takes nothing else: (convolution, norm)."""
    takers: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
    sources: dict[nn.Module, set[nn.Module | None]] = defaultdict(set)
    # A module may keep what it sees: a twin is traced, which has the same tensors.
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    own = dict(zip(twin.modules(), model.modules(), strict=True))
    for root, graph in _graphs(twin):
        called = {node: own[root.get_submodule(str(node.target))] for node in graph.nodes if node.op == "call_module"}
        for node, module in called.items():
            if isinstance(module, _CONVOLUTIONS):
                takers[module] |= {called.get(user) for user in node.users}
            elif is_norm(module):
                sources[module] |= {called.get(source) for source in node.all_input_nodes}
    pairs = [(next(iter(found)), norm) for norm, found in sources.items() if len(found) == 1]
    return [(source, norm) for source, norm in pairs if source and _is_plain(source) and takers[source] == {norm}]


def _graphs(module: nn.Module) -> Iterator[tuple[nn.Module, torch.fx.Graph]]:
    """The graph of a module; if it has none, because what it does depends on its data, those of its parts."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever a forward makes of a placeholder
        for child in module.children():
            yield from _graphs(child)
    else:
        yield module, graph


class _Tracer(torch.fx.Tracer):
    """Keeps norms and convolutions of any class whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or isinstance(m, _CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a convolution with its weight and bias, and nothing else."""
    own = any(type(module).forward is kind.forward for kind in _CONVOLUTIONS)
    return own and not (is_parametrized(module) or module._forward_hooks or module._forward_pre_hooks)


def _fold(convolution: Any, norm: Any) -> nn.Module:
    """The convolution followed by a batch norm in evaluation, as a convolution. Computed in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.dim() - 1))
    folded: nn.Module = copy.copy(convolution)  # its own parameters; a weight may be another convolution's, too
    folded._parameters = {
        name: nn.Parameter(value.to(convolution.weight.dtype))
        for name, value in {"weight": weight, "bias": shift}.items()
    }
    return folded

"""Files like those of the authors' code, and the outputs of their networks, computed from the papers' formulas.

The networks are small: their stem has 2 channels, in published files 64. Everything is in float64.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, linear, max_pool2d

from tests.norms.formulas import official_variances, sparsestmax

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTH, CLASSES = 2, 5


def official_state(*, depth=50, version=1, kind="sn", bn=True, fixed=True, seed=0):
    """A state_dict with random values. `fixed`: the weights of sparse layers are fixed, else the radius is 0.3."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def conv(name, inputs, outputs, kernel):
        state[f"{name}.weight"] = draw(outputs, inputs, kernel, kernel) / (inputs * kernel * kernel) ** 0.5

    def norm(name, channels):
        state[f"{name}.weight"] = 1 + 0.2 * draw(1, channels, 1, 1)
        state[f"{name}.bias"] = 0.2 * draw(1, channels, 1, 1)
        for statistic in ("mean", "var"):
            logits = draw(3 if bn else 2)
            if kind == "ssn" and fixed:
                logits = torch.eye(len(logits), dtype=logits.dtype)[logits.argmax()]
            state[f"{name}.{statistic}_weight"] = logits
        if bn:
            state[f"{name}.running_mean"] = 0.3 * draw(1, channels, 1)
            state[f"{name}.running_var"] = 0.5 + draw(1, channels, 1) ** 2
        if kind == "ssn":
            state[f"{name}.mean_fixed"] = state[f"{name}.var_fixed"] = torch.tensor([int(fixed)])
            state[f"{name}.radius"] = torch.tensor([1.0 if fixed else 0.3], dtype=torch.float64)

    conv("conv1", 3, WIDTH, 7)
    norm("sn1", WIDTH)
    inputs = WIDTH
    for stage, blocks in enumerate(BLOCKS[depth]):
        planes = WIDTH * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            for number, (size, outputs, kernel) in enumerate(
                [(inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)], start=1
            ):
                conv(f"{name}.conv{number}", size, outputs, kernel)
                norm(f"{name}.sn{number}", outputs if version == 1 else size)
            if block == 0:
                conv(f"{name}.downsample.0" if version == 1 else f"{name}.downsample", inputs, 4 * planes, 1)
                if version == 1:
                    norm(f"{name}.downsample.1", 4 * planes)
            inputs = 4 * planes
    if version == 2:
        norm("sn_out", inputs)
    state |= {"fc.weight": draw(CLASSES, inputs), "fc.bias": draw(CLASSES)}
    return state


def official_weights(state, name):
    """The weights of a layer: softmax of the logits; in a sparse layer the logits if fixed, else their sparsestmax."""
    found = {}
    for statistic in ("mean", "var"):
        logits = state[f"{name}.{statistic}_weight"]
        if f"{name}.radius" not in state:
            found[statistic] = logits.softmax(0)
        elif state[f"{name}.{statistic}_fixed"].item():
            found[statistic] = logits
        else:
            found[statistic] = logits.new_tensor(
                sparsestmax(logits.tolist(), state[f"{name}.radius"].item(), "support")
            )
    return found


def official_norm(state, name, x):
    """The output of a layer in evaluation."""
    weights = official_weights(state, name)
    means, variances = [x.mean((2, 3)), x.mean((1, 2, 3))[:, None]], official_variances(x)
    variances = [variances["in"], variances["ln"]]
    if f"{name}.running_mean" in state:
        means.append(state[f"{name}.running_mean"][:, :, 0])
        variances.append(state[f"{name}.running_var"][:, :, 0])
    mean = sum(weight * each for weight, each in zip(weights["mean"], means, strict=True))
    var = sum(weight * each for weight, each in zip(weights["var"], variances, strict=True))
    x = (x - mean[:, :, None, None]) / torch.sqrt(var + 1e-5)[:, :, None, None]
    return x * state[f"{name}.weight"] + state[f"{name}.bias"]


def official_logits(state, x):
    """The output of the network in evaluation, for images whose last feature maps have more than one pixel."""

    def conv(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(name, x):
        return official_norm(state, name, x)

    x = norm("sn1", conv("conv1", x, 2)).relu()
    sparse = "sn1.radius" in state
    x = max_pool2d(x, 3, 2, padding=0 if sparse else 1, ceil_mode=sparse)
    second = "sn_out.weight" in state
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if second:
                x = norm(f"{name}.sn1", x).relu()
                shortcut = conv(f"{name}.downsample", x, stride) if block == 0 else shortcut
                x = norm(f"{name}.sn2", conv(f"{name}.conv1", x)).relu()
                x = norm(f"{name}.sn3", conv(f"{name}.conv2", x, stride)).relu()
                x = conv(f"{name}.conv3", x) + shortcut
            else:
                if block == 0:
                    shortcut = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride))
                x = norm(f"{name}.sn1", conv(f"{name}.conv1", x)).relu()
                x = norm(f"{name}.sn2", conv(f"{name}.conv2", x, stride)).relu()
                x = (norm(f"{name}.sn3", conv(f"{name}.conv3", x)) + shortcut).relu()
            block += 1
    if second:
        x = norm("sn_out", x).relu()
    return linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])

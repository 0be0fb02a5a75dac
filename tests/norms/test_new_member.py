"""A fifth member, rms, added as docs/extending.md says: it has no kernels and runs on the reference implementation."""

import os
import shutil
import subprocess
import sys

from tests.conftest import ROOT

RECIPE = {  # what is replaced in each file
    "names.py": ('NORMALIZERS = ("in", "ln", "bn", "gn")', 'NORMALIZERS = ("in", "ln", "bn", "gn", "rms")'),
    "kernels/reference.py": (
        '        elif name != "in":\n',
        '        elif name == "rms":\n'
        "            power = (var + mean.square()).mean((2, 3), keepdim=True)\n"
        "            members[name] = torch.zeros_like(power), power\n"
        '        elif name != "in":\n',
    ),
}

PROGRAM = """
import torch
from study.norms import build_norm, switch_weights
from study.norms.kernels.dispatch import kernel_kind, load_kernels

def statistics(x, running):
    biased = lambda axes: (x.mean(axes, keepdim=True), x.var(axes, correction=0, keepdim=True))
    power = x.square().mean((1, 2, 3), keepdim=True)
    bn = biased((0, 2, 3)) if running is None else [each.view(1, -1, 1, 1) for each in running]
    return {"in": biased((2, 3)), "ln": biased((1, 2, 3)), "bn": bn, "rms": (torch.zeros_like(power), power)}

assert load_kernels("cpu")
for name in ("sn[in,ln,bn,rms]", "sn[rms]", "sn-tied[ln,rms]", "ssn[in,ln,bn,rms]", "ssn[rms]"):
    layer = build_norm(name)(6).double()
    pool = layer.pool
    assert kernel_kind("cpu", pools=[pool]) == "plain"
    for seed, parameter in enumerate(layer.parameters()):
        generator = torch.Generator().manual_seed(seed)
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        running = (layer.running_mean, layer.running_var) if "bn" in pool and not training else None
        x = (torch.randn(3, 6, 4, 5, dtype=torch.float64) + 1).requires_grad_()
        y = layer(x)
        found = statistics(x, running)
        weights = layer._compute_weights()
        mean, var = (sum(w * found[k][i] for w, k in zip(weights[i], pool)) for i in range(2))
        gamma, beta = layer.weight.view(-1, 1, 1), layer.bias.view(-1, 1, 1)
        expected = gamma * (x - mean) / (var + layer.eps).sqrt() + beta
        torch.testing.assert_close(y, expected)
        leaves, dy = [x, *layer.parameters()], torch.randn_like(y)
        gradients = [torch.autograd.grad(each, leaves, dy, retain_graph=True) for each in (y, expected)]
        torch.testing.assert_close(*gradients)
    assert switch_weights(layer)[""].mean.shape == (len(pool),)
"""


def test_a_member_that_follows_the_recipe_has_right_values_and_gradients(tmp_path):
    (tmp_path / "study").mkdir()
    shutil.copy(ROOT / "study/__init__.py", tmp_path / "study")
    shutil.copytree(ROOT / "study/norms", tmp_path / "study/norms", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in RECIPE.items():
        path = tmp_path / "study/norms" / name
        assert path.read_text().count(before) == 1
        path.write_text(path.read_text().replace(before, after))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr

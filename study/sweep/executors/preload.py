"""Imported by the forkserver, so that the processes forked from it need not import or read these things themselves.

Only imports and plain computations: a thread or connection opened here would be broken in every forked process.
"""

from __future__ import annotations

import contextlib


def _preload() -> None:
    with contextlib.suppress(ImportError):
        import requests  # noqa: F401
        import wandb.sdk.launch.inputs.internal  # noqa: F401  # by `wandb.init`, also offline: 80 modules, one second

    import torch

    import study.training.fused  # noqa: F401
    from study.config.choice_space import NORMALIZATION
    from study.data import digits
    from study.norms.kernels import dispatch
    from study.record.wandb_run import build_heat_map

    dispatch.load_kernels("cpu")  # compiles the kernels, once per machine
    digits.load()
    build_heat_map(torch.empty(0, 2, 1), [], ["bn"], NORMALIZATION)  # plotly imports each trace type when it is drawn


_preload()

"""Imported by the forkserver: what a trial would import or read at its first use of it is there when it is forked.

Only imports and plain arithmetic: a thread or a connection that is opened here would be broken in every trial.
"""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):
    import requests  # noqa: F401
    import wandb.sdk.launch.inputs.internal  # noqa: F401  # by `wandb.init`, offline too: 80 modules, a second

import torch

import study.training.trial  # noqa: F401
from study.data import digits
from study.norms.kernels import dispatch
from study.record.wandb_run import heat_map

dispatch.load_kernels("cpu")  # compiles the kernels, once a machine
digits.load()
heat_map(torch.empty(0, 2, 1), [], ["bn"])  # plotly imports each kind of trace when it is drawn

"""Imported by the forkserver, so that the processes forked from it need not import or read these things themselves.

Only imports and plain computations: a thread or connection opened here would be broken in every forked process.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

from study.config.errors import INTERRUPTED


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

    with _interruptible():
        dispatch.load_kernels("cpu")  # compiles the kernels, once per machine
    digits.load()
    build_heat_map(torch.empty(0, 2, 1), [], ["bn"], NORMALIZATION)  # plotly imports each trace type when it is drawn


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Inside the context Ctrl-C ends this process and the compiler, which take half a minute; the driver reports it.

    Elsewhere in a forkserver it is blocked (study/config/signals.py).
    """
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_preload()

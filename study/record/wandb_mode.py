"""Whether W&B runs online or offline, decided once per study by the driver. Imports no torch."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Literal

import wandb
from wandb.sdk import wandb_setup

from study.config.schema import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
RESPONSE_SECONDS = 5.0


def resolve_mode(tracking: TrackingConfig, warn: Callable[[str], None] = lambda line: None) -> Mode:
    """`online`, `offline` or `disabled`. Online needs a server that responds within 5 s; with `auto`, also a login.

    Decided once per study, because a server that does not respond would cost each trial half a minute. Where W&B cannot
    work, it is disabled. `warn` receives a line if the mode is not the one that the user may expect.
    """
    requested = requested_mode(tracking)
    if requested == "disabled":
        return requested
    try:
        _check_home()
        if requested == "offline" or (requested == "auto" and not wandb.login(prompt=False, verify=False)):
            return "offline"
        responds = _responds(_server_url())
    except Exception as error:  # W&B may fail in any way, which must not fail the study
        warn(f"W&B is off, and trials are recorded without it: {str(error).splitlines()[0]}")
        return "disabled"
    if not responds and requested == "online":
        warn("W&B does not answer: trials are recorded offline; upload them later with `wandb sync`")
    return "online" if responds else "offline"


def requested_mode(tracking: TrackingConfig) -> Mode | Literal["auto"]:
    """The mode in the study's configuration; where that is `auto`, the mode in $WANDB_MODE."""
    if tracking.mode != "auto" or not os.environ.get("WANDB_MODE"):
        return tracking.mode
    known: dict[str, Mode] = {"online": "online", "disabled": "disabled"}
    return known.get(os.environ["WANDB_MODE"], "offline")


def _check_home() -> None:
    """Raises `ValueError` where W&B has no folder for its cache and logs; it would log to the terminal instead."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        folder = os.environ.get(name)
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return
    raise ValueError(f"the folder $HOME ({os.environ.get('HOME') or 'not set'}) is missing or cannot be written")


def _server_url() -> str:
    """The address of the W&B server: set by `wandb login --host` or $WANDB_BASE_URL, or the public one."""
    return str(wandb_setup.singleton().settings.base_url)


def _responds(url: str) -> bool:
    """Whether a server sends any response in time. In a thread, because a name lookup has no time-out of its own."""
    responses: list[bool] = []

    def request() -> None:
        try:
            urllib.request.urlopen(url, timeout=RESPONSE_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # an error status is a response
        except OSError:
            return
        responses.append(True)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(RESPONSE_SECONDS)
    return bool(responses)

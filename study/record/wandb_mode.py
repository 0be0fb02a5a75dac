"""Whether W&B runs online or offline, decided once per study by the driver. Imports no torch."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from typing import Literal

import wandb
from wandb.sdk import wandb_setup

from study.config.schema import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
RESPONSE_SECONDS = 5.0


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`. Online needs a server that responds within 5 s; with `auto`, also a login.

    Decided once per study, because a server that does not respond would cost each trial half a minute.
    """
    requested = requested_mode(tracking)
    if requested in ("offline", "disabled"):
        return requested
    if requested == "auto" and not wandb.login(prompt=False, verify=False):
        return "offline"
    return "online" if _responds(_server_url()) else "offline"


def requested_mode(tracking: TrackingConfig) -> Mode | Literal["auto"]:
    """The mode in the study's configuration; where that is `auto`, the mode in $WANDB_MODE."""
    if tracking.mode != "auto" or not os.environ.get("WANDB_MODE"):
        return tracking.mode
    known: dict[str, Mode] = {"online": "online", "disabled": "disabled"}
    return known.get(os.environ["WANDB_MODE"], "offline")


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

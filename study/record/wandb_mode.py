"""Whether W&B is to be online or offline: asked once a study, by the driver. Imports no torch."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from typing import Literal

import wandb

from study.config import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
_ENVIRONMENT: dict[str, Mode] = {"online": "online", "disabled": "disabled"}
ANSWER_SECONDS = 5.0


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`. `auto` is online for a user who is logged in and whose server answers in 5 s.

    Asked once a study, not once a trial. $WANDB_MODE decides where it is set.
    """
    if tracking.mode != "auto":
        return tracking.mode
    if os.environ.get("WANDB_MODE"):
        return _ENVIRONMENT.get(os.environ["WANDB_MODE"], "offline")
    if not wandb.login(prompt=False, verify=False):
        return "offline"
    return "online" if _answers(str(wandb.Settings().base_url)) else "offline"


def _answers(url: str) -> bool:
    """Whether the server says anything at all in time. In a thread: a name lookup has no time-out of its own."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # a refusal is an answer
        except OSError:
            return
        answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return bool(answers)

"""Whether W&B is to be online or offline: asked once a study, by the driver. Imports no torch."""

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
ANSWER_SECONDS = 5.0


def resolve_mode(tracking: TrackingConfig) -> Mode:
    """`online`, `offline` or `disabled`. Online takes a server that answers in 5 s; with `auto`, a login too.

    Asked once a study: a server that does not answer would cost each trial half a minute.
    """
    asked = asked_mode(tracking)
    if asked in ("offline", "disabled"):
        return asked
    if asked == "auto" and not wandb.login(prompt=False, verify=False):
        return "offline"
    return "online" if _answers(_server()) else "offline"


def asked_mode(tracking: TrackingConfig) -> Mode | Literal["auto"]:
    """What the study asks for, or else $WANDB_MODE."""
    if tracking.mode != "auto" or not os.environ.get("WANDB_MODE"):
        return tracking.mode
    known: dict[str, Mode] = {"online": "online", "disabled": "disabled"}
    return known.get(os.environ["WANDB_MODE"], "offline")


def _server() -> str:
    """The address of W&B, or of a server of one's own, as `wandb login --host` or $WANDB_BASE_URL has it."""
    return str(wandb_setup.singleton().settings.base_url)


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

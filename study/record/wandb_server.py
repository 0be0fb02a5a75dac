"""The W&B server: whether it can be used, and what it knows of a study's runs. Starts no W&B service; imports no torch.

A service would be inherited by every process that is started later, and refuses a run that it already knows.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from wandb.errors import AuthenticationError
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from study.config.schema import TrackingConfig

Mode = Literal["online", "offline", "disabled"]
RESPONSE_SECONDS, WATCH_SECONDS = 5.0, 15.0
PAGE = 200  # runs per request


class ServerError(Exception):
    """The server cannot be used: a line that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How the runs of a study are recorded.

    problem: why this is not what the user may expect; empty if it is. project_url: of the page, if online.
    """

    mode: Mode
    problem: str = ""
    entity: str = ""
    project_url: str | None = None

    @property
    def warning(self) -> str:
        """The problem and what follows from it, in a line; empty if there is none."""
        if self.mode == "disabled":
            return self.problem and f"W&B is off, and trials are recorded without it: {self.problem}"
        return self.problem and f"W&B: {self.problem}. Trials are recorded offline; the verb `sync` uploads them later"


def connect(tracking: TrackingConfig) -> Connection:
    """Decides how runs are recorded: online if the server knows the user and answers within 5 s, offline otherwise.

    One request, because a server that refuses or does not answer costs `wandb.init` up to half a minute. Where W&B
    cannot work at all, it is disabled.
    """
    requested = requested_mode(tracking)
    if requested == "disabled":
        return Connection(mode="disabled")
    try:
        _check_home()
        if requested == "offline":
            return Connection(mode="offline")
        return ask_server(tracking)
    except NotLoggedInError as error:
        return Connection(mode="offline", problem=str(error) if requested == "online" else "")
    except ServerError as error:
        return Connection(mode="offline", problem=str(error))
    except Exception as error:  # W&B may fail in any way, which must not fail the study
        return Connection(mode="disabled", problem=format_error(error))


def requested_mode(tracking: TrackingConfig) -> Mode | Literal["auto"]:
    """The mode in the study's configuration; where that is `auto`, the mode in $WANDB_MODE."""
    if tracking.mode != "auto" or not os.environ.get("WANDB_MODE"):
        return tracking.mode
    known: dict[str, Mode] = {"online": "online", "disabled": "disabled"}
    return known.get(os.environ["WANDB_MODE"], "offline")


class ServerWatch:
    """Asks the server at intervals whether it still works. No call waits for an answer but `check`.

    problem: the last one that was found; empty if there was none.
    """

    def __init__(self, tracking: TrackingConfig) -> None:
        self.tracking = tracking
        self.problem = ""
        self._works = self._worked = True  # at the last answer, and at the last poll
        self._due = time.monotonic() + WATCH_SECONDS

    def poll(self) -> str:
        """A line for the user when the server begins to fail, and when it works again; else empty."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + WATCH_SECONDS
            threading.Thread(target=self.check, daemon=True).start()
        works, before, self._worked = self._works, self._worked, self._works
        if works == before:
            return ""
        later = "Trials continue, and are uploaded when it works again, or by the verb `sync`"
        return "W&B: the server works again" if works else f"W&B: {self.problem}. {later}"

    def check(self) -> None:
        """Asks the server, and waits for its answer."""
        try:
            ask_server(self.tracking)
            self._works = True
        except Exception as error:  # W&B may fail in any way
            self.problem, self._works = format_error(error), False


class NotLoggedInError(ServerError):
    """There is no API key on this machine."""


def ask_server(tracking: TrackingConfig) -> Connection:
    """Asks the server who the user is. Raises `ServerError` if there is no login, a refusal, or no answer in time."""
    viewer = _query("query Viewer { viewer { entity username } }", {})["viewer"]
    if _read_key() and not viewer:
        raise ServerError(f"{_host().url} does not know this API key; run `wandb login`")
    entity = tracking.entity or (viewer or {}).get("entity") or ""
    url = f"{_host().app_url}/{quote(entity)}/{quote(tracking.project)}" if entity else None
    return Connection(mode="online", entity=entity, project_url=url)


@dataclass(frozen=True, kw_only=True)
class ServerRun:
    """What the server knows of a run. `id` is the server's own, for deleting it."""

    id: str
    name: str
    state: str
    lines: int
    summary: dict[str, Any]
    tags: list[str]
    notes: str


def list_runs(connection: Connection, tracking: TrackingConfig, group: str) -> dict[str, ServerRun]:
    """The runs of a group by their names, with the number of lines in their histories. Raises `ServerError`."""
    variables = {"entity": connection.entity, "project": tracking.project, "filters": json.dumps({"group": group})}
    return {run.name: run for run in _read_pages(variables)}


def delete_run(run: ServerRun) -> None:
    """Deletes a run, but not its artifacts. Raises `ServerError`."""
    _query("mutation DeleteRun($id: ID!) { deleteRun(input: {id: $id}) { clientMutationId } }", {"id": run.id})


def _read_pages(variables: dict[str, Any]) -> Iterator[ServerRun]:
    query = """query StudyRuns($entity: String, $project: String!, $filters: JSONString, $cursor: String, $size: Int) {
        project(name: $project, entityName: $entity) { runs(filters: $filters, after: $cursor, first: $size) {
            edges { node { id name state historyLineCount summaryMetrics tags notes } }
            pageInfo { hasNextPage endCursor } } } }"""
    cursor, more = None, True
    while more:
        project = _query(query, {**variables, "cursor": cursor, "size": PAGE})["project"]
        if project is None:  # no run has been uploaded yet
            return
        for node in (edge["node"] for edge in project["runs"]["edges"]):
            yield ServerRun(
                id=node["id"], name=node["name"], state=node["state"], lines=node["historyLineCount"],
                summary=json.loads(node["summaryMetrics"] or "{}"), tags=node["tags"] or [], notes=node["notes"] or "",
            )  # fmt: skip
        page = project["runs"]["pageInfo"]
        cursor, more = page["endCursor"], page["hasNextPage"]


def _query(query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a GraphQL answer. In a thread, because a name lookup has no time limit of its own."""
    host, key = _host(), _read_key()
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{host.url}/graphql", body, headers)  # noqa: S310
    answers: list[dict[str, Any] | str] = []

    def send() -> None:
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=RESPONSE_SECONDS) as response:
                answer = json.load(response)
            answers.append(answer["data"] or f"refuses: {answer['errors'][0]['message']}")
        except urllib.error.HTTPError as error:
            answers.append(f"{_describe_status(error.code)} (HTTP status {error.code})")
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            if not isinstance(reason, TimeoutError):
                answers.append(f"cannot be reached: {reason}")
        except (ValueError, KeyError, TypeError, IndexError):
            answers.append(_describe_status(200))

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(RESPONSE_SECONDS)
    answer = answers[0] if answers else f"does not answer within {RESPONSE_SECONDS:.0f} s"
    if isinstance(answer, str):
        raise ServerError(f"{host.url} {answer}")
    return answer


def _describe_status(code: int) -> str:
    """What an HTTP status other than 200 means, and what to do."""
    if code == 401:
        return "refuses the API key of this machine; run `wandb login`"
    if code == 403:
        return "does not allow this to the user of this machine's API key; see `wandb login` and tracking.entity"
    if code == 404:
        return "does not know this address; see $WANDB_BASE_URL, tracking.entity and tracking.project"
    if code == 429:
        return "limits the rate of requests; try again in some minutes"
    if code >= 500:
        return "has a fault; try again later"
    return "answers in a way that W&B does not; see $WANDB_BASE_URL"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address must not receive the API key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _host() -> wbauth.HostUrl:
    """The server that `wandb login --host` or $WANDB_BASE_URL names, or the public one."""
    os.environ.setdefault("WANDB_SILENT", "true")  # W&B reads its settings once
    settings = wandb_setup.singleton().settings
    return wbauth.HostUrl(settings.base_url, app_url=settings.app_url)


def _read_key() -> str:
    """The API key; empty for a login by identity token, which only the W&B service can use. Raises `ServerError`."""
    try:
        found = wbauth.authenticate_session(host=_host(), source="", prompt=False, update_session=False)
    except AuthenticationError as error:
        raise ServerError(f"the API key of this machine is not valid: {str(error).splitlines()[0]}") from None
    if found is None:
        raise NotLoggedInError("nobody is logged in on this machine; run `wandb login`")
    return found.api_key if isinstance(found, wbauth.AuthApiKey) else ""


def _check_home() -> None:
    """Raises `ValueError` where W&B has no folder for its cache and logs; it would log to the terminal instead."""
    for name in ("XDG_CACHE_HOME", "HOME"):
        folder = os.environ.get(name)
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return
    raise ValueError(f"the folder $HOME ({os.environ.get('HOME') or 'not set'}) is missing or cannot be written")


def format_error(error: Exception) -> str:
    """An error of W&B, in a line."""
    return (str(error) or type(error).__name__).splitlines()[0]

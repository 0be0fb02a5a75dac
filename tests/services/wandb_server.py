"""A stand-in for a W&B server: what the client, the library of pages and the driver ask for, kept in memory.

    python -m tests.services.wandb_server     # prints the variables to export; Ctrl-C prints the run table

History is stored by line number, as W&B does it, and the state of a run follows `complete` and `exitcode` of its last
file stream request. An operation that it does not know is answered with an error and listed in `unknown`, which fails
the test. `fault` makes it answer with a status, slowly, not at all, or break the connection.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

KEY = "a1" * 20
ENTITY = "team"

Fault = int | float | Literal["silent", "gone"] | None
"""A status code (int), seconds before each answer (float), no answer, a broken connection, or None: healthy."""


@dataclass
class Run:
    """A run as the server knows it. `lines` holds the lines of its files by file name and line number."""

    id: str
    state: str = "running"
    group: str | None = None
    name: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        return self._parse("wandb-history.jsonl")

    @property
    def events(self) -> list[dict[str, Any]]:
        """System metrics."""
        return self._parse("wandb-events.jsonl")

    @property
    def summary(self) -> dict[str, Any]:
        return (self._parse("wandb-summary.json") or [{}])[-1]

    @property
    def epochs(self) -> list[int]:
        """The epochs in its history, in the order of their lines."""
        return [row["epoch"] for row in self.history if "epoch" in row]

    def _parse(self, file: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get(file, {}).items())]


class WandbServer(ThreadingHTTPServer):
    """Serves on a free port of loopback, in threads, inside `with`."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, Run] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.calls: Counter[str] = Counter()
        self.fault: Fault = None
        self.faulty = ""  # only requests whose operation or path contains this have the fault
        self.lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a process uses this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def __enter__(self) -> WandbServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = "gone"  # ends the silent ones
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: clients are killed in the middle of a request."""


def _viewer(server: WandbServer, _: dict[str, Any]) -> dict[str, Any]:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": "me", "email": "", "flags": "{}", "teams": teams}
    return {"viewer": viewer}


def _no_features(server: WandbServer, _: dict[str, Any]) -> dict[str, Any]:
    return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}


def _resume(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    run = server.runs.get(variables["name"])
    return {"model": {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": ENTITY},
                      "bucket": None if run is None else _describe(run)}}  # fmt: skip


def _describe(run: Run) -> dict[str, Any]:
    def tail(name: str) -> str:
        lines = run.lines.get(name, {})
        return json.dumps([lines[max(lines)]] if lines else [])

    history, events = "wandb-history.jsonl", "wandb-events.jsonl"
    return {
        "id": run.id, "name": run.id, "displayName": run.name, "state": run.state, "tags": run.tags,
        "notes": run.notes, "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.lines.get(history, {})), "eventsLineCount": len(run.lines.get(events, {})),
        "logLineCount": 0, "historyTail": tail(history), "eventsTail": tail(events), "wandbConfig": '{"t": 1}',
        "sweepName": None, "description": None,
        "project": {"id": "p", "name": "normalizer-study", "entity": {"id": "e", "name": ENTITY}},
    }  # fmt: skip


def _upsert_run(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    name = variables.get("name") or variables["id"]
    inserted = name not in server.runs
    run = server.runs.setdefault(name, Run(name))
    run.state = "running"
    given = {"group": "groupName", "name": "displayName", "job_type": "jobType", "notes": "notes", "tags": "tags"}
    for field_name, variable in given.items():
        if variables.get(variable) is not None:
            setattr(run, field_name, variables[variable])
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    if variables.get("summaryMetrics"):
        run.lines["wandb-summary.json"] = {0: variables["summaryMetrics"]}
    return {"upsertBucket": {"bucket": _describe(run), "inserted": inserted}}


def _create_files(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    names = variables["files"]
    server.runs.setdefault(variables["run"], Run(variables["run"])).files.update(names)
    urls = [{"name": name, "uploadUrl": f"{server.url}/storage/{variables['run']}/{name}"} for name in names]
    return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": urls}}


def _list_runs(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    group = json.loads(variables["filters"])["group"]
    runs = [{"node": _describe(run)} for run in server.runs.values() if run.group == group]
    return {"project": {"runs": {"edges": runs, "pageInfo": {"hasNextPage": False, "endCursor": None}}}}


def _delete_run(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    server.runs.pop(variables["id"], None)
    return {"deleteRun": {"clientMutationId": None}}


def _create_artifact(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    """The same files are the same version, as on W&B."""
    for known, artifact in server.artifacts.items():
        if artifact["digest"] == variables["input"]["digest"]:
            return {"createArtifact": {"artifact": {"id": known, "state": artifact["state"], "artifactSequence": {
                "latestArtifact": {"id": known}}}}}  # fmt: skip
    name = base64.b64encode(f"Artifact:{len(server.artifacts)}".encode()).decode()
    server.artifacts[name] = {**variables["input"], "state": "PENDING", "entries": []}
    return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": {
        "latestArtifact": None}}}}  # fmt: skip


def _create_manifest(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    url = f"{server.url}/storage/{variables['artifactID']}/manifest"
    return {"createArtifactManifest": {"artifactManifest": {"id": variables["artifactID"], "file": {
        "id": "f", "uploadUrl": url, "uploadHeaders": []}}}}  # fmt: skip


def _create_artifact_files(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    edges = []
    for each in variables["input"]["artifactFiles"]:
        server.artifacts[each["artifactID"]]["entries"].append(each["name"])
        path = f"{each['artifactID']}/{each['name']}"
        edges.append({"node": {"storagePath": path, "uploadUrl": f"{server.url}/storage/{path}", "uploadHeaders": [],
                               "uploadMultipartUrls": None, "artifact": {"id": each["artifactID"]}}})  # fmt: skip
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    server.artifacts[variables["artifactID"]]["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}


def _list_projects(server: WandbServer, _: dict[str, Any]) -> dict[str, Any]:
    node = {"id": "p", "name": "normalizer-study", "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00Z",
            "isBenchmark": False, "user": None, "__typename": "Project"}  # fmt: skip
    return {"models": {"pageInfo": {"endCursor": None, "hasNextPage": False}, "edges": [{"node": node}]}}


def _upsert_view(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    known = variables.get("id") or base64.b64encode(f"View:{len(server.views)}".encode()).decode()
    project = {"name": variables["projectName"], "entityName": variables["entityName"], "id": "p"}
    fields = ("name", "displayName", "spec", "type", "description")
    server.views[known] = {"id": known, "project": project, **{name: variables.get(name) for name in fields}}
    return {"upsertView": {"view": dict(server.views[known]), "inserted": True}}


def _find_views(server: WandbServer, variables: dict[str, Any]) -> dict[str, Any]:
    found = [view for view in server.views.values() if view["name"] == variables["viewName"]]
    return {"project": {"allViews": {"edges": [{"node": dict(view)} for view in found]}}}


_OPERATIONS: dict[str, Callable[[WandbServer, dict[str, Any]], dict[str, Any]]] = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "ServerFeaturesQuery": _no_features,
    "RunResumeStatus": _resume,
    "UpsertBucket": _upsert_run,
    "CreateRunFiles": _create_files,
    "StudyRuns": _list_runs,
    "DeleteRun": _delete_run,
    "ArtifactType": lambda server, variables: {"project": {"artifact": None}},
    "OrganizationCoreWeaveOrganizationID": lambda server, variables: {"entity": {"organization": None}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _create_manifest,
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit,
    "GetProjects": _list_projects,
    "upsertView": _upsert_view,
    "UpsertView2": _upsert_view,
    "View": _find_views,
    "SpecificReport": lambda server, variables: {"view": server.views.get(variables["reportId"])},
}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/file_stream"):
            self._reply(self.path, lambda: self._stream(json.loads(body)))
            return
        request = json.loads(body)
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        operation = found[1] if found else request["query"][:60]
        self._reply(operation, lambda: self._query(operation, request.get("variables") or {}))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._reply(self.path, lambda: self.server.stored.update({self.path: body}) or {})

    def do_GET(self) -> None:
        self._reply(self.path, dict)

    def _query(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation not in _OPERATIONS:
            self.server.unknown.append(operation)
            return {"errors": [{"message": f"unknown operation {operation}"}]}
        with self.server.lock:
            return {"data": _OPERATIONS[operation](self.server, variables)}

    def _stream(self, content: dict[str, Any]) -> dict[str, Any]:
        run = self.server.runs[self.path.split("/")[4]]
        with self.server.lock:
            for name, part in content.get("files", {}).items():
                lines = run.lines.setdefault(name, {})
                lines.update(enumerate(part["content"], start=part["offset"]))
            run.preempting |= content.get("preempting", False)
            if content.get("complete"):
                failed = "preempted" if run.preempting else "failed"
                run.state = "finished" if content["exitcode"] == 0 else failed
                run.preempting = False
        return {"exitcode": None, "limits": {}}

    def _reply(self, what: str, compute: Callable[[], dict[str, Any]]) -> None:
        """Answers with the result of `compute`, or as the fault says."""
        server = self.server
        server.calls[what] += 1
        fault = server.fault if server.faulty in what else None
        if isinstance(fault, float):
            time.sleep(fault)
        while server.fault == fault == "silent":
            time.sleep(0.05)
        if fault in ("gone", "silent") or server.fault == "gone":
            self.close_connection = True
            return
        status, answer = (fault, {"errors": [{"message": f"fault {fault}"}]}) if isinstance(fault, int) else (200, None)
        text = json.dumps(compute() if answer is None else answer).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def format_runs(runs: Iterable[Run]) -> str:
    """The run table, as the page of a project shows it."""
    lines = [("Name", "Group", "State", "Tags", "norm", "attempts", "val_accuracy", "status")]
    for run in sorted(runs, key=lambda run: run.name or ""):
        config = [str(run.config.get(key, {}).get("value", "")) for key in ("norm", "attempts")]
        accuracy = run.summary.get("val_accuracy")
        ends = ("" if accuracy is None else f"{accuracy:.3f}", run.summary.get("status", ""))
        lines.append((run.name or "", run.group or "", run.state, ", ".join(run.tags), *config, *ends))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    with WandbServer() as server, suppress(KeyboardInterrupt):
        for name, value in server.environment.items():
            print(f"export {name}={value}", flush=True)
        threading.Event().wait()
    print(format_runs(server.runs.values()))

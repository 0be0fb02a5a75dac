"""Fixtures that start real services: Slurm, a Ray cluster, a PostgreSQL server, a browser.

Each starts once per test process, on ports and in a folder of its own, so that processes of pytest-xdist do not
interfere. Without the service its tests are skipped with the reason, or fail with `--require-services`, as in CI.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services import daemons
from tests.services import postgres as postgres_server
from tests.services import slurm as slurm_node

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from ray.cluster_utils import Cluster


NODE_MEMORY = 80_000_000  # bytes of the object store of a Ray node; the default is a share of the machine's memory
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-services",
        action="store_true",
        help="fail instead of skip where Slurm, Ray, PostgreSQL or Chromium is missing",
    )


@pytest.fixture
def slurm(_slurm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm of two nodes that this process and its children use; returns its folder, with the logs."""
    for name, value in slurm_node.environment(_slurm_folder).items():
        monkeypatch.setenv(name, value)
    return _slurm_folder


@pytest.fixture(scope="session")
def _slurm_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    _require(request, programs=slurm_node.PROGRAMS, module="submitit")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # not pytest's: socket paths must be short
        try:
            slurm_node.start(Path(folder))
            yield Path(folder)
        finally:
            slurm_node.stop(Path(folder))


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A PostgreSQL server and a database on it."""

    folder: Path
    database: str
    password: str = postgres_server.PASSWORD

    @property
    def url(self) -> str:
        return self.url_with()

    def url_with(self, database: str | None = None, password: str | None = None) -> str:
        """The URL with another database or password."""
        return postgres_server.url(self.folder, database or self.database, password or self.password)

    def stop(self) -> None:
        """Stops the server as a crash does: all connections break."""
        postgres_server.stop(self.folder, "immediate")

    def start(self) -> None:
        postgres_server.start(self.folder)


@pytest.fixture
def postgres(_postgres_folder: Path, request: pytest.FixtureRequest) -> Postgres:
    """A PostgreSQL server with an empty database for this test."""
    import psycopg

    database = f"test_{abs(hash(request.node.nodeid))}"
    server = postgres_server.url(_postgres_folder).replace("+psycopg", "")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    return Postgres(folder=_postgres_folder, database=database)


@pytest.fixture(scope="session")
def _postgres_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    _require(request, programs=postgres_server.PROGRAMS, module="psycopg")
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # not pytest's, which only its owner may read
        postgres_server.start(Path(folder))
        try:
            yield Path(folder)
        finally:
            postgres_server.stop(Path(folder))


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two Ray nodes on this machine with two CPUs each, and a pretended GPU on the second; connect to its `address`.

    A test that kills a node adds one first, by `add_second_node`. The address is not 127.0.0.1, on which the nodes
    would not find each other.
    """
    _require(request, module="ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # sends nothing
    # Ray's default of 15 starves tasks beside other test processes.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "resources": {"first": 1}, "object_store_memory": NODE_MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        add_second_node(cluster)
        cluster.wait_for_nodes(timeout=60)
        yield cluster
    finally:
        cluster.shutdown()


def add_second_node(cluster: Cluster) -> None:
    """Adds a Ray node with a pretended GPU."""
    cluster.add_node(num_cpus=2, num_gpus=1, resources={"second": 1}, object_store_memory=NODE_MEMORY)


@pytest.fixture(scope="module")  # not session: its event loop would block others in this thread
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The installed Chromium or Chrome; nothing is downloaded."""
    program = next(filter(None, map(daemons.find, BROWSERS)), None)
    _require(request, programs=() if program else BROWSERS[:1], module="playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # tests may run as root
        yield chromium
        chromium.close()


def _require(request: pytest.FixtureRequest, *, programs: tuple[str, ...] = (), module: str) -> None:
    """Skips or fails the test if a program or a Python module is not installed."""
    absent = daemons.missing(programs)
    if importlib.util.find_spec(module) is None:
        absent = f"{absent}, {module}".removeprefix(", ")
    if absent and request.config.getoption("--require-services"):
        pytest.fail(f"not installed: {absent} (see tests/services/install.sh)")
    if absent:
        pytest.skip(f"not installed: {absent}")

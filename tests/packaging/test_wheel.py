"""The package as users install it: a wheel in an environment of its own, without the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import study
from study.record.environment import git_commit
from tests.conftest import ROOT

STUDY = ("--study", "depth_vs_batch", "--scale", "smoke", "--set", "tracking.mode=disabled")
ONE_TRIAL_PER_NORM = ("--set", "batch_size=2", "--set", "epochs=1", "--set", "norm=[sn, bn]")
# Runs at the start of every Python process of the environment: reading a file of the checkout is an error.
GUARD = """
import sys

def refuse_checkout(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith({root!r}):
        if not str(arguments[0]).startswith({environment!r}):
            raise RuntimeError(f"{{event}} in the checkout: {{arguments[0]}}")

sys.addaudithook(refuse_checkout)
"""


def build(target: str, source: Path, folder: Path) -> Path:
    """Builds a wheel or sdist of `source` into `folder`, without network, and returns its path."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = folder.iterdir()
    return built


def list_files(wheel: Path) -> set[str]:
    """Returns the files of the package, as paths in site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def read_commit(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("study/commit.txt").decode().strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


class Installed:
    """An environment with the wheel, which sees the dependencies of the one that runs the tests."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.environment, self.folder, self.commit = folder / "environment", folder / "empty", read_commit(wheel)
        self.folder.mkdir()
        venv.create(self.environment)
        self.bin = self.environment / "bin"
        (packages,) = self.environment.glob("lib/python*/site-packages")
        # A path file of a folder that a path file names is not read: the editable install of the checkout stays out.
        dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
        guard = GUARD.format(root=f"{ROOT}{os.sep}", environment=f"{sys.prefix}{os.sep}")
        (packages / "sitecustomize.py").write_text(guard)
        (packages / "configs").mkdir()  # of another package: not to be taken for the studies and scales
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--no-index", "--no-deps"]
        subprocess.run([*pip, "-q", str(wheel)], check=True, capture_output=True, text=True, cwd=folder)

    def run(self, *command: str) -> str:
        """Runs a command of the environment in an empty folder and returns what it prints."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder, env=variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    package = {path.relative_to(ROOT).as_posix() for path in Path(ROOT, "study").rglob("*") if path.is_file()}
    configs = {f"study/{path.relative_to(ROOT).as_posix()}" for path in Path(ROOT, "configs").rglob("*.yaml")}
    assert list_files(wheel) == {name for name in package if "__pycache__" not in name} | configs | {"study/commit.txt"}
    assert "study/py.typed" in package


def test_the_description_has_no_relative_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    assert re.findall(r"\]\((?!https?://)[^)]*\)", metadata) == []
    assert "docs/norms.md" in metadata
    assert "![" not in metadata


def test_a_wheel_from_a_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("normalizer_study-*")
    other = build("wheel", source, tmp_path / "wheel")
    assert read_commit(other) == read_commit(wheel) == git_commit()
    assert list_files(other) == list_files(wheel)


def test_a_wheel_built_outside_a_checkout_says_that_its_commit_is_unknown(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("study", "configs"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    assert read_commit(build("wheel", copy, tmp_path / "wheel")) == "unknown"


def test_version_is_that_of_pyproject(installed: Installed) -> None:
    (declared,) = re.findall(r'^version = "(.*)"$', Path(ROOT, "pyproject.toml").read_text(), re.MULTILINE)
    printed = installed.run("run-study", "--version")
    assert printed == f"normalizer-study {declared} (commit {installed.commit})\n"
    script = "import study; print(study.__version__, study.__file__)"
    assert installed.run("python", "-c", script).split() == [
        declared, str(next(installed.environment.glob("lib/python*/site-packages/study/__init__.py"))),
    ]  # fmt: skip


@pytest.mark.slow
def test_an_installed_package_trains_and_reports_in_an_empty_folder(installed: Installed) -> None:
    assert "depth_vs_batch" in installed.run("run-study")
    installed.run("run-study", *STUDY, *ONE_TRIAL_PER_NORM)
    assert "2 of 2 trials" in installed.run("python", "-m", "study", "status", *STUDY, *ONE_TRIAL_PER_NORM)
    folder = installed.folder / "runs" / "depth_vs_batch"
    records = [json.loads(path.read_text()) for path in folder.glob("trials/*/r0/environment.json")]
    assert len(records) == 2
    for record in (*records, yaml.safe_load(Path(folder, "study.yaml").read_text())["provenance"]):
        assert record["versions"]["normalizer-study"] == study.__version__
        assert record["commit"] == installed.commit
        assert record["command"].startswith("run-study --study depth_vs_batch --scale smoke")
    assert "run-study --study depth_vs_batch" in Path(folder, "report", "report.html").read_text()
    assert "run_study.py" not in Path(folder, "report", "report.html").read_text()

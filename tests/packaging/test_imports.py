"""Which module may import which: the contracts of pyproject.toml, no cycles, and norms as a library by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.conftest import ROOT

LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Every import between modules, also those within functions and for type checking."""
    return grimp.build_graph("study", include_external_packages=True, cache_dir=None)


def test_imports_keep_the_contracts() -> None:
    done = subprocess.run([sys.executable, "-c", LINT, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_imports_itself_through_others(imports: grimp.ImportGraph) -> None:
    cycles = [
        " -> ".join((importer, *chain))
        for importer in imports.modules
        for imported in imports.find_modules_directly_imported_by(importer)
        if (chain := imports.find_shortest_chain(imported, importer))
    ]
    assert sorted(cycles) == []


def test_norms_need_nothing_but_torch(imports: grimp.ImportGraph) -> None:
    norms = {"study.norms", *imports.find_descendants("study.norms")}
    imported = {name for module in norms for name in imports.find_modules_directly_imported_by(module)} - norms
    assert imported - sys.stdlib_module_names <= {"torch", "triton", "filelock"}  # torch brings triton and filelock


def test_modules_lie_in_packages() -> None:
    modules = {path.name for path in Path(ROOT, "study").glob("*.py")}
    assert modules == {"__init__.py", "__main__.py"}

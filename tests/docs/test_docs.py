"""The documentation: links, paths, commands, studies and code in it are valid."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.cli.arguments import parse_arguments
from study.plan.loading import list_configs, load_study
from study.plan.trials import plan_trials
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _commands() -> Iterator[tuple[str, list[str]]]:
    """The arguments of every `python run_study.py ...` in the documentation."""
    for page, name in zip(PAGES, NAMES, strict=True):
        for line in page.read_text(encoding="utf-8").splitlines():
            for command in re.findall(r"python run_study\.py([^`]*)", line.strip()):
                yield f"{name}:{command.strip()}", shlex.split(command, comments=True)


COMMANDS = dict(_commands())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_exist(page: Path) -> None:
    """Every path in `study`, `configs`, `docs` or `tests` that is named in backticks, also as an argument of pytest."""
    for quoted in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for word in quoted.split():
            if re.fullmatch(r"(study|configs|docs|tests)/[\w./-]*", word) and "NAME" not in word:
                assert (ROOT / word).exists(), word
            elif page.name == "architecture.md" and re.fullmatch(r"[\w/]+(/|\.py)", word):
                assert (ROOT / "study" / word).exists() or (ROOT / word).exists(), word


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    arguments = COMMANDS[command]
    if arguments[:1] == ["bench"]:
        return  # it has its own flags
    options = parse_arguments(arguments)
    if options.study in list_configs("studies"):
        load_study(options.study, options.scale, options.set)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_studies_can_be_planned(page: Path, tmp_path: Path) -> None:
    for block in _blocks(page, "yaml"):
        if "title:" in block:
            file = tmp_path / "mine.yaml"
            file.write_text(block, encoding="utf-8")
            assert plan_trials(load_study(str(file)))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_is_python_and_imports_what_exists(page: Path) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block.replace(", ...]", "]"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("study"):
                module = importlib.import_module(str(node.module))
                assert not [name.name for name in node.names if not hasattr(module, name.name)]


def test_modules_that_commands_start_exist() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for module in set(re.findall(r"python -m (study[\w.]*)", text)):
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize("name", ["measures", "configuration"])
def test_generated_pages_are_up_to_date(name: str, tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "docs" / "generate.py"))[f"write_{name}"]
    write.__globals__["DOCS"] = tmp_path
    write()
    assert (tmp_path / f"{name}.md").read_text() == (ROOT / "docs" / f"{name}.md").read_text()

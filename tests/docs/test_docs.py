"""The documentation: its links lead somewhere, its commands are understood, its studies can be planned."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from study.cli.main import parse_arguments
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
    """Every `python run_study.py ...` of the documentation, without what stands around it."""
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


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    arguments = COMMANDS[command]
    if arguments[:1] == ["bench"]:
        return  # with flags of its own
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
def test_code_is_python(page: Path) -> None:
    for block in _blocks(page, "python"):
        compile(block.replace(", ...]", "]"), str(page), "exec")


@pytest.mark.parametrize("name", ["measures", "configuration"])
def test_generated_pages_are_up_to_date(name: str, tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "docs" / "generate.py"))[f"write_{name}"]
    write.__globals__["DOCS"] = tmp_path
    write()
    assert (tmp_path / f"{name}.md").read_text() == (ROOT / "docs" / f"{name}.md").read_text()

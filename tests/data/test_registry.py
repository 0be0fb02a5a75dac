"""Every entry of the catalog has a module with the functions that its kind of data set needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from study.config.datasets import DATASETS
from study.data import scenes
from study.data.registry import InMemoryModule, StreamedModule, import_in_memory_module, import_streamed_module
from tests.data.trees import WRITERS


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize("dataset", [name for name, facts in DATASETS.items() if facts.streamed])
def test_a_streamed_data_set_has_a_module_and_a_tree_for_tests(dataset: str) -> None:
    module = import_streamed_module(dataset)
    assert module.DOWNLOAD_PAGE.startswith("http")
    for name in ("find_folder", "open_split"):
        assert parameters(getattr(module, name)) == parameters(getattr(StreamedModule, name))
    assert dataset in WRITERS


@pytest.mark.parametrize("dataset", [name for name, facts in DATASETS.items() if not facts.streamed])
def test_a_data_set_in_memory_or_its_glyphs_have_a_module(dataset: str) -> None:
    glyphs = DATASETS[dataset].glyphs
    module = import_in_memory_module(glyphs or dataset)
    assert parameters(module.load) == parameters(InMemoryModule.load)
    assert glyphs is None or DATASETS[dataset].image_size == scenes.SIZE

"""Finds the module that reads a data set, by its entry in the catalog (study/config/datasets.py).

The two protocols below are what such a module offers, depending on whether the data set is streamed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from study.config.datasets import DATASETS
from study.data.image_files import PublishedSplit, SampleSource
from study.data.in_memory import LabeledImages


class InMemoryModule(Protocol):
    """The functions of a module that reads a data set into memory."""

    def load(self, dataset: str, data_root: str | None) -> tuple[LabeledImages, LabeledImages | None]:
        """All published images: those for training and validation, and the test split if one is published.

        Pixels are in 0..1. Without `data_root` the files may be downloaded. Raises `UserError` if they are missing or
        damaged; files with other content than the published ones are in `LabeledImages.unpublished`.
        """


class StreamedModule(Protocol):
    """The functions of a module that reads a data set from files during training."""

    DOWNLOAD_PAGE: str

    def find_folder(self, root: Path) -> Path:
        """The folder of the data set below `root`. Raises `UserError` if files are missing."""

    def open_split(self, folder: Path, split: PublishedSplit) -> SampleSource:
        """A published split. Raises `UserError` if it is damaged."""


def import_in_memory_module(dataset: str) -> InMemoryModule:
    """The module of a data set that is held in memory."""
    assert not DATASETS[dataset].streamed, f"{dataset} is not held in memory"
    return _import_module(dataset)  # type: ignore[no-any-return]


def import_streamed_module(dataset: str) -> StreamedModule:
    """The module of a data set that is streamed from disk."""
    assert DATASETS[dataset].streamed, f"{dataset} is not streamed"
    return _import_module(dataset)  # type: ignore[no-any-return]


def _import_module(dataset: str) -> Any:
    return import_module(f"study.data.{DATASETS[dataset].module or dataset}")

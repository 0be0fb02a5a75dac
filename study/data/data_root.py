"""Finds the folder of a data set below `run.data_root`, or says which files are missing. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.config.errors import UserError

DOWNLOAD_FOLDER = Path("data")


def resolve_data_root(data_root: str | None) -> Path:
    """The user's folder of data sets, or the folder for downloads if none is given.

    Raises `UserError` if the user's folder does not exist.
    """
    root = DOWNLOAD_FOLDER if data_root is None else Path(data_root).expanduser()
    if data_root is not None and not root.is_dir():
        raise UserError(f"run.data_root={data_root}: no such folder")
    return root


def build_missing_files_error(dataset: str, root: Path, files: str, folders: Sequence[str]) -> UserError:
    """An error that says which files are missing, where they were looked for, and what to do."""
    places = " or ".join(str(root / folder) for folder in folders)
    return UserError(f"run.data_root={root}: {dataset}: no {files} in {places}; leave data_root out to download")


def find_dataset_folder(
    dataset: str, root: Path, folders: Sequence[str], required: Sequence[str], download_page: str
) -> Path:
    """The first of `folders` below `root` that contains everything in `required`.

    Raises `UserError` if none does. It names the first missing entry of the most complete folder, the expected layout,
    and the page where the data set can be downloaded.
    """

    def find_missing(folder: str) -> list[str]:
        return [name for name in required if not (root / folder / name).exists()]

    nearest = min(folders, key=lambda folder: len(find_missing(folder)))
    if find_missing(nearest):
        raise UserError(
            f"run.data_root={root}: {dataset}: no {find_missing(nearest)[0]} in {root / nearest}; "
            f"expected {', '.join(required)}, from {download_page}"
        )
    return root / nearest

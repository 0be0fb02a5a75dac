"""Where data files are looked for, and what to say when they are not there. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from study.config.errors import UserError

DOWNLOADS = Path("data")


def data_folder(data_root: str | None) -> Path:
    """The user's folder of data sets, or the one that they are downloaded to. Raises `UserError` if it is missing."""
    if data_root is not None and not Path(data_root).is_dir():
        raise UserError(f"run.data_root={data_root}: no such folder")
    return Path(data_root) if data_root is not None else DOWNLOADS


def missing_files(dataset: str, root: Path, files: str, folders: Sequence[str]) -> UserError:
    """The one line that says which files were looked for, where, and what to do."""
    places = " or ".join(str(root / folder) for folder in folders)
    return UserError(f"run.data_root={root}: {dataset}: no {files} in {places}; leave data_root out to download")


def find_tree(dataset: str, root: Path, folders: Sequence[str], needed: Sequence[str], page: str) -> Path:
    """The first of `folders` below `root` that holds all that is `needed`.

    Raises `UserError` that names what is missing in the folder that has most of it, the layout, and the `page` where
    the data set is obtained.
    """

    def missing(folder: str) -> list[str]:
        return [name for name in needed if not (root / folder / name).exists()]

    nearest = min(folders, key=lambda folder: len(missing(folder)))
    if missing(nearest):
        raise UserError(
            f"run.data_root={root}: {dataset}: no {missing(nearest)[0]} in {root / nearest}; "
            f"expected {', '.join(needed)}, from {page}"
        )
    return root / nearest

"""Whether the records of a study fit on its disk."""

from __future__ import annotations

import shutil

from study.record.layout import StudyFolder


def check_disk_space(needed: float, folder: StudyFolder) -> tuple[float, str]:
    """Returns the free bytes on the disk of a study's folder, and a warning, which is empty if they are enough."""
    existing = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed < free:
        return free, ""
    return free, f"the disk of {existing} has {format_bytes(free)} free; the study needs about {format_bytes(needed)}"


def format_bytes(count: float) -> str:
    """1_500_000 -> '1.5 MB'."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"

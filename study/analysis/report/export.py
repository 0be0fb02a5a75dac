"""The report's figures as SVG and PDF, as papers want them: black on white, without a title, with captions beside."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from study.record.io import write_bytes

FORMATS = ("svg", "pdf")
ONE_COLUMN, TWO_COLUMNS = 324, 672  # CSS pixels, 96 an inch: 86 and 178 mm
SLIDER_HEIGHT = 90  # pixels; paper does not move
NO_BROWSER = (
    "no figures as SVG and PDF: they need Chrome or Chromium, and none was found. Install one (on Debian: apt install "
    "chromium), or set BROWSER_PATH to its program"
)


def export_figures(figures: Sequence[go.Figure], folder: Path) -> list[Path] | str:
    """Writes each figure as SVG and PDF, and captions.txt; returns the images' paths, or why there are none.

    Images that an earlier call left in the folder go. One browser draws all; where none is found, or it fails, nothing
    is written and nothing is raised. Same figures, same bytes, with the same browser and fonts.
    """
    if not figures:
        _replace_images(folder, {})
        return []
    # Imported late: the rest of the report needs no browser. `kaleido` is plotly's own way to images.
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    names = [f"{number:02}-{_slug(figure.layout.title.text)}" for number, figure in enumerate(figures, start=1)]
    papers = [for_paper(figure) for figure in figures]
    with tempfile.TemporaryDirectory() as scratch:
        files = [(paper, Path(scratch) / f"{name}.{format}")
                 for name, paper in zip(names, papers, strict=True) for format in FORMATS]  # fmt: skip
        try:
            kaleido.write_fig_from_object_sync(
                [{"fig": paper, "path": path, "opts": _size(paper) | {"format": path.suffix[1:]}}
                 for paper, path in files],
                cancel_on_error=True, kopts={"mathjax": False},  # which would be fetched from the network
            )  # fmt: skip
        except ChromeNotFoundError:
            return NO_BROWSER
        except Exception as error:  # whatever a browser does: the report stands without images
            said = str(error).splitlines() or [""]
            return f"no figures as SVG and PDF: the browser failed: {type(error).__name__}: {said[0]}"
        images = {path.name: without_chance(path.read_bytes()) for _, path in files}
    captions = "".join(f"{name}\n{_caption(figure)}\n\n" for name, figure in zip(names, figures, strict=True))
    return _replace_images(folder, images | {"captions.txt": captions.encode()})


def for_paper(figure: go.Figure) -> go.Figure:
    """A copy without title and slider, black on white, as wide as one column or as two, by its panels."""
    paper = go.Figure(figure)
    domains = [axis.domain for axis in paper.select_xaxes()] + [each.domain.x for each in paper.select_ternaries()]
    columns = {domain for domain in domains if domain}
    for number, trace in enumerate(paper.data):
        trace.uid = str(number)  # or plotly draws one by chance
    moving = bool(paper.layout.sliders)
    paper.layout.sliders = ()  # an update would leave them
    return paper.update_layout(
        title=None, meta=None, width=ONE_COLUMN if len(columns) < 2 else TWO_COLUMNS,
        height=figure.layout.height - SLIDER_HEIGHT * moving, paper_bgcolor="white", plot_bgcolor="white",
        font={"family": "Arial, Liberation Sans, Helvetica, sans-serif", "color": "black"},
    ).update_yaxes(linecolor="black").update_xaxes(linecolor="black")  # fmt: skip


def without_chance(image: bytes) -> bytes:
    """An image without what differs from call to call: an id that plotly draws by chance in SVG, the time in PDF."""
    for uid in set(re.findall(rb'id="(?:top)?defs-(\w+)"', image)):
        image = image.replace(uid, b"figure")
    return re.sub(rb"Date \(D:\d{14}", b"Date (D:20000101000000", image)


def _size(paper: go.Figure) -> dict[str, Any]:
    return {"width": paper.layout.width, "height": paper.layout.height, "scale": 1}


def _caption(figure: go.Figure) -> str:
    title = figure.layout.title
    still = re.sub(r"The slider[^.]*\.", "The last epoch.", title.subtitle.text)
    return f"{title.text}. {still}"


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].rstrip("-")


def _replace_images(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Writes the files; other images in the folder go. Returns the paths of the images."""
    for old in (path for format in FORMATS for path in folder.glob(f"*.{format}")):
        if old.name not in files:
            old.unlink()
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files if name.endswith(FORMATS)]

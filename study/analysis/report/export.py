"""The report's figures as SVG and PDF for papers: black on white, without titles; captions are in captions.txt."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from study.analysis.wording import format_slug
from study.record.io import write_bytes

FORMATS = ("svg", "pdf")
ONE_COLUMN, TWO_COLUMNS = 324, 672  # CSS pixels, 96 an inch: 86 and 178 mm
SLIDER_HEIGHT = 90  # pixels; images have no slider
NO_BROWSER = (
    "no figures as SVG and PDF: they need Chrome or Chromium, and none was found. Install one (on Debian: apt install "
    "chromium), or set BROWSER_PATH to its executable"
)


def export_figures(figures: Sequence[go.Figure], folder: Path) -> list[Path] | str:
    """Writes each figure as SVG and PDF, and captions.txt; returns the images' paths, or why there are none.

    Images of an earlier call are removed from the folder. One browser draws all figures; if none is found, or it
    fails, nothing is written and nothing is raised. With the same browser and fonts, the same figures give the same
    bytes.
    """
    if not figures:
        _replace_images(folder, {})
        return []
    names = [f"{number:02}-{format_slug(figure.layout.title.text, 60)}" for number, figure in enumerate(figures, 1)]
    images = _draw_images({name: build_paper_figure(figure) for name, figure in zip(names, figures, strict=True)})
    if isinstance(images, str):
        return images
    captions = "".join(f"{name}\n{_format_caption(figure)}\n\n" for name, figure in zip(names, figures, strict=True))
    return _replace_images(folder, images | {"captions.txt": captions.encode()})


def build_paper_figure(figure: go.Figure) -> go.Figure:
    """A copy without title and slider, black on white, one or two columns wide, depending on its panels."""
    paper = go.Figure(figure)
    domains = [axis.domain for axis in paper.select_xaxes()] + [each.domain.x for each in paper.select_ternaries()]
    columns = {domain for domain in domains if domain}
    for number, trace in enumerate(paper.data):
        trace.uid = str(number)  # otherwise plotly draws a random one
    has_slider = bool(paper.layout.sliders)
    paper.layout.sliders = ()  # update_layout cannot remove them
    return paper.update_layout(
        title=None, meta=None, width=ONE_COLUMN if len(columns) < 2 else TWO_COLUMNS,
        height=figure.layout.height - SLIDER_HEIGHT * has_slider, paper_bgcolor="white", plot_bgcolor="white",
        font={"family": "Arial, Liberation Sans, Helvetica, sans-serif", "color": "black"},
    ).update_yaxes(linecolor="black").update_xaxes(linecolor="black")  # fmt: skip


def remove_random_parts(image: bytes) -> bytes:
    """An image without the parts that differ from call to call: a random id in SVG, the time in PDF."""
    for uid in set(re.findall(rb'id="(?:top)?defs-(\w+)"', image)):
        image = image.replace(uid, b"figure")
    return re.sub(rb"Date \(D:\d{14}", b"Date (D:20000101000000", image)


def _draw_images(papers: dict[str, go.Figure]) -> dict[str, bytes] | str:
    """The images of figures in all `FORMATS`, by file name; or why there are none."""
    # Imported here because the rest of the report needs no browser.
    import kaleido
    from kaleido.errors import ChromeNotFoundError

    with tempfile.TemporaryDirectory() as scratch:
        paths = {Path(scratch) / f"{name}.{format}": paper for name, paper in papers.items() for format in FORMATS}
        try:
            kaleido.write_fig_from_object_sync(
                [{"fig": paper, "path": path, "opts": _get_size(paper) | {"format": path.suffix[1:]}}
                 for path, paper in paths.items()],
                cancel_on_error=True, kopts={"mathjax": False},  # MathJax would be fetched from the network
            )  # fmt: skip
        except ChromeNotFoundError:
            return NO_BROWSER
        except Exception as error:  # a browser may fail in any way, and the report is complete without images
            lines = str(error).splitlines() or [""]
            return f"no figures as SVG and PDF: the browser failed: {type(error).__name__}: {lines[0]}"
        return {path.name: remove_random_parts(path.read_bytes()) for path in paths}


def _get_size(paper: go.Figure) -> dict[str, Any]:
    return {"width": paper.layout.width, "height": paper.layout.height, "scale": 1}


def _format_caption(figure: go.Figure) -> str:
    title = figure.layout.title
    subtitle = re.sub(r"The slider[^.]*\.", "The last epoch.", title.subtitle.text)
    return f"{title.text}. {subtitle}"


def _replace_images(folder: Path, files: dict[str, bytes]) -> list[Path]:
    """Writes the files and removes other images from the folder; returns the paths of the images."""
    for old in (path for format in FORMATS for path in folder.glob(f"*.{format}")):
        if old.name not in files:
            old.unlink()
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files if name.endswith(FORMATS)]

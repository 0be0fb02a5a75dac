"""Draws docs/architecture.svg from the imports of the package: `python docs/draw_architecture.py`.

A box is a package in `study/` with its number of files and lines; an arrow means "imports". Arrows that follow from
others are left out: `cli` imports `sweep` and `sweep` imports `plan`, so there is no arrow from `cli` to `plan`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "study"
LAYERS: tuple[dict[str, float], ...] = (  # from the top to the bottom: packages and their horizontal positions
    {"cli": 0.75}, {"bench": 0.25, "dashboard": 1.5}, {"sweep": 0, "analysis": 1.25}, {"training": 0},
    {"tasks": 0, "plan": 1.25}, {"record": 1.6}, {"data": 0, "models": 1.1}, {"config": 0.55}, {"norms": 0.55},
)  # fmt: skip
PURPOSES = {
    "cli": "commands, live view, report server",
    "bench": "speed, faults, verdicts",
    "dashboard": "pages on W&B",
    "sweep": "driver, executors, Optuna",
    "analysis": "records in, answers out",
    "training": "trains and records one trial",
    "plan": "study file to table of trials",
    "tasks": "LightningModules, solvers",
    "record": "files of a trial, W&B run",
    "data": "data sets and loaders",
    "models": "networks, positions of norms",
    "config": "typed settings, choice space",
    "norms": "norm layers as a library",
}
WIDTH, HEIGHT, GAP, RISE = 220, 58, 24, 36  # pixels: size of a box, distance of boxes, distance of layers


def main() -> None:
    """Writes the picture."""
    (DOCS / "architecture.svg").write_text(draw(find_direct_imports(read_imports())), encoding="utf-8")


def read_imports() -> dict[str, set[str]]:
    """The packages that each package imports, anywhere in its files."""
    imports: dict[str, set[str]] = {package: set() for layer in LAYERS for package in layer}
    for package in imports:
        for file in (PACKAGE / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                imports[package] |= {name.split(".")[1] for name in names if name.startswith("study.")} - {package}
    return imports


def find_direct_imports(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The transitive reduction of `imports`, as pairs (importing, imported). Raises `ValueError` for a cycle."""
    reach: dict[str, set[str]] = defaultdict(set)
    for package in (package for layer in reversed(LAYERS) for package in layer):
        reach[package] = set().union(*({other} | reach[other] for other in imports[package]))
        if package in reach[package]:
            raise ValueError(f"import cycle: {package} imports itself through other packages")
    return [
        (package, other) for package, others in imports.items() for other in sorted(others)
        if not any(other in reach[between] for between in others)
    ]  # fmt: skip


def draw(arrows: list[tuple[str, str]]) -> str:
    """The picture, as SVG."""
    width = 3 * WIDTH
    places = {
        package: (GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + RISE))
        for row, layer in enumerate(LAYERS)
        for package, column in layer.items()
    }
    parts = [_draw_arrow(places[start], places[end]) for start, end in arrows]
    parts += [_draw_package(package, *place) for package, place in places.items()]
    height = len(LAYERS) * (HEIGHT + RISE) + GAP
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">
<title>The packages and what they import</title>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#777"/></marker></defs>
<rect width="{width}" height="{height}" fill="#fff"/>
{chr(10).join(parts)}
</svg>
"""


def _draw_package(package: str, x: float, y: float) -> str:
    files = [
        file for file in (PACKAGE / package).rglob("*") if file.suffix in (".py", ".cpp", ".h", ".j2", ".css", ".js")
    ]
    files = [file for file in files if file.name != "__init__.py"]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    middle = x + WIDTH / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef4fa" stroke="#0072b2"/>'
        f'<text x="{middle:g}" y="{y + 18:g}" text-anchor="middle" font-size="15" font-weight="600">{package}</text>'
        f'<text x="{middle:g}" y="{y + 34:g}" text-anchor="middle" font-size="11">{escape(PURPOSES[package])}</text>'
        f'<text x="{middle:g}" y="{y + 50:g}" text-anchor="middle" font-size="10" fill="#555">'
        f"{len(files)} files, {round(lines, -2):,} lines</text>"
    )


def _draw_arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """An arrow from the bottom of one box to the top of another."""
    (x1, y1), (x2, y2) = (start[0] + WIDTH / 2, start[1] + HEIGHT), (end[0] + WIDTH / 2, end[1])
    bend = (y2 - y1) / 2
    middle = f"C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g}"
    return f'<path d="M{x1:g} {y1:g}{middle} {x2:g} {y2:g}" fill="none" stroke="#777" marker-end="url(#head)"/>'


if __name__ == "__main__":
    main()

"""Makes what documentation can be made: `python docs/generate.py` writes measures.md, `--pictures` those of gallery.md.

Pictures are cut from the reports of studies that have been run (`runs/<study>/report/report.html`), in Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from study.analysis.report.registry import QUESTIONS
from study.analysis.report.report import Report
from study.analysis.statistics.measures import build_measures
from study.analysis.wording import split_sentences
from study.bench.synthetic_records import Truth, write_study
from study.plan.loading import load_study
from study.record.layout import StudyFolder

DOCS = Path(__file__).parent
PICTURES = {  # study, and the title of the figure or the id of the part that is cut out
    "answers": ("depth_vs_batch", "#answers"),
    "ranking": ("depth_vs_batch", "How far each factor moves the choice"),
    "share_by_batch": ("depth_vs_batch", "How much of each normalizer the networks use"),
    "maps": ("depth_vs_batch", "What the layers chose, from input to output: ResNet-14"),
    "triangles": ("depth_vs_batch", "Where the layers lie between in, ln and bn: ResNet-14"),
    "epochs": ("depth_vs_batch", "What each layer chose, epoch by epoch: ResNet-14"),
    "variance": ("depth_vs_batch", "Which share of the variance between networks"),
    "differences": ("distinct", "Differences between the switch norm"),
    "tasks": ("tasks", "What the networks chose by task"),
}
HEAD = """# How each number is defined

Made by `python docs/generate.py`. Every number of a report names the function that makes it; they are in
`study/analysis`, each with a test beside it.

What varies in every interval is the **replicate**: one draw of the seeds of initialization, data order and split,
shared by all cells. Of a mean the interval is Student's t over replicates (`statistics.replicate_interval`), of a
ratio a jackknife that leaves out one replicate at a time (`statistics.jackknife_ratio`). One replicate gives none.
The bootstrap interval beside it draws whole replicates and keeps every cell (`statistics.bootstrap_interval`); at few
replicates it is too narrow (of 95 %, 79 % cover at 4, 89 % at 8, 93 % at 20), so it decides nothing. p values are
adjusted for their family by Holm (`statistics.adjust_holm`): of a difference or a trend two-sided, of a ratio that it
is no larger than 1, of a share of variance by permutation.

`python run_study.py bench verdicts` draws studies whose truth is known, and counts false verdicts and how often
intervals cover.
"""


def write_measures() -> None:
    """Writes measures.md from the table of measures and the rules that answers print."""
    rules = "".join(f"\n### {_rule(question, registered.example)}" for question, registered in QUESTIONS.items())
    rows = "".join(
        f"| {measure.label} | {measure.definition} | `{measure.rule_name}` | {measure.line:g} |\n"
        for measure in build_measures().values()
    )
    table = f"| number | definition | function | nothing differs at |\n|---|---|---|--:|\n{rows}"
    (DOCS / "measures.md").write_text(f"{HEAD}\n## Verdicts\n{rules}\n## Numbers\n\n{table}", encoding="utf-8")


def _rule(question: str, study: str) -> str:
    """The rule behind a verdict, in the words that a report prints, and the question."""
    with tempfile.TemporaryDirectory() as folder:
        write_study(StudyFolder(Path(folder)), load_study(study), Truth(), only=lambda trial: False)
        answer = Report(StudyFolder(Path(folder))).answers[question]
    return f"{answer.title}\n\n" + "\n".join(f"- {sentence}" for sentence in split_sentences(answer.rule)) + "\n"


def take_pictures(runs: Path) -> None:
    """Cuts `PICTURES` out of reports, into gallery/."""
    from playwright.sync_api import sync_playwright

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        sync_playwright() as player,
        player.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium,
    ):
        for name, (study, what) in PICTURES.items():
            page = chromium.new_page(viewport={"width": 1000, "height": 1400})
            page.goto((runs / study / "report" / "report.html").resolve().as_uri())
            part = page.locator(what) if what.startswith("#") else page.locator("figure", has_text=what).first
            part.scroll_into_view_if_needed()
            page.wait_for_timeout(1000)  # figures are drawn when they come into view
            part.screenshot(path=DOCS / "gallery" / f"{name}.png")
            page.close()


if __name__ == "__main__":
    write_measures()
    if "--pictures" in sys.argv:
        take_pictures(Path("runs"))

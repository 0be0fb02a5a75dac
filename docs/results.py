"""Packs the studies of results.md and writes its tables: `python docs/results.py runs/reference`.

The records of a study go to results/STUDY.tar.xz and its answers to results/STUDY.json. A table stands in results.md
between the lines `<!-- table: NAME -->` and `<!-- end -->`; it is computed from what is packed, and from nothing else.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis.records import load_study_records
from study.analysis.report.report import Report
from study.analysis.statistics.measures import build_measures
from study.record.layout import StudyFolder

DOCS = Path(__file__).parent
PACKED = DOCS / "results"
STUDIES = ("depth_vs_batch", "distinct", "impacts", "batch_axes", "tasks")
CLAIMS = (  # of the paper's abstract, and the study and question that answer each
    ("Distinct normalizers improve learning and generalization", "distinct", "useful"),
    ("Depth and batch size matter more for the choice than initialization", "depth_vs_batch", "impacts"),
    ("... and more than decay and solver", "impacts", "impacts"),
    ("Tasks and data sets differ in what they choose", "tasks", "tasks"),
)
SHOWN = (
    "val_accuracy", "train_loss", "generalization_gap", "cell_difference", "distinctness", "effect", "seed_distance",
    "effect_difference", "effect_place", "bn_share", "share_slope",
)  # fmt: skip
WORDS = {"not supported": "evidence against"}
PUBLISHED = {
    2: (0.30, 0.55, 0.14),
    4: (0.25, 0.48, 0.26),
    8: (0.20, 0.40, 0.40),
    16: (0.19, 0.28, 0.52),
    32: (0.16, 0.25, 0.58),
}
"""Weights of in, ln and bn in ResNet-50 on ImageNet by B, eight GPUs: read off figure 2 of the authors' blog."""


def pack(study: Path) -> None:
    """Packs the records that a report is computed from, without checkpoints and logs, and the answers of its report.

    The same records give the same bytes.
    """
    folder = StudyFolder(study)
    files = [folder.config]
    for trial in folder.trials():
        files += [trial.trial, trial.result, trial.environment, trial.metrics, trial.switch_weights, trial.state]
    PACKED.mkdir(exist_ok=True)
    with tarfile.open(PACKED / f"{study.name}.tar.xz", "w:xz", preset=9) as archive:
        for file in sorted(file for file in files if file.exists()):
            data = file.read_bytes()
            member = tarfile.TarInfo(str(Path(study.name) / file.relative_to(study)))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    Report(folder).write()
    (PACKED / f"{study.name}.json").write_bytes((folder.report / "answers.json").read_bytes())


def write_tables(page: Path) -> None:
    """Writes every table of the page again."""
    tables = {"claims": _claims_table(), "choices": _choices_table()}
    tables |= {study: _effects_table(study) for study in STUDIES}

    def replace(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{tables[found[1]]}<!-- end -->"

    text = re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def _claims_table() -> str:
    rows = "| claim | here | what decides | study |\n|---|---|---|---|\n"
    for claim, study, question in CLAIMS:
        answer = _read_answers(study).get(question)
        verdict, effects = "not run yet", ""
        if answer:
            verdict = _format_verdict(answer)
            deciding = ("val_accuracy",) if question == "useful" else ("effect_difference", "effect")
            measure = next((name for name in deciding if _select(answer, name)), "")
            effects = "; ".join(f"{effect['comparison']} {_format(effect)}" for effect in _select(answer, measure))
        rows += f"| {claim} | {verdict} | {effects} | `{study}` |\n"
    return rows


def _effects_table(study: str) -> str:
    answers, measures = _read_answers(study), build_measures()
    if not answers:
        return "Not run yet.\n"
    rows = "| | | value (95 % interval) | n |\n|---|---|---|--:|\n"
    for answer in answers.values():
        rows += f"| **{answer['title']}** | | **{_format_verdict(answer)}** | |\n"
        for name in SHOWN:
            for effect in _select(answer, name):
                rows += f"| {measures[name].label} | {effect['comparison']} | {_format(effect)} | {effect['n']} |\n"
    return rows


def _choices_table() -> str:
    """What finished networks of the study depth_vs_batch chose by B, beside published networks."""
    head = "| B | networks | in | ln | bn | bn of means | bn of variances | published: in | ln | bn |\n"
    rows = head + "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    for batch_size, weights in _read_choices():
        means = weights.groupby("normalizer")["weight"].mean()
        bn = weights[weights["normalizer"].eq("bn")].groupby("statistic")["weight"].mean()
        values = [*means[["in", "ln", "bn"]], bn["mean"], bn["var"], *PUBLISHED.get(batch_size, ())]
        cells = " | ".join(f"{value:.2f}" for value in values)
        rows += f"| {batch_size} | {weights['key'].nunique()} | {cells} |\n"
    return rows


def _read_choices() -> Iterator[tuple[int, pd.DataFrame]]:
    archive = PACKED / "depth_vs_batch.tar.xz"
    if not archive.exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        records = load_study_records(StudyFolder(Path(folder) / "depth_vs_batch"))
    trials = records.trials[records.trials["norm"].eq("sn")]
    yield from records.switch.merge(trials[["key", "batch_size"]], on="key").groupby("batch_size")


def _read_answers(study: str) -> dict[str, Any]:
    file = PACKED / f"{study}.json"
    return json.loads(file.read_text(encoding="utf-8"))["questions"] if file.exists() else {}


def _select(answer: dict[str, Any], measure: str) -> list[dict[str, Any]]:
    return [effect for effect in answer["effects"] if effect["measure"] == measure]


def _format_verdict(answer: dict[str, Any]) -> str:
    verdict = "interim" if answer["interim"] else WORDS.get(answer["verdict"], answer["verdict"])
    return f"{verdict}, fragile" if answer["fragile"] and not answer["interim"] else verdict


def _format(effect: dict[str, Any]) -> str:
    """`+0.012 (0.004 to 0.020)`."""
    value = f"{effect['estimate']:+.3f}"
    return value if effect["interval"] is None else "{} ({:.3f} to {:.3f})".format(value, *effect["interval"])


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for name in STUDIES:
            if StudyFolder(Path(argument) / name).config.exists():
                pack(Path(argument) / name)
    write_tables(DOCS / "results.md")

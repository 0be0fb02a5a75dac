"""Packs the studies of results.md and writes its tables: `python docs/results.py runs`.

The records of a study go to results/STUDY.tar.xz, its answers to results/STUDY.json and some of its report's figures to
results/STUDY-FIGURE.svg, which needs Chrome or Chromium. A table stands in results.md between the lines
`<!-- table: NAME -->` and `<!-- end -->`; it is computed from what is packed, and from nothing else.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from study.analysis.records import StudyRecords, load_study_records, read_study
from study.analysis.report.registry import answer_questions
from study.analysis.report.report import Report
from study.analysis.statistics.measures import build_measures
from study.record.layout import StudyFolder

DOCS = Path(__file__).parent
PACKED = DOCS / "results"
STUDIES = ("depth_vs_batch", "distinct", "impacts", "batch_axes", "tasks")
LONGER = "longer_runs"
FOLDERS = {**{study: f"reference/{study}" for study in STUDIES}, LONGER: "reference-long/depth_vs_batch"}
"""Where the commands of results.md put each study, by the name that it has here."""
CLAIMS = (  # of the paper's abstract, and the study and question that answer each
    ("Distinct normalizers improve learning and generalization", "distinct", "useful"),
    ("Depth and batch size matter more for the choice than initialization", "depth_vs_batch", "impacts"),
    ("... and more than decay and solver", "impacts", "impacts"),
    ("Tasks and data sets differ in what they choose", "tasks", "tasks"),
)
SHOWN = (
    "val_accuracy", "train_loss", "generalization_gap", "distinctness", "effect", "effect_widest_pair", "seed_distance",
    "effect_difference", "effect_place", "bn_share", "share_slope",
)  # fmt: skip
WORDS = {"not supported": "evidence against"}
FIGURES = {
    "depth_vs_batch": (
        "how-far-each-factor-moves-the-choice",
        "how-much-of-each-normalizer-the-networks-use-by-batch-size",
        "what-the-layers-chose-from-input-to-output-by-batch-size",
    ),
    "distinct": ("differences-between-the-switch-norm-and-each-other-norm-and",),
    "impacts": ("how-far-each-factor-moves-the-choice",),
    "tasks": ("what-the-networks-chose-by-task-and-data-set",),
}
"""Names of the figures of a report, without their numbers, that results.md shows."""
SCORES = {
    "depth_vs_batch": ("norm", "depth"),
    "distinct": ("norm", "start_rule"),
    "impacts": ("depth", "initialization", "decay", "solver"),
    "batch_axes": ("fixed_gradient_batch",),
    "tasks": ("setting",),
}
"""Factors by which results.md shows the test scores of a study, each at every B."""
MOVES = {
    "depth_vs_batch": {"depth": 8, "batch_size": 2, "initialization": "he_normal"},
    "impacts": {"depth": 8, "batch_size": 2, "decay": "cosine", "solver": "sgd"},
    "tasks": {"setting": "scenes-classification"},
}
"""Factors by whose levels results.md shows how far layers moved, and the level that directions are compared with."""
LONGER_CELLS = {"depth": (8,), "batch_size": (2, 32), "initialization": ("he_normal",)}
"""The cells of depth_vs_batch that the longer runs repeat."""
PUBLISHED = {
    2: (0.30, 0.55, 0.14),
    4: (0.25, 0.48, 0.26),
    8: (0.20, 0.40, 0.40),
    16: (0.19, 0.28, 0.52),
    32: (0.16, 0.25, 0.58),
}
"""Weights of in, ln and bn in ResNet-50 on ImageNet by B, eight GPUs: read off figure 2 of the authors' blog."""
PUBLISHED_STAGES = {
    (2, "mean"): ((0.22, 0.75, 0.03), (0.35, 0.35, 0.30), (0.26, 0.25, 0.48), (0.16, 0.28, 0.57), (0.12, 0.75, 0.13)),
    (2, "var"): ((0.07, 0.91, 0.03), (0.72, 0.15, 0.14), (0.40, 0.34, 0.26), (0.20, 0.62, 0.18), (0.41, 0.58, 0.01)),
    (32, "mean"): ((0.16, 0.65, 0.17), (0.15, 0.29, 0.56), (0.22, 0.27, 0.51), (0.16, 0.24, 0.60), (0.09, 0.49, 0.42)),
    (32, "var"): ((0.13, 0.21, 0.66), (0.26, 0.16, 0.58), (0.37, 0.21, 0.41), (0.25, 0.33, 0.41), (0.02, 0.85, 0.13)),
}
"""The same by block, from the first to the last, of means and of variances: read off figure 3 of the blog."""
PARTS = (("stem", 0, (0,)), ("first stage", 1, (1,)), ("middle stages", 2, (2, 3)), ("last stage", 3, (4,)))
"""Parts of a network, our stage, and the blocks of `PUBLISHED_STAGES`."""


def pack(study: Path, name: str) -> None:
    """Packs the records that a report is computed from, without checkpoints and logs, its answers and some figures.

    The same records give the same bytes.
    """
    folder = StudyFolder(study)
    files = [folder.config]
    for trial in folder.trials():
        files += [trial.trial, trial.result, trial.environment, trial.metrics, trial.switch_weights, trial.state]
    PACKED.mkdir(exist_ok=True)
    with tarfile.open(PACKED / f"{name}.tar.xz", "w:xz", preset=9) as archive:
        for file in sorted(file for file in files if file.exists()):
            data = file.read_bytes()
            member = tarfile.TarInfo(str(Path(name) / file.relative_to(study)))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    report = Report(folder)
    report.write()
    shutil.copy(folder.report / "answers.json", PACKED / f"{name}.json")
    if name in FIGURES:
        _copy_figures(report.export(), name)


def _copy_figures(images: Sequence[Path] | str, study: str) -> None:
    """Copies the figures of a study that results.md shows. `images`: all of its report, or why there are none."""
    if isinstance(images, str):
        print(images)
        return
    for name in FIGURES[study]:
        found = [image for image in images if re.fullmatch(rf"\d+-{name}\.svg", image.name)]
        if not found:
            sys.exit(f"{images[0].parent}: no figure {name}")
        shutil.copy(found[0], PACKED / f"{study}-{name}.svg")


def write_tables(page: Path) -> None:
    """Writes every table of the page again."""
    tables = {"runs": _runs_table(), "claims": _claims_table()}
    tables |= {"layers": _layers_table(), "choices": _choices_table(), "stages": _stages_table()}
    tables |= {study: _effects_table(study) for study in STUDIES}
    tables |= {f"{study}_scores": _scores_table(study, factors) for study, factors in SCORES.items()}
    tables |= {"bn_share": _bn_share_table(), "moves": _moves_table(), "tasks_choices": _tasks_choices_table()}
    by_depth = ("effect", "seed_distance", "bn_share", "val_accuracy")
    tables |= {
        "matching": _matching_table(),
        "by_depth": _parts_table("depth_vs_batch", "depth", (8, 14, 20), by_depth),
    }
    tables["by_batch"] = _parts_table("distinct", "batch_size", (2, 16), ("val_accuracy", "train_loss"), "sn - ")
    tables |= {"longer_effects": _longer_effects_table(), "longer_choices": _longer_choices_table()}

    def replace(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{tables[found[1]]}<!-- end -->"

    text = re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", replace, page.read_text(encoding="utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


def _claims_table() -> str:
    rows = "| claim | here | what decides | study |\n|---|---|---|---|\n"
    for claim, study, question in CLAIMS:
        answer = _read_answers(study)[question]
        deciding = ("val_accuracy",) if question == "useful" else ("effect_difference", "effect")
        measure = next(name for name in deciding if _select(answer, name))
        effects = "; ".join(
            f"{effect['comparison']} {_format(effect)}" for effect in _select(answer, measure)
            if _decides(question, effect["comparison"])
        )  # fmt: skip
        rows += f"| {claim} | {_format_verdict(answer)} | {effects} | `{study}` |\n"
    return rows


def _effects_table(study: str) -> str:
    answers, measures = _read_answers(study), build_measures()
    rows = "| | | value (95 % interval) | n |\n|---|---|---|--:|\n"
    for answer in answers.values():
        rows += f"| **{answer['title']}** | | **{_format_verdict(answer)}** | |\n"
        for name in SHOWN:
            for effect in _select(answer, name):
                rows += f"| {measures[name].label} | {effect['comparison']} | {_format(effect)} | {effect['n']} |\n"
    return rows


def _runs_table() -> str:
    """How the trials of each study ended, what they took, and what they ran on."""
    rows = "| study | begun | trials | diverged | failed | hours of one core | version of this program | torch |\n"
    rows += "|---|---|--:|--:|--:|--:|---|---|\n"
    for study in FOLDERS:
        records = _load_records(study)
        trials, run = records.trials, records.provenance
        ended = [(trials["state"] == state).sum() for state in ("diverged", "failed")]
        cells = (
            f"`{study}`", run["created"][:10], len(trials), *ended, f"{trials['seconds'].sum() / 3600:.1f}",
            run["commit"][:8], run["versions"]["torch"],
        )  # fmt: skip
        rows += f"| {' | '.join(map(str, cells))} |\n"
    return rows


def _layers_table() -> str:
    """How far each factor of the study depth_vs_batch moves the layers at each place of a stage."""
    factors = ("batch_size", "depth", "initialization")
    rows = f"| layers | {' | '.join(factors)} |\n|---|{'---|' * len(factors)}\n"
    cells: dict[str, dict[str, str]] = {}
    for effect in _select(_read_answers("depth_vs_batch")["impacts"], "effect_layer"):
        factor, _, place = effect["comparison"].partition(", ")
        cells.setdefault(place, {})[factor] = _format(effect)
    for place, by_factor in cells.items():
        rows += f"| {place} | {' | '.join(by_factor[factor] for factor in factors)} |\n"
    return rows


def _scores_table(study: str, factors: Sequence[str]) -> str:
    """The mean test score over replicates and all other factors; a run that diverged has none."""
    records = _load_records(study)
    means = records.trials.pivot_table("test_score", list(factors), "batch_size", sort=False)
    rows = f"| {' | '.join(factors)} | {' | '.join(f'B = {level}' for level in means)} |\n"
    rows += f"|{'---|' * len(factors)}{'--:|' * len(means.columns)}\n"
    for levels, values in means.iterrows():
        names = levels if isinstance(levels, tuple) else (levels,)
        rows += f"| {' | '.join(map(str, names))} | {' | '.join(f'{value:.3f}' for value in values)} |\n"
    return rows


def _bn_share_table() -> str:
    """The weight of batch statistics in the study batch_axes, by B and G x B."""
    records = _load_records("batch_axes")
    axes = ["fixed_gradient_batch", "batch_size"]
    weights = records.switch[records.switch["normalizer"].eq("bn")].merge(records.trials[["key", *axes]], on="key")
    means = weights.pivot_table("weight", *axes)
    rows = f"| G x B | {' | '.join(f'B = {level}' for level in means)} |\n|--:|{'--:|' * len(means.columns)}\n"
    for level, values in means.iterrows():
        rows += f"| {level} | {' | '.join(f'{value:.2f}' for value in values)} |\n"
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


def _stages_table() -> str:
    """The same by stage, for means and for variances."""
    rows = "| B | part | of | here: in | ln | bn | published: in | ln | bn |\n|--:|---|---|--:|--:|--:|--:|--:|--:|\n"
    for batch_size, weights in _read_choices():
        means = weights.groupby(["statistic", "stage", "normalizer"])["weight"].mean()
        for (part, stage, blocks), (statistic, of) in product(PARTS, (("mean", "means"), ("var", "variances"))):
            if (published := PUBLISHED_STAGES.get((batch_size, statistic))) is None:
                continue
            here = [means[statistic, stage, name] for name in ("in", "ln", "bn")]
            there = [sum(values) / len(blocks) for values in zip(*(published[block] for block in blocks), strict=True)]
            cells = " | ".join(f"{value:.2f}" for value in (*here, *there))
            rows += f"| {batch_size} | {part} | {of} | {cells} |\n"
    return rows


def _read_choices() -> Iterator[tuple[int, pd.DataFrame]]:
    """The switch weights of the networks sn of the study depth_vs_batch, by B."""
    records = _load_records("depth_vs_batch")
    trials = records.trials[records.trials["norm"].eq("sn")]
    yield from records.switch.merge(trials[["key", "batch_size"]], on="key").groupby("batch_size")


def _moves_table() -> str:
    """How far the layers of sn moved from the equal weights with which they began, and in which direction.

    A direction is that of the mean weights of a level in the first block of every stage, minus equal weights.
    """
    rows = "| study | factor | level | distance | direction |\n|---|---|---|--:|--:|\n"
    for study, factors in MOVES.items():
        records = _load_records(study)
        for factor, reference in factors.items():
            trials = records.balanced_subset(records.trials[records.trials["norm"].eq("sn")], factor)
            weights = records.switch.merge(trials[["key", factor]], on="key")
            weights["moved"] = weights["weight"] - 1 / 3
            weights["distance"] = weights["moved"].abs() / 2
            distances = weights.groupby([factor, "key", "layer", "statistic"])["distance"].sum().groupby(factor).mean()
            first = weights.groupby(["key", "stage", "place"])["layer_index"].transform("min")
            in_first_block = weights[weights["layer_index"].eq(first)]
            means = in_first_block.pivot_table("moved", ["stage", "place", "statistic", "normalizer"], factor)
            directions = means / means.pow(2).sum().pow(0.5)
            for level in trials[factor].unique():
                cosine = directions[level] @ directions[reference]
                rows += f"| `{study}` | {factor} | {level} | {distances[level]:.2f} | {cosine:.2f} |\n"
    return rows


def _tasks_choices_table() -> str:
    """What backbones and heads of the study tasks chose, by setting and B."""
    records = _load_records("tasks")
    trials, weights = records.trials[["key", "setting", "batch_size"]], pd.concat([records.switch, records.heads])
    means = weights.merge(trials, on="key").groupby(["setting", "role", "batch_size", "normalizer"], sort=False)
    rows = "| setting | layers of | B | in | ln | bn |\n|---|---|--:|--:|--:|--:|\n"
    for (setting, role, batch_size), values in means["weight"].mean().unstack().iterrows():
        cells = " | ".join(f"{values[name]:.2f}" for name in ("in", "ln", "bn"))
        rows += f"| {setting} | {role} | {batch_size} | {cells} |\n"
    return rows


def _matching_table() -> str:
    """The displacements of the study depth_vs_batch by what layers of networks of other depths are compared with."""
    analyses = _read_answers("depth_vs_batch")["impacts"]["robustness"]
    chosen = {"distance": "Jensen-Shannon", "statistic": "both", "moment": "last epoch"}
    factors = ("batch_size", "depth", "initialization")
    rows = f"| layers are matched by | {' | '.join(factors)} |\n|---|{'--:|' * len(factors)}\n"
    for analysis in analyses:
        if chosen.items() <= analysis["choices"].items():
            values = " | ".join(f"{analysis['estimates'][factor]:.3f}" for factor in factors)
            rows += f"| {analysis['choices']['alignment']} | {values} |\n"
    return rows


def _parts_table(study: str, factor: str, levels: Sequence[Any], measures: Sequence[str], norm: str = "") -> str:
    """Effects in the part of a study at each level of a factor. norm: shows only comparisons of this norm."""
    runs = {f"{factor} {level}": _load_records(study, (factor, (level,))) for level in levels}
    return _compare(runs, measures, norm)


def _longer_effects_table() -> str:
    """What the longer runs say, beside the runs of depth_vs_batch in the same cells."""
    return _compare(_load_longer_runs(), SHOWN)


def _compare(runs: Mapping[str, StudyRecords], measures: Sequence[str], norm: str = "") -> str:
    """The effects of several sets of runs, one column each."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, records in runs.items():
        effects = [effect.to_json() for answer in answer_questions(records).values() for effect in answer.effects]
        for effect in effects:
            if effect["measure"] in measures and effect["comparison"].startswith(norm):
                row = (records.measures[effect["measure"]].label, effect["comparison"])
                cells.setdefault(row, {})[name] = _format(effect)
    rows = f"| | | {' | '.join(runs)} |\n|---|---|{'---|' * len(runs)}\n"
    for row, values in cells.items():
        rows += f"| {' | '.join((*row, *(values.get(name, '') for name in runs)))} |\n"
    return rows


def _longer_choices_table() -> str:
    """Accuracies and choices of the longer runs, beside those of depth_vs_batch in the same cells."""
    runs = _load_longer_runs()
    rows = "| norm | B | runs | training images right | test accuracy | in | ln | bn |\n"
    rows += "|---|--:|--:|--:|--:|--:|--:|--:|\n"
    for norm, batch_size, (steps, records) in product(("sn", "bn"), (2, 32), runs.items()):
        trials, switch = records.trials, records.switch
        trials = trials[trials["norm"].eq(norm) & trials["batch_size"].eq(batch_size)]
        means = switch[switch["key"].isin(trials["key"])].groupby("normalizer")["weight"].mean()
        chosen = [f"{means[name]:.2f}" if norm == "sn" else "" for name in ("in", "ln", "bn")]
        scores = [f"{trials[name].mean():.3f}" for name in ("fit_accuracy", "test_accuracy")]
        rows += f"| {norm} | {batch_size} | {steps} | {' | '.join((*scores, *chosen))} |\n"
    return rows


def _load_longer_runs() -> dict[str, StudyRecords]:
    """The longer runs, and those of depth_vs_batch in the same cells, by number of steps and replicates."""
    runs = {"1,000": _load_records("depth_vs_batch", *LONGER_CELLS.items()), "10,000": _load_records(LONGER)}
    return {f"{steps} steps, n = {each.trials['replicate'].nunique()}": each for steps, each in runs.items()}


@cache
def _load_records(study: str, *levels: tuple[str, tuple[Any, ...]]) -> StudyRecords:
    """The records of a packed study, or of its part at some levels of its factors."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(PACKED / f"{study}.tar.xz") as packed:
            packed.extractall(folder, filter="data")
        unpacked = StudyFolder(Path(folder) / study)
        if not levels:
            return load_study_records(unpacked)
        factors = read_study(unpacked).study.factors | {factor: list(values) for factor, values in levels}
        part = load_study_records(unpacked, runs={"factors": factors})
        return replace(part, plan=None)  # the plan is that of the whole study


def _read_answers(study: str) -> dict[str, Any]:
    questions: dict[str, Any] = json.loads((PACKED / f"{study}.json").read_text(encoding="utf-8"))["questions"]
    return questions


def _select(answer: dict[str, Any], measure: str) -> list[dict[str, Any]]:
    return [effect for effect in answer["effects"] if effect["measure"] == measure]


def _decides(question: str, comparison: str) -> bool:
    """Whether a comparison decides a question, by the rule that the report states."""
    norm, _, other = comparison.partition(" - ")
    if question == "useful":  # sn against norms whose layers do not choose
        return norm == "sn" and other not in ("ssn", "sn-tied")
    return question != "tasks" or comparison in ("task", "dataset")


def _format_verdict(answer: dict[str, Any]) -> str:
    verdict = "interim" if answer["interim"] else WORDS.get(answer["verdict"], answer["verdict"])
    return f"{verdict}, fragile" if answer["fragile"] and not answer["interim"] else verdict


def _format(effect: dict[str, Any]) -> str:
    """`+0.012 (0.004 to 0.020)`; only differences and trends have a sign."""
    signed = build_measures()[effect["measure"]].is_signed
    value = f"{effect['estimate']:{'+' if signed else ''}.3f}"
    return value if effect["interval"] is None else "{} ({:.3f} to {:.3f})".format(value, *effect["interval"])


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for name, folder in FOLDERS.items():
            if StudyFolder(Path(argument) / folder).config.exists():
                pack(Path(argument) / folder, name)
    write_tables(DOCS / "results.md")

"""Fashion-MNIST is read from every usual layout, and only if its files are the published ones or the user's own."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seeds
from study.data import fashion_mnist
from study.data.load import check_data, load_data, load_images
from study.plan.job import Job
from study.record.layout import StudyFolder
from study.training.trial import run_job
from tests.cli.conftest import STUDY
from tests.cli.test_damaged_records import change
from tests.conftest import Command, Output
from tests.sweep.test_driver import FakeExecutor

COUNT = 20
CLASSES = [index % 10 for index in range(COUNT)]
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
IMAGES = b"\0\0\x08\x03" + b"".join(size.to_bytes(4, "big") for size in PIXELS.shape) + PIXELS.tobytes()
LABELS = b"\0\0\x08\x01" + COUNT.to_bytes(4, "big") + bytes(CLASSES)
FILES = {name: IMAGES if "images" in name else LABELS for name in fashion_mnist.DIGESTS}
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `FILES` the published ones."""
    facts = replace(DATASETS["fashion_mnist"], train=COUNT, test=COUNT)
    monkeypatch.setitem(DATASETS, "fashion_mnist", facts)
    for name, content in FILES.items():
        monkeypatch.setitem(fashion_mnist.DIGESTS, name, hashlib.sha256(content).hexdigest())


def write_files(folder: Path, *, compress: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize(("folder", "compress"), [("", True), ("FashionMNIST/raw", False), ("fashion-mnist", True)])
def test_every_usual_layout_is_read(tmp_path: Path, folder: str, compress: bool) -> None:
    write_files(tmp_path / folder, compress=compress)
    train, test = load_images("fashion_mnist", str(tmp_path))
    assert test is not None
    torch.testing.assert_close(train.images[:, 0], torch.from_numpy(PIXELS / 255).float())
    assert test.labels.tolist() == CLASSES


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "content"),
    [
        (TRAIN_IMAGES, b""),
        (TRAIN_IMAGES, IMAGES[:-1]),
        (TRAIN_IMAGES, IMAGES + b"\0"),
        (TRAIN_IMAGES, b"\x89PNG" + IMAGES[4:]),
        (TRAIN_IMAGES, IMAGES[:7] + b"\x09" + IMAGES[8:]),  # another number of images
        (TRAIN_LABELS, b"\0\0\x08\x01\0\0\0\x09" + LABELS[8:]),
        (TRAIN_LABELS, LABELS[:6]),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(IMAGES)[:-100]),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(IMAGES)[:50] + bytes(100)),
        (f"{TRAIN_IMAGES}.gz", IMAGES),
        (f"{TRAIN_IMAGES}.gz", gzip.compress(bytes(10**8), 1)),
        (f"{TRAIN_LABELS}.gz", b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_files(tmp_path)
    if name.endswith(".gz"):
        (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"^{tmp_path / name}: damaged: ") as caught:
        load_images("fashion_mnist", str(tmp_path), own_data=True)
    assert "\n" not in str(caught.value)


def test_other_content_of_the_right_size_needs_a_setting_and_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path)
    path = tmp_path / TRAIN_IMAGES
    path.write_bytes(IMAGES[:-1] + bytes([IMAGES[-1] ^ 1]))
    config, seeds = TrialConfig(dataset="fashion_mnist"), derive_seeds(0)
    with pytest.raises(UserError, match=f"^{path}: its content is not the published one .* run.own_data=true"):
        load_data(config, seeds, str(tmp_path))
    assert load_data(config, seeds, str(tmp_path), own_data=True).notes == [
        f"{path}: not the published content (run.own_data)"
    ]
    monkeypatch.setitem(DATASETS, "scenes_fashion", replace(DATASETS["scenes_fashion"], train=COUNT, test=2))
    scenes = TrialConfig(dataset="scenes_fashion", train_samples=2)
    data = load_data(scenes, seeds, str(tmp_path), own_data=True)
    assert len(data.notes) == 1
    assert data.fingerprint == check_data(config, str(tmp_path), own_data=True)  # of the same files


def test_published_files_have_no_note_and_a_fixed_fingerprint(tmp_path: Path) -> None:
    write_files(tmp_path)
    data = load_data(TrialConfig(dataset="fashion_mnist"), derive_seeds(0), str(tmp_path), own_data=True)
    assert (data.notes, data.fingerprint) == ([], {"fashion_mnist": "published"})


# --------------------------------------------------------------------------------------- two data sets in one study


class InThisProcess(FakeExecutor):
    """Trains each trial when it is submitted, where the published files are those of this test."""

    def __init__(self) -> None:
        super().__init__(lambda record, attempt: "")

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            run_job(job)
            self.ended[job.trial.key] = "ended"


@pytest.fixture
def run(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Output]:
    """Runs a study of two cells on data of one's own, or with the settings given."""
    monkeypatch.setattr("study.sweep.executors.build.build_executor", lambda *arguments: InThisProcess())

    def call(*settings: str) -> Output:
        given = (
            "dataset=fashion_mnist", "train_samples=8", "batch_size=[1, 2]", "chunks=1", "norm=bn", "epochs=1",
            "width=0.25", "validation_fraction=0.5", "tracking.mode=disabled", "questions=[useful]", "own_data=true",
        )  # fmt: skip
        flags = [argument for setting in (*given, *settings) for argument in ("--set", setting)]
        return command(*STUDY, *flags, "--out", str(tmp_path / "runs"))

    return call


def write_own_files(folder: Path, change: int, *, compress: bool = False) -> str:
    """Writes files with another last pixel; returns the setting that names them."""
    write_files(folder, compress=compress)
    path, content = folder / TRAIN_IMAGES, IMAGES[:-1] + bytes([IMAGES[-1] ^ change])
    if compress:
        path, content = folder / f"{TRAIN_IMAGES}.gz", gzip.compress(content)
    path.write_bytes(content)
    return f"data_root={folder}"


def read_fingerprints(folder: StudyFolder) -> list[str]:
    return [trial.read_data()["fashion_mnist"] for trial in folder.trials()]


def test_a_study_goes_on_only_with_the_data_that_its_trials_were_trained_on(
    tmp_path: Path, run: Callable[..., Output], command: Command
) -> None:
    own, moved, other = (write_own_files(tmp_path / name, change, compress=name == "moved")
                         for name, change in (("own", 1), ("moved", 1), ("other", 2)))  # fmt: skip
    folder = StudyFolder(tmp_path / "runs" / "depth_vs_batch")
    assert run(own).code == 0
    first, second = read_fingerprints(folder)
    assert first == second
    done = run(other, "replicates=2")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    line = f"{folder.path}: 2 trials were trained on other data, such as bn-.*-r0: .* was {first}, and is sha256:"
    assert re.search(line, done.err)
    assert run(moved, "replicates=2").code == 0
    assert read_fingerprints(folder) == [first] * 4

    trial, *others = folder.trials()
    change("environment.json", data={"fashion_mnist": "sha256:0123"})(trial)
    report = command("report", "--no-images", "--study", "depth_vs_batch", "--out", str(tmp_path / "runs"))
    reason = f"trained on other data: the fingerprint of fashion_mnist is sha256:0123, but {first} in 3 trials"
    assert f"1 damaged: {reason} ({trial.key})" in report.out
    trials = pd.read_parquet(folder.report / "trials.parquet").set_index("key")
    assert trials["state"].to_dict() == {trial.key: "damaged", **dict.fromkeys((each.key for each in others), "done")}
    assert trials["val_accuracy"].isna().sum() == 1

    for each in (trial, *others):  # now without a result, but with a checkpoint to resume from
        each.result.unlink()
    assert run(other).code == 2


def test_a_machine_with_other_data_than_the_studys_trains_nothing(
    tmp_path: Path, run: Callable[..., Output], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_own_files(tmp_path / "own", 1)
    monkeypatch.setattr("study.cli.commands._check_runnable", lambda study: {"fashion_mnist": "published"})
    done = run(own, "max_attempts=1")
    assert done.code == 1
    assert re.search(r"the fingerprint of fashion_mnist is sha256:\w+ on .*, but published where the study", done.out)
    assert not [*tmp_path.rglob("result.json")]


@pytest.mark.bad_input
def test_labels_that_the_data_set_does_not_have_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / TRAIN_LABELS).write_bytes(LABELS[:-1] + bytes([46]))
    with pytest.raises(UserError, match="fashion_mnist: labels of training images: 0 to 46; allowed: 0 to 9"):
        load_images("fashion_mnist", str(tmp_path), own_data=True)


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_study_does_not_start_with_bad_files(
    tmp_path: Path,
    command: Command,
    spoil: Callable[[Path], None],
) -> None:
    write_files(tmp_path / "data")
    spoil(tmp_path / "data" / TRAIN_LABELS)
    settings = ("dataset=fashion_mnist", f"data_root={tmp_path / 'data'}", "chunks=1")
    flags = [argument for setting in settings for argument in ("--set", setting)]
    done = command(*STUDY, *flags, "--out", str(tmp_path))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert TRAIN_LABELS in done.err

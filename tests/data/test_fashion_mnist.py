"""Fashion-MNIST is read from every usual layout, and only if its files are the published ones or the user's own."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.config.seeds import derive_seeds
from study.data import fashion_mnist
from study.data.load import load_data, load_images
from tests.cli.conftest import STUDY
from tests.conftest import Command

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
    assert len(load_data(scenes, seeds, str(tmp_path), own_data=True).notes) == 1


def test_published_files_have_no_note(tmp_path: Path) -> None:
    write_files(tmp_path)
    assert load_data(TrialConfig(dataset="fashion_mnist"), derive_seeds(0), str(tmp_path), own_data=True).notes == []


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

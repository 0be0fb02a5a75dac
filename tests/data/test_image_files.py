"""Images and masks are read without loss or set aside; hidden files and litter are no data."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from study.config.datasets import DATASETS
from study.config.errors import UserError
from study.config.schema import TrialConfig
from study.data.image_files import SampleSource, decode_image
from study.data.load import check_data
from study.data.registry import import_streamed_module
from tests.data.trees import SIZE, WRITERS, write_ade20k, write_coco, write_image, write_imagenet

RAMP = np.linspace(0, 65_535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)


def open_split(dataset: str, root: Path, split: Any = "train") -> SampleSource:
    module = import_streamed_module(dataset)
    return module.open_split(module.find_folder(root), split)


# ------------------------------------------------------------------------------------------ modes of images


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_images_with_16_bits_are_scaled(tmp_path: Path, image_format: str) -> None:
    write_imagenet(tmp_path)
    source = open_split("imagenet", tmp_path)
    Image.fromarray(RAMP).save(source.folder / source.name(0), image_format)
    image, _ = source.read(0)
    assert image.shape == (3, *SIZE)
    assert torch.equal(image[0], torch.from_numpy((RAMP // 256).astype(np.uint8)))
    assert image.float().mean().item() == pytest.approx(127.5, abs=1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (Image.fromarray(RAMP / np.float32(65_535)), "its mode is F"),
        (Image.fromarray(RAMP.astype(np.int32)), "its mode is I,"),
        (Image.new("RGBA", SIZE[::-1], (200, 0, 0, 128)), "transparent"),
        (Image.new("LA", SIZE[::-1], (200, 0)), "transparent"),
    ],
)
def test_an_image_whose_conversion_would_lose_something_is_refused(
    tmp_path: Path, picture: Image.Image, why: str
) -> None:
    write_imagenet(tmp_path)
    source = open_split("imagenet", tmp_path)
    picture.save(source.folder / source.name(0), "TIFF")
    with pytest.raises(ValueError, match=why):
        source.read(0)


@pytest.mark.bad_input
def test_a_palette_with_a_transparent_color_is_refused(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    source = open_split("imagenet", tmp_path)
    with Image.open(source.folder / source.name(1)) as colors:
        picture = colors.convert("P")
    picture.save(source.folder / source.name(0), "PNG", transparency=picture.getpixel((0, 0)))
    with pytest.raises(ValueError, match="transparent"):
        source.read(0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_with_8_bits_are_read_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    write_imagenet(tmp_path)
    source = open_split("imagenet", tmp_path)
    with Image.open(source.folder / source.name(1)) as colors:
        picture = colors.convert(mode)
    picture.save(source.folder / source.name(0), "TIFF")
    assert np.array_equal(np.asarray(source.read(0)[0]).transpose(1, 2, 0), np.asarray(picture.convert("RGB")))


def write_gray_png(path: Path, depth: int) -> None:
    """Writes an image with gray values of 2 or 4 bits, which Pillow only reads; all of them are 1."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes([0x11 if depth == 4 else 0x55]) * (SIZE[1] * depth // 8)
    header = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], depth, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * SIZE[0])) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_gray_png(path, 2),
        lambda path: write_gray_png(path, 4),
        lambda path: Image.new("L", SIZE[::-1], 1).save(path, "JPEG"),
        lambda path: Image.fromarray(RAMP).save(path),
    ],
)
def test_a_mask_whose_labels_would_change_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    folder = write_ade20k(tmp_path)
    write(folder / "annotations/training/ADE_training_00000000.png")
    with pytest.raises(ValueError, match=r"ADE_training_00000000.png is not a"):
        open_split("ade20k", tmp_path).read(0)


# ------------------------------------------------------------------------------------------ files that are not data


def litter(folder: Path) -> int:
    """Adds to a folder what systems leave there, and a hidden twin of every file. Returns the number of entries."""
    names = [f"._{path.name}" for path in folder.iterdir()]
    for name in (*names, ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg", ".hidden_leftImg8bit.png"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        (folder / name).mkdir()
    return len(names) + 8


@pytest.mark.parametrize("dataset", WRITERS)
def test_hidden_files_and_litter_are_no_data_and_are_counted(tmp_path: Path, dataset: str) -> None:
    WRITERS[dataset](tmp_path / "clean")
    folder = WRITERS[dataset](tmp_path / "littered")
    clean = {split: open_split(dataset, tmp_path / "clean", split) for split in ("train", "test")}
    for split, source in clean.items():
        places = {Path(name).parent for name in source.images.tolist()}
        if dataset in ("imagenet", "cityscapes"):
            places |= {place.parent for place in places}
        count = sum(litter(folder / place) for place in places)
        found = open_split(dataset, tmp_path / "littered", split)
        assert found.images.tolist() == source.images.tolist()
        for index in range(len(source)):
            target, expected = found.read(index)[1], source.read(index)[1]
            assert str(target) == str(expected)
        assert list(found.set_aside) == list(source.set_aside) == list(source.notes) == []
        (note,) = found.notes
        assert note.startswith(f"files or folders that are not part of the data set, and not read: {count}, such as ")


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("imagenet", "imagenet/train/n01440764/list.txt"),
        ("imagenet", "imagenet/train/list.txt"),
        ("ade20k", "ADEChallengeData2016/images/training/x.png"),
        ("cityscapes", "cityscapes/leftImg8bit/train/aachen/x.png"),
        ("coco", "coco/train2017/without_entry.jpg"),
    ],
)
def test_files_that_are_not_read_are_counted(tmp_path: Path, dataset: str, name: str) -> None:
    WRITERS[dataset](tmp_path)
    (tmp_path / name).write_bytes(b"")
    (note,) = open_split(dataset, tmp_path).notes
    assert "not read: 1, such as" in note
    assert os.path.basename(name) in note
    with pytest.raises(UserError, match="not read: 1, such as"):  # where images are missing
        check_data(TrialConfig(dataset=dataset), str(tmp_path))


@pytest.mark.bad_input
def test_more_classes_than_the_data_set_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_imagenet(tmp_path)
    monkeypatch.setitem(DATASETS, "imagenet", replace(DATASETS["imagenet"], classes=2))
    open_split("imagenet", tmp_path)
    for part in ("train", "val"):
        (folder / part / "n99999999").mkdir()
    with pytest.raises(UserError, match="3 class folders, but the data set has 2 classes"):
        check_data(TrialConfig(dataset="imagenet", train_samples=1), str(tmp_path))


def test_a_plain_folder_among_those_of_imagenet_is_no_class(tmp_path: Path) -> None:
    folder = write_imagenet(tmp_path)
    labels = open_split("imagenet", tmp_path, "test").labels  # type: ignore[attr-defined]
    for part in ("train", "val"):
        write_image(folder / part / "backup" / "x.JPEG", 0)
    found = open_split("imagenet", tmp_path, "test")
    assert found.labels.tolist() == labels.tolist()  # type: ignore[attr-defined]
    assert ["not read: 1, such as 'val/backup'" in note for note in found.notes] == [True]


def test_classes_of_ones_own_may_have_any_names(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for number, name in enumerate(("cats", "dogs", "n01440764")):
            write_image(tmp_path / "imagenet" / part / name / "x.JPEG", number)
    found = open_split("imagenet", tmp_path)
    assert (len(found), found.notes) == (3, [])


@pytest.mark.parametrize(
    ("dataset", "path"),
    [
        ("imagenet", "imagenet/train"),
        ("ade20k", "ADEChallengeData2016/images/training"),
        ("cityscapes", "cityscapes/leftImg8bit/val"),
        ("coco", "coco/train2017"),
    ],
)
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, dataset: str, path: str) -> None:
    WRITERS[dataset](tmp_path)
    (tmp_path / path).rename(tmp_path / "elsewhere")
    (tmp_path / path).write_bytes(b"")
    with pytest.raises(UserError, match=f"^{tmp_path / path}: Not a directory$"):
        check_data(TrialConfig(dataset=dataset, train_samples=1), str(tmp_path))


def test_a_folder_in_place_of_cocos_annotations_is_named(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations/instances_val2017.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"^{path}: Is a directory$"):
        check_data(TrialConfig(dataset="coco", train_samples=1), str(tmp_path))


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    """Opening it would wait for a writer."""
    os.mkfifo(tmp_path / "x.JPEG")
    with pytest.raises(OSError, match=r"x\.JPEG is missing, or is no regular file"):
        decode_image(tmp_path / "x.JPEG")

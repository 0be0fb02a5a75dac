"""The catalog of data sets: what a plan needs to know about each one, without opening its files.

To add a data set, write a module `study/data/NAME.py` and add an entry `NAME` to `DATASETS`; no other source changes.
`study/data/registry.py` says which functions the module must have. Examples: `study/data/digits.py` for a data set that
is held in memory, `study/data/ade20k.py` for one that is streamed from disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Size, shape and uses of a data set.

    image_size: side length in pixels; of streamed images, the short side that networks see.
    classes: number of classes of images, or of objects.
    train: number of published training images.
    test: number of published test images; None if there is no test split, so that one is cut from the training images.
    pixel_classes: number of classes of pixels; None without published masks.
    tasks: tasks that its labels allow.
    augmentations: augmentations that suit its images.
    streamed: whether images are read from files during training instead of held in memory.
    evaluation_resize: how streamed images are resized for evaluation: to a short side of `image_size`; to a slightly
        longer one before a center crop; or not at all (a detector resizes images itself).
    module: the module in `study/data` that reads the files; None: the one with the name of the data set.
    glyphs: of scenes, the data set whose images are the objects in them.
    """

    title: str
    channels: int
    image_size: int
    classes: int
    train: int
    test: int | None
    pixel_classes: int | None = None
    tasks: tuple[str, ...] = ("classification",)
    augmentations: tuple[str, ...] = ("none", "shift", "shift_flip")
    streamed: bool = False
    evaluation_resize: Literal["none", "short_side", "center_crop"] = "none"
    module: str | None = None
    glyphs: str | None = None


DATASETS = {
    "digits": DatasetFacts(
        title="8x8 scans of handwritten digits (UCI, in scikit-learn)",
        channels=1, image_size=8, classes=10, train=1_797, test=None),
    "fashion_mnist": DatasetFacts(
        title="Fashion-MNIST (Xiao et al., 2017)",
        channels=1, image_size=28, classes=10, train=60_000, test=10_000),
    "cifar10": DatasetFacts(
        title="CIFAR-10 (Krizhevsky, 2009)",
        channels=3, image_size=32, classes=10, train=50_000, test=10_000, module="cifar"),
    "cifar100": DatasetFacts(
        title="CIFAR-100 (Krizhevsky, 2009)",
        channels=3, image_size=32, classes=100, train=50_000, test=10_000, module="cifar"),
    "imagenet": DatasetFacts(
        title="ImageNet-1k (Russakovsky et al., 2015)",
        channels=3, image_size=224, classes=1_000, train=1_281_167, test=50_000,
        augmentations=("none", "random_resized_crop"), streamed=True, evaluation_resize="center_crop"),
    "scenes": DatasetFacts(
        title="Scenes of up to three digits on a textured background, composed at load time",
        channels=3, image_size=32, classes=10, pixel_classes=11, train=2_500, test=500,
        tasks=("classification", "segmentation", "detection"), glyphs="digits"),
    "scenes_fashion": DatasetFacts(
        title="Scenes of up to three Fashion-MNIST garments, composed in the same way",
        channels=3, image_size=32, classes=10, pixel_classes=11, train=10_000, test=2_000,
        tasks=("classification", "segmentation", "detection"), glyphs="fashion_mnist"),
    "coco": DatasetFacts(
        title="COCO 2017 (Lin et al., 2014)",
        channels=3, image_size=800, classes=80, train=118_287, test=5_000,
        tasks=("detection",), augmentations=("none", "flip"), streamed=True),
    "cityscapes": DatasetFacts(
        title="Cityscapes, fine annotations (Cordts et al., 2016)",
        channels=3, image_size=1_024, classes=19, pixel_classes=19, train=2_975, test=500,
        tasks=("segmentation",), augmentations=("none", "crop_flip"), streamed=True),
    "ade20k": DatasetFacts(
        title="ADE20K, scene parsing (Zhou et al., 2017)",
        channels=3, image_size=450, classes=150, pixel_classes=150, train=20_210, test=2_000,
        tasks=("segmentation",), augmentations=("none", "scale_flip"), streamed=True, evaluation_resize="short_side"),
}  # fmt: skip

TEST_FRACTION = 0.2
"""Fraction of the published images that becomes the test split of a data set without one."""


def compute_split_sizes(
    dataset: str, validation_fraction: float, train_samples: int | None = None
) -> tuple[int, int, int]:
    """Number of images in the training, validation and test split; `train_samples` limits the first."""
    facts = DATASETS[dataset]
    test = facts.test if facts.test is not None else round(TEST_FRACTION * facts.train)
    pool = facts.train if facts.test is not None else facts.train - test
    validation = round(validation_fraction * pool)
    train = pool - validation
    return min(train, train_samples or train), validation, test

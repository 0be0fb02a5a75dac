"""The catalog of data sets: what is known about each one without opening it, which is enough to plan a study.

To add a data set, write a module `study/data/NAME.py` and add an entry `NAME` to `DATASETS`; nothing else changes.
`study/data/registry.py` says which functions the module must have. Examples: `study/data/digits.py` for a data set that
is held in memory, `study/data/ade20k.py` for one that is streamed from disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Size and shape of a data set.

    image_size: height and width in pixels; for streamed images, the length of the short side that networks see.
    classes: number of classes of images or objects.
    train_images, test_images: number of published images. `test_images` is None if no test split is published;
        one is then cut off by the split seed.
    pixel_classes: number of classes of pixels, if masks are published.
    tasks: tasks that its labels can be used for.
    augmentations: augmentations of training images that suit it.
    streamed: True if images are read from files during training, False if they are held in memory.
    evaluation_resize: for streamed images, how they are resized for evaluation: to a short side of `image_size`, to a
        slightly larger one followed by a center crop, or not at all (a detector resizes images itself).
    module: the module in `study/data` that reads it; None: the one with the data set's name.
    glyphs: for scenes, the data set whose images are the objects in them.
    """

    channels: int
    image_size: int
    classes: int
    train_images: int
    test_images: int | None
    pixel_classes: int | None = None
    tasks: tuple[str, ...] = ("classification",)
    augmentations: tuple[str, ...] = ("none", "shift", "shift_flip")
    streamed: bool = False
    evaluation_resize: Literal["none", "short_side", "center_crop"] = "none"
    module: str | None = None
    glyphs: str | None = None


DATASETS = {
    "digits": DatasetFacts(  # 8x8 scans of handwritten digits (UCI, in scikit-learn)
        channels=1, image_size=8, classes=10, train_images=1_797, test_images=None),
    "fashion_mnist": DatasetFacts(  # Fashion-MNIST (Xiao et al., 2017)
        channels=1, image_size=28, classes=10, train_images=60_000, test_images=10_000),
    "cifar10": DatasetFacts(  # CIFAR-10 (Krizhevsky, 2009)
        channels=3, image_size=32, classes=10, train_images=50_000, test_images=10_000, module="cifar"),
    "cifar100": DatasetFacts(  # CIFAR-100 (Krizhevsky, 2009)
        channels=3, image_size=32, classes=100, train_images=50_000, test_images=10_000, module="cifar"),
    "imagenet": DatasetFacts(  # ImageNet-1k (Russakovsky et al., 2015)
        channels=3, image_size=224, classes=1_000, train_images=1_281_167, test_images=50_000,
        augmentations=("none", "random_resized_crop"), streamed=True, evaluation_resize="center_crop"),
    "scenes": DatasetFacts(  # scenes of several digits on textured ground, composed at load time
        channels=3, image_size=32, classes=10, pixel_classes=11, train_images=2_500, test_images=500,
        tasks=("classification", "segmentation", "detection"), glyphs="digits"),
    "scenes_fashion": DatasetFacts(  # the same with Fashion-MNIST garments
        channels=3, image_size=32, classes=10, pixel_classes=11, train_images=10_000, test_images=2_000,
        tasks=("classification", "segmentation", "detection"), glyphs="fashion_mnist"),
    "coco": DatasetFacts(  # COCO 2017 (Lin et al., 2014)
        channels=3, image_size=800, classes=80, train_images=118_287, test_images=5_000,
        tasks=("detection",), augmentations=("none", "flip"), streamed=True),
    "cityscapes": DatasetFacts(  # Cityscapes, fine annotations (Cordts et al., 2016)
        channels=3, image_size=1_024, classes=19, pixel_classes=19, train_images=2_975, test_images=500,
        tasks=("segmentation",), augmentations=("none", "crop_flip"), streamed=True),
    "ade20k": DatasetFacts(  # ADE20K, scene parsing (Zhou et al., 2017)
        channels=3, image_size=450, classes=150, pixel_classes=150, train_images=20_210, test_images=2_000,
        tasks=("segmentation",), augmentations=("none", "scale_flip"), streamed=True, evaluation_resize="short_side"),
}  # fmt: skip

TEST_FRACTION = 0.2  # of the images of a data set without a published test split


def compute_split_sizes(dataset: str, validation_fraction: float, train_samples: int | None) -> tuple[int, int, int]:
    """Number of samples in the training, validation and test splits."""
    facts = DATASETS[dataset]
    test = facts.test_images if facts.test_images is not None else round(TEST_FRACTION * facts.train_images)
    pool = facts.train_images if facts.test_images is not None else facts.train_images - test
    validation = round(validation_fraction * pool)
    train = pool - validation
    return min(train, train_samples or train), validation, test

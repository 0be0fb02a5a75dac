"""What is known of a data set without opening it: enough to plan a study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Size and shape of a data set.

    image_size: pixels of a side; of streamed images, of the short side that networks see.
    classes: of images or of objects.
    segments: classes of pixels, where masks are published.
    train, test: published images; `test` is None where none is published: the split seed cuts one off.
    tasks: what its labels are good for.
    augmentations: of training images, that are right for it.
    streamed: read from files as training goes, not held in memory.
    """

    title: str
    channels: int
    image_size: int
    classes: int
    train: int
    test: int | None
    segments: int | None = None
    tasks: tuple[str, ...] = ("classification",)
    augmentations: tuple[str, ...] = ("none", "shift", "shift_flip")
    streamed: bool = False


DATASETS = {
    "digits": DatasetFacts(
        title="8x8 scans of handwritten digits (UCI, in scikit-learn)",
        channels=1, image_size=8, classes=10, train=1_797, test=None),
    "fashion_mnist": DatasetFacts(
        title="Fashion-MNIST (Xiao et al., 2017)",
        channels=1, image_size=28, classes=10, train=60_000, test=10_000),
    "cifar10": DatasetFacts(
        title="CIFAR-10 (Krizhevsky, 2009)",
        channels=3, image_size=32, classes=10, train=50_000, test=10_000),
    "cifar100": DatasetFacts(
        title="CIFAR-100 (Krizhevsky, 2009)",
        channels=3, image_size=32, classes=100, train=50_000, test=10_000),
    "imagenet": DatasetFacts(
        title="ImageNet-1k (Russakovsky et al., 2015)",
        channels=3, image_size=224, classes=1_000, train=1_281_167, test=50_000,
        augmentations=("none", "random_resized_crop"), streamed=True),
    "scenes": DatasetFacts(
        title="scenes of several digits on textured ground, composed at load time",
        channels=3, image_size=32, classes=10, segments=11, train=2_500, test=500,
        tasks=("classification", "segmentation", "detection")),
    "scenes_fashion": DatasetFacts(
        title="the same of Fashion-MNIST's garments",
        channels=3, image_size=32, classes=10, segments=11, train=10_000, test=2_000,
        tasks=("classification", "segmentation", "detection")),
    "coco": DatasetFacts(
        title="COCO 2017 (Lin et al., 2014)",
        channels=3, image_size=800, classes=80, train=118_287, test=5_000,
        tasks=("detection",), augmentations=("none", "flip"), streamed=True),
    "cityscapes": DatasetFacts(
        title="Cityscapes, fine annotations (Cordts et al., 2016)",
        channels=3, image_size=1_024, classes=19, segments=19, train=2_975, test=500,
        tasks=("segmentation",), augmentations=("none", "crop_flip"), streamed=True),
    "ade20k": DatasetFacts(
        title="ADE20K, scene parsing (Zhou et al., 2017)",
        channels=3, image_size=450, classes=150, segments=150, train=20_210, test=2_000,
        tasks=("segmentation",), augmentations=("none", "scale_flip"), streamed=True),
}  # fmt: skip

TEST_FRACTION = 0.2  # cut from a data set without a test split of its own


def split_sizes(dataset: str, validation_fraction: float, train_samples: int | None) -> tuple[int, int, int]:
    """Samples in the training, validation and test split."""
    facts = DATASETS[dataset]
    test = facts.test if facts.test is not None else round(TEST_FRACTION * facts.train)
    pool = facts.train if facts.test is not None else facts.train - test
    validation = round(validation_fraction * pool)
    train = pool - validation
    return min(train, train_samples or train), validation, test

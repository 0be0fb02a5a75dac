"""What is known of a data set without opening it: enough to plan a study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Size and shape of a data set. `test` is None where none is published: the split seed cuts one off."""

    title: str
    channels: int
    image_size: int
    classes: int
    train: int
    test: int | None


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
        channels=3, image_size=224, classes=1_000, train=1_281_167, test=50_000),
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

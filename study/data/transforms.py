"""Transforms of streamed images: cropping, flipping, colors, normalization. They draw from torch's global generator."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from study.config.datasets import DATASETS
from study.config.schema import TrialConfig
from study.data.batches import IGNORED

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images in 0..1, used for all data sets
SHORT_SIDES, LONGEST_SIDE = (300, 375, 450, 525, 575), 1_000  # of the ADE20K training recipe
CROP = 768  # for Cityscapes; our own choice, as no recipe is published
JITTER = 0.4  # of brightness, contrast and saturation


def build_training_transform(config: TrialConfig, augmentation: str, epoch: int) -> v2.Transform:
    """A transform of (image, target) as a `SampleSource` reads them.

    It returns plain tensors; the image is float and normalized.
    """
    size = DATASETS[config.dataset].image_size
    if augmentation == "none":
        return build_evaluation_transform(config.dataset)
    flip = v2.RandomHorizontalFlip()
    if augmentation == "random_resized_crop":
        mild = epoch >= config.epochs - config.mild_epochs
        crop = _center_crop(size) if mild else [v2.RandomResizedCrop(size, antialias=True)]
        return _compose(*crop, flip, color=config.color)
    if augmentation == "scale_flip":
        return _compose(v2.RandomShortestSize(list(SHORT_SIDES), LONGEST_SIDE, antialias=True), flip)
    if augmentation == "crop_flip":
        gray = {tv_tensors.Image: [round(255 * mean) for mean in MEAN], tv_tensors.Mask: IGNORED}
        scale = v2.RandomResize(size // 2, 2 * size + 1, antialias=True)  # 0.5 to 2 times the short side
        return _compose(scale, v2.RandomCrop(CROP, pad_if_needed=True, fill=gray), flip)
    assert augmentation == "flip", augmentation
    return _compose(flip)


def build_evaluation_transform(dataset: str) -> v2.Transform:
    """The transform without random parts: resizes as the catalog says, and normalizes."""
    facts = DATASETS[dataset]
    if facts.evaluation_resize == "center_crop":
        return _compose(*_center_crop(facts.image_size))
    if facts.evaluation_resize == "short_side":
        return _compose(v2.Resize(facts.image_size, max_size=LONGEST_SIDE, antialias=True))
    return _compose()


class Lighting(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Moves an image along the principal components of ImageNet's colors (Krizhevsky et al., 2012, section 4.1).

    Images are float, in 0..1. A coefficient with standard deviation `std` is drawn for each component.
    """

    vectors = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
    values = (0.2175, 0.0188, 0.0045)

    def __init__(self, std: float = 0.1) -> None:
        super().__init__()
        self.std = std

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"shift": torch.tensor(self.vectors) @ (torch.randn(3) * self.std * torch.tensor(self.values))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        return tv_tensors.wrap(inpt + params["shift"][:, None, None], like=inpt)


def _center_crop(size: int) -> list[nn.Module]:
    return [v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)]


def _compose(*geometry: nn.Module, color: str = "none") -> v2.Transform:
    """The geometric transforms, then colors and normalization."""
    return v2.Compose([
        *geometry,
        *([v2.ColorJitter(JITTER, JITTER, JITTER)] if color == "jitter" else []),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
        *([Lighting()] if color != "none" else []),
        v2.Normalize(MEAN, STD),
        v2.ToPureTensor(),
    ])  # fmt: skip

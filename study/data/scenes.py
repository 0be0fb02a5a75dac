"""Scenes of several objects, composed at load time: the same images serve all three tasks, and no files are needed.

Glyphs (digits or garments) of different sizes, angles and colours overlap on a textured ground. Each scene has its own
lighting, so that the statistics of a channel, of an image and of a batch differ, and with them the normalizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from study.config.seeds import derive_seed
from study.data.in_memory import LabeledImages

SIZE = 32  # height and width in pixels
OBJECTS = 3  # largest number of objects in a scene
SHRINKING = (1.0, 0.6, 0.6)  # relative sizes from the nearest object on: the nearest gives an image its class
INK = 0.25  # pixels of a glyph brighter than this, relative to its brightest one, belong to the object
HAZE = 0.8  # brightness of the haze
MIN_AREA = 12  # an object is left out if fewer pixels of it are visible,
MIN_VISIBLE_SHARE = 0.4  # or a smaller share of its pixels
BLOCK = 128  # number of scenes that are composed at a time

# The values drawn for each scene, from uniform distributions: name -> (shape, low, high). The difficulty is chosen so
# that networks of eight layers learn all three tasks in a few hundred steps. With contrasts of both signs, or with
# objects of half the size, they do not.
DRAWN_VALUES: dict[str, tuple[tuple[int, ...], float, float]] = {
    "objects": ((), 2, OBJECTS + 1),
    "glyph": ((OBJECTS,), 0, 1),
    "size": ((OBJECTS,), 18, 26),  # pixels, before shrinking
    "aspect": ((OBJECTS,), 0.9, 1.1),
    "angle": ((OBJECTS,), -0.15, 0.15),
    "centre": ((OBJECTS, 2), 9, SIZE - 9),
    "tint": ((OBJECTS, 3), 0.4, 1),
    "contrast": ((OBJECTS,), 0.5, 0.9),
    "ground": ((3,), 0.05, 0.3),
    "patches": ((3, 4, 4), -0.08, 0.08),
    "grain": ((1, 12, 12), -1, 1),
    "grain_strength": ((), 0, 0.1),
    "wave": ((2,), -1, 1),  # radians per pixel to the right and downwards
    "wave_strength": ((3,), -0.05, 0.05),
    "light": ((), 0.4, 1.0),
    "shade": ((2,), -0.3, 0.3),  # change of the light from the centre to the right and lower edges
    "haze": ((), 0, 0.2),
    "noise": ((), 0, 0.03),
}


def compose_scenes(glyphs: LabeledImages, samples: int, seed: int) -> LabeledImages:
    """Scenes (N, 3, 32, 32) in 0..1 composed of `glyphs`, with the masks of the visible part of every object.

    Scene i depends only on (glyphs, seed, i). Objects are numbered from the nearest one; their labels are those of the
    glyphs plus 1. An object that would hardly be visible is left out: its number has the label 0.
    """
    values = {name: _draw(samples, seed, name, *spec) for name, spec in DRAWN_VALUES.items()}
    chosen = (values.pop("glyph") * len(glyphs)).long()
    noise = _build_generator(seed, "pixels")
    images = torch.empty(samples, 3, SIZE, SIZE)
    masks = torch.zeros(samples, SIZE, SIZE, dtype=torch.uint8)
    for start in range(0, samples, BLOCK):
        part = slice(start, start + BLOCK)
        block = {name: drawn[part] for name, drawn in values.items()}
        image = _paint_objects(glyphs.images[chosen[part]], block, masks[part])
        image += _per_scene(block["noise"]) * torch.from_numpy(noise.standard_normal(image.shape, dtype=np.float32))
        images[part] = _apply_light(image, block).clamp(0, 1)
    labels = (glyphs.labels[chosen] + 1) * (_count_visible_pixels(masks) > 0)
    return LabeledImages(images=images, labels=labels, masks=masks, unpublished=glyphs.unpublished)


def label_largest_object(scenes: LabeledImages) -> LabeledImages:
    """The same images, each with the class (from 0) of the object with the most visible pixels."""
    assert scenes.masks is not None
    largest = _count_visible_pixels(scenes.masks).argmax(1, keepdim=True)
    return replace(scenes, labels=scenes.labels.gather(1, largest)[:, 0] - 1, masks=None)


def _count_visible_pixels(masks: Tensor) -> Tensor:
    """The number of visible pixels of every object, (N, objects)."""
    kinds = OBJECTS + 1
    own = masks.flatten(1) + kinds * torch.arange(len(masks), dtype=torch.int32)[:, None]
    return torch.bincount(own.flatten(), minlength=kinds * len(masks)).view(-1, kinds)[:, 1:]


def _build_generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed("scenes", seed, name)))


def _draw(samples: int, seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Uniform values (N, *shape). A row depends only on its index: each row consumes equally many random numbers."""
    uniform = _build_generator(seed, name).random((samples, *shape), dtype=np.float32)
    return torch.from_numpy(uniform) * (high - low) + low


def _paint_objects(glyphs: Tensor, values: Mapping[str, Tensor], masks: Tensor) -> Tensor:
    """Images (N, 3, H, W) of the objects, painted from the nearest to the farthest, and the ground behind them.

    Writes the number of the visible object at each pixel into `masks`.
    """
    image = torch.zeros(len(masks), 3, SIZE, SIZE)
    uncovered = torch.ones(len(masks), 1, SIZE, SIZE)
    tint = values["tint"] / values["tint"].amax(2, keepdim=True) * values["contrast"][..., None]
    colour = values["ground"][:, None] + tint
    for number, glyph in enumerate(_place_glyphs(glyphs, values)):
        shape = glyph > INK
        free = masks[:, None] == 0
        visible = shape & free
        area, whole = (pixels.flatten(1).sum(1, dtype=torch.int32) for pixels in (visible, shape))
        wanted = (number < values["objects"].floor()) | free.flatten(1).all(1)  # every scene has an object
        kept = wanted & (area >= MIN_AREA) & (area >= MIN_VISIBLE_SHARE * whole)
        masks.masked_fill_((visible & _per_scene(kept))[:, 0], number + 1)
        cover = (5 * (glyph - INK) + 0.5).clamp(0, 1) * uncovered * _per_scene(kept)
        image.addcmul_(cover * (0.6 + 0.4 * glyph), colour[:, number, :, None, None])
        uncovered -= cover
    return image + uncovered * _paint_ground(values)


def _place_glyphs(glyphs: Tensor, values: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Yields the first glyph of every scene (N, 1, H, W) at its place, then the second, and so on."""
    right = torch.arange(SIZE) + 0.5 - values["centre"][..., :1]  # (N, objects, W)
    down = torch.arange(SIZE) + 0.5 - values["centre"][..., 1:]
    cosine, sine = values["angle"].cos()[..., None], values["angle"].sin()[..., None]
    size, stretch = values["size"] * torch.tensor(SHRINKING), values["aspect"].sqrt()
    width, height = size * stretch / 2, size / stretch / 2
    for k in range(OBJECTS):
        across = (cosine * right / width[..., None])[:, k, None, :] + (sine * down / width[..., None])[:, k, :, None]
        along = (cosine * down / height[..., None])[:, k, :, None] - (sine * right / height[..., None])[:, k, None, :]
        yield grid_sample(_enlarge(glyphs[:, k]), torch.stack([across, along], -1), align_corners=False)


def _enlarge(images: Tensor) -> Tensor:
    """Glyphs (N, 1, 32, 32) in 0..1, smooth enough to be drawn at any size."""
    images = interpolate(images, size=(32, 32), mode="bicubic").clamp(0, 1)
    return images / images.amax((1, 2, 3), keepdim=True)


def _paint_ground(values: Mapping[str, Tensor]) -> Tensor:
    """A colour with patches, grain and waves, (N, 3, H, W)."""
    colours = values["patches"] + values["ground"][..., None, None]
    grain = values["grain"] * _per_scene(values["grain_strength"])
    coarse, fine = (interpolate(layer, size=(SIZE, SIZE), mode="bilinear") for layer in (colours, grain))
    pixels = torch.arange(SIZE)
    waves = (values["wave"][:, :1, None] * pixels + values["wave"][:, 1:, None] * pixels[:, None]).sin()
    return coarse.addcmul_(waves[:, None], values["wave_strength"][..., None, None]).add_(fine)


def _apply_light(image: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """The image under a light of some strength and direction, seen through haze."""
    pixels = torch.linspace(-1, 1, SIZE)
    shade = 1 + values["shade"][:, :1, None] * pixels + values["shade"][:, 1:, None] * pixels[:, None]
    haze = _per_scene(values["haze"])
    return torch.addcmul(HAZE * haze, image, (1 - haze) * _per_scene(values["light"]) * shade[:, None])


def _per_scene(values: Tensor) -> Tensor:
    """One value per scene, (N, 1, 1, 1), to be broadcast over its pixels."""
    return values[:, None, None, None]

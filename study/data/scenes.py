"""Scenes of several objects, composed at load time: one image for all three tasks, without a file.

Glyphs (digits, garments) of any size, angle and colour lie over one another on textured ground, each scene in a light
of its own, so that the statistics of an image's channel, of the image and of the batch differ, and norms with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from study.config.seeds import derive_seed
from study.data.memory import Images

SIZE = 32  # pixels of a side
OBJECTS = 3  # of a scene, at most
SHRINKING = (1.0, 0.6, 0.6)  # the nearest object is the largest: what an image is of, if it is to be of one thing
INK = 0.25  # of a glyph's brightest pixel: what is brighter is the object
HAZE = 0.8  # its brightness
LEAST_AREA = 12  # pixels of an object that must be seen,
LEAST_SHARE = 0.4  # and the share of it
BLOCK = 128  # scenes composed at a time

# What is drawn for a scene, evenly: the shape, and from where to where. So hard that networks of eight layers learn all
# three tasks in some hundred steps: with contrasts of either sign, or half the size, they do not.
DRAWS: dict[str, tuple[tuple[int, ...], float, float]] = {
    "objects": ((), 2, OBJECTS + 1),
    "glyph": ((OBJECTS,), 0, 1),
    "size": ((OBJECTS,), 18, 26),  # pixels, before it shrinks
    "aspect": ((OBJECTS,), 0.9, 1.1),
    "angle": ((OBJECTS,), -0.15, 0.15),
    "centre": ((OBJECTS, 2), 9, SIZE - 9),
    "tint": ((OBJECTS, 3), 0.4, 1),
    "contrast": ((OBJECTS,), 0.5, 0.9),
    "ground": ((3,), 0.05, 0.3),
    "patches": ((3, 4, 4), -0.08, 0.08),
    "grain": ((1, 12, 12), -1, 1),
    "grain_strength": ((), 0, 0.1),
    "wave": ((2,), -1, 1),  # radians a pixel, right and down
    "wave_strength": ((3,), -0.05, 0.05),
    "light": ((), 0.4, 1.0),
    "shade": ((2,), -0.3, 0.3),  # of the light, from the centre to the right and lower edge
    "haze": ((), 0, 0.2),
    "noise": ((), 0, 0.03),
}


def compose(glyphs: Images, samples: int, seed: int) -> Images:
    """Scenes (N, 3, 32, 32) in 0..1 made of `glyphs` alone, with the masks of what is seen of every object.

    Scene i depends on (glyphs, seed, i) alone. Objects are numbered from the nearest; their labels are the glyphs'
    plus 1. One that would hardly be seen is left out: its number has the label 0.
    """
    draws = {name: _draw(samples, seed, name, *what) for name, what in DRAWS.items()}
    chosen = (draws.pop("glyph") * len(glyphs)).long()
    noise = _generator(seed, "pixels")
    images = torch.empty(samples, 3, SIZE, SIZE)
    masks = torch.zeros(samples, SIZE, SIZE, dtype=torch.uint8)
    for start in range(0, samples, BLOCK):
        part = slice(start, start + BLOCK)
        block = {name: values[part] for name, values in draws.items()}
        image = _paint_objects(glyphs.images[chosen[part]], block, masks[part])
        image += _wide(block["noise"]) * torch.from_numpy(noise.standard_normal(image.shape, dtype=np.float32))
        images[part] = _light(image, block).clamp(0, 1)
    return Images(images=images, labels=(glyphs.labels[chosen] + 1) * (_areas(masks) > 0), masks=masks)


def classify(scenes: Images) -> Images:
    """The same images, each with the class (from 0) of the object of which most is seen."""
    assert scenes.masks is not None
    largest = _areas(scenes.masks).argmax(1, keepdim=True)
    return replace(scenes, labels=scenes.labels.gather(1, largest)[:, 0] - 1, masks=None)


def _areas(masks: Tensor) -> Tensor:
    """Pixels that are seen of every object, (N, objects)."""
    kinds = OBJECTS + 1
    own = masks.flatten(1) + kinds * torch.arange(len(masks), dtype=torch.int32)[:, None]
    return torch.bincount(own.flatten(), minlength=kinds * len(masks)).view(-1, kinds)[:, 1:]


def _generator(seed: int, what: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed("scenes", seed, what)))


def _draw(samples: int, seed: int, name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """(N, *shape); a row depends on its number alone, as all rows take equally many numbers of one generator."""
    uniform = _generator(seed, name).random((samples, *shape), dtype=np.float32)
    return torch.from_numpy(uniform) * (high - low) + low


def _paint_objects(glyphs: Tensor, draws: Mapping[str, Tensor], masks: Tensor) -> Tensor:
    """Paints objects from the nearest to the farthest, then the ground, and numbers the pixels of `masks`."""
    image = torch.zeros(len(masks), 3, SIZE, SIZE)
    uncovered = torch.ones(len(masks), 1, SIZE, SIZE)
    tint = draws["tint"] / draws["tint"].amax(2, keepdim=True) * draws["contrast"][..., None]
    colour = draws["ground"][:, None] + tint
    for number, glyph in enumerate(_place(glyphs, draws)):
        shape = glyph > INK
        free = masks[:, None] == 0
        seen = shape & free
        area, whole = (pixels.flatten(1).sum(1, dtype=torch.int32) for pixels in (seen, shape))
        wanted = (number < draws["objects"].floor()) | free.flatten(1).all(1)  # no scene is empty
        kept = wanted & (area >= LEAST_AREA) & (area >= LEAST_SHARE * whole)
        masks.masked_fill_((seen & _wide(kept))[:, 0], number + 1)
        cover = (5 * (glyph - INK) + 0.5).clamp(0, 1) * uncovered * _wide(kept)
        image.addcmul_(cover * (0.6 + 0.4 * glyph), colour[:, number, :, None, None])
        uncovered -= cover
    return image + uncovered * _ground(draws)


def _place(glyphs: Tensor, draws: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """The first glyph (N, 1, H, W) of every scene at its place, the second, ..."""
    right = torch.arange(SIZE) + 0.5 - draws["centre"][..., :1]  # (N, objects, W)
    down = torch.arange(SIZE) + 0.5 - draws["centre"][..., 1:]
    cosine, sine = draws["angle"].cos()[..., None], draws["angle"].sin()[..., None]
    size, stretch = draws["size"] * torch.tensor(SHRINKING), draws["aspect"].sqrt()
    width, height = size * stretch / 2, size / stretch / 2
    for k in range(OBJECTS):
        across = (cosine * right / width[..., None])[:, k, None, :] + (sine * down / width[..., None])[:, k, :, None]
        along = (cosine * down / height[..., None])[:, k, :, None] - (sine * right / height[..., None])[:, k, None, :]
        yield grid_sample(_enlarge(glyphs[:, k]), torch.stack([across, along], -1), align_corners=False)


def _enlarge(images: Tensor) -> Tensor:
    """Glyphs (N, 1, 32, 32) in 0..1, smooth enough to be drawn at any size."""
    images = interpolate(images, size=(32, 32), mode="bicubic").clamp(0, 1)
    return images / images.amax((1, 2, 3), keepdim=True)


def _ground(draws: Mapping[str, Tensor]) -> Tensor:
    """A colour with patches, grain and waves, (N, 3, H, W)."""
    colours = draws["patches"] + draws["ground"][..., None, None]
    grain = draws["grain"] * _wide(draws["grain_strength"])
    coarse, fine = (interpolate(layer, size=(SIZE, SIZE), mode="bilinear") for layer in (colours, grain))
    pixels = torch.arange(SIZE)
    waves = (draws["wave"][:, :1, None] * pixels + draws["wave"][:, 1:, None] * pixels[:, None]).sin()
    return coarse.addcmul_(waves[:, None], draws["wave_strength"][..., None, None]).add_(fine)


def _light(image: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
    """The image in its light: weak or strong, from one side, behind more or less haze."""
    pixels = torch.linspace(-1, 1, SIZE)
    shade = 1 + draws["shade"][:, :1, None] * pixels + draws["shade"][:, 1:, None] * pixels[:, None]
    haze = _wide(draws["haze"])
    return torch.addcmul(HAZE * haze, image, (1 - haze) * _wide(draws["light"]) * shade[:, None])


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]

"""RandAugment with ViLT's list of operations: without colour inversion, which falsifies colour words, and without cutout, which removes
small things that a caption names (ViLT, arXiv 2102.03334, section 4.1; RandAugment, arXiv 1909.13719)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _signed(value: float, generator: np.random.Generator) -> float:
    return -value if generator.random() < 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _solarize_add(image: Image.Image, value: float, generator: np.random.Generator) -> Image.Image:
    brighter = np.clip(np.asarray(image).astype(np.int64) + int(value), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


# name -> (operation, lowest, highest magnitude)
OPERATIONS: dict[str, tuple[Operation, float, float]] = {
    "auto_contrast": (lambda image, v, g: ImageOps.autocontrast(image), 0, 1),
    "equalize": (lambda image, v, g: ImageOps.equalize(image), 0, 1),
    "rotate": (lambda image, v, g: image.rotate(_signed(v, g)), 0, 30),
    "posterize": (lambda image, v, g: ImageOps.posterize(image, max(1, int(v))), 0, 4),
    "solarize": (lambda image, v, g: ImageOps.solarize(image, int(v)), 0, 256),
    "solarize_add": (_solarize_add, 0, 110),
    "color": (lambda image, v, g: ImageEnhance.Color(image).enhance(v), 0.1, 1.9),
    "contrast": (lambda image, v, g: ImageEnhance.Contrast(image).enhance(v), 0.1, 1.9),
    "brightness": (lambda image, v, g: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9),
    "sharpness": (lambda image, v, g: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9),
    "shear_x": (lambda image, v, g: _affine(image, 1, _signed(v, g), 0, 0, 1, 0), 0, 0.3),
    "shear_y": (lambda image, v, g: _affine(image, 1, 0, 0, _signed(v, g), 1, 0), 0, 0.3),
    "translate_x": (lambda image, v, g: _affine(image, 1, 0, _signed(v, g), 0, 1, 0), 0, 100),
    "translate_y": (lambda image, v, g: _affine(image, 1, 0, 0, 0, 1, _signed(v, g)), 0, 100),
}
_NAMES = tuple(OPERATIONS)


def randaugment(image: Image.Image, n: int, magnitude: int, generator: np.random.Generator) -> Image.Image:
    """``n`` operations drawn with replacement, each at ``magnitude`` / 30 of its range.

    Args:
        image: RGB.
        n: how many operations.
        magnitude: 0 to 30; ViLT uses 9.
        generator: of the draws.
    """
    for choice in generator.integers(len(_NAMES), size=n):
        operation, lowest, highest = OPERATIONS[_NAMES[int(choice)]]
        image = operation(image, magnitude / 30 * (highest - lowest) + lowest, generator)
    return image

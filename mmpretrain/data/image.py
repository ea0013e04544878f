"""Image transforms: picture files -> uint8 (3, H, W). Every draw comes from a generator that the caller keys by (seed, epoch, position)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmpretrain.data.codec import Codec, P, codec, resolve
from mmpretrain.data.errors import DataError
from mmpretrain.data.randaugment import randaugment

Triple = tuple[float, float, float]
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "scenes": ((0.884, 0.88, 0.883), (0.182, 0.173, 0.176)),  # of the 10,000 embedded training pictures
}
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


@dataclass(frozen=True)
class ImageTransform:
    """How pictures reach a model. Call it with a generator for training, without one for evaluation.

    Args:
        mode: ``vilt``: shorter side to ``size``, aspect kept, sides multiples of ``multiple`` (ViLT, arXiv 2102.03334, section 4.2);
            ``clip``: random resized crop in training, resize and centre crop in evaluation, square (CLIP, arXiv 2103.00020, section 2.5);
            ``squash``: the whole picture to a square (SigLIP); ``dalle``: random square crops of random size in training, resize and centre
            crop in evaluation (DALL-E, arXiv 2102.12092, listings 1 and 2).
        size: shorter side (``vilt``) or side of the square, in pixels.
        multiple: patch size of the model, for ``vilt``.
        normalize: which mean and standard deviation the model gets: ``half``, ``clip``, ``imagenet``, ``scenes``, ``unit`` (none), or your
            own, each of red, green and blue in 0 to 1. Pictures on a pale ground are learned much sooner with their own.
        crop_scale: smallest and largest part of the area that the random crop of ``clip`` takes.
        stage: of ``dalle``. 1: a square as large as the picture allows, anywhere in it, resized to 9/8 to 12/8 of ``size``, of which a
            square is taken (listing 1; the paper mirrors half of them, ``flip``). 2: the first square is near the middle and becomes 1 to
            9/8 of ``size`` (listing 2). Pictures are never enlarged for this beyond ``size``.
        randaugment: (operations, magnitude of 30) of ViLT's RandAugment on the picture before it is resized, in training; None: none.
        flip: mirror half of the pictures in training. Captions that speak of left and right become false.
        decoder: ``pil``; ``simplejpeg``: JPEGs are decoded by it and all pictures resized by torch, in a third of the time; ``auto``: the
            latter where it works. The name that is kept is never ``auto``: checkpoints say what made their pixels.

    Raises:
        DataError: an option out of its range.
    """

    mode: Literal["vilt", "clip", "squash", "dalle"] = "vilt"
    size: int = 384
    multiple: int = 32
    normalize: Literal["half", "clip", "imagenet", "scenes", "unit"] | tuple[Triple, Triple] = "half"
    crop_scale: tuple[float, float] = (0.9, 1.0)
    randaugment: tuple[int, int] | None = None
    flip: bool = False
    decoder: Literal["auto", "pil", "simplejpeg"] = "auto"
    stage: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.mode not in ("vilt", "clip", "squash", "dalle") or self.stage not in (1, 2):
            raise DataError(f"data.image.mode={self.mode!r}, stage={self.stage!r}; take vilt, clip, squash or dalle, and stage 1 or 2")
        object.__setattr__(self, "normalize", _statistics(self.normalize))
        if self.size < 1 or self.multiple < 1 or (self.mode == "vilt" and self.size < self.multiple):
            raise DataError(f"data.image.size={self.size} must be at least the patch size, data.image.multiple={self.multiple}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise DataError(f"data.image.crop_scale={self.crop_scale} must be two ascending parts of 1")
        if self.randaugment is not None and not (self.randaugment[0] >= 0 and 0 <= self.randaugment[1] <= 30):
            raise DataError(f"data.image.randaugment={self.randaugment} must be (operations, magnitude from 0 to 30)")
        object.__setattr__(self, "decoder", resolve(self.decoder))

    @property
    def mean(self) -> Triple:
        return (STATISTICS[self.normalize] if isinstance(self.normalize, str) else self.normalize)[0]

    @property
    def std(self) -> Triple:
        return (STATISTICS[self.normalize] if isinstance(self.normalize, str) else self.normalize)[1]

    def read(self, files: Sequence[bytes], generator: np.random.Generator | None = None) -> Tensor:
        """The encoded picture(s) of one sample for the model, several side by side: uint8 (3, H, W). See :meth:`__call__`.

        Raises:
            BadSample: a file that cannot be decoded.
        """
        made = codec(self.decoder)
        return self(made.join([made.decode(data) for data in files]), generator)

    def __call__(self, image: Image.Image | Tensor, generator: np.random.Generator | None = None) -> Tensor:
        """The picture for the model: uint8 (3, H, W).

        Args:
            image: RGB, see ``decode.decode_image``; or uint8 (3, H, W).
            generator: of the random draws of training; None: the fixed transform of evaluation.
        """
        made = codec(self.decoder)
        picture = made.take(image)
        if generator is not None and self.randaugment is not None:
            picture = made.take(randaugment(made.pillow(picture), *self.randaugment, generator))
        height, width = made.size(picture)
        if self.mode == "vilt":
            picture = made.resize(picture, *vilt_size(height, width, self.size, self.multiple))
        elif self.mode == "squash":
            picture = made.resize(picture, self.size, self.size)
        elif self.mode == "dalle" and generator is not None:
            picture = _dalle(made, picture, self.size, self.stage, generator)
        elif generator is not None:
            picture = made.resize(made.crop(picture, _random_box(height, width, self.crop_scale, generator)), self.size, self.size)
        else:
            picture = _center(made, picture, self.size)
        if generator is not None and self.flip and generator.random() < 0.5:
            picture = made.mirror(picture)
        return made.tensor(picture)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImageTransform:
        """Inverse of :meth:`to_dict`."""
        options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**options)


def _statistics(given: Any) -> Any:
    """The name of known statistics, or (mean, std) as tuples of three floats."""
    if isinstance(given, str) and given in STATISTICS:
        return given
    rows = given if isinstance(given, list | tuple) and len(given) == 2 else ()
    if rows and all(isinstance(row, list | tuple) and len(row) == 3 for row in rows):
        values = tuple(tuple(value for value in row if isinstance(value, int | float) and math.isfinite(value)) for row in rows)
        if all(len(row) == 3 for row in values) and min(values[1]) > 0:
            return values
    known = ", ".join(STATISTICS)
    raise DataError(f"data.image.normalize={given!r}; take one of {known}, or [[mean of red, green, blue], [std of red, green, blue]]")


def vilt_size(height: int, width: int, size: int = 384, multiple: int = 32) -> tuple[int, int]:
    """(height, width) that ViLT gives a picture.

    The shorter side becomes ``size``, the longer one at most ``int(1333 / 800 * size)``, both are rounded half up and then floored to
    multiples of ``multiple`` (at least one): (300, 500) -> (352, 608), so the largest grid of ViLT is 12 x 19, not the paper's 12 x 20.
    """
    longest = int(1333 / 800 * size)
    scale = size / min(height, width)
    new_height, new_width = (size, scale * width) if height < width else (scale * height, size)
    if max(new_height, new_width) > longest:
        shrink = longest / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    rounded = int(new_height + 0.5), int(new_width + 0.5)
    return max(rounded[0] // multiple, 1) * multiple, max(rounded[1] // multiple, 1) * multiple


def _center(made: Codec[P], picture: P, size: int) -> P:
    """Shortest side to ``size``, then the square in the middle; of a very long picture the middle is cut out first, to bound memory."""
    height, width = made.size(picture)
    short, long = min(width, height), max(width, height)
    resized = int(size * long / short)
    if resized > 64 * size:
        middle = short * 2
        left, top = ((width - middle) // 2, 0) if width > height else (0, (height - middle) // 2)
        picture = made.crop(picture, (left, top, left + min(middle, width), top + min(middle, height)))
        height, width = made.size(picture)
        resized = int(size * max(width, height) / min(width, height))
    picture = made.resize(picture, size, resized) if width > height else made.resize(picture, resized, size)
    height, width = made.size(picture)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return made.crop(picture, (left, top, left + size, top + size))


def _random_box(height: int, width: int, scale: tuple[float, float], generator: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop of random area and aspect; after ten failures the largest allowed one in the middle."""
    ratio = (math.log(_CROP_RATIO[0]), math.log(_CROP_RATIO[1]))
    for _ in range(_CROP_TRIES):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(*ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _CROP_RATIO[1])))
    h = min(height, max(1, round(width / _CROP_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _dalle(made: Codec[P], picture: P, size: int, stage: int, generator: np.random.Generator) -> P:
    """DALL-E's augmentation but for the mirror: a square crop on the short side, resized, and a square of ``size`` of that.

    As in the listings, a picture whose short side is below the size that is drawn keeps its own; one that is smaller than ``size`` is
    enlarged to it, which the listings cannot read.
    """
    height, width = made.size(picture)
    short = min(height, width)
    if stage == 1:
        least, most = min(short, round(9 / 8 * size)), min(short, round(12 / 8 * size))
        top, left = (int(generator.integers(side - short + 1)) for side in (height, width))
    else:
        least, most = size, min(short, round(9 / 8 * size))
        top, left = (_near_middle(side - short, generator) for side in (height, width))
    picture = made.crop(picture, (left, top, left + short, top + short))
    between = max(size, int(generator.integers(least, max(least, most) + 1)))
    picture = area(made, picture, between) if between < short else made.resize(picture, between, between)
    top, left = (int(generator.integers(between - size + 1)) for _ in range(2))
    return made.crop(picture, (left, top, left + size, top + size))


def _near_middle(room: int, generator: np.random.Generator) -> int:
    """An offset in the middle quarter of what there is room for."""
    return int(generator.integers(3 * room // 8, max(3 * room // 8 + 1, 5 * room // 8)))


def area(made: Codec[P], picture: P, side: int) -> P:
    """A picture made smaller, to ``side`` x ``side``: every pixel is the mean of the area that it covers, parts by their share."""
    x = made.tensor(picture).numpy()
    shrunk = _shrunk(_shrunk(x, side).swapaxes(1, 2), side).swapaxes(1, 2)
    return made.take(torch.from_numpy(np.rint(shrunk).clip(0, 255).astype(np.uint8)))


def _shrunk(x: np.ndarray, count: int) -> np.ndarray:
    """Means over ``count`` equal stretches of axis 1: float32."""
    edges = np.arange(count + 1) * (x.shape[1] / count)
    low = np.minimum(edges.astype(np.int64), x.shape[1] - 1)
    part = (edges - low).astype(np.float32)[:, None]  # of the pixel ``low`` that lies before the edge
    cut = x[:, low].astype(np.float32) * part
    whole = np.add.reduceat(x, low[:-1], axis=1, dtype=np.float32)
    whole[:, -1] -= x[:, -1]  # the last stretch reaches to the end, its last pixel comes with ``cut``
    return (whole + cut[:, 1:] - cut[:, :-1]) * np.float32(count / x.shape[1])

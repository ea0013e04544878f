"""Pictures in one of two forms with the same operations: Pillow's, or tensors that libjpeg-turbo decodes and torch resizes (the fast path).

Which one is chosen does not change what a picture means, only the last bits of its pixels. Pillow reads every header (kind, pixels,
orientation) and decodes whatever is odd in both forms; simplejpeg decodes JPEGs of one or three components that stand upright. A JPEG that
it refuses is given to Pillow, whose verdict holds. Both resize with antialiased bicubic filters; torch's weights have fewer bits.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmpretrain.data.decode import MAX_PIXELS, decode_image, finished, join, opened, refusals, upright
from mmpretrain.data.errors import DataError

DECODERS = ("auto", "pil", "simplejpeg")
Box = tuple[int, int, int, int]  # left, top, right, bottom
_JPEG_PLAIN = frozenset((0xDB, 0xC4, 0xDD, 0xFE, 0xE0, *range(0xE2, 0xF0)))  # tables, comments, applications but EXIF and XMP
P = TypeVar("P")


class Codec(Protocol, Generic[P]):
    """What a transform does with pictures of the form ``P``."""

    name: ClassVar[str]

    def decode(self, data: bytes) -> P:
        """The picture of a file as ``decode.decode_image`` specifies it. Raises BadSample."""
        ...

    def take(self, picture: Image.Image | Tensor) -> P:
        """A picture of either form, RGB or uint8 (3, H, W), in this one."""
        ...

    def pillow(self, picture: P) -> Image.Image: ...

    def size(self, picture: P) -> tuple[int, int]:
        """(height, width)."""
        ...

    def crop(self, picture: P, box: Box) -> P: ...

    def resize(self, picture: P, height: int, width: int) -> P:
        """Bicubic, antialiased."""
        ...

    def mirror(self, picture: P) -> P: ...

    def join(self, pictures: Sequence[P]) -> P:
        """Side by side, tops aligned, on white."""
        ...

    def tensor(self, picture: P) -> Tensor:
        """uint8 (3, H, W), contiguous."""
        ...


class Pillow:
    """Pictures are ``PIL.Image.Image`` of mode RGB."""

    name: ClassVar[str] = "pil"

    def decode(self, data: bytes) -> Image.Image:
        return decode_image(data)

    def take(self, picture: Image.Image | Tensor) -> Image.Image:
        if isinstance(picture, Tensor):
            return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        return picture if picture.mode == "RGB" else picture.convert("RGB")

    def pillow(self, picture: Image.Image) -> Image.Image:
        return picture

    def size(self, picture: Image.Image) -> tuple[int, int]:
        return picture.height, picture.width

    def crop(self, picture: Image.Image, box: Box) -> Image.Image:
        return picture.crop(box)

    def resize(self, picture: Image.Image, height: int, width: int) -> Image.Image:
        return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BICUBIC)

    def mirror(self, picture: Image.Image) -> Image.Image:
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def join(self, pictures: Sequence[Image.Image]) -> Image.Image:
        return join(pictures)

    def tensor(self, picture: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


class Tensors:
    """Pictures are uint8 tensors (3, H, W), channels last in memory."""

    name: ClassVar[str] = "simplejpeg"

    def decode(self, data: bytes) -> Tensor:
        size = _jpeg_size(data)
        if size is None:
            with refusals(data):
                image = opened(data)
                if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L") or not upright(image):
                    return self.take(finished(image))
                size = image.height, image.width
        found = _jpeg(data) if size[0] * size[1] <= MAX_PIXELS else None
        return found if found is not None and self.size(found) == size else self.take(decode_image(data))

    def take(self, picture: Image.Image | Tensor) -> Tensor:
        if isinstance(picture, Tensor):
            return picture
        return torch.from_numpy(np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))).permute(2, 0, 1)

    def pillow(self, picture: Tensor) -> Image.Image:
        return PILLOW.take(picture)

    def size(self, picture: Tensor) -> tuple[int, int]:
        return picture.shape[1], picture.shape[2]

    def crop(self, picture: Tensor, box: Box) -> Tensor:
        left, top, right, bottom = box
        return picture[:, top:bottom, left:right]

    def resize(self, picture: Tensor, height: int, width: int) -> Tensor:
        if self.size(picture) == (height, width):
            return picture
        one = picture[None].contiguous(memory_format=torch.channels_last)
        return torch.nn.functional.interpolate(one, size=(height, width), mode="bicubic", antialias=True)[0]

    def mirror(self, picture: Tensor) -> Tensor:
        return picture.flip(-1)

    def join(self, pictures: Sequence[Tensor]) -> Tensor:
        if len(pictures) == 1:
            return pictures[0]
        height, width = max(one.shape[1] for one in pictures), sum(one.shape[2] for one in pictures)
        canvas, left = torch.full((height, width, 3), 255, dtype=torch.uint8).permute(2, 0, 1), 0
        for one in pictures:
            canvas[:, : one.shape[1], left : left + one.shape[2]] = one
            left += one.shape[2]
        return canvas

    def tensor(self, picture: Tensor) -> Tensor:
        return picture.contiguous()


PILLOW, TENSORS = Pillow(), Tensors()


def codec(name: str) -> Codec[Any]:
    """The codec with a resolved name, ``pil`` or ``simplejpeg``."""
    return PILLOW if name == "pil" else TENSORS


def resolve(name: str) -> str:
    """``pil`` or ``simplejpeg``; ``auto`` is the latter where it works.

    Raises:
        DataError: another name, or simplejpeg is asked for and cannot decode here.
    """
    if name not in DECODERS:
        raise DataError(f"data.image.decoder={name!r}; take one of {', '.join(DECODERS)}")
    if name == "pil":
        return name
    problem = _broken()
    if problem is None:
        return "simplejpeg"
    if name == "simplejpeg":
        raise DataError(f"data.image.decoder=simplejpeg cannot decode here ({problem}); take pil, or pip install simplejpeg")
    return "pil"


def difference(name: str, size: int = 224) -> dict[str, Any]:
    """How far the pixels of a decoder are from Pillow's on one generated JPEG of 500 x 375 pixels, squashed to ``size`` x ``size``.

    Returns:
        Plain JSON types: ``decoder``, ``library`` with its version, and the largest and mean absolute difference in grey values of 255.
    """
    chosen = codec(name)
    data = _photograph()
    found, expected = (one.tensor(one.resize(one.decode(data), size, size)).int() for one in (chosen, PILLOW))
    apart = (found - expected).abs()
    return {
        "decoder": name,
        "library": _library(name),
        "difference_to_pil": {"max": int(apart.max()), "mean": round(float(apart.float().mean()), 5), "size": size},
    }


def _library(name: str) -> str:
    if name == "pil":
        return f"pillow {Image.__version__}"
    from importlib.metadata import version

    return f"simplejpeg {version('simplejpeg')}, torch {torch.__version__}"


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a plain JPEG file: 8 bits, one or three components, baseline or progressive, no EXIF, XMP or further pictures.

    None for all others; Pillow says what those are. Five times as fast as Pillow's reading of the header.
    """
    at, size = 2, None
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if kind == 0xDA:  # where Pillow stops reading headers, too
            return size
        if kind in (0xC0, 0xC1, 0xC2):
            bits, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if size is not None or length < 2 or bits != 8 or components not in (1, 3) or not height or not width:
                return None
            size = (height, width)
        elif length < 2 or kind not in _JPEG_PLAIN or (kind == 0xE2 and data[at + 4 : at + 8] == b"MPF\0"):
            return None
        at += 2 + length
    return None


def _jpeg(data: bytes) -> Tensor | None:
    """The pixels of a JPEG file, uint8 (3, H, W) channels last in memory; None where libjpeg has anything to say against it."""
    import simplejpeg

    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    except ValueError:
        return None


@functools.cache
def _broken() -> str | None:
    """Why simplejpeg cannot decode on this machine; None where it can."""
    try:
        found = _jpeg(_photograph())
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None if found is not None else "it refuses a JPEG file"


@functools.cache
def _photograph() -> bytes:
    """A JPEG of smooth shapes with noise, the same in every process."""
    y, x = np.mgrid[0:375, 0:500].astype(np.float64)
    waves = [np.sin(x / (11 + 7 * c) + y / (23 - 5 * c)) * 90 + 128 for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 12, (375, 500, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

"""Anything that people call an image, as a PIL image; and what stands for one to a model over regions."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmpretrain.data.decode import decode_image
from mmpretrain.data.errors import BadSample
from mmpretrain.types import Regions, Sample, Visual

ImageLike = Image.Image | str | Path | bytes | Tensor
VisualLike = ImageLike | Regions | Sample | Visual


def file_of(image: ImageLike) -> bytes | None:
    """The bytes of an image file or of a file of regions or codes, where ``image`` is one or names one; None for other forms."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, (str, Path)):
        return None
    path = Path(image)
    if not path.is_file():
        raise ValueError(f"{path}: no such image file")
    return path.read_bytes()


def holds_regions(data: bytes) -> bool:
    """Whether the bytes of a file are those of a ``KEY.regions.npz`` rather than a picture."""
    return data[:2] == b"PK"


def holds_codes(data: bytes) -> bool:
    """Whether the bytes of a file are those of a ``KEY.codes.npy`` rather than a picture."""
    return data[:6] == b"\x93NUMPY"


def picture_of(image: ImageLike) -> Image.Image:
    """Any accepted form of an image as an RGB PIL image."""
    data = file_of(image)
    if data is not None:
        try:
            return decode_image(data)
        except BadSample as error:
            if isinstance(image, str | Path):
                raise BadSample(f"{image}: {error}") from None
            raise
    if isinstance(image, Image.Image):
        if image.mode == "RGB":
            return image
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")  # so that transparency and palettes are treated exactly as in shards
        return decode_image(buffer.getvalue())
    if not isinstance(image, Tensor) or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image is a PIL image, a path, bytes or a tensor (3, H, W), not {type(image).__name__}")
    values = image.detach().cpu()
    if values.is_floating_point():
        values = (values.clamp(0, 1) * 255).round()
    return Image.fromarray(values.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())

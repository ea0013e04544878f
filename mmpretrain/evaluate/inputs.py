"""Anything that people call an image, as a PIL image; and what stands for one to a model over regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mmpretrain.data.decode import decode_image, finished, refusals
from mmpretrain.data.errors import BadSample
from mmpretrain.types import Regions, Sample, Visual

ImageLike = Image.Image | str | Path | bytes | Tensor
VisualLike = ImageLike | Regions | Sample | Visual
_SLACK = 1e-3  # rounding of floats beyond 0 and 1


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
        if image.mode in ("I", "F"):
            raise ValueError(
                f"an image of mode {image.mode} does not say what its brightest value is: scale it to 0 to 255 and convert it to RGB"
            )
        with refusals(b"an image"):
            return finished(image.copy())  # its orientation, transparency and palette are treated as those of a file
    return _of_tensor(image)


def _of_tensor(image: object) -> Image.Image:
    if not isinstance(image, Tensor):
        raise ValueError(f"an image is a PIL image, a path, bytes or a tensor (3, H, W), not {type(image).__name__}")
    if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
        raise ValueError(f"an image as a tensor is (3, H, W), not {tuple(image.shape)}")
    values = image.detach().cpu()
    if values.is_floating_point():
        values = values.float()
        if not bool(((values >= -_SLACK) & (values <= 1 + _SLACK)).all()):
            low, high = values.min().item(), values.max().item()
            raise ValueError(f"an image as a tensor of floats has values from 0 to 1, not from {low:.4g} to {high:.4g}; of uint8, 0 to 255")
        values = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise ValueError(f"an image as a tensor is of uint8 or of floats from 0 to 1, not of {str(values.dtype).removeprefix('torch.')}")
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def listed(images: VisualLike | Sequence[VisualLike]) -> list[VisualLike]:
    """The images as a list; a single one, which may itself be a sequence, as a list of it."""
    if isinstance(images, Tensor):
        return [images] if images.ndim < 4 else list(images)
    if isinstance(images, str | Path | bytes | Image.Image | Regions | Sample | Visual):
        return [images]
    return list(images)

"""Pictures of panels, with Pillow and numpy: thumbnails, boxes of regions, heat maps over images, contact sheets."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmpretrain.data.decode import decode_image
from mmpretrain.data.errors import BadSample

SIDE = 160  # longest side of a stored thumbnail, in pixels
LABEL = 20  # height of a line of text
GAP = 4
_RAMP = np.array([[26, 15, 89], [115, 26, 140], [217, 64, 89], [255, 153, 26], [255, 242, 115]], dtype=np.float32)
_GOOD, _INK, _PAPER, _HIDDEN = (11, 122, 91), (29, 28, 26), (255, 255, 255), (217, 64, 92)


def thumbnail(pixels_3HW: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, side: int = SIDE) -> Image.Image:
    """A picture of model input.

    Args:
        pixels_3HW: uint8, or floats normalised by ``mean`` and ``std`` (by 0.5 and 0.5 where they are not known).
        side: longest side of the result in pixels.
    """
    pixels_3HW = pixels_3HW.detach().cpu()
    if pixels_3HW.is_floating_point():
        scale, shift = (torch.tensor(x or (0.5, 0.5, 0.5)).view(3, 1, 1) for x in (std, mean))
        pixels_3HW = ((pixels_3HW.float() * scale + shift).clamp(0, 1) * 255).round()
    return shrunk(Image.fromarray(pixels_3HW.to(torch.uint8).permute(1, 2, 0).contiguous().numpy()), side)


def boxes(
    size: tuple[int, int], boxes_R4: Tensor, names: Sequence[str], side: int = SIDE, picture: Image.Image | None = None
) -> Image.Image:
    """Regions of a picture: their boxes, each in the colour of its name; on white, with the names, where the picture is not there.

    Args:
        size: height and width of the picture that the boxes refer to, in pixels.
        boxes_R4: x1 y1 x2 y2 in its pixels.
        names: of the regions; "": none.
        side: longest side of the result in pixels, without a picture.
        picture: to draw on, of any size; it is left as it is.
    """
    factor = side / max(size)
    blank = (max(1, round(size[1] * factor)), max(1, round(size[0] * factor)))
    sheet = Image.new("RGB", blank, _PAPER) if picture is None else picture.convert("RGB")
    sheet = sheet.copy() if sheet is picture else sheet
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    scale = torch.tensor([factor] * 4) if picture is None else torch.tensor([sheet.width / size[1], sheet.height / size[0]] * 2)
    for corners, name in zip((boxes_R4.float().cpu() * scale).tolist(), names, strict=True):
        hue = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:2], "big") % 360
        draw.rectangle(corners, outline=f"hsl({hue}, 70%, {40 if picture is None else 55}%)", width=2 if picture is None else 1)
        if picture is None:
            draw.text((corners[0] + 3, corners[1] + 1), _fit(name, font, sheet.width), fill=f"hsl({hue}, 70%, 30%)", font=font)
    return sheet


def outlined(picture: Image.Image, box: Sequence[float]) -> Image.Image:
    """A copy with one box, given in shares of width and height, in a thick line."""
    made = picture.convert("RGB").copy()
    corners = [share * length for share, length in zip(box, (made.width, made.height) * 2, strict=True)]
    ImageDraw.Draw(made).rectangle(corners, outline=_HIDDEN, width=3)
    return made


def shrunk(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture whose longest side is ``side`` pixels."""
    factor = side / max(picture.size)
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), Image.Resampling.LANCZOS)


def stored(data: Any, keys: Sequence[str]) -> dict[str, Image.Image]:
    """The pictures, by their keys, of samples of the first validation set that have one; found by a look through the keys of its indexes.

    Args:
        data: the data module.
        keys: of the samples.
    """
    names, missing, found = tuple(getattr(data, "val_names", ())), set(keys), dict[str, Image.Image]()
    reader = data.val_reader(names[0]) if names else None
    for shard, index in enumerate(reader.indexes if reader is not None else ()):
        for number in range(len(index) if missing else 0):
            if (key := index.key(number)) not in missing:
                continue
            missing.discard(key)
            with contextlib.suppress(BadSample):  # then its boxes are drawn on white
                images = reader.read_at(shard, number, images=True, regions=False).images
                if len(images) == 1:
                    found[key] = shrunk(decode_image(images[0]))
    return found


def store(picture: Image.Image, folder: Path) -> str:
    """Write a picture under the digest of its content, once; returns the file name. An equal picture is not written again."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    content = buffer.getvalue()
    name = hashlib.sha256(content).hexdigest()[:16] + ".png"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return name


def heat(picture: Image.Image, weights: np.ndarray) -> Image.Image:
    """``weights`` (rows, columns) in [0, 1] painted over a picture, interpolated between patch centres."""
    map_ = Image.fromarray((np.clip(weights, 0, 1) * 255).astype(np.uint8))
    v = np.asarray(map_.resize(picture.size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255
    at = np.clip(v[..., 0], 0, 0.9999) * (len(_RAMP) - 1)
    low = at.astype(int)
    colour = _RAMP[low] + (at - low)[..., None] * (_RAMP[low + 1] - _RAMP[low])
    alpha = 0.5 + 0.12 * v
    return Image.fromarray(((1 - alpha) * np.asarray(picture.convert("RGB"), dtype=np.float32) + alpha * colour).astype(np.uint8))


def row(pictures: Sequence[Image.Image], labels: Sequence[str], title: str = "", framed: Sequence[bool] = ()) -> Image.Image:
    """Pictures side by side, each with a label beneath; framed ones have a thick border."""
    font = ImageFont.load_default(size=12)
    cell_w, cell_h = max(p.width for p in pictures), max(p.height for p in pictures)
    top = LABEL if title else 0
    sheet = Image.new("RGB", (len(pictures) * (cell_w + GAP) + GAP, top + cell_h + LABEL + 2 * GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((GAP, 3), _fit(title, font, sheet.width - 2 * GAP), fill=_INK, font=font)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = GAP + i * (cell_w + GAP), top + GAP
        sheet.paste(picture, (x, y))
        right = i < len(framed) and framed[i]
        if right:
            draw.rectangle((x - 3, y - 3, x + picture.width + 2, y + picture.height + 2), outline=_GOOD, width=3)
        draw.text((x, y + cell_h + 3), _fit(label, font, cell_w), fill=_GOOD if right else _INK, font=font)
    return sheet


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."

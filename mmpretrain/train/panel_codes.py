"""Pictures, the codes that a discrete autoencoder gives them, and what it makes of the codes, side by side."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mmpretrain.evaluate.reconstruction import Rebuilt, psnr, squared_error
from mmpretrain.nn.hidden import Coded
from mmpretrain.report.panels_schema import RebuiltExample, ReconstructionPanel
from mmpretrain.train.panel_bodies import Forward, Shown
from mmpretrain.train.panel_pictures import SIDE, row, thumbnail
from mmpretrain.types import Batch

_GOLDEN = 0.6180339887498949  # of the circle of hues: neighbouring codes get colours far apart


def reconstruction(
    batch: Batch, shown: Shown, rebuilt_of: Callable[[Coded], Tensor], forward: Forward, keep: Callable[[Image.Image], str]
) -> ReconstructionPanel:
    """Every picture of the batch with its most probable codes and what the decoder makes of them.

    Args:
        batch: with pictures of one size.
        shown: their paths.
        rebuilt_of: pictures in 0 to 1 (B, 3, H, W) from what the model gave.
        forward: see ``panel_bodies``.
        keep: stores a picture and gives its path.
    """

    def read(hidden: Coded) -> Rebuilt:
        return Rebuilt(hidden.logits_BKhw.argmax(1).cpu(), hidden.pixels_BCHW.cpu(), rebuilt_of(hidden).float().cpu())

    found = forward(batch, "coded", read)
    examples = [
        RebuiltExample(image, keep(painted(ids)), keep(thumbnail((picture * 255).round().byte(), None, None)), round(float(ratio), 2))
        for image, ids, picture, ratio in zip(
            shown.pictures, found.ids_Bhw, found.rebuilt_BCHW.clamp(0, 1), psnr(squared_error(found)), strict=True
        )
    ]
    return ReconstructionPanel(tuple(examples), int(found.ids_Bhw.unique().numel()))


def painted(ids_hw: Tensor, side: int = SIDE) -> Image.Image:
    """A grid of codes, each code in a colour of its own."""
    hues = (ids_hw.numpy() * _GOLDEN) % 1.0
    colours = [[colorsys.hls_to_rgb(hue, 0.42 + 0.2 * (int(code) % 3) / 2, 0.55) for hue, code in zip(*line, strict=True)]
               for line in zip(hues, ids_hw.tolist(), strict=True)]  # fmt: skip
    picture = Image.fromarray((np.asarray(colours) * 255).astype(np.uint8))
    scale = side / max(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)


def sheet(body: ReconstructionPanel, sources: dict[str, Image.Image]) -> Image.Image:
    """The panel as one picture: a row of pictures, a row of codes, a row of reconstructions."""
    parts: Sequence[tuple[str, list[str], list[str]]] = (
        ("pictures", [one.image for one in body.examples], [""] * len(body.examples)),
        ("codes", [one.codes for one in body.examples], [""] * len(body.examples)),
        ("from the codes", [one.rebuilt for one in body.examples], [f"{one.psnr:.1f} dB" for one in body.examples]),
    )
    rows = [row([sources[name] for name in names], labels, title) for title, names, labels in parts]
    whole: Any = Image.new("RGB", (rows[0].width, sum(one.height for one in rows)), "white")
    top = 0
    for one in rows:
        whole.paste(one, (0, top))
        top += one.height
    return whole

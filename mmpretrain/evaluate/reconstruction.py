"""What a discrete autoencoder loses of pictures, and how much of its codebook is in use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.nn.dvae import unit_pixels
from mmpretrain.types import Visual

LEAST = 1e-10  # of a mean squared error: the PSNR of a perfect picture is 100 dB
VALUES = 1 << 24  # numbers of the logits of one forward


class Rebuilt(NamedTuple):
    """A batch of pictures and what became of them."""

    ids_Bhw: Tensor  # int64
    pixels_BCHW: Tensor  # as they were read, fp32 in 0 to 1
    rebuilt_BCHW: Tensor  # the same, from the codes


def rebuild(pretrained: Pretrained, visuals: Sequence[Visual]) -> Rebuilt:
    """Pictures through the codes and back, on the CPU.

    Args:
        pretrained: a model of the kind ``coded``.
        visuals: with pictures of one size, as ``pretrained.see`` gives them.
    """
    pixels = unit_pixels(pretrained.pixels([one.image for one in visuals if one.image is not None]))

    def run(model: Any, _: Mapping[str, Any]) -> Rebuilt:
        ids = model.encode(pixels)
        return Rebuilt(ids.cpu(), pixels.cpu(), model.decode(ids).float().cpu())

    return pretrained.run(run)


def squared_error(found: Rebuilt) -> Tensor:
    """Mean squared error of each picture, float64 (B,)."""
    return (found.rebuilt_BCHW.double() - found.pixels_BCHW.double()).square().flatten(1).mean(1)


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in 0 to 1, from their mean squared errors; at most 100."""
    return -10 * mse.clamp(min=LEAST).log10()


def reconstruction(pretrained: Pretrained, data: EvalSet, limit: int | None = None, batch_size: int = 64) -> list[Result]:
    """How well pictures come back from their codes, and which codes they take.

    Args:
        pretrained: a model of the kind ``coded``; others give an empty list.
        data: samples with a picture.
        limit: at most so many samples, evenly spread over the set; None for all.
        batch_size: pictures of one forward, fewer where their logits would be too many.

    Returns:
        ``reconstruction/<set>/psnr`` (dB, mean over pictures), ``/mse`` (of pixels in 0 to 1), ``/usage`` (share of the codes that some
        picture has), ``/dead`` (number of the others), ``/perplexity`` (exp of the entropy of the codes: as if so many were in equal use).
        Nothing where there is no picture.
    """
    if pretrained.kind != "coded":
        return []
    spec = pretrained.model.spec
    at_once = max(1, min(batch_size, VALUES // (spec.codes * math.prod(spec.code_grid))))
    seen_K, errors, ratios = torch.zeros(spec.codes, dtype=torch.int64), list[Tensor](), list[Tensor]()
    for part in chunks(with_visuals(pretrained, chosen(data, limit, pretrained.shows)), at_once):
        found = rebuild(pretrained, [visual for _, visual in part])
        seen_K += torch.bincount(found.ids_Bhw.flatten(), minlength=spec.codes)
        errors.append(squared_error(found))
        ratios.append(psnr(errors[-1]))
    if not errors:
        return []
    count, share_K = sum(map(len, errors)), seen_K.double() / seen_K.sum()
    height, width = found.pixels_BCHW.shape[2:]
    grid = " x ".join(map(str, found.ids_Bhw.shape[1:]))
    bits = math.log2(spec.codes) * math.prod(found.ids_Bhw.shape[1:])
    protocol = f"{count} pictures of {height} x {width} pixels, {grid} most probable of {spec.codes} codes each, {bits:.0f} bits a picture"
    stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, count, pretrained.weights)
    made = partial(_result, f"reconstruction/{data.name}", stamp)
    return [
        made("psnr", torch.cat(ratios).mean()),
        made("mse", torch.cat(errors).mean()),
        made("usage", (seen_K > 0).double().mean()),
        made("dead", (seen_K == 0).sum()),
        made("perplexity", (-torch.special.xlogy(share_K, share_K).sum()).exp()),
    ]


def _result(prefix: str, stamp: Stamp, name: str, value: Tensor) -> Result:
    return Result(f"{prefix}/{name}", float(value), None, stamp)

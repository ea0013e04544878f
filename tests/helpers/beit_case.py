"""A tiny BEiT with weights that a wrong mapping cannot survive, and batches of pictures with codes."""

from __future__ import annotations

from typing import Any

import torch
from helpers import tiny
from helpers.objectives import keys

from mmpretrain.models.beit import BEiT
from mmpretrain.nn.embed import PatchEmbedder
from mmpretrain.nn.vit import VisionTransformer
from mmpretrain.objectives.mim import MIM
from mmpretrain.objectives.patch_masking import PatchMasker
from mmpretrain.types import Batch, CodeBatch, Pixels, Vocabulary

CODES, PATCH = 40, 8
VOCABULARY = Vocabulary(60, 0, 4, 2, 3, (0, 1, 2, 3, 4), codes=CODES)
SIZES = ((32, 32), (16, 32), (24, 16), (32, 24))
MASKER = PatchMasker(smallest=2)


def beit(relative: str = "shared", positions: bool = False, attention: str = "eager", pooling: str = "mean", **options: Any) -> BEiT:
    """Width 32, three blocks, patches of 8 pixels on a 4 x 4 grid."""
    image = PatchEmbedder(32, PATCH, 4, positions=positions, mask_token=True)
    blocks = VisionTransformer(32, 3, 4, grid=4, relative=relative, mlp_ratio=2.0, attention=attention, **options)
    model = BEiT(image, blocks, pooling)
    tiny.shake(model)
    return model


def batch(sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 1, **more: Any) -> Batch:
    """Pictures padded with noise, and a code for each of their patches."""
    generator = torch.Generator().manual_seed(seed)
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels = torch.randn(len(sizes), 3, height, width, generator=generator)
    grids = tuple((h // PATCH, w // PATCH) for h, w in sizes)
    ids = torch.randint(0, CODES, (sum(h * w for h, w in grids),), generator=generator)
    names = tuple(f"s{i}" for i in range(len(sizes)))
    return Batch(names, keys(len(sizes)), image=Pixels(pixels, sizes), codes=CodeBatch(ids, grids), **more)


def part(whole: Batch, order: list[int], grow: int = 0) -> Batch:
    """The samples ``order`` of a batch, with more padding of other content."""
    image, codes = whole.image, whole.codes
    pixels = torch.nn.functional.pad(image.pixels_BCHW[order], (0, PATCH * grow, 0, PATCH * grow), value=3.0)
    own = codes.ids_N.split([h * w for h, w in codes.grids])
    return whole._replace(
        keys=tuple(whole.keys[i] for i in order),
        draw_keys_B=whole.draw_keys_B[order],
        image=Pixels(pixels, tuple(image.sizes[i] for i in order)),
        codes=CodeBatch(torch.cat([own[i] for i in order]), tuple(codes.grids[i] for i in order)),
        matched_B=None if whole.matched_B is None else whole.matched_B[order],
    )


def mim(model: torch.nn.Module, masker: PatchMasker = MASKER, **options: Any) -> MIM:
    """The objective, bound, with a head that is not small."""
    objective = MIM(masker=masker, **options)
    objective.bind(model.spec, VOCABULARY)
    tiny.shake(objective, 5)
    return objective

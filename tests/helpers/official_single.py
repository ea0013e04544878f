"""Single-stream models of released repositories: parameter names of UNITER (and VILLA, whose host it is) and of Oscar beside ours, and the
batches of their golden files. Weights, text and regions are those of ``official``.

``tests/golden/make_single_streams.py`` fills a released model with these and records what it returns;
``tests/models/test_released_states.py`` fills ours and compares.
"""

from __future__ import annotations

import numpy as np
import torch
from helpers.official import BLOCK, Sizes, batch, fill, values
from torch import Tensor

from mmpretrain.models.oscar import Oscar
from mmpretrain.models.uniter import UNITER
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Batch

SIZES = Sizes()
REMOVED = (2, 5, 9)  # regions whose feature is taken away; the last one is the only region of its sample
MASK = "img_embeddings.mask_embedding.weight"
TEXT = {
    "text.words": ("embeddings.word_embeddings",),
    "text.positions": ("embeddings.position_embeddings",),
    "text.segments": ("embeddings.token_type_embeddings",),
    "text.norm": ("embeddings.LayerNorm",),
    "pooler.dense": ("pooler.dense",),
}
REGIONS = {
    "uniter": {
        "regions.projection": ("img_embeddings.img_linear",),
        "regions.box_projection": ("img_embeddings.pos_linear",),
        "regions.feature_norm": ("img_embeddings.img_layer_norm",),
        "regions.box_norm": ("img_embeddings.pos_layer_norm",),
        "regions.norm": ("img_embeddings.LayerNorm",),
    },
    "oscar": {"regions.projection": ("img_embedding",)},
    "oscar_plus": {"regions.projection": ("img_embedding",), "regions.norm": ("LayerNorm",)},
}
REGIONS["villa"] = REGIONS["uniter"]


def names(system: str) -> dict[str, tuple[str, ...]]:
    """Our modules -> the modules of the release; the mask embedding of UNITER, row 1 of a table of two, is not among them."""
    blocks = {
        f"transformer.blocks.{i}.{ours}": tuple(f"encoder.layer.{i}.{leaf}" for leaf in leaves)
        for i in range(SIZES.text_depth)
        for ours, leaves in BLOCK.items()
    }
    return TEXT | REGIONS[system] | blocks


def filled(system: str) -> SingleStream:
    """Our model with the weights of the formula, in eval mode with eager attention."""
    s = SIZES
    text = TextEmbedder(s.vocab, s.text, s.positions, segments=2)
    options = {"norm": "post", "eps": 1e-12, "final_norm": False, "activation_dropout": 0.0, "init": "normal", "attention": "eager"}
    blocks = Transformer(s.text, s.text_depth, s.text_heads, s.text_hidden / s.text, **options)
    if system in ("uniter", "villa"):
        regions = RegionEmbedder(s.text, s.features, "xyxywha", branch_eps=1e-12, mask_embedding=True)
        more = {"regions.mask_embedding": torch.from_numpy(values(MASK, (2, s.features))[1:]).float()}
        return fill(UNITER(text, regions, blocks), names(system), more)
    regions = RegionEmbedder(s.text, s.features, "xyxywh", combine="concat", norm_eps=1e-12 if system == "oscar_plus" else None)
    return fill(Oscar(text, regions, blocks), names(system))


def inputs(system: str) -> Batch:
    """The batch: UNITER's with removed regions, VILLA's with deltas too, Oscar's with tags as second segments and nothing removed."""
    made = batch(SIZES)
    regions = made.regions
    if system in ("oscar", "oscar_plus"):
        return made
    removed_N = torch.zeros(sum(regions.lengths), dtype=torch.bool)
    removed_N[list(REMOVED)] = True
    regions = regions._replace(features_NF=regions.features_NF.masked_fill(removed_N[:, None], 0), chosen_N=removed_N, removed_N=removed_N)
    if system == "uniter":
        return made._replace(regions=regions)
    text_ND, image_NF = delta("text", sum(made.text.lengths), SIZES.text), delta("image", sum(regions.lengths), SIZES.features)
    return made._replace(text=made.text._replace(delta_ND=text_ND), regions=regions._replace(delta_NF=image_NF))


def delta(name: str, *shape: int) -> Tensor:
    """A perturbation within 0.5."""
    return torch.from_numpy(2.5 * values(f"input.delta.{name}", (int(np.prod(shape)),)).reshape(shape)).float()

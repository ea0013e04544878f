"""Checkpoints of tiny models over regions, and samples for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import checkpoints
from helpers.checkpoints import node
from helpers.regions import of_sample
from helpers.shards import picture

from mmpretrain.data.regions import encode_regions
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.models.oscar import Oscar
from mmpretrain.models.uniter import UNITER
from mmpretrain.models.vilbert import ViLBERT
from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.types import Sample

WIDTH, FEATURES = 24, 5
CLASSES = ("cube", "ball", "cone")
INFO = RegionsInfo("extractor", "a" * 64, FEATURES, "tests", classes=CLASSES)
REGIONS = {"most": 3, "order": "score"}


def _blocks(depth: int = 2) -> dict[str, Any]:
    return node(Transformer, width=WIDTH, depth=depth, heads=2, norm="post", final_norm=False)


def _text(vocab: int) -> dict[str, Any]:
    return node(TextEmbedder, vocab_size=vocab, width=WIDTH, positions=24, segments=2)


def _regions(**options: Any) -> dict[str, Any]:
    return node(RegionEmbedder, width=WIDTH, features=FEATURES, **options)


def config(system: str, vocab: int, tied: bool = True) -> dict[str, Any]:
    """The resolved configuration of a run of ``uniter``, ``oscar`` (with tags of the regions), ``vilbert`` or ``vlbert`` (no matching)."""
    data: dict[str, Any] = {"show": "regions", "regions": REGIONS}
    objectives = {"mlm": node(MLM, tied=tied, view="mlm"), "itm": node(ITM)}
    if system == "uniter":
        model = node(UNITER, text=_text(vocab), regions=_regions(box="xyxywha", branch_eps=1e-12, mask_embedding=True), blocks=_blocks())
    elif system == "oscar":
        model = node(Oscar, text=_text(vocab), regions=_regions(box="xyxywh", combine="concat"), blocks=_blocks())
        data["tags"] = {"source": "regions", "repeats": False}
    elif system == "vilbert":
        co = node(CoAttention, text_width=WIDTH, image_width=WIDTH, width=WIDTH, depth=1, heads=2, text_hidden=48, image_hidden=48)
        parts = {"text_blocks": _blocks(), "image_blocks": _blocks(1), "co_attention": co}
        model = node(ViLBERT, text=_text(vocab), regions=_regions(global_feature="first"), **parts)
    else:
        embed = node(VLBERTEmbedder, vocab_size=vocab, width=WIDTH, features=FEATURES, positions=24, geometry=8)
        model, objectives = node(VLBERT, embed=embed, blocks=_blocks()), {"mlm": objectives["mlm"]}
    return {"model": {"system": model, "objectives": objectives}, "data": data}


def checkpoint(path: Path, system: str, **about: Any) -> Path:
    """Random weights, everything off zero."""
    return checkpoints.checkpoint(path, system, config=config, regions=INFO.to_json(), **about)


def shake(path: Path) -> None:
    """Give a checkpoint larger matrices, so that inputs make a difference."""
    found = torch.load(path, weights_only=True)
    for value in found["state_dict"].values():
        if value.ndim == 2:
            value.mul_(8)
    torch.save(found, path)


def region_samples(n: int = 8, image: bool = False, width: int = FEATURES) -> list[Sample]:
    """Samples with one to five regions each, two captions and an edit."""
    texts = ("a red cube", "a small ball", "two blue balls", "the green cube is left", "a yellow cone")
    made = []
    for i in range(n):
        captions = (f"{texts[i % 5]} above a ball", texts[(i + 2) % 5])
        edits = [[{"text": text.replace("a ", "the "), "kind": "word"}] for text in captions]
        images = (picture(i),) if image else ()
        made.append(Sample(f"k{i}", captions, images, meta={"edits": edits}, regions=encode_regions(of_sample(i, width))))
    return made

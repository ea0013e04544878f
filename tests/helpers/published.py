"""Tiny systems with all heads of their pre-training, everything off zero, for the tests of published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helpers import single_stream, tiny, two_streams
from torch import nn

from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.layers import LayerNorm, Linear
from mmpretrain.nn.region_heads import RegionHead, RegionHeads, TiedFeatureHead
from mmpretrain.nn.roi import BoxFeatures
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.objectives.itm import MatchHead
from mmpretrain.weights.layout import KINDS, Layout
from mmpretrain.weights.published import LAYOUTS

__all__ = ["KINDS", "SYSTEMS", "golden", "head", "made"]
CLASSES, ATTRIBUTES, ANSWERS = 7, 5, 9
GOLDEN = Path(__file__).parents[1] / "golden" / "published_names.json"


class AnswerHead(nn.Module):
    """The tensors of the head that answers questions."""

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.dense, self.norm, self.decoder = Linear(width, 2 * width), LayerNorm(2 * width, eps=1e-12), Linear(2 * width, answers)


class System(NamedTuple):
    """A layout with a model for it."""

    layout: Layout
    model: Callable[[], Any]
    heads: tuple[str, ...]
    golden: str | None = None  # its entry among the names of released code
    dropped: tuple[str, ...] = ()  # beginnings of names there that have no place here


def vlbert(pixels: str | None = None, pooler: bool = False) -> VLBERT:
    """In the size of the released names: width 32, 16 positions; ``pixels``: the network that is trained along."""
    cnn = None if pixels is None else ResNet(pixels, norm="fixed", freeze=2, dilated=True, stride_in_1x1=True)
    features = 2048 if cnn is None else cnn.channels[-1]
    embed = VLBERTEmbedder(60, 32, features, positions=16, mask_visual=cnn is None)
    blocks = Transformer(32, 2, 4, 2.0, norm="post", final_norm=False, eps=1e-12)
    return VLBERT(embed, blocks, None if cnn is None else BoxFeatures(cnn), pooler)


SYSTEMS: Mapping[str, System] = {
    "lxmert": System(LAYOUTS["lxmert"], two_streams.lxmert, ("mlm", "itm", "objects", "vqa"), "lxmert"),
    "lxmert-transformers": System(LAYOUTS["lxmert-transformers"], two_streams.lxmert, ("mlm", "itm", "objects", "vqa")),
    "visualbert": System(LAYOUTS["visualbert"], single_stream.visualbert, ("mlm", "sip")),
    "visualbert-transformers": System(LAYOUTS["visualbert-transformers"], single_stream.visualbert, ("mlm", "sip")),
    "vilbert": System(LAYOUTS["vilbert"], two_streams.vilbert, ("mlm", "itm", "mrc"), "vilbert", (".q_dense",)),
    "uniter": System(LAYOUTS["uniter"], single_stream.uniter, ("mlm", "itm", "mrc", "mrfr"), "uniter"),
    "interbert": System(LAYOUTS["interbert"], two_streams.interbert, ("mlm", "itm", "mrc"), "interbert"),
    "oscar": System(LAYOUTS["oscar"], single_stream.oscar, ("mlm", "tags"), "oscar"),
    "oscar-plus": System(LAYOUTS["oscar-plus"], single_stream.oscar_plus, ("mlm", "tags"), "oscar_plus"),
    "vlbert": System(LAYOUTS["vlbert"], vlbert, ("mlm", "mrc"), "vlbert"),
    "vlbert-pooler": System(LAYOUTS["vlbert"], lambda: vlbert(pooler=True), ("mlm", "itm", "mrc")),
    "vlbert-pixels": System(LAYOUTS["vlbert"], lambda: vlbert(pixels="tiny"), ("mlm", "mrc")),
    "ernie-vil": System(LAYOUTS["ernie-vil"], two_streams.ernie_vil, ()),
}


def head(kind: str, model: Any, tied: bool = True, classes: int = 2) -> nn.Module:
    """A head of the size that its objective would give it."""
    spec = model.spec
    vl = isinstance(model, VLBERT)
    visual, pooled = spec.visual_width or spec.width, spec.pooled_width or spec.width
    makers: dict[str, Callable[[], nn.Module]] = {
        "mlm": lambda: VocabularyHead(spec.width, spec.vocab_size, spec.token_table if tied else None),
        "mrc": lambda: RegionHead(visual, 11 if vl else CLASSES, norm=not vl),
        "mrfr": lambda: TiedFeatureHead(spec.feature_projection),
        "objects": lambda: RegionHeads(visual, {"obj": CLASSES, "attr": ATTRIBUTES, "feat": spec.feature_width}),
        "vqa": lambda: AnswerHead(pooled, ANSWERS),
    }
    return makers.get(kind, lambda: MatchHead(pooled, classes=classes))()


def made(name: str, seed: int = 0, tied: bool = True) -> tuple[Any, dict[str, nn.Module]]:
    """A shaken model and its heads by kind."""
    system = SYSTEMS[name]
    model = tiny.shake(system.model(), seed)
    classes = 3 if name == "oscar-plus" else 2
    heads = {kind: tiny.shake(head(kind, model, tied, classes), seed + 1 + i) for i, kind in enumerate(system.heads)}
    return model, heads


def golden(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released code."""
    return {key: tuple(shape) for key, shape in json.loads(GOLDEN.read_text())[name].items()}

"""Tiny systems with all heads of their pre-training, everything off zero, for the tests of published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from helpers import single_stream, tiny, two_streams
from torch import nn

from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.layers import LayerNorm, Linear
from mmpretrain.nn.region_heads import RegionHead, RegionHeads, TiedFeatureHead
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


SYSTEMS: Mapping[str, System] = {
    "lxmert": System(LAYOUTS["lxmert"], two_streams.lxmert, ("mlm", "itm", "objects", "vqa"), "lxmert"),
    "lxmert-transformers": System(LAYOUTS["lxmert-transformers"], two_streams.lxmert, ("mlm", "itm", "objects", "vqa")),
    "visualbert": System(LAYOUTS["visualbert"], single_stream.visualbert, ("mlm", "sip")),
    "visualbert-transformers": System(LAYOUTS["visualbert-transformers"], single_stream.visualbert, ("mlm", "sip")),
}


def head(kind: str, model: Any, tied: bool = True, classes: int = 2) -> nn.Module:
    """A head of the size that its objective would give it."""
    spec = model.spec
    visual, pooled = spec.visual_width or spec.width, spec.pooled_width or spec.width
    makers: dict[str, Callable[[], nn.Module]] = {
        "mlm": lambda: VocabularyHead(spec.width, spec.vocab_size, spec.token_table if tied else None),
        "mrc": lambda: RegionHead(visual, CLASSES),
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

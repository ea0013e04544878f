"""Scene graph prediction: the words of objects, attributes and relations (ERNIE-ViL, arXiv 2006.16934 section 3.2).

The graph of a caption is parsed from it (``mmpretrain data scenegraph``, or on the fly). Of the objects, of the attributes or of the
relations of a text some are masked, whole; what they hang on stays to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.mlm import MaskedText
from mmpretrain.objectives.text_masking import choose_nodes, maskable
from mmpretrain.types import Batch, Collate, Draw, Example, Score, Tokens

PARTS = ("objects", "attributes", "relations")


class Nodes(NamedTuple):
    """The nodes of the scene graphs of a batch."""

    of_PBT: Tensor  # int64 (parts, B, T): the node of each token, numbered from 0 in each part of each text; -1 for tokens of none
    lengths: tuple[int, ...]  # of the texts that they belong to


class GraphPreparer(NamedTuple):
    """The worker's half: finds the tokens of nodes."""

    wants: tuple[str, ...] = ("graph",)

    def prepare(self, example: Example, draw: Draw) -> tuple[tuple[int, ...], ...]:
        """The node of each token, one tuple for each of ``PARTS``."""
        if example.text is None:
            raise Misfit(f"SceneGraph: sample {example.key!r} has no text; name the sources that have text in `sources`")
        return node_tokens(example.text, example.meta.get("graph") or {})

    def collate(self, values: Sequence[tuple[tuple[int, ...], ...]], collate: Collate) -> Nodes:
        """The nodes of all texts, padded on the right."""
        lengths = tuple(len(parts[0]) for parts in values)
        rows = [[[*parts[part], *[-1] * (max(lengths) - len(parts[part]))] for parts in values] for part in range(len(PARTS))]
        return Nodes(torch.tensor(rows, dtype=torch.int64), lengths)


def node_tokens(text: Tokens, graph: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The node of each token of a text, by part; -1 for tokens of none.

    A node is a span of characters of the first text, whatever its number of words. Spans that are named twice are one node. A node is left
    out where the text was cut inside it, where it shares a token with an earlier node of its part, or, of attributes and relations, where
    it shares one with an object.
    """
    spans = {part: [_tokens_of(text, int(span[0]), int(span[1])) for span in graph.get(part) or ()] for part in PARTS}
    visible = {token for tokens in spans["objects"] for token in tokens}
    found = []
    for part in PARTS:
        nodes, number = [-1] * len(text.ids), 0
        for tokens in spans[part]:
            taken = any(nodes[token] >= 0 or (part != "objects" and token in visible) for token in tokens)
            if tokens and not taken:
                for token in tokens:
                    nodes[token] = number
                number += 1
        found.append(tuple(nodes))
    return tuple(found)


def _tokens_of(text: Tokens, start: int, end: int) -> list[int]:
    """The tokens that hold characters of a span; [] where the text ends before it does."""
    if text.offsets is None:
        return []
    first = (slot for slot in range(len(text.ids)) if text.words[slot] >= 0 and not (text.segments and text.segments[slot]))
    tokens = [slot for slot in first if text.offsets[slot][0] < end and text.offsets[slot][1] > start]
    return tokens if tokens and text.offsets[tokens[-1]][1] >= end else []


class SceneGraph(MaskedText):
    """Predict the words of nodes of the caption's scene graph from the rest of it and the picture.

    Of the n nodes of a part, k = max(1, round(prob * n)) are masked. A text shows one part at a time, drawn from those of ``parts`` that it
    has: where attributes or relations are masked, their objects are seen. Three objectives with one part and one view each give the sum of
    three losses on three forwards. A text without a graph has no term.

    Args:
        parts: ``objects``, ``attributes``, ``relations``, or some of them.
        prob: share of the nodes.
        mask: share of the chosen tokens that become the mask token.
        random: share that becomes a token drawn uniformly from the ordinary vocabulary; the rest stays as it is.
        tied: the decoder is the token table itself.
        head_of: the objective whose head is used, in ERNIE-ViL that of masked language modelling; None: a head of its own.
        weight, view, after, sources: see ``Objective``. The view is its own by default: the text must be that of the data.
        only_if_matched: mask nothing in a text that is not true of its image.

    The share, the rounding and 80/10/10 are not stated in full by the paper; UNIMO's configuration has 0.3, too (docs/ernie-vil.md).
    """

    def __init__(
        self,
        parts: tuple[str, ...] = PARTS,
        prob: float = 0.3,
        mask: float = 0.8,
        random: float = 0.1,
        tied: bool = True,
        head_of: str | None = None,
        *,
        weight: float = 1.0,
        view: str = "graph",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        common = {"weight": weight, "view": view, "after": after, "sources": sources, "only_if_matched": only_if_matched}
        super().__init__(mask, random, tied, head_of, **common)
        if not parts or not set(parts) <= set(PARTS) or len(set(parts)) < len(parts):
            raise ValueError(f"SceneGraph: parts={list(parts)} must be some of {', '.join(PARTS)}")
        if not 0 < prob <= 1:
            raise ValueError(f"SceneGraph: prob={prob} must be in (0, 1]")
        self.parts, self.prob = tuple(part for part in PARTS if part in parts), prob

    def preparer(self) -> GraphPreparer:
        return GraphPreparer()

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch with masked nodes. One device synchronisation (the list of chosen tokens)."""
        text, vocabulary = self._vocabulary(batch)
        nodes = batch.targets.get(self.name)
        if not isinstance(nodes, Nodes):
            raise ValueError(f"{self.name}: the batch has no nodes; its preparer must run in the loader under the name {self.name!r}")
        if nodes.lengths != text.lengths:
            raise Misfit(f"{self.name}: the texts are not those of the data any more; give it a view of its own")
        of_PBT = torch.stack([nodes.of_PBT[PARTS.index(part)] for part in self.parts])
        of_PBT = F.pad(of_PBT, (0, text.ids_BT.shape[1] - of_PBT.shape[2]), value=-1)
        if self.only_if_matched and batch.matched_B is not None:
            of_PBT = of_PBT.masked_fill(~batch.matched_B[:, None], -1)
        part_B = self._drawn_part((of_PBT >= 0).any(2), batch.draw_keys_B)
        nodes_BT = of_PBT.gather(0, part_B[None, :, None].expand(1, -1, of_PBT.shape[2])).squeeze(0)
        free_BT = maskable(text, vocabulary) & (nodes_BT >= 0)  # a node may hold an unknown word
        chosen_BT = free_BT & choose_nodes(nodes_BT, batch.draw_keys_B, self.prob, self.name)
        return self._masked(batch, chosen_BT, free_BT, part_B[:, None].expand_as(chosen_BT))

    def _drawn_part(self, has_PB: Tensor, keys_B: Tensor) -> Tensor:
        """One of the parts that each text has, each with the same chance, int64 (B,); the first where it has none."""
        draw_B = random.uniform(keys_B, random.stream(f"{self.name}/part"), 1).squeeze(1)
        wanted_B = (draw_B * has_PB.sum(0)).floor() + 1  # the how-manieth of those it has
        return (has_PB & (has_PB.cumsum(0) == wanted_B)).long().argmax(0)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over the chosen tokens. Stats: ``accuracy``, ``accuracy_<part>`` and ``masked_share`` (of node tokens)."""
        target, count = self._target(batch), self.count(batch)
        total, right_R = self._cross_entropy(hidden, batch)
        stats = {"accuracy": (right_R.sum(), count), "masked_share": (count, target.maskable)}
        return Score(total, count, {**stats, **dict(self._by_part(target.groups_R, right_R))})

    def _by_part(self, groups_R: Tensor | None, right_R: Tensor) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        assert groups_R is not None
        for number, part in enumerate(self.parts):
            of_part_R = (groups_R == number).float()
            yield f"accuracy_{part}", ((right_R * of_part_R).sum(), of_part_R.sum())

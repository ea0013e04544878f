"""The input of VL-BERT (Su et al., ICLR 2020, arXiv 1908.08530, section 3.2): words and regions whose elements all have a linguistic and a
visual part, a segment and a position, in one sequence without a gap: [CLS] words [SEP] | whole picture, regions | [END].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.boxes import box_code
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.layers import Embedding, Init, LayerNorm, Linear, fill
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged, join
from mmpretrain.types import RegionBatch, Text

TEXT, SECOND_TEXT, OBJECT = 0, 1, 2  # segments
_ALMOST_NONE = 1e-5  # beside the number of regions that are averaged


class SilentNorm(LayerNorm):
    """LayerNorm whose gain starts at zero, so that what it norms is not seen at first."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.weight)


def _first(whole_B: Tensor, rest_N: Tensor, layout: Layout) -> Tensor:
    """One row of the whole picture before the rows of each sample's regions."""
    return join(Ragged(whole_B, Layout((1,) * layout.size)), Ragged(rest_N, layout))[0].x_ND


def with_picture(regions: RegionBatch, features_NF: Tensor | None = None, whole_BF: Tensor | None = None) -> RegionBatch:
    """The regions with the whole picture as the first one of each sample; what is neither features, boxes nor of a masker is left out.

    Boxes end at the last pixel, width - 1 and height - 1, as those of the release do; the picture's is 0, 0, width - 1, height - 1.

    Args:
        features_NF: to be used in place of those of ``regions``.
        whole_BF: features of the pictures; zeros where it is None.
    """
    device, layout = regions.boxes_N4.device, Layout(regions.lengths)
    features_NF = regions.features_NF if features_NF is None else features_NF
    last = torch.tensor([(w - 1, h - 1, w - 1, h - 1) for h, w in regions.sizes], dtype=torch.float32)
    last_B4 = last.to(device, non_blocking=True)
    whole_B4 = torch.cat([torch.zeros_like(last_B4[:, :2]), last_B4[:, 2:]], dim=1)
    boxes_N4 = torch.minimum(regions.boxes_N4.float(), last_B4.index_select(0, layout.sample_N(device)))
    whole_BF = features_NF.new_zeros(layout.size, features_NF.shape[1]) if whole_BF is None else whole_BF
    removed_N, delta_NF = regions.removed_N, regions.delta_NF
    if removed_N is not None:
        removed_N = _first(removed_N.new_zeros(layout.size), removed_N, layout)
    if delta_NF is not None:
        delta_NF = _first(delta_NF.new_zeros(layout.size, delta_NF.shape[1]), delta_NF, layout)
    boxes_N4 = _first(whole_B4, boxes_N4, layout)
    lengths = tuple(n + 1 for n in layout.lengths)
    return RegionBatch(_first(whole_BF, features_NF, layout), boxes_N4, lengths, regions.sizes, removed_N=removed_N, delta_NF=delta_NF)


def mean_of_kept(regions: RegionBatch) -> Tensor:
    """The feature of a picture: the mean of those of its regions that were not removed, (B, F); nearly zero where all were."""
    device, layout = regions.features_NF.device, Layout(regions.lengths)
    x_NF, kept_N = regions.features_NF, torch.ones(layout.total, device=device)
    if regions.removed_N is not None:
        kept_N = (~regions.removed_N).float()
        x_NF = x_NF.masked_fill(regions.removed_N[:, None], 0)
    sample_N = layout.sample_N(device)
    total_BF = x_NF.new_zeros(layout.size, x_NF.shape[1]).index_add(0, sample_N, x_NF)
    count_B = kept_N.new_zeros(layout.size).index_add(0, sample_N, kept_N) + _ALMOST_NONE
    return total_BF / count_B[:, None].to(x_NF.dtype)


class Sequence(NamedTuple):
    """Embedded samples, and where their words and objects stand in the packed rows."""

    joint: Ragged
    text_rows: Tensor | None  # int64; None: no text
    object_rows: Tensor | None  # int64; None: no regions
    objects: Layout | None  # of the whole picture and the regions


class VLBERTEmbedder(nn.Module):
    """Words and objects -> packed states.

    The visual part of an object is ReLU(Linear(dropout([geometry; appearance]))) under a norm of its own; that of every word is the whole
    picture's, under another norm; both norms start with zero gains. The linguistic part of an object is one learned vector. [END] has no
    visual part. A text without a picture has one learned visual vector instead.

    Args:
        vocab_size: rows of the word table.
        width: of the states.
        features: values of a region's feature, F.
        positions: rows of the position table; two more than the longest text.
        geometry: values of the code of a box, see ``nn.boxes``.
        dropout: after the norm; ``feature_dropout``: of geometry and appearance.
        mask_visual: a learned feature takes the place of what a masker removed. False where pixels are removed instead.
        norm_eps: of the three norms.
        std: of tables and vectors; the learned feature starts at zero.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        features: int = 2048,
        positions: int = 512,
        geometry: int = 2048,
        dropout: float = 0.1,
        feature_dropout: float = 0.1,
        mask_visual: bool = True,
        norm_eps: float = 1e-12,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.width, self.features, self.geometry, self.std = width, features, geometry, std
        init = Init("normal", std)
        self.words = Embedding(vocab_size, width, init)
        self.positions = Embedding(positions, width, init)
        self.segments = Embedding(3, width, init)
        self.projection = Linear(geometry + features, width, init=Init("torch"))  # the release leaves it as torch makes it
        self.text_norm, self.object_norm = SilentNorm(width, eps=norm_eps), SilentNorm(width, eps=norm_eps)
        self.norm = LayerNorm(width, eps=norm_eps)
        self.dropout = Dropout(dropout) if dropout else nn.Identity()
        self.feature_dropout = Dropout(feature_dropout) if feature_dropout else nn.Identity()
        self.object_word = nn.Parameter(torch.empty(1, width))  # [IMG]
        self.mask_word = nn.Parameter(torch.empty(1, width))
        self.end = nn.Parameter(torch.empty(1, width))
        self.text_visual = nn.Parameter(torch.empty(1, width))
        self.mask_visual = nn.Parameter(torch.empty(1, features)) if mask_visual else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Vectors: N(0, std); the feature of what is masked: zero."""
        for vector in (self.object_word, self.mask_word, self.end, self.text_visual):
            fill(vector, Init("normal", self.std))
        if self.mask_visual is not None:
            nn.init.zeros_(self.mask_visual)

    def masked(self, features_NF: Tensor, regions: RegionBatch) -> Tensor:
        """Features with the learned one where a masker removed them, and with the delta of the batch.

        Raises:
            ValueError: a delta of another shape.
        """
        if self.mask_visual is not None and regions.removed_N is not None:
            features_NF = torch.where(regions.removed_N[:, None], self.mask_visual.to(features_NF.dtype), features_NF)
        if regions.delta_NF is None:
            return features_NF
        if regions.delta_NF.shape != features_NF.shape:
            shape = tuple(features_NF.shape)
            raise ValueError(f"regions.delta_NF must be {shape}, like the features, got {tuple(regions.delta_NF.shape)}")
        return features_NF + regions.delta_NF.to(features_NF.dtype)

    def forward(self, text: Text | None, objects: RegionBatch | None) -> Sequence:
        """The embedded sequence.

        Args:
            text: words, or None.
            objects: of ``with_picture``, or None.

        Raises:
            ValueError: neither text nor objects, a text that is empty or too long, or a delta of another shape.
        """
        if text is None and objects is None:
            raise ValueError("VL-BERT needs a batch with text, regions or both")
        lengths = text.lengths if text is not None else (0,) * len(objects.lengths)
        if max(lengths) + 2 > self.positions.num_embeddings or (text is not None and min(lengths) < 1):
            known = self.positions.num_embeddings
            why = f"{known} positions, two are the objects' and [END]'s"
            raise Misfit(f"texts must have 1 to {known - 2} tokens ({why}): lower data.max_tokens")
        device, count = self.words.weight.device, len(lengths)
        visual_BD, tail = self.text_norm(self.text_visual).expand(count, -1), None
        if objects is not None:
            visible = self._visible(objects)
            visual_BD = self.text_norm(visible.x_ND.index_select(0, visible.layout.first_B(device)))
            said: Tensor = self.object_word
            if objects.removed_N is not None:
                said = torch.where(objects.removed_N[:, None], self.mask_word, said)
            tail = Ragged(self.object_norm(visible.x_ND) + said, visible.layout)
        end = Ragged(self.end.expand(count, -1), Layout((1,) * count))
        rest, rest_rows, _ = (end, None, None) if tail is None else join(tail, end)
        rest = Ragged(rest.x_ND + self.segments.weight[OBJECT] + self._places(lengths, rest.layout), rest.layout)
        if text is None:
            return Sequence(self._normed(rest), None, rest_rows, tail.layout if tail is not None else None)
        joint, text_rows, joint_rows = join(self._words(text, visual_BD), rest)
        if tail is None or rest_rows is None:
            return Sequence(self._normed(joint), text_rows, None, None)
        return Sequence(self._normed(joint), text_rows, joint_rows.index_select(0, rest_rows), tail.layout)

    def _normed(self, x: Ragged) -> Ragged:
        return Ragged(self.dropout(self.norm(x.x_ND)), x.layout)

    def _visible(self, objects: RegionBatch) -> Ragged:
        """Geometry and appearance of every object as one vector of the model's width."""
        dtype = self.projection.weight.dtype
        code_VG = box_code(objects, "sincos", self.geometry).to(dtype)
        x_VK = self.feature_dropout(torch.cat([code_VG, objects.features_NF.to(dtype)], dim=1))
        return Ragged(F.relu(self.projection(x_VK)), Layout(objects.lengths))

    def _words(self, text: Text, visual_BD: Tensor) -> Ragged:
        layout, device = Layout(text.lengths), self.words.weight.device
        x_ND = self.words(layout.pack(text.ids_BT))
        if text.delta_ND is not None:
            if text.delta_ND.shape != x_ND.shape:
                raise ValueError(f"text.delta_ND must be {tuple(x_ND.shape)}, valid tokens x width, got {tuple(text.delta_ND.shape)}")
            x_ND = x_ND + text.delta_ND.to(x_ND.dtype)
        x_ND = x_ND + visual_BD.index_select(0, layout.sample_N(device))
        segments = self.segments.weight[TEXT] if text.segments_BT is None else self.segments(layout.pack(text.segments_BT))
        return Ragged(x_ND + segments + self.positions(layout.slot_N(device)), layout)

    def _places(self, lengths: tuple[int, ...], rest: Layout) -> Tensor:
        """Position embeddings behind the texts: all objects of a sample stand at one position, [END] at the next."""
        at_N = np.repeat(np.asarray(lengths, dtype=np.int64), rest.lengths)
        at_N[rest.starts[1:] - 1] += 1
        return self.positions(torch.from_numpy(at_N).to(self.positions.weight.device, non_blocking=True))

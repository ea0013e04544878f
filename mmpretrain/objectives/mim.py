"""Masked image modelling: which code of a discrete autoencoder stands where a patch is masked? (BEiT, arXiv 2106.08254; with text
in sight FLAVA, arXiv 2112.04482.)

The model sees a learned embedding in the place of each masked patch. The codes are those of the whole picture, made beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.layers import Init, LayerNorm, Linear
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.patch_masking import PatchMasker, on_host, patch_grids
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, CodeBatch, Pixels, Score, Spec, Vocabulary


class MaskedPatches(NamedTuple):
    """What ``corrupt`` leaves in ``batch.targets``. R: masked patches that count in the loss."""

    rows_R: Tensor  # int64, packed patches
    labels_R: Tensor  # int64, their codes
    masked_N: Tensor  # bool, all masked patches: what the image of the batch has
    lengths: tuple[int, ...]  # patches of each picture
    share: tuple[Tensor, Tensor]  # masked patches, patches


class CodeHead(nn.Module):
    """States of patches -> logits of codes: a linear layer; before it, if wanted, a layer with GELU and LayerNorm, as BERT's head has.

    Args:
        width: of the states.
        codes: of the logits.
        std: of the normal initialisation.
        eps: of the LayerNorm.
        transform: with the layer before.
    """

    def __init__(self, width: int, codes: int, std: float, eps: float, transform: bool) -> None:
        super().__init__()
        init = Init("trunc_normal_std", std)
        self.dense = Linear(width, width, init=init) if transform else None
        self.norm = LayerNorm(width, eps=eps) if transform else None
        self.decoder = Linear(width, codes, init=init)

    def forward(self, x_RD: Tensor) -> Tensor:
        if self.dense is not None and self.norm is not None:
            x_RD = self.norm(F.gelu(self.dense(x_RD)))
        return self.decoder(x_RD)


class MIM(Objective):
    """Predict the codes of masked patches.

    Args:
        codes: of the head; None: as many as the codebook of the data has.
        masker: how patches are chosen, see ``PatchMasker``.
        transform: a layer with GELU and LayerNorm before the decoder (FLAVA); BEiT has the decoder alone, on normed states.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: patches of pictures whose text is not true of them do not count. They are masked like the others: in a view with
            ITM the masks must not tell which pairs are true. ITM comes first in the recipe then, so that its pictures are what is masked.
    """

    kind: ClassVar[str] = "fused"
    predicts: ClassVar[str] = "codes"

    def __init__(
        self,
        codes: int | None = None,
        masker: PatchMasker = PatchMasker(),  # noqa: B008  (frozen)
        transform: bool = False,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if codes is not None and codes < 2:
            raise ValueError(f"MIM: codes={codes} must be at least 2, or null for those of the data")
        self.codes, self.masker, self.transform = codes, masker, transform
        self.head: CodeHead | None = None
        self.patch_size = 0

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if spec.patch_size is None:
            raise ValueError(f"{self.name}: needs a model that cuts pictures into patches (BEiT, ViLT)")
        if not spec.masks_patches:
            raise ValueError(f"{self.name}: the model has no embedding for masked patches: set mask_token: true of its PatchEmbedder")
        known = vocabulary.codes if vocabulary is not None else 0
        codes = self.codes or known or spec.codes
        if not codes:
            raise ValueError(f"{self.name}: the data hold no codes of pictures: set data.show: image+codes, or `codes` of the objective")
        if known not in (0, codes):
            raise ValueError(f"{self.name}: the codebook of the data has {known} codes, the head {codes}: set codes: {known}, or null")
        self.patch_size = spec.patch_size
        if self.head is None:
            width = spec.width if spec.visual_width is None else spec.visual_width
            self.head = CodeHead(width, codes, spec.std, spec.norm_eps, self.transform)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch with masked patches. One device synchronisation (the keys of the draws)."""
        image, grids, codes = self._checked(batch)
        matched_B = batch.matched_B if self.only_if_matched else None
        keys_B, counts_B = on_host(batch.draw_keys_B, matched_B)
        masked = self.masker.mask(keys_B, grids, self.name)
        lengths, device = tuple(rows * columns for rows, columns in grids), image.pixels_BCHW.device
        chosen = masked if counts_B is None else masked & np.repeat(counts_B, lengths)
        rows_R = torch.from_numpy(np.flatnonzero(chosen)).to(device, non_blocking=True)
        masked_N = torch.from_numpy(masked).to(device, non_blocking=True)
        share = scalar(int(masked.sum()), device), scalar(len(masked), device)
        target = MaskedPatches(rows_R, codes.ids_N.index_select(0, rows_R), masked_N, lengths, share)
        return batch._replace(image=image._replace(masked_N=masked_N), targets={**batch.targets, self.name: target})

    def _checked(self, batch: Batch) -> tuple[Pixels, tuple[tuple[int, int], ...], CodeBatch]:
        """The pictures, their grids of patches and their codes.

        Raises:
            ValueError: there are none, patches are masked already, or a grid of codes is not that of the patches.
        """
        image, codes = batch.image, batch.codes
        if image is None or codes is None:
            lacks = "pictures" if image is None else "codes"
            remedy = "set data.show: image+codes (shards of `mmpretrain data tokens --keep-images`), or name the sources that have both"
            raise Misfit(f"{self.name}: the batch has no {lacks}: {remedy} in `sources`")
        if image.masked_N is not None:
            raise ValueError(f"{self.name}: patches of view {self.view!r} are masked already; give this objective a view of its own")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        grids = patch_grids(image.sizes, self.patch_size)
        for key, size, patches, own in zip(batch.keys, image.sizes, grids, codes.grids, strict=True):
            if patches != own:
                raise ValueError(f"{self.name}: {_misfit(key, size, self.patch_size, patches, own)}")
        return image, grids, codes

    def _target(self, batch: Batch) -> MaskedPatches:
        """
        Raises:
            ValueError: the batch was not corrupted, or something has changed its pictures since.
        """
        target = batch.targets.get(self.name)
        if not isinstance(target, MaskedPatches):
            raise ValueError(f"{self.name}: the batch was not corrupted; call corrupt(batch, outputs) first")
        if batch.image is None or batch.image.masked_N is not target.masked_N:
            raise ValueError(f"{self.name}: pictures were changed after their patches were masked; put ITM before it in the recipe")
        return target

    def count(self, batch: Batch) -> Tensor:
        """Number of masked patches in the loss; may be 0."""
        rows_R = self._target(batch).rows_R
        return scalar(rows_R.shape[0], rows_R.device)

    def logits(self, hidden: Fused, batch: Batch) -> Tensor:
        """(R, codes), a row for each masked patch that counts.

        Raises:
            ValueError: the model did not return one state for every patch.
        """
        target, prefix = self._target(batch), hidden.image_prefix
        if hidden.image is None or hidden.image.layout.lengths != tuple(n + prefix for n in target.lengths):
            raise ValueError(f"{self.name}: the model must return one state for every patch of the batch: set patch_limit: -1")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        sample_R = Layout(target.lengths).sample_N(target.rows_R.device).index_select(0, target.rows_R)
        return self.head(hidden.image.x_ND.index_select(0, target.rows_R + prefix * (sample_R + 1)))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over the masked patches that count. Stats: ``accuracy`` and ``masked_share`` (masked / all patches)."""
        target, logits_RK, count = self._target(batch), self.logits(hidden, batch), self.count(batch)
        with full_precision(logits_RK.device):
            total = F.cross_entropy(wide(logits_RK), target.labels_R, reduction="sum")
        right = (logits_RK.detach().argmax(-1) == target.labels_R).sum().float()
        return Score(total, count, {"accuracy": (right, count), "masked_share": target.share})


def _misfit(key: str, size: tuple[int, int], patch_size: int, patches: tuple[int, int], codes: tuple[int, int]) -> str:
    """What does not fit, and how it would."""
    of = f"sample {key!r} has {patches[0]} x {patches[1]} patches ({size[0]} x {size[1]} pixels by patch_size={patch_size})"
    said = f"{of} and {codes[0]} x {codes[1]} codes; each patch needs one code"
    sides = {whole // own for whole, own in zip(size, codes, strict=True) if own and whole % own == 0}
    remedy = f"take pictures of {codes[0] * patch_size} x {codes[1] * patch_size} pixels (data.image.size)"
    if len(sides) == 1 and all(whole % own == 0 for whole, own in zip(size, codes, strict=True)):
        remedy += f", or patch_size: {sides.pop()}"
    return f"{said}: {remedy}, or make codes of pictures of another size"

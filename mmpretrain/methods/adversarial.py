"""Adversarial training in the space of embeddings: what is perturbed, how far, and what the result is compared with.

VILLA (Gan et al. 2020, arXiv 2006.06195) around any model that adds the deltas of a batch to its embeddings, and around any objectives.
The procedure, forwards and backwards around a clean forward, is the backward plan ``mmpretrain.train.adversarial``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import GivesLogits, Objective
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.types import Batch, Spec

TOGETHER = {"text": (("text",),), "image": (("image",),), "both": (("text", "image"),), "alternate": (("text",), ("image",))}
_SMALLEST = 1e-8  # a gradient is divided by its norm, but never by less


class Delta(NamedTuple):
    """The perturbation of one modality in one forward. N: word tokens, regions or patches, packed; padding has none."""

    modality: str  # text or image
    views: tuple[str, ...]  # those that share the forward
    layout: Layout
    x_NW: Tensor  # a leaf that requires a gradient; W: width of the word table, F of the regions, or width of the patches


class Adversarial:
    """Settings of adversarial training (VILLA, section 3; algorithm of the released code).

    Args:
        modality: ``text``: word embeddings, before position and type are added; ``image``: raw region features, after masking and before
            their projection, or projected patches where a model takes pictures; ``both``: at once; ``alternate``: each in a forward of its
            own, the two losses averaged.
        steps: K, forwards and backwards with a delta; gradients of the parameters add up over them.
        lr: length of a step of the delta.
        lr_image: the same for the image; None: ``lr``.
        norm: ``l2`` or ``linf``, of one sample over all its positions and channels.
        max_norm: deltas are projected to this norm; 0: they are not.
        init: magnitude of a uniform start (FreeLB, arXiv 1909.11764): in l2 divided by the root of positions times channels; 0: from zero.
        kl_weight: factor of the symmetric KL divergence between the clean prediction and the perturbed one.
        clean: ``implicit``: the first forward with a delta stands for the clean loss (released code); ``explicit``: the loss of
            the clean forward is added (paper).
        detach_clean: no gradient through the clean side of the divergence.
        objectives: names of those whose predictions are held to the clean ones; None: all that predict a distribution.
        enabled: False: training is as without it. For the table of phases: ``adversarial.enabled``.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        modality: Literal["text", "image", "both", "alternate"] = "text",
        steps: int = 3,
        lr: float = 1e-3,
        lr_image: float | None = None,
        norm: Literal["l2", "linf"] = "l2",
        max_norm: float = 0.0,
        init: float = 0.0,
        kl_weight: float = 1.5,
        clean: Literal["implicit", "explicit"] = "implicit",
        detach_clean: bool = False,
        objectives: Sequence[str] | None = None,
        enabled: bool = True,
    ) -> None:
        self.modality, self.steps, self.lr, self.lr_image = modality, steps, lr, lr_image
        self.norm, self.max_norm, self.init = norm, max_norm, init
        self.kl_weight, self.clean, self.detach_clean, self.enabled = kl_weight, clean, detach_clean, enabled
        self.objectives = None if objectives is None else tuple(objectives)
        self.check()

    def check(self) -> None:
        """Raise ValueError where a setting is out of range; phases may have changed it."""
        for name, known in (("modality", tuple(TOGETHER)), ("norm", ("l2", "linf")), ("clean", ("implicit", "explicit"))):
            if getattr(self, name) not in known:
                raise ValueError(f"model.adversarial.{name}={getattr(self, name)!r}; choose {' or '.join(known)}")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"model.adversarial.steps={self.steps} must be a whole number of at least 1; enabled: false turns it off")
        if min(self.rate("text"), self.rate("image")) <= 0 or min(self.max_norm, self.init, self.kl_weight) < 0:
            raise ValueError(
                f"model.adversarial: lr={self.lr} and lr_image={self.lr_image} must be positive, and max_norm={self.max_norm}, "
                f"init={self.init} and kl_weight={self.kl_weight} must not be negative"
            )
        if 0 < self.max_norm < self.init:
            raise ValueError(f"model.adversarial: init={self.init} starts outside max_norm={self.max_norm}")

    def rate(self, modality: str) -> float:
        """Length of a step."""
        return self.lr if modality == "text" or self.lr_image is None else self.lr_image

    def together(self, batch: Batch) -> tuple[tuple[str, ...], ...]:
        """Modalities that are perturbed in one forward, a tuple for each forward; what the batch lacks is left out."""
        has = {"text": batch.text is not None, "image": batch.regions is not None or batch.image is not None}
        groups = (tuple(modality for modality in group if has[modality]) for group in TOGETHER[self.modality])
        return tuple(group for group in groups if group)

    def consistent(self, objectives: Mapping[str, Objective], names: Sequence[str]) -> tuple[str, ...]:
        """Those of ``names`` whose perturbed predictions are held to the clean ones.

        Raises:
            ValueError: the settings name an objective that does not exist, or that predicts no distribution.
        """
        able = [name for name, one in objectives.items() if one.perturbed and isinstance(one, GivesLogits)]
        if unable := [name for name in self.objectives or () if name not in able]:
            raise ValueError(
                f"model.adversarial.objectives: {', '.join(unable)} cannot be held to clean predictions; those that can: {', '.join(able)}"
            )
        chosen = able if self.objectives is None else self.objectives
        return tuple(name for name in names if name in chosen) if self.kl_weight else ()

    def start(self, batch: Batch, modality: str, views: tuple[str, ...], spec: Spec) -> Delta:
        """The delta of the first forward: zero, or uniform numbers that depend on the draw key of the sample and on the place in it alone.

        Args:
            batch: of the views, corrupted.
            modality: ``text`` or ``image``.
            views: those that share the forward.
            spec: of the model.
        """
        layout, width, dtype = _place(batch, modality, spec)
        device = batch.draw_keys_B.device
        if not self.init:
            return Delta(modality, views, layout, torch.zeros(layout.total, width, dtype=dtype, device=device, requires_grad=True))
        stream = random.stream(f"adversarial/{modality}/{views[0]}")
        keys_N = layout.pack(random.bits(batch.draw_keys_B, stream, layout.max_len))
        x_NW = self.init * (2 * random.uniform(keys_N, stream, width) - 1).to(dtype)
        if self.norm == "l2":
            lengths_B = torch.tensor(layout.lengths, dtype=dtype).to(device, non_blocking=True)
            x_NW = x_NW / (lengths_B * width).sqrt().index_select(0, layout.sample_N(device))[:, None]
        return Delta(modality, views, layout, x_NW.requires_grad_())

    @torch.no_grad()
    def ascend(self, delta: Delta, gradient_NW: Tensor) -> Delta:
        """One step of each sample along its gradient, which is divided by its norm, and the projection.

        A sample whose gradient is not finite stays where it is: the guard or the loss scaler judges the gradient of the parameters.
        """
        sample_N = delta.layout.sample_N(gradient_NW.device)
        norm_N = sample_norms(gradient_NW, delta.layout, self.norm).index_select(0, sample_N)[:, None]
        step_NW = self.rate(delta.modality) * gradient_NW / norm_N.clamp(min=_SMALLEST)
        moved_NW = delta.x_NW + torch.where(torch.isfinite(norm_N), step_NW, 0)
        return delta._replace(x_NW=self.project(moved_NW, delta.layout).requires_grad_())

    def project(self, x_NW: Tensor, layout: Layout) -> Tensor:
        """The nearest point whose norm is at most ``max_norm``, for each sample; ``max_norm=0``: the same."""
        if not self.max_norm:
            return x_NW
        if self.norm == "linf":
            return x_NW.clamp(-self.max_norm, self.max_norm)
        norm_N = sample_norms(x_NW, layout, self.norm).index_select(0, layout.sample_N(x_NW.device))[:, None]
        return torch.where(norm_N > self.max_norm, x_NW * (self.max_norm / norm_N.clamp(min=_SMALLEST)), x_NW)


def _place(batch: Batch, modality: str, spec: Spec) -> tuple[Layout, int, torch.dtype]:
    """Layout, width and type of the delta of a batch."""
    table = spec.token_table
    precise = torch.float32 if table is None else torch.promote_types(torch.float32, table.weight.dtype)
    if modality == "text":
        return Layout(batch.text.lengths), spec.width if table is None else table.embedding_dim, precise
    if batch.regions is not None:
        features_NF = batch.regions.features_NF
        return Layout(batch.regions.lengths), features_NF.shape[1], torch.promote_types(torch.float32, features_NF.dtype)
    if spec.patch_size is None:
        raise ValueError("model.adversarial: modality image needs regions or a model that cuts pictures into patches; take modality: text")
    p = spec.patch_size
    return Layout(tuple((h // p) * (w // p) for h, w in batch.image.sizes)), spec.visual_width or spec.width, precise


def perturb(views: Mapping[str, Batch], deltas: Sequence[Delta]) -> dict[str, Batch]:
    """The views with their deltas. Views that shared text, picture or regions share them still, so that they share one forward."""
    found = dict(views)
    for delta in deltas:
        batch = found[delta.views[0]]
        part: Any
        if delta.modality == "text":
            field, part = "text", batch.text._replace(delta_ND=delta.x_NW)
        elif batch.regions is not None:
            field, part = "regions", batch.regions._replace(delta_NF=delta.x_NW)
        else:
            field, part = "image", batch.image._replace(delta_ND=delta.x_NW)
        for name in delta.views:
            found[name] = found[name]._replace(**{field: part})
    return found


def sample_norms(x_NW: Tensor, layout: Layout, norm: str) -> Tensor:
    """Norm of each sample over all its positions and channels: (B,)."""
    if norm == "linf":
        return layout.pad(x_NW.abs().amax(1)).amax(1)
    return layout.pad(x_NW.square().sum(1)).sum(1).sqrt()


def symmetric_kl(first_RC: Tensor, second_RC: Tensor) -> Tensor:
    """KL(first || second) + KL(second || first) of the softmaxes of two tables of logits, summed over rows, in fp32. Zero where they are
    equal, never below it."""
    with full_precision(first_RC.device):
        first_RC, second_RC = F.log_softmax(wide(first_RC), -1), F.log_softmax(wide(second_RC), -1)
        return ((first_RC.exp() - second_RC.exp()) * (first_RC - second_RC)).sum()

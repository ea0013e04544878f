"""The commitment loss of a codebook of vectors, and its moving averages (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937, equation 3 and
appendix A.1)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mmpretrain.nn.hidden import Coded
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.gather import Peers, total
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Score


class Commitment(Objective):
    """Draws the encoder's states to the vectors that they took: the mean of (z - sg[e])^2 over a picture's states and their values.

    After each optimiser step the vectors move towards the states of that step, of all ranks and micro-batches, so that the codebook is the
    same on every layout.

    Args:
        weight: beta of the paper.
        view, after, sources, only_if_matched: see ``Objective``.
    """

    kind: ClassVar[str] = "coded"

    def __init__(
        self,
        *,
        weight: float = 0.25,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        self.peers = Peers()
        self._taken: Tensor | None = None  # (K, 1 + D): how many states took each vector in this step, and their sum; no buffer

    def count(self, batch: Batch) -> Tensor:
        return scalar(batch.size, batch.draw_keys_B.device)

    def forward(self, hidden: Coded, batch: Batch) -> Score:
        """The sum over pictures.

        Raises:
            ValueError: the model has no codebook of vectors.
        """
        if "state_BDhw" not in hidden.aux:
            raise ValueError(f"{self.name}: the model has no codebook of vectors; set model.system.init_args.sample: nearest")
        with full_precision(hidden.pixels_BCHW.device):
            z, e = wide(hidden.aux["state_BDhw"]), wide(hidden.aux["vector_BDhw"])
            loss_B = (z - e).square().flatten(1).mean(1)
            if self.training:
                self._gather(z.detach(), hidden.logits_BKhw)
        return Score(loss_B.sum(), scalar(len(loss_B), loss_B.device), {})

    def _gather(self, z_BDhw: Tensor, logits_BKhw: Tensor) -> None:
        states_ND = z_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
        rows_N1D = torch.cat((torch.ones_like(states_ND[:, :1]), states_ND), 1)
        taken = rows_N1D.new_zeros(logits_BKhw.shape[1], rows_N1D.shape[1]).index_add_(0, logits_BKhw.argmax(1).flatten(), rows_N1D)
        self._taken = taken if self._taken is None else self._taken + taken

    def after_step(self, model: Any) -> None:
        """Move the vectors of ``model.codebook``."""
        if self._taken is not None:
            taken, self._taken = total(self._taken, self.peers), None
            model.codebook.update(taken[:, 0], taken[:, 1:])

"""The commitment loss of a codebook of vectors, and its moving averages (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937, equation 3 and
appendix A.1)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from mmpretrain import random
from mmpretrain.nn.hidden import Coded
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.gather import Peers, all_rows, total
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Score

SAMPLE, PLACE = random.stream("commitment/sample"), random.stream("commitment/place")


class Commitment(Objective):
    """Draws the encoder's states to the vectors that they took: the mean of (z - sg[e])^2 over a picture's states and their values.

    After each optimiser step the vectors move towards the states of that step, of all ranks and micro-batches, so that the codebook is the
    same on every layout.

    Args:
        restart: a vector that fewer states than this took in a step, on average, is put where a state is, drawn by the keys of the samples;
            0: never (the paper), and then most vectors of a small run stay unused.
        weight: beta of the paper.
        view, after, sources: see ``Objective``.
        only_if_matched: false; no text is read.
    """

    kind: ClassVar[str] = "coded"

    def __init__(
        self,
        restart: float = 0.1,
        *,
        weight: float = 0.25,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        if only_if_matched:
            raise ValueError("Commitment: only_if_matched=true has no meaning, pictures count whatever is said of them; leave it out")
        if not 0 <= restart < 1:
            raise ValueError(f"Commitment: restart={restart} is a number of states a step, from 0 to 1, below 1")
        self.restart, self.peers = restart, Peers()
        self._drawn: Tensor | None = None  # (K, 1 + D): for each vector a state to restart at, behind the number that drew it
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
                self._draw(z.detach(), batch.draw_keys_B, hidden.logits_BKhw.shape[1])
        return Score(loss_B.sum(), scalar(len(loss_B), loss_B.device), {})

    def _gather(self, z_BDhw: Tensor, logits_BKhw: Tensor) -> None:
        states_ND = z_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
        rows_N1D = torch.cat((torch.ones_like(states_ND[:, :1]), states_ND), 1)
        taken = rows_N1D.new_zeros(logits_BKhw.shape[1], rows_N1D.shape[1]).index_add_(0, logits_BKhw.argmax(1).flatten(), rows_N1D)
        self._taken = taken if self._taken is None else self._taken + taken

    def _draw(self, z_BDhw: Tensor, keys_B: Tensor, codes: int) -> None:
        """For each vector the state with the largest random number so far, so that it does not matter how a batch is cut."""
        if not self.restart:
            return
        numbers_BK = random.uniform(keys_B, SAMPLE, codes)
        number_K, sample_K = numbers_BK.max(0)
        states_BPD = z_BDhw.flatten(2).transpose(1, 2)
        place_K = random.integers(keys_B, PLACE, codes, states_BPD.shape[1]).gather(0, sample_K[None])[0]
        drawn = torch.cat((number_K.to(states_BPD)[:, None], states_BPD[sample_K, place_K]), 1)
        self._drawn = drawn if self._drawn is None else torch.where(drawn[:, :1] > self._drawn[:, :1], drawn, self._drawn)

    def after_step(self, model: Any) -> None:
        """Move the vectors of ``model.codebook``."""
        if self._taken is None:
            return
        taken, self._taken = total(self._taken, self.peers), None
        model.codebook.update(taken[:, 0], taken[:, 1:])
        if self._drawn is not None:
            drawn_WKD, self._drawn = all_rows(self._drawn, self.peers).unflatten(0, (-1, len(self._drawn))), None
            first_1KD = drawn_WKD[:, :, :1].argmax(0, keepdim=True).expand(-1, -1, drawn_WKD.shape[2])
            model.codebook.restart(drawn_WKD.gather(0, first_1KD)[0, :, 1:], self.restart)

"""A small system with everything the training engine touches: blocks, a tied decoder, two views, a contrastive head, dropout.

Samples are made from their key alone, so that any layout of ranks and micro-batches sees the same global batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.objectives.base import Objective
from mmpretrain.types import Batch, Score, Spec, Text, Vocabulary

VOCAB, WIDTH, LENGTH = 40, 16, 6
VOCABULARY = Vocabulary(size=VOCAB, pad=0, mask=1, cls=2, sep=3, special=(0, 1, 2, 3))
WORD = random.stream("fake/word")
MASK = random.stream("fake/mask")


class States(NamedTuple):
    tokens_BTD: Tensor
    pooled_BD: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        wide = 2 * WIDTH
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, wide), nn.GELU(), nn.Linear(wide, WIDTH), nn.Dropout(dropout))

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.norm(x_BTD)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + self.out(attended)
        return x_BTD + self.mlp(x_BTD)


class FakeModel(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.position_embedding = nn.Embedding(VOCAB, WIDTH), nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList(Block(dropout) for _ in range(2))
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.full((1,), 1.0))

    @property
    def spec(self) -> Spec:
        return Spec(width=WIDTH, kinds=("fused",), vocab_size=VOCAB, token_table=self.words, embed_dim=WIDTH)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, batch: Batch, kind: str = "fused") -> States:
        x_BTD = self.words(batch.text.ids_BT)
        if batch.text.delta_ND is not None:
            x_BTD = x_BTD + batch.text.delta_ND.view_as(x_BTD)
        x_BTD = x_BTD + self.position_embedding
        for block in self.layers:
            x_BTD = block(x_BTD)
        return States(x_BTD, torch.tanh(self.pooler(x_BTD[:, 0])), self.logit_scale)


class FakeMLM(Objective):
    kind = "fused"

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        if vocabulary is None:
            raise ValueError("MLM needs a vocabulary")
        self.mask, self.dense = vocabulary.mask, nn.Linear(spec.width, spec.width)
        self.decoder = nn.Linear(spec.width, spec.vocab_size)
        self.decoder.weight = spec.token_table.weight

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        ids_BT = batch.text.ids_BT
        hit_BT = random.uniform(batch.draw_keys_B, MASK, LENGTH) < 0.4
        targets = {**batch.targets, "mlm": torch.where(hit_BT, ids_BT, -1)}
        return batch._replace(text=batch.text._replace(ids_BT=torch.where(hit_BT, self.mask, ids_BT)), targets=targets)

    def count(self, batch: Batch) -> Tensor:
        return (batch.targets["mlm"] >= 0).sum().float()

    def logits(self, hidden: States, batch: Batch) -> Tensor:
        tokens_RD = hidden.tokens_BTD[batch.targets["mlm"] >= 0]
        return self.decoder(torch.nn.functional.gelu(self.dense(tokens_RD))).float()

    def forward(self, hidden: States, batch: Batch) -> Score:
        target_BT = batch.targets["mlm"]
        target_R, logits_RV = target_BT[target_BT >= 0], self.logits(hidden, batch)
        loss = nn.functional.cross_entropy(logits_RV, target_R, reduction="sum")
        hits = (logits_RV.argmax(-1) == target_R).sum().float()
        return Score(loss, self.count(batch), {"accuracy": (hits, self.count(batch))})


class FakeMatch(Objective):
    """Whether the first token is even; in a view of its own it shares the forward of nobody."""

    kind = "fused"

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        self.head = nn.Linear(spec.width, 2)

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def logits(self, hidden: States, batch: Batch) -> Tensor:
        return self.head(hidden.pooled_BD).float()

    def forward(self, hidden: States, batch: Batch) -> Score:
        target_B = batch.text.ids_BT[:, 1] % 2
        loss = nn.functional.cross_entropy(self.logits(hidden, batch), target_B, reduction="sum")
        return Score(loss, self.count(batch), {})


class FakeContrast(Objective):
    """First token against last token, over all samples of a micro-batch (or of the step, when cached)."""

    kind = "fused"

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def features(self, hidden: States, batch: Batch | None = None) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(hidden.pooled_BD, dim=-1), nn.functional.normalize(hidden.tokens_BTD[:, -1], dim=-1)

    def loss_from_features(self, a_BE: Tensor, b_BE: Tensor, *, logit_scale: Tensor, logit_bias: Tensor | None = None) -> Score:
        logits_BB = logit_scale.exp() * a_BE @ b_BE.T
        target_B = torch.arange(len(a_BE))
        loss = sum(nn.functional.cross_entropy(logits, target_B, reduction="sum") for logits in (logits_BB, logits_BB.T))
        return Score(loss / 2, torch.tensor(float(len(a_BE))), {})

    def forward(self, hidden: States, batch: Batch) -> Score:
        return self.loss_from_features(*self.features(hidden), logit_scale=hidden.logit_scale)

    def after_step(self, model: nn.Module) -> None:
        model.logit_scale.clamp_(0, 2)


class Poison(FakeMatch):
    """A loss that is NaN for one sample."""

    def __init__(self, bad: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad = bad

    def forward(self, hidden: States, batch: Batch) -> Score:
        score = super().forward(hidden, batch)
        return score._replace(sum=score.sum * float("nan")) if self.bad in batch.keys else score


def sample_batch(positions: list[int]) -> Batch:
    """The samples at these global positions."""
    keys_B = torch.tensor([random.key_of(7, p) for p in positions], dtype=torch.int64)
    ids_BT = 4 + random.integers(keys_B, WORD, LENGTH, VOCAB - 4)
    return Batch(tuple(f"s{p}" for p in positions), keys_B, text=Text(ids_BT, (LENGTH,) * len(positions)))


class Steps(torch.utils.data.Dataset):
    def __init__(self, data: FakeData, start: int) -> None:
        self.data, self.start = data, start

    def __getitem__(self, index: int) -> tuple[Batch, ...]:
        return self.data.step(self.data.epoch_of_loader, index)

    def __len__(self) -> int:
        return self.data.steps_per_epoch


class Remaining(torch.utils.data.Sampler):
    """The steps of this epoch that are still to do; its length is that of the whole epoch."""

    def __init__(self, data: FakeData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[int]:
        self.data.epoch_of_loader = self.data.epoch
        return iter(range(self.data.done, self.data.steps_per_epoch))

    def __len__(self) -> int:
        return self.data.steps_per_epoch


class FakeData(pl.LightningDataModule):
    """Deterministic steps, any layout; resumes by position."""

    def __init__(self, batch_size: int = 8, steps_per_epoch: int = 4) -> None:
        super().__init__()
        self.batch_size, self.steps_per_epoch, self.vocabulary = batch_size, steps_per_epoch, VOCABULARY
        self.epoch = self.done = self.epoch_of_loader = 0
        self.seen: list[tuple[str, ...]] = []

    def step(self, epoch: int, index: int) -> tuple[Batch, ...]:
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        micros = self.trainer.lightning_module.accumulate
        size = self.batch_size // (ranks * micros)
        start = (epoch * self.steps_per_epoch + index) * self.batch_size
        return tuple(sample_batch([start + (m * ranks + rank) * size + i for i in range(size)]) for m in range(micros))

    def advance(self) -> None:
        self.done += 1
        if self.done == self.steps_per_epoch:
            self.epoch, self.done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.epoch, self.done = state_dict["epoch"], state_dict["done"]

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(Steps(self, self.done), batch_size=None, sampler=Remaining(self))

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        batches = [sample_batch([10_000 + 4 * i + j for j in range(4)]) for i in range(4)]
        return torch.utils.data.DataLoader(batches[rank::ranks], batch_size=None)

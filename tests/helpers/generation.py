"""A tiny transformer over the codes of ``tiny_dvae`` as a checkpoint, and a stand-in whose logits are known."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers.checkpoints import checkpoint, node
from helpers.tiny_dvae import CODES, SIZE
from torch import Tensor

from mmpretrain.data.codes_info import CodesInfo, digest, fingerprint
from mmpretrain.evaluate.loading import load
from mmpretrain.models.dalle import DALLE
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.types import Text

GRID, POSITIONS = (4, 4), 24
IMAGE = {"mode": "clip", "size": SIZE, "normalize": "unit", "decoder": "pil"}


def dalle_config(_: str, vocab: int, __: bool, dropout: float = 0.0) -> dict[str, Any]:
    system = node(DALLE, width=64, depth=3, heads=2, vocab_size=vocab, codes=CODES, text_positions=POSITIONS, grid=list(GRID), gain=1.0)
    objectives = {"text": node(NextText, dropout=dropout), "code": node(NextCode)}
    return {"model": {"system": system, "objectives": objectives}, "data": {"image": IMAGE, "show": "codes"}}


def dalle(path: Path, dvae: Path | None = None, seed: int = 0, dropout: float = 0.0) -> Path:
    """With weights of the heads drawn too, which start at 0; it says that its codes are of the autoencoder ``dvae``."""
    about = {} if dvae is None else {"codes": info(dvae).to_json()}
    made = checkpoint(path, config=partial(dalle_config, dropout=dropout), tokenizer="byte_bpe", seed=seed, **about)
    content = torch.load(made, weights_only=True)
    generator = torch.Generator().manual_seed(seed)
    for name, value in content["state_dict"].items():
        if name.endswith("head.out.weight"):
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    torch.save(content, made)
    return made


def info(dvae: Path) -> CodesInfo:
    """What the shards of an autoencoder would say of it."""
    found = load(dvae)
    weights = digest(found.model.state_dict())
    return CodesInfo(fingerprint(weights, found.image_transform), CODES, GRID, str(dvae), weights, found.image_transform.to_dict())


class Stub:
    """Logits of the next code are a fixed function of the prompt's ids, the last code and the place: no arithmetic rounds.

    ``log`` keeps what it was asked.
    """

    def __init__(self, codes: int = 11, length: int = 6) -> None:
        self.codes, self.length, self.log = codes, length, []
        self.table = torch.randn(97, codes, generator=torch.Generator().manual_seed(0)).double() * 2

    def _state(self, cache: Cache, last_B: Tensor) -> Tensor:
        return torch.stack([cache.told_B, last_B, torch.full_like(last_B, cache.place)], 1).double()

    def prefill(self, text: Text, codes_Bn: Tensor | None = None) -> tuple[Cache, Tensor]:
        told = torch.tensor([int(ids[:n].sum()) for ids, n in zip(text.ids_BT, text.lengths, strict=True)])
        place = 0 if codes_Bn is None else codes_Bn.shape[1]
        self.log.append(("prefill", len(text.lengths), place))
        cache = Cache(told, place)
        return cache, self._state(cache, torch.full_like(told, -1) if codes_Bn is None else codes_Bn[:, -1])

    def advance(self, cache: Cache, codes_B: Tensor) -> Tensor:
        assert len(codes_B) == len(cache.told_B) and cache.place < self.length - 1
        cache.place += 1
        self.log.append(("advance", len(codes_B), cache.place))
        return self._state(cache, codes_B)

    def head(self, state_BD: Tensor) -> Tensor:
        told, last, place = state_BD.long().T
        return self.table[(told * 31 + last * 7 + place * 13) % 97]


class Cache:
    def __init__(self, told_B: Tensor, place: int) -> None:
        self.told_B, self.place = told_B, place

    def expand(self, n: int) -> Cache:
        return Cache(self.told_B.repeat_interleave(n), self.place)

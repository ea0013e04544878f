"""Checkpoints of a discrete autoencoder that is small enough to encode shards in tests; its weights are random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.checkpoints import checkpoint, node

from mmpretrain.models.dvae import DVAE
from mmpretrain.objectives.elbo import ELBO

CODES, SIZE = 24, 16  # a grid of 4 x 4


def make(path: Path, seed: int = 0, mode: str = "dalle", codes: int = CODES, **image: Any) -> Path:
    """Write one that was trained with ``data.image.mode`` ``mode``."""
    transform = {"mode": mode, "size": SIZE, "multiple": 4, "normalize": "unit", "decoder": "pil", **image}
    system = node(DVAE, widths=[8, 8, 8], blocks=1, codes=codes, code_width=8, image_size=SIZE)

    def config(system_: str, vocab: int, tied: bool) -> dict[str, Any]:
        return {"model": {"system": system, "objectives": {"elbo": node(ELBO)}}, "data": {"image": transform}}

    return checkpoint(path, config=config, seed=seed)

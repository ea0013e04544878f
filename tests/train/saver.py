"""Saves checkpoints in a loop until killed: ``saver.py DIR``. Odd rounds overwrite the checkpoint of the round before."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import torch

from mmpretrain.train.atomic import point, save

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for n in count():
        path = folder / f"step-{n // 2:08d}.ckpt"
        save({"global_step": n, "weights": torch.full((1_000_000,), float(n))}, path)
        point(folder / "last.ckpt", path)
        print(n, flush=True)

"""A small region extractor trained in seconds on a few generated scenes, for tests that need one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpretrain.data_tools import scenes
from mmpretrain.data_tools.regions_fit import Options, fit


def make(folder: Path, n: int = 60, **options: Any) -> tuple[Path, Path, dict[str, Any]]:
    """(folder of scenes, file of the extractor, what it states of itself)."""
    shards = scenes.write(folder / "scenes", n, 0, "train", shard_size=20, workers=1)
    out = folder / "extractor.safetensors"
    chosen = Options(**{"width": 48, "passes": 10, "batch": 8, "least_steps": 1, **options})
    return shards, out, fit([str(shards)], out, [], chosen, progress=False)

"""A folder of a run whose best checkpoint is not its last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def make(run: Path, write: Callable[[Path, int], Path]) -> Path:
    """``write`` is called with the file and 1 for the best, 2 for the last checkpoint. Returns ``run``."""
    for number, name in ((1, "best"), (2, "last")):
        file = write(run / "checkpoints" / f"step-{number:08d}.ckpt", number)
        (file.parent / f"{name}.ckpt").symlink_to(file.name)
    return run

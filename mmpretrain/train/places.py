"""Where runs lie and what they are called. Imports nothing heavy: commands look here before they load anything."""

from __future__ import annotations

import re
from pathlib import Path

VARIABLE = "MMPRETRAIN_RUN_DIR"  # set for the processes a launcher starts, so that all ranks share one folder


def folder_name(recipe: str) -> str:
    """A recipe as the first part of the name of a run's folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", recipe).strip("-") or "run"


def named(run: Path, which: str = "last") -> Path | None:
    """The checkpoint ``last`` or ``best`` of a run, or None where it has none."""
    folder = run / "checkpoints"
    link = folder / f"{which}.ckpt"
    if link.exists():
        return link
    return max(folder.glob("step-*.ckpt"), default=None) if which == "last" else None


def latest(root: str | Path = "runs", recipe: str | None = None, which: str = "last") -> Path | None:
    """The run (of a recipe) under ``root`` that saved last, of those that have the checkpoint ``which``, or None."""
    of_recipe = re.compile(rf"{re.escape(folder_name(recipe))}-\d{{8}}-\d{{6}}(?:-\d+)?" if recipe else ".*")
    runs = [path for path in Path(root).glob("*") if of_recipe.fullmatch(path.name) and named(path, which) is not None]
    return max(runs, key=lambda path: ((path / "checkpoints").stat().st_mtime_ns, path.name), default=None)

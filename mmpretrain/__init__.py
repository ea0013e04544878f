"""mmpretrain: vision-and-language pre-training as one suite.

>>> import mmpretrain
>>> pretrained = mmpretrain.load("runs/vilt-20260101-120000")  # doctest: +SKIP

Importing this package imports nothing heavy; ``load``, ``Pretrained`` and ``Generator`` bring torch in when they are first
used.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpretrain.evaluate.loading import load
    from mmpretrain.evaluate.pretrained import Pretrained
    from mmpretrain.generate.generator import Generator

__all__ = ["Generator", "Pretrained", "__version__", "load"]

DISTRIBUTION = "mmpretrain-vl"

_TREE = Path(__file__).resolve().parent.parent
if (_TREE / "pyproject.toml").is_file() and (_TREE / "configs" / "base.yaml").is_file():
    # A source tree: ``mmpretrain.configs`` and ``mmpretrain.data_tools`` are the folders beside this one, as the wheel maps them.
    __path__.append(str(_TREE))


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0.1.0+source"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name == "load":
        from mmpretrain.evaluate.loading import load

        return load
    if name == "Pretrained":
        from mmpretrain.evaluate.pretrained import Pretrained

        return Pretrained
    if name == "Generator":
        from mmpretrain.generate.generator import Generator

        return Generator
    raise AttributeError(f"module 'mmpretrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""What a checkpoint says about itself, under the key ``mmpretrain``: everything ``mmpretrain.load`` needs, in plain types."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from mmpretrain.train.module import Pretrain

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, or none at all."""


PACKAGES = ("mmpretrain-vl", "torch", "lightning", "numpy", "tokenizers", "timm", "open-clip-torch", "pillow", "simplejpeg")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """``value`` in plain types (dict, list, str, int, float, bool, None), tensors kept as they are.

    Raises:
        TypeError: something that could not be loaded with ``weights_only=True`` and has no obvious plain form.
    """
    if value is None or isinstance(value, str | bool | int | float | torch.Tensor):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if hasattr(value, "items"):
        return {key if isinstance(key, int) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"a checkpoint holds plain types only, not {type(value).__module__}.{type(value).__name__}: {value!r:.80}")


def assert_plain(value: Any, path: str = "checkpoint") -> None:
    """Raise TypeError, naming the entry, unless ``value`` loads with ``weights_only=True``."""
    if value is None or isinstance(value, str | bool | int | float | torch.Tensor | torch.dtype | torch.device | torch.Size):
        return
    if hasattr(value, "items") and type(value).__module__ in ("builtins", "collections"):
        for key, item in value.items():
            if not isinstance(key, str | int | float | bool | None):
                raise TypeError(f"{path}: key {key!r} is not plain")
            assert_plain(item, f"{path}[{key!r}]")
        return
    if type(value) in (list, tuple, set):
        for i, item in enumerate(value):
            assert_plain(item, f"{path}[{i}]")
        return
    raise TypeError(f"{path} holds a {type(value).__module__}.{type(value).__name__}; checkpoints hold plain types only")


def payload(module: Pretrain) -> dict[str, Any]:
    """The ``mmpretrain`` entry of a checkpoint."""
    trainer = module.trainer
    data = getattr(trainer, "datamodule", None)
    tokenizer = getattr(data, "tokenizer", None)
    described = getattr(tokenizer, "to_json", None) or getattr(tokenizer, "to_str", None)
    return {
        "format": FORMAT,
        "step": int(trainer.global_step),
        "epoch": int(trainer.current_epoch),
        "config": plain(module.config) if module.config is not None else None,
        "vocabulary": plain(module.vocabulary) if module.vocabulary is not None else None,
        "tokenizer": described() if callable(described) else None,
        "data_fingerprint": plain(getattr(data, "fingerprint", None)),
        "regions": plain(info.to_json()) if (info := getattr(data, "regions_info", None)) is not None else None,
        "codes": plain(info.to_json()) if (info := getattr(data, "codes_info", None)) is not None else None,
        "global_batch": plain(getattr(data, "batch_size", None)),
        "world_size": int(trainer.world_size),
        "precision": str(trainer.precision),
        "versions": versions(),
    }


def check_data(saved: Mapping[str, Any], data: Any) -> None:
    """Raise ValueError when a checkpoint was trained with other ids of words or image codes than the data module gives. ``saved``: its
    ``mmpretrain`` entry."""
    _check_tokenizer(saved, getattr(data, "tokenizer", None))
    own, info = saved.get("codes"), getattr(data, "codes_info", None)
    if own and info is not None and own["fingerprint"] != info.fingerprint:
        raise ValueError(
            f"the checkpoint was trained on image codes by {own['source']} ({own['fingerprint'][:12]}), those of the shards are by "
            f"{info.source} ({info.fingerprint[:12]}), so their numbers mean something else: make them anew (mmpretrain data tokens)"
        )


def _check_tokenizer(saved: Mapping[str, Any], tokenizer: Any) -> None:
    text = saved.get("tokenizer")
    if text is None or not callable(getattr(tokenizer, "to_json", None)):
        return
    before = type(tokenizer).from_json(text).with_max_tokens(tokenizer.max_tokens)
    if before.to_json() != tokenizer.to_json():
        raise ValueError("the checkpoint was trained with another tokenizer: leave data.text as it was, or hand it to ShardData.adopt()")


def check_complete(checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError when a run cannot be continued from a checkpoint: one of weights alone would start afresh, silently."""
    if not checkpoint.get("optimizer_states") or not checkpoint.get("lr_schedulers"):
        raise CheckpointError("the checkpoint holds weights alone, no optimiser states: a run cannot be continued from it, only evaluated")


def as_json(value: Any) -> str:
    """Readable JSON of plain values; anything else by its name."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"

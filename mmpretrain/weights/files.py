"""Reads files of weights: tensors and their names alone, whatever wraps them. No file is ever executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
UNSAFE = "holds more than tensors and plain types; it was not opened, since that could run code"
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net")


class WeightsError(ValueError):
    """A file of weights cannot be read, or holds something else."""


def unread(path: Path, error: Exception) -> str:
    """Why ``torch.load``, or the reader of another kind of file, did not read one: ``UNSAFE``, or a few words."""
    if path.suffix not in (".safetensors", ".npz") and not isinstance(error, OSError):
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"  # as torch.save wrote before it wrote archives
        if not pickled and not zipfile.is_zipfile(path):
            return "it is no whole file of torch.save"
        if isinstance(error, pickle.UnpicklingError):
            return UNSAFE
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file or folder by name, on the CPU.

    Args:
        path: ``.safetensors``; a file of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.th``, ``.ckpt``) that holds a state dict, alone or
            inside a checkpoint; ``.npz``; or a folder of transformers.

    Raises:
        WeightsError: no such file, damaged, a pickled module, or no tensors in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        if path.suffix == ".npz":
            return _numpy(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  of damaged bytes the unpickler of torch may say anything
        reason = unread(path, error)
        if reason != UNSAFE:
            raise WeightsError(f"{path}: cannot be read as weights ({reason})") from None
        advice = "where you trust it, write its state dict with the code that made it: torch.save(module.state_dict(), NEW)"
        raise WeightsError(f"{path}: {UNSAFE}; {advice}") from None
    state = _tensors(found)
    if not state:
        raise WeightsError(f"{path}: holds no state dict (names with tensors)")
    return without(state, "module.")


def _numpy(path: Path) -> dict[str, Tensor]:
    import numpy as np

    with np.load(path, allow_pickle=False) as found:
        return {name: torch.from_numpy(found[name].copy()) for name in found.files}


def _folder(folder: Path) -> dict[str, Tensor]:
    """The weights of a transformers folder, in one file or several."""
    found = next((folder / name for name in FOLDER if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{folder}: holds none of {', '.join(FOLDER)}; save the model there with save_pretrained")
    if found.suffix != ".json":
        return read_state(found)
    try:
        parts = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise WeightsError(f"{found}: is no index of safetensors files") from None
    if odd := [part for part in parts if not isinstance(part, str) or Path(part).name != part or not part.endswith(".safetensors")]:
        raise WeightsError(f"{found}: names {odd[0]!r}, which is no safetensors file of this folder")
    state: dict[str, Tensor] = {}
    for part in parts:
        state |= read_state(folder / part)
    return state


def _tensors(found: Any) -> dict[str, Tensor]:
    """The largest mapping of names to tensors: ``found`` itself, or what it holds under one of the usual keys."""
    if not isinstance(found, Mapping):
        return {}
    own = {name: t for name, t in found.items() if isinstance(name, str) and isinstance(t, Tensor)}
    inner = (_tensors(found[key]) for key in _WRAPPERS if isinstance(found.get(key), Mapping))
    return max((own, *inner), key=len)


def without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same without a prefix that all names have (``module.`` of DataParallel)."""
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): t for name, t in state.items()}
    return dict(state)


def renamed(state: Mapping[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    """Every name with each ``(old, new)`` replaced where it occurs."""

    def names() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in state.items():
            for old, new in pairs:
                name = name.replace(old, new)
            yield name, tensor

    return dict(names())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: missing or something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: is no JSON object")
    return found

"""A folder of our own: safetensors, and everything ``mmpretrain.load`` needs beside them as JSON.

===================  =====================================================================================================
file                 content
===================  =====================================================================================================
model.safetensors    fp32; ``model.NAME`` and ``objectives.OBJECTIVE.NAME``, names as in ``state_dict()`` of the classes that the
                     configuration names; a tied decoder is not written beside the table that it is
mmpretrain.json      ``version`` 1, ``sha256`` of the tensors' file, ``weights`` (raw or ema), ``about``: ``config`` (resolved),
                     ``vocabulary``, ``tokenizer`` (JSON text), ``step``, ``data_fingerprint``, ``regions`` and
                     ``codes`` (what made them), ``versions``
===================  =====================================================================================================
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mmpretrain.weights import export_files
from mmpretrain.weights.files import WeightsError, read_json, read_state

ABOUT, TENSORS, VERSION = "mmpretrain.json", "model.safetensors", 1


def write(pretrained: Any, folder: Path) -> None:
    """Write both files of a ``Pretrained``."""
    state = {f"model.{name}": t for name, t in pretrained.model.state_dict().items()}
    for objective in pretrained.objectives:
        state |= {f"objectives.{objective}.{name}": t for name, t in pretrained.objectives[objective].state_dict().items()}
    export_files.write_weights(folder / TENSORS, state)
    vocabulary, tokenizer = pretrained.vocabulary, pretrained.tokenizer
    about = {
        **pretrained.about,
        "config": pretrained.config,
        "vocabulary": None if vocabulary is None else vocabulary._asdict(),
        "tokenizer": None if tokenizer is None else tokenizer.to_json(),
    }
    content = {"version": VERSION, "weights": pretrained.weights, "sha256": _digest(folder / TENSORS), "about": about}
    export_files.write_json(folder / ABOUT, content)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(file: Path) -> dict[str, Any]:
    """The folder of a ``mmpretrain.json`` in the form of a checkpoint: ``state_dict``, ``mmpretrain`` and ``weights``.

    Raises:
        WeightsError: something is missing, of a newer version, torn or altered.
    """
    found, tensors = read_json(file), file.with_name(TENSORS)
    if found.get("version") != VERSION or found.get("weights") not in ("raw", "ema") or not isinstance(found.get("about"), dict):
        raise WeightsError(f"{file}: is not of this version of mmpretrain export")
    if not tensors.is_file():
        raise WeightsError(f"{tensors}: there is no such file; export the run once more")
    if _digest(tensors) != found.get("sha256"):
        raise WeightsError(f"{tensors}: does not match {file.name}, so it is torn or altered; export the run once more")
    return {"state_dict": read_state(tensors), "mmpretrain": found["about"], "weights": found["weights"]}

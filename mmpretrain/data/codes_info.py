"""``codes.json``: which discrete autoencoder made the ``KEY.codes.npy`` members of a folder of shards, how many codes it has, their grid.

The number of a code means what its decoder makes of it, so the file stands beside the shards, and whoever opens several folders calls
:func:`same_tokenizer`; the data module calls :func:`check_readers` for all sets that show codes. Without the file the codes cannot be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.data import made_by
from mmpretrain.data.cache import write_atomic
from mmpretrain.data.codes import MAX_KNOWN
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.reader import ShardReader
from mmpretrain.types import Spec

NAME = "codes.json"
VERSION = 1
TOOL = "mmpretrain data tokens"
WHOLE = ("vilt", "squash")  # data.image.mode that show the whole picture; the others show a square of it


class CodesInfo(NamedTuple):
    """What made the codes of a folder."""

    fingerprint: str  # sha256 of weights and transform: folders that are used together have one
    codes: int  # K: ids run from 0 to K - 1
    grid: tuple[int, int]  # rows and columns of every sample
    source: str  # for people: the checkpoint
    weights: str = ""  # sha256 of the weights alone: what a number means
    transform: Mapping[str, Any] = {}  # ImageTransform of evaluation, by which the pictures were cut
    options: Mapping[str, Any] = {}  # of the tool; they may differ between folders that are used together

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {"version": VERSION, **self._asdict(), "grid": list(self.grid)}

    @classmethod
    def from_json(cls, found: dict[str, Any], path: Path | str) -> CodesInfo:
        """Inverse of :meth:`to_json`.

        Raises:
            DataError: naming ``path``: another version, or not what :meth:`to_json` writes.
        """
        try:
            if found["version"] != VERSION:
                raise DataError(f"{path}: version {found['version']} is not {VERSION}; it was written by another version of mmpretrain")
            rest: dict[str, Any] = {name: found[name] for name in cls._fields if name in found}
            rows, columns = rest.pop("grid")
            made = cls(**rest, grid=(int(rows), int(columns)))
            if not isinstance(made.fingerprint, str) or not isinstance(made.source, str) or not isinstance(made.codes, int):
                raise TypeError("fingerprint, source or codes")
            if not 0 < made.codes <= MAX_KNOWN or min(made.grid) < 1:
                raise ValueError(f"{made.codes} codes in a grid of {made.grid[0]} x {made.grid[1]}")
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: it does not describe image codes ({type(error).__name__}: {error}); make the shards again") from None


def digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of the tensors of a model by their names: what the codes of ``CodesInfo.weights`` mean."""
    made = hashlib.sha256()
    for name, value in sorted(state.items()):
        plain = value.detach().cpu().contiguous()
        made.update(json.dumps([name, str(plain.dtype), list(plain.shape)]).encode())
        made.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def fingerprint(weights: str, transform: ImageTransform) -> str:
    """sha256 of an autoencoder (``weights``, see :func:`digest`) and the transform of its pictures."""
    return hashlib.sha256(json.dumps([weights, transform.to_dict()], sort_keys=True).encode()).hexdigest()


def read_info(folder: Path) -> CodesInfo | None:
    """The ``codes.json`` of a folder, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    return made_by.read(folder / NAME, CodesInfo.from_json)


def write_info(folder: Path, info: CodesInfo) -> None:
    """Write the ``codes.json`` of a folder."""
    write_atomic(folder / NAME, (json.dumps(info.to_json(), indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def same_tokenizer(folders: Iterable[Path]) -> CodesInfo | None:
    """What made the codes of all folders that have a ``codes.json``; None where none has.

    Raises:
        DataError: two folders of different autoencoders, naming both.
    """
    return _one((folder, read_info(folder)) for folder in dict.fromkeys(folders))


def check_readers(readers: Iterable[ShardReader]) -> CodesInfo | None:
    """What made the codes of all shards of these readers that hold codes, local or remote; None where none holds any.

    Raises:
        DataError: shards of different autoencoders, naming their folders; codes without a ``codes.json``, or of another grid than it says.
    """
    opened = list(readers)
    info = _one(_told(made_by.beside(opened, NAME, CodesInfo.from_json, _has)))
    for reader in opened if info is not None else ():
        for path, index in zip(reader.paths, reader.indexes, strict=True):
            rows, columns = np.asarray(index.code_rows_S), np.asarray(index.code_columns_S)
            odd = np.flatnonzero((rows > 0) & ((rows != info.grid[0]) | (columns != info.grid[1])))
            if len(odd):
                number = int(odd[0])
                raise DataError(
                    f"{path} key {index.key(number)!r}: its codes are {rows[number]} x {columns[number]}, {NAME} says {info.grid[0]} x "
                    f"{info.grid[1]}; make the shards again ({TOOL})"
                )
    return info


def check_model(spec: Spec | None, info: CodesInfo | None) -> None:
    """That a model knows the codes that are shown.

    Raises:
        DataError: naming what does not fit.
    """
    if spec is None or info is None or not spec.codes:
        return
    if spec.codes != info.codes:
        raise DataError(
            f"data: the shards hold codes of {info.source}, which has {info.codes}, but the model knows {spec.codes}; set that number"
        )
    if spec.code_grid is not None and tuple(spec.code_grid) != info.grid:
        ours, theirs = (f"{rows} x {columns}" for rows, columns in (info.grid, spec.code_grid))
        raise DataError(f"data: the shards hold codes in a grid of {ours}, but the model takes {theirs}; set its grid, or {TOOL} --size")


def check_image(image: ImageTransform, info: CodesInfo | None) -> None:
    """That pictures beside codes show the part of the picture that was encoded.

    Raises:
        DataError: naming both modes.
    """
    mode = None if info is None else info.transform.get("mode")
    if mode is not None and (mode in WHOLE) != (image.mode in WHOLE):
        part = "the whole of every picture" if mode in WHOLE else "the middle square of every picture"
        remedy = "data.image.mode=squash or vilt" if mode in WHOLE else "data.image={mode: clip, crop_scale: [1, 1]}"
        raise DataError(
            f"data.show=image+codes: the codes were made of {part} (mode={mode}), data.image.mode={image.mode} differs; set {remedy}"
        )


def check_patches(spec: Spec | None, image: ImageTransform, info: CodesInfo | None) -> None:
    """That a model which predicts the codes of masked patches has one code for each patch of its square pictures.

    Raises:
        DataError: naming both grids and the sizes that fit.
    """
    if spec is None or info is None or not spec.masks_patches or spec.patch_size is None or image.mode == "vilt":
        return
    side = image.size // spec.patch_size
    if info.grid != (side, side):
        rows, columns = info.grid
        square = f"set data.image.size to {rows * spec.patch_size}, or " if rows == columns else ""
        raise DataError(
            f"data: pictures of {image.size} pixels are {side} x {side} patches of {spec.patch_size} pixels, the shards hold {rows} x "
            f"{columns} codes of each; {square}make codes of pictures of another size ({TOOL} --size)"
        )


def _has(index: ShardIndex) -> bool:
    return bool(np.asarray(index.code_rows_S).any())


def _told(found: Iterable[tuple[Path | str, CodesInfo | None]]) -> Iterable[tuple[Path | str, CodesInfo | None]]:
    for folder, info in found:
        if info is None:
            raise DataError(f"{folder}: its shards hold image codes, but there is no {NAME} beside them; copy it from where they were made")
        yield folder, info


def _one(found: made_by.Found[CodesInfo]) -> CodesInfo | None:
    return made_by.one(found, "image codes", "a number means another thing to each of them", TOOL)

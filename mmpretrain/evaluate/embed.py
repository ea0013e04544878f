"""Embeddings of a whole data set in parts that survive an interruption, joined into one parquet or npz file.

While running, ``OUT.parts/`` holds one npz per part, each written under another name and renamed when complete, and ``plan.json`` with
what the parts were made of. A second run with the same checkpoint and data skips the parts that are there; with others it refuses.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.samples import EvalSet, fitted, visual
from mmpretrain.types import Sample

FORMATS = (".parquet", ".npz")
_ARRAYS = ("key", "caption", "image", "text")


def embed(pretrained: Pretrained, data: EvalSet, out: Path | str, part_size: int = 1024, progress: bool = False) -> Path:
    """Write keys, first captions and the vectors of images and captions.

    Columns (parquet) or arrays (npz): ``key`` and ``caption`` (text; "" where a sample has no caption), ``image`` and ``text``
    (float32, width). The vector of an image that the sample lacks or that cannot be decoded, or of a missing caption, is NaN. Samples stand
    in the order of the data.

    Args:
        pretrained: see ``Pretrained`` for what the vectors of fusion models are.
        data: the samples.
        out: ``FILE.parquet`` (by pyarrow) or ``FILE.npz``.
        part_size: samples per part; an interruption loses at most one part.
        progress: show a progress bar on stderr.

    Returns:
        the path of the file.

    Raises:
        ValueError: the model has no vectors of images and texts apart, a part size below 1, unknown format, the file exists, or parts of
            another checkpoint or data set are there.
    """
    out = Path(out)
    if part_size < 1:
        raise ValueError(f"part_size={part_size} must be at least 1")
    if out.suffix not in FORMATS:
        raise ValueError(f"{out}: unknown format {out.suffix!r}; name the file .parquet or .npz")
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it or name another file")
    if out.suffix == ".parquet":
        _pyarrow()
    pretrained.check_alone()
    data = fitted(pretrained, data)
    plan = {
        "checkpoint": pretrained.source,
        "weights": pretrained.weights,
        "precision": pretrained.precision,
        "data": data.fingerprint,
        "samples": len(data.samples),
        "part_size": part_size,
    }
    parts = out.with_name(out.name + ".parts")
    _open_parts(parts, plan)
    paths = [parts / f"{number:06d}.npz" for number in range(-(-len(data.samples) // part_size))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    for number in _bar(missing, len(paths), progress):
        stop = min((number + 1) * part_size, len(data.samples))
        rows = [data.samples[i] for i in range(number * part_size, stop)]
        _write_npz(paths[number], _vectors(pretrained, rows))
    _join(paths, out, plan)
    shutil.rmtree(parts)
    return out


def _vectors(pretrained: Pretrained, samples: list[Sample]) -> dict[str, np.ndarray]:
    spec = pretrained.model.spec
    width = spec.embed_dim or spec.width
    captions = [sample.captions[0] if sample.captions else "" for sample in samples]
    image = np.full((len(samples), spec.embed_dim or spec.visual_width or spec.width), np.nan, dtype=np.float32)
    text = np.full((len(samples), width), np.nan, dtype=np.float32)
    with_image = [i for i, sample in enumerate(samples) if pretrained.shows(sample)]
    with_text = [i for i, caption in enumerate(captions) if caption]
    seen = [visual(pretrained, samples[i]) if pretrained.image_transform is not None else None for i in with_image]
    decoded = [(i, found) for i, found in zip(with_image, seen, strict=True) if found is not None]
    if decoded:
        image[[i for i, _ in decoded]] = pretrained.encode_pixels([found for _, found in decoded]).numpy()
    if with_text and pretrained.tokenizer is not None and spec.vocab_size:
        text[with_text] = pretrained.encode_text([captions[i] for i in with_text]).numpy()
    return {"key": np.array([s.key for s in samples], dtype=str), "caption": np.array(captions, dtype=str), "image": image, "text": text}


def _open_parts(parts: Path, plan: dict[str, Any]) -> None:
    """Create the folder of parts, or check that what is there belongs to this plan."""
    path = parts / "plan.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise ValueError(f"{path}: unreadable; remove the folder {parts} to start again") from None
        for key, value in plan.items():
            if found.get(key) != value:
                difference = f"{key}={found.get(key)!r}, now it is {value!r}"
                raise ValueError(f"{parts}: holds parts made with {difference}; remove the folder to start again")
        return
    parts.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(plan, indent=1))
    os.replace(temporary, path)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write and rename, so that a part that is there is complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, **cast(Any, arrays))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _join(paths: list[Path], out: Path, plan: dict[str, Any]) -> None:
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    if out.suffix == ".npz":
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
        for part in map(_read, paths):
            for name in _ARRAYS:
                columns[name].append(part[name])
        with temporary.open("wb") as file:
            np.savez(file, plan=np.array(json.dumps(plan)), **cast(Any, {name: np.concatenate(columns[name]) for name in _ARRAYS}))
    else:
        _join_parquet(paths, temporary, plan)
    os.replace(temporary, out)


def _join_parquet(paths: list[Path], out: Path, plan: dict[str, Any]) -> None:
    """One row group per part, so that memory stays that of one part."""
    arrow, parquet = _pyarrow()
    writer = None
    try:
        for part in map(_read, paths):
            columns = {name: arrow.array(part[name].tolist(), arrow.string()) for name in ("key", "caption")}
            for name in ("image", "text"):
                columns[name] = arrow.FixedSizeListArray.from_arrays(arrow.array(part[name].reshape(-1)), part[name].shape[1])
            table = arrow.table(columns).replace_schema_metadata({"mmpretrain": json.dumps(plan)})
            writer = writer or parquet.ParquetWriter(out, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in _ARRAYS}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("parquet needs pyarrow: pip install pyarrow, or name the file .npz") from None
    return pyarrow, pyarrow.parquet


def _bar(numbers: list[int], total: int, show: bool) -> Iterator[int]:
    if not show:
        yield from numbers
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TextColumn("parts"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=total, completed=total - len(numbers))
        for number in numbers:
            yield number
            bar.advance(task)

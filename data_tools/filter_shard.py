"""The passes of ``filter`` over one shard: conditions, hashes of texts and pictures, and the relevance of captions by a checkpoint.

A row is ``[sample, [captions that are left]]``. All three passes take and return rows, in the order of the shard.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.decode import IMAGE
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.expressions import fields, holds
from mmpretrain.data_tools.language import guess
from mmpretrain.data_tools.split import value_of
from mmpretrain.types import Sample

SAMPLE_FIELDS = (
    *("key", "source", "shard", "width", "height", "min_side", "max_side", "aspect", "pixels", "bytes", "format"),
    *("captions", "statements", "pictures", "regions", "codes"),
)
CAPTION_FIELDS = ("caption", "words", "characters", "lang")
UNREADABLE = "cannot be read"
_CHUNK = 64  # pictures scored together


def filter_rows(item: Mapping[str, Any]) -> dict[str, Any]:
    """Apply conditions to the samples of a shard, one after another: what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``source``, its name; ``rows``, or None for all samples with all captions; ``steps``: names and kinds
            (``where`` or ``captions``) with a parsed condition each.

    Returns:
        ``rows`` that are left, ``seen`` [samples, captions], ``dropped`` by step: [samples, captions], and ``missing``: the fields of the
        conditions that no sample has; ``known``: the fields of the first sample's ``KEY.json``, where any is missing.
    """
    reader = ShardReader([Path(item["shard"][0])])
    index = reader.indexes[0]
    rows, seen = [], [0, 0]
    known: list[str] = []
    dropped: dict[str, list[int]] = {name: [0, 0] for name, *_ in item["steps"]}
    missing = {name for _, kind, condition in item["steps"] for name in fields(condition) if kind == "where" or name not in CAPTION_FIELDS}
    listed: list[Any] = item["rows"] if item["rows"] is not None else [[n, None] for n in range(len(index))]
    for number, captions in listed:
        try:
            sample = reader.read_at(0, number, images=False)
        except BadSample:
            seen[0] += 1
            dropped.setdefault(UNREADABLE, [0, 0])[0] += 1
            continue
        left = list(range(len(sample.captions))) if captions is None else captions
        seen[0], seen[1] = seen[0] + 1, seen[1] + len(left)
        field = functools.partial(sample_field, index, number, sample, item["source"])
        missing = {name for name in missing if field(name) is None}
        known = known or list(sample.meta)
        kept = _apply(item["steps"], left, sample, field, dropped)
        if kept is not None:
            rows.append([number, kept])
    return {"rows": rows, "seen": seen, "dropped": dropped, "missing": sorted(missing), "known": known if missing else []}


def _apply(
    steps: Sequence[Any], left: list[int], sample: Sample, field: Callable[[str], Any], dropped: dict[str, list[int]]
) -> list[int] | None:
    """The captions that all steps leave; None where the sample goes."""
    for name, kind, condition in steps:
        if kind == "where":
            kept = left if holds(condition, field) else None
        else:
            kept = [n for n in left if holds(condition, functools.partial(caption_field, sample.captions[n], field))] or None
        dropped[name][0] += kept is None
        dropped[name][1] += len(left) - len(kept or ())
        if kept is None:
            return None
        left = kept
    return left


def sample_field(index: ShardIndex, number: int, sample: Sample, source: str, name: str) -> Any:
    """A field of a sample: one of ``SAMPLE_FIELDS``, else of ``KEY.json``; None where it is missing."""
    if name not in SAMPLE_FIELDS:
        return value_of(sample.meta, name)
    width, height = int(index.widths_S[number]), int(index.heights_S[number])
    pictures = [one for one in index.members(number) if IMAGE.fullmatch(one[0])]
    found: dict[str, Any] = {
        "key": sample.key,
        "source": source,
        "shard": index.path.name,
        "captions": len(sample.captions),
        "statements": len(sample.statements),
        "pictures": int(index.images_S[number]),
        "regions": int(index.regions_S[number]),
        "codes": int(index.code_rows_S[number]) * int(index.code_columns_S[number]),
        "bytes": sum(one[2] for one in pictures),
    }
    if pictures:
        found["format"] = pictures[0][0].rpartition(".")[2].replace("jpeg", "jpg")
    if width and height:
        short, long = min(width, height), max(width, height)
        found |= {"width": width, "height": height, "min_side": short, "max_side": long, "aspect": long / short, "pixels": width * height}
    return found.get(name)


def caption_field(caption: str, field: Callable[[str], Any], name: str) -> Any:
    """A field of a caption: one of ``CAPTION_FIELDS``, else of its sample."""
    if name == "caption":
        return caption
    if name == "words":
        return len(caption.split())
    if name == "characters":
        return len(caption)
    return guess(caption) if name == "lang" else field(name)


def hash_rows(item: Mapping[str, Any]) -> dict[str, str]:
    """64-bit hashes for the rows of a shard: ``texts`` of each caption (case and spaces aside), ``pictures`` of each row; in base64.

    Args:
        item: ``shard``, its stamp; ``rows``.
    """
    reader = ShardReader([Path(item["shard"][0])])
    texts, pictures = [], []
    for number, captions in item["rows"]:
        sample = reader.read_at(0, number)
        texts += [_hash(" ".join(sample.captions[n].lower().split()).encode("utf-8")) for n in captions]
        pictures.append(_hash(b"".join(sample.images)))
    return {"texts": _packed(texts), "pictures": _packed(pictures)}


def score_rows(item: Mapping[str, Any]) -> dict[str, Any]:
    """How well each caption of the rows of a shard fits its picture, by a checkpoint; None where the picture cannot be decoded.

    Cosine for dual encoders, log-odds of matching for fusion models; rounded to six digits.

    Args:
        item: ``shard`` and ``checkpoint``, stamps; ``rows``; ``device``.
    """
    reader = ShardReader([Path(item["shard"][0])])
    model = _model(str(item["checkpoint"][0]), item["device"])
    scores: list[list[float | None]] = []
    for start in range(0, len(item["rows"]), _CHUNK):
        part = item["rows"][start : start + _CHUNK]
        samples = [reader.read_at(0, number) for number, _ in part]
        pictures = [_decoded(sample) for sample in samples]
        pairs = [(n, c) for n, (_, captions) in enumerate(part) if pictures[n] is not None for c in captions]
        found = _scores(model, pictures, pairs, [samples[n].captions[c] for n, c in pairs]) if pairs else []
        values = dict(zip(pairs, (round(value, 6) for value in found), strict=True))
        scores += [[values.get((n, c)) for c in captions] for n, (_, captions) in enumerate(part)]
    return {"scores": scores}


def _scores(model: Any, pictures: Sequence[Any], pairs: Sequence[tuple[int, int]], texts: Sequence[str]) -> list[float]:
    """The scores of (picture, caption) pairs; a dual encoder sees each picture once."""
    if not model.dual:
        return model.score([pictures[n] for n, _ in pairs], texts).tolist()
    used = sorted({n for n, _ in pairs})
    image_nE = model.encode_image([pictures[n] for n in used])
    rows = [used.index(n) for n, _ in pairs]
    return (image_nE[rows] * model.encode_text(texts)).sum(dim=1).tolist()


def check_scores(checkpoint: str) -> None:
    """Open the checkpoint and score one pair, so that a wrong one is found before shards are read.

    Raises:
        DataError: it cannot be read, or gives no scores.
    """
    from PIL import Image

    import mmpretrain

    try:
        mmpretrain.load(checkpoint).score([Image.new("RGB", (32, 32))], ["a"])
    except ValueError as error:
        raise DataError(str(error) if checkpoint in str(error) else f"{checkpoint}: {error}") from None


@functools.lru_cache(1)
def _model(checkpoint: str, device: str) -> Any:
    import mmpretrain  # the public entry: this package knows nothing of models

    return mmpretrain.load(checkpoint).to(device)


def _decoded(sample: Sample) -> Any:
    from mmpretrain.data.decode import decode_image, join

    try:
        return join([decode_image(data) for data in sample.images]) if sample.images else None
    except BadSample:
        return None


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _packed(values: Sequence[int]) -> str:
    return base64.b64encode(np.asarray(values, dtype="<u8").tobytes()).decode("ascii")


def unpacked(text: str) -> np.ndarray:
    """uint64 values of base64 text."""
    return np.frombuffer(base64.b64decode(text), dtype="<u8")

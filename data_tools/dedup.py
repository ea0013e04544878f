"""``mmpretrain data dedup``: pictures that look alike, found by perceptual hashes.

The hash of a picture is 64 bits: signs of neighbouring differences of a 9 x 8 grey thumbnail (``dhash``), or signs of the 64 lowest cosine
frequencies of a 32 x 32 one against their median (``phash``). Two pictures are alike where at most ``--distance`` bits differ and their
8 x 8 colour thumbnails differ by at most ``--colour`` of 255 on average: hashes alone see no colour, and little of plain pictures.
"""

from __future__ import annotations

import argparse
import base64
import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmpretrain.data import quarantine
from mmpretrain.data.decode import decode_image, join
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import open_index
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.common import scratch, table, tool_parser, write_jsonl
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.indexing import index
from mmpretrain.data_tools.rewrite import STATE, rewrite
from mmpretrain.data_tools.shards import SHARD_SIZE, fresh_folder

HASHES = ("phash", "dhash")
REPORT = "dedup_report.jsonl"
REASON = "near duplicate"
_SIDE = 8
_FACTS = np.dtype([("hash", "<u8"), ("pixels", "<i8"), ("bytes", "<i8"), ("colours", "u1", (_SIDE * _SIDE * 3,)), ("good", "?")])


class Duplicate(NamedTuple):
    """A sample that goes because another stays."""

    sample: int  # number over all shards
    of: int
    distance: int  # bits


def dhash(image: Image.Image) -> int:
    """64 signs of differences between horizontal neighbours."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    return _bits(grey[:, 1:] > grey[:, :-1])


def phash(image: Image.Image) -> int:
    """64 signs of the lowest cosine frequencies of the picture against their median."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    low = (_cosines() @ grey @ _cosines().T).round(6)
    return _bits(low > np.median(low.flatten()[1:]))


@functools.lru_cache(1)
def _cosines() -> np.ndarray:
    n = np.arange(32)
    return np.stack([np.cos(np.pi * k * (2 * n + 1) / 64) for k in range(_SIDE)])


def _bits(signs: np.ndarray) -> int:
    return int.from_bytes(np.packbits(signs.flatten()).tobytes(), "big")


def hash_shard(item: Mapping[str, Any]) -> str:
    """Hash, pixels, bytes and colour thumbnail of each sample of a shard (several pictures side by side): what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``hash``, one of ``HASHES``.

    Returns:
        an array of ``_FACTS`` in base64; ``good`` is false where there is no picture or it cannot be decoded.
    """
    reader = ShardReader([Path(item["shard"][0])])
    found = np.zeros(len(reader), dtype=_FACTS)
    for number in range(len(reader)):
        try:
            sample = reader.read_at(0, number)
            if not sample.images:
                continue
            image = join([decode_image(data) for data in sample.images])
        except BadSample:
            continue
        thumbnail = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX)).flatten()
        size = sum(len(data) for data in sample.images)
        found[number] = ((phash if item["hash"] == "phash" else dhash)(image), image.width * image.height, size, thumbnail, True)
    return base64.b64encode(found.tobytes()).decode("ascii")


def duplicates(facts: np.ndarray, distance: int, colour: float) -> list[Duplicate]:
    """Which samples go, and because of which.

    Samples come in order of preference: more pixels, more bytes, earlier in the set. Each stays unless one that stays is alike; so what
    stays is pairwise different, and each that goes has one of its kind that stays (of several the nearest, then the preferred).
    """
    good = np.flatnonzero(facts["good"])
    order = good[np.lexsort((good, -facts["bytes"][good], -facts["pixels"][good]))]
    rank = np.full(len(facts), len(facts))
    rank[order] = np.arange(len(order))
    # samples of one hash and thumbnail are alike to the same others: the preferred one is compared for all of them
    same: dict[bytes, list[int]] = {}
    for sample in order.tolist():
        same.setdefault(facts["hash"][sample].tobytes() + facts["colours"][sample].tobytes(), []).append(sample)
    alike: dict[int, list[tuple[int, int, int]]] = {}  # sample -> (distance, rank, number) of preferred ones that are alike
    for a, b, bits in _near(facts, np.asarray(sorted(group[0] for group in same.values()), dtype=np.int64), distance):
        thumbnails = facts["colours"][[a, b]].astype(np.int16)
        if np.abs(thumbnails[0] - thumbnails[1]).mean() <= colour:
            first, later = (a, b) if rank[a] < rank[b] else (b, a)
            alike.setdefault(later, []).append((bits, int(rank[first]), first))
    gone: dict[int, Duplicate] = {}
    for first, *others in sorted(same.values(), key=lambda group: rank[group[0]]):
        found = min((one for one in alike.get(first, ()) if one[2] not in gone), default=None)
        if found is not None:
            gone[first] = Duplicate(first, found[2], found[0])
        gone.update((sample, Duplicate(sample, found[2], found[0]) if found else Duplicate(sample, first, 0)) for sample in others)
    return [gone[sample] for sample in sorted(gone)]


def _near(facts: np.ndarray, good: np.ndarray, distance: int) -> Iterator[tuple[int, int, int]]:
    """(sample, sample, bits) of every pair of hashes within ``distance``, each once.

    Of ``distance + 1`` pieces of the bits two such hashes share at least one: only hashes with a common piece are compared.
    """
    hashes = facts["hash"][good]
    values, inverse = np.unique(hashes, return_inverse=True)
    members = np.split(good[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1]) if len(good) else []
    for group in members:
        yield from ((int(a), int(b), 0) for at, a in enumerate(group) for b in group[at + 1 :])
    edges = [round(64 * n / (distance + 1)) for n in range(distance + 2)]
    masks = [np.uint64(((1 << (last - first)) - 1) << first) for first, last in itertools.pairwise(edges)]
    for number, mask in enumerate(masks):
        piece = values & mask
        order = np.argsort(piece, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(piece[order])) + 1):
            for at, a in enumerate(bucket.tolist()):
                others = bucket[at + 1 :]
                bits = np.bitwise_count(values[others] ^ values[a])
                for place in np.flatnonzero(bits <= distance).tolist():
                    b = int(others[place])
                    if not any((values[a] ^ values[b]) & earlier == 0 for earlier in masks[:number]):  # else it was found there
                        yield from ((int(x), int(y), int(bits[place])) for x in members[a] for y in members[b])


def dedup(
    paths: Sequence[Path], state: Path | None, kind: str, distance: int, colour: float, engine: Mapping[str, Any] | None = None
) -> tuple[list[Duplicate], np.ndarray, int]:
    """The duplicates of a set, where each shard ends (samples over all shards), and how many samples have no readable picture."""
    index(paths, engine=engine)
    items = {str(path): {"shard": stamp(path), "hash": kind} for path in paths}
    found = run(hash_shard, items, title="hash pictures", state=state, **(engine or {}))
    facts = [np.frombuffer(base64.b64decode(found[str(path)]), dtype=_FACTS) for path in paths]
    whole = np.concatenate(facts)
    return duplicates(whole, distance, colour), np.cumsum([len(one) for one in facts]), int(np.count_nonzero(~whole["good"]))


def lines(found: Sequence[Duplicate], ends: np.ndarray, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What the report says of each duplicate; also lines of a quarantine."""
    indexes = [open_index(path) for path in paths]

    def name(sample: int) -> tuple[str, str]:
        shard = int(np.searchsorted(ends, sample, side="right"))
        return paths[shard].name, indexes[shard].key(sample - (int(ends[shard - 1]) if shard else 0))

    rows = []
    for one in found:
        (shard, key), (kept_shard, kept_key) = name(one.sample), name(one.of)
        rows.append({"shard": shard, "key": key, "reason": REASON, "of": {"shard": kept_shard, "key": kept_key}, "bits": one.distance})
    return rows


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Remove or list near duplicates; returns the exit code.

    Raises:
        DataError: arguments or shards that do not fit.
    """
    text = (
        "Find pictures that look alike; write the set without them (--out), or only the list (--list), which training honours as quarantine"
    )
    parser = tool_parser(parser_class, "dedup", text, "mmpretrain data dedup shards/ --out unique/ --distance 4")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="new folder for the shards and the report")
    where.add_argument("--list", type=Path, metavar="FILE", help="write only the list of duplicates, such as shards/quarantine.jsonl")
    parser.add_argument("--hash", choices=HASHES, default="phash", help="default phash")
    parser.add_argument("--distance", type=int, default=4, help="bits of 64 that may differ (default 4, at most 16)")
    parser.add_argument("--colour", type=float, default=10.0, help="mean difference of colour thumbnails, 0 to 255 (default 10)")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    options = parser.parse_args(args)
    if not 0 <= options.distance <= 16:
        raise DataError(f"--distance {options.distance}: 0 to 16 bits")
    paths, engine = list(expand(options.shards)), options_of(options)
    if options.list and len({path.name for path in paths}) < len(paths):
        twin = next(name for name, count in Counter(path.name for path in paths).items() if count > 1)
        raise DataError(f"--list: several shards are called {twin}, and a list names them by that alone; take --out, or a set at a time")
    asked = {"tool": "dedup", "hash": options.hash, "distance": options.distance, "colour": options.colour}
    state = fresh_folder(options.out, STATE) if options.out else scratch("dedup", [asked, [stamp(path) for path in paths]])
    found, ends, unread = dedup(paths, state, options.hash, options.distance, options.colour, engine)
    rows = lines(found, ends, paths)
    if options.out:
        gone, starts = {one.sample for one in found}, [0, *ends[:-1].tolist()]
        kept = [[n, s] for n, start in enumerate(starts) for s in range(int(ends[n]) - start) if start + s not in gone]
        write_jsonl(options.out / REPORT, rows)  # before the last step, which makes the folder complete
        rewrite(options.out, {"": kept}, paths, asked, options.shard_size, engine)
    else:
        quarantine.replace(options.list, "dedup", rows, {path.name for path in paths})
        if state is not None:
            shutil.rmtree(state, ignore_errors=True)
    samples = int(ends[-1])
    counts = [("samples", samples), ("near duplicates", len(found)), ("of them equal hashes", sum(not one.distance for one in found))]
    table("Duplicates", ("", "number"), [*counts, ("without a readable picture (they stay)", unread), ("left", samples - len(found))])
    print(options.out / REPORT if options.out else options.list)
    return 0

"""Time and memory of the plan on an index of many samples: pictures of some sizes, two captions each, no shards behind it.

    python benchmarks/plan_scale.py --samples 100000000

The columns that a plan reads lie in one mapped file, as those of real shards lie in theirs. Anonymous memory is what the process needs for
itself; mapped pages are the page cache, which all processes of a machine share and which it takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from mmpretrain.data.buckets import Buckets
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.feed import Feed, Part
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.track import Place
from mmpretrain.data.units import Units

COLUMNS = {"captions": "<u2", "images": "<u2", "heights": "<u4", "widths": "<u4", "bytes": "<u2"}  # 16 bytes a sample, two captions
SIZES = np.asarray([(480, 640), (640, 480), (427, 640), (300, 500), (333, 500), (500, 500)], dtype=np.uint32)


def write(folder: Path, shards: int, size: int) -> dict[str, np.ndarray]:
    """Columns of all shards, mapped: (shards, size), the bytes of captions (shards, 2 * size)."""
    rng = np.random.default_rng(0)
    for name, kind in COLUMNS.items():
        with open(folder / name, "wb") as file:
            for _ in range(shards):
                if name in ("captions", "images"):
                    row = np.full(size, 2 if name == "captions" else 1)
                elif name == "bytes":
                    row = rng.integers(20, 160, size=2 * size)
                else:
                    row = SIZES[np.random.default_rng(1).integers(len(SIZES), size=size), int(name == "widths")]
                file.write(row.astype(kind).tobytes())
    return {name: np.memmap(folder / name, kind, "r").reshape(shards, -1) for name, kind in COLUMNS.items()}


def indexes(columns: dict[str, np.ndarray]) -> Iterator[ShardIndex]:
    """One index per shard; what a plan never reads is empty."""
    none = np.zeros(columns["images"].shape[1], dtype=np.uint16)
    empty = np.zeros(0, dtype=np.int64)
    for number in range(len(columns["images"])):
        captions, images, heights, widths, sizes = (columns[name][number] for name in COLUMNS)
        ends = np.broadcast_to(np.int64(0), images.shape)  # of the keys
        head = (Path(f"{number:05d}.tar"), empty, ends, *[empty] * 5, captions, none, images, none, none)
        yield ShardIndex(*head, heights, widths, sizes, none, none, none, none, ("jpg", "json"), 0, str(number), {}, (), 0)


def memory() -> dict[str, float]:
    """MiB of this process: anonymous, mapped from files, and the most that both ever were."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(rows[key].split()[0]) / 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"), ("most", "VmHWM"))}


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print seconds and memory after a stage."""
    began = time.perf_counter()
    yield
    seconds, now = time.perf_counter() - began, memory()
    print(
        f"{what:<58} {seconds:9.4f} s   own {now['own']:7.0f} MiB   mapped {now['mapped']:7.0f} MiB   peak {now['most']:7.0f} MiB",
        flush=True,
    )


def feed(units: Units, batch: int, buckets: Buckets | None) -> Feed:
    return Feed([Part("", units)], "sample", batch, seed=0, block=16, buckets=buckets, image=ImageTransform("vilt", 384, 32), max_tokens=40)


def main() -> None:
    """See the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--shard", type=int, default=10_000, help="samples of a shard")
    parser.add_argument("--batch", type=int, default=4096)
    args = parser.parse_args()
    shards = max(1, args.samples // args.shard)
    with tempfile.TemporaryDirectory() as folder:
        columns = write(Path(folder), shards, args.shard)
        print(f"{shards * args.shard:,} samples in {shards:,} shards, batches of {args.batch:,}")
        with timed("start (imports, columns written)"):
            pass
        with timed("indexes opened"):
            found = list(indexes(columns))
            reader = SimpleNamespace(indexes=found, paths=tuple(one.path for one in found))
        with timed("units counted"):
            units = Units(type("Reader", (SimpleNamespace,), {"__len__": lambda self: shards * args.shard})(**vars(reader)))
        for name, buckets in (("plain", None), ("buckets", Buckets()), ("tokens", Buckets(tokens=256 * args.batch))):
            with timed(f"{name}: plan made"):
                made = feed(units, args.batch, buckets)
            track, cursor = made.tracks[0], Cursor(made, {"fingerprint": "", "batch_size": args.batch, "buckets": name})
            rng = np.random.default_rng(2)
            last = track.windows if hasattr(track, "windows") else track.steps
            with timed(f"{name}: 20 batches at random positions"):
                for window in rng.integers(last, size=20).tolist():
                    track.slots(Place(1, window))
            cursor.move(Place(2, last // 2))
            again = Cursor(feed(units, args.batch, buckets), cursor.identity)
            with timed(f"{name}: resumed in the middle of epoch 3, next batch"):
                again.load(json.loads(json.dumps({**cursor.state(), "samples": last // 2 * getattr(track, "size", args.batch)})))
                track.slots(again.place)
            place = again.place
            with timed(f"{name}: 100 batches one after another"):
                for _ in range(100):
                    track.slots(place)
                    place = track.after(place)
            print(f"{'':<58} state {len(json.dumps(again.state()))} bytes, {made.steps:,} steps in an epoch")


if __name__ == "__main__":
    main()

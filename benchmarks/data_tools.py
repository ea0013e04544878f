"""Samples and megabytes per second of one core for ``data build``, ``data index`` and ``data check``.

    python benchmarks/data_tools.py
    MMPRETRAIN_REAL_SHARDS=/path/to/shards python benchmarks/data_tools.py --samples 600

Photographs of the real shards where they are (coco_cc, about 640 x 480, 170 KB), else generated pictures of that size. Everything runs in
this process, once to warm up and then ``--passes`` times; the median of the CPU time is shown, which other programs on the machine disturb
little. Disks are not measured: the files are in the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mmpretrain.data_tools import build, check, indexing
from mmpretrain.data_tools.shards import read_samples


def pictures() -> Iterator[bytes]:
    """JPEG files: photographs, or noise of their size in bytes and pixels."""
    if root := os.environ.get("MMPRETRAIN_REAL_SHARDS"):
        yield from (members["jpg"] for path in sorted(Path(root, "coco_cc").glob("*.tar")) for _, members in read_samples(path))
        return
    import numpy as np
    from PIL import Image

    for seed in range(20):
        coarse = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=93)
        yield buffer.getvalue()


def cpu_seconds(work: Callable[[int], object], passes: int) -> float:
    """Median CPU time of ``work(number of the pass)`` after one pass to warm up."""
    taken = []
    for number in range(passes + 1):
        begin = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            work(number)
        taken.append(time.process_time() - begin)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the data tools on one core.")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, size, files = Path(place), 0, list(pictures())
        (folder / "src").mkdir()
        for number in range(args.samples):
            size += (folder / f"src/{number:06d}.jpg").write_bytes(files[number % len(files)])
            (folder / f"src/{number:06d}.txt").write_text(f"caption {number}")
        one = ["--workers", "1", "--quiet"]

        def built(how: str, number: int) -> object:
            return build.main(["folder", "--source", f"{folder}/src", "--check", how, "--out", f"{folder}/{how}-{number}", *one])

        rows: dict[str, Callable[[int], object]] = {
            "build --check none": functools.partial(built, "none"),
            "build --check header": functools.partial(built, "header"),
            "build --check full": functools.partial(built, "full"),
            "index": lambda number: indexing.main([f"{folder}/none-0", "--refresh", *one]),
            "check": lambda number: check.main([f"{folder}/none-0", *one]),
        }
        print(f"{args.samples} pictures of {size / args.samples / 1e3:.0f} KB, one core")
        for name, work in rows.items():
            seconds = cpu_seconds(work, args.passes)
            print(f"  {name:<22} {args.samples / seconds:7.0f} samples/s {size / 1e6 / seconds:7.1f} MB/s")


if __name__ == "__main__":
    main()

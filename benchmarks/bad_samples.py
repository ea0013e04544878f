"""What damaged pictures cost: the same shards with and without them, batches in turn.

    python benchmarks/bad_samples.py --samples 4000 --percent 1

A damaged picture is its first half. Each is replaced by another sample and counted; ``data.max_bad_fraction`` is raised for it. The two
sets are read by turns, a batch of each, so that whatever slows the machine slows both; the first pass is not counted. The ratio is that of
whole passes, its interval of 95 % from drawing batches anew (bootstrap). Time is that of the processor, which other work on the machine
does not count into.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.data_tools import scenes


def damage(source: Path, target: Path, every: int) -> int:
    """Copy shards, cutting every so manieth picture in half; returns how many."""
    target.mkdir()
    pictures = cut = 0
    for path in sorted(source.glob("*.tar")):
        with tarfile.open(path) as old, tarfile.open(target / path.name, "w") as new:
            for info in old:
                file = old.extractfile(info)
                data = file.read() if file is not None else b""
                if info.name.endswith((".png", ".jpg")):
                    pictures += 1
                    if pictures % every == 0:
                        data, cut = data[: len(data) // 2], cut + 1
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    return cut


class Side:
    """Passes over one set, without workers."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        image, text = ImageTransform("squash", args.size), TextOptions("clip")
        self.data = ShardData(str(folder), batch_size=args.batch, text=text, max_tokens=77, image=image, workers=0, max_bad_fraction=1.0)
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()
        self.bad = 0  # replaced so far

    def run(self) -> Iterator[float]:
        """The time of every batch of a pass."""
        batches = iter(self.loader)
        while True:
            began = time.process_time()
            item = next(batches, None)
            if item is None:
                return
            self.data.advance()
            took = time.process_time() - began
            self.bad += len(item[0].replaced)
            yield took


def interval(whole_N: np.ndarray, damaged_N: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """The middle 95 % of the ratio of speeds over batches drawn anew."""
    chosen_KN = np.random.default_rng(0).integers(len(whole_N), size=(draws, len(whole_N)))
    low, high = np.quantile(whole_N[chosen_KN].sum(1) / damaged_N[chosen_KN].sum(1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """See the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes.write(folder / "whole", args.samples, 0, "train", shard_size=1000, progress=False)
        cut = damage(folder / "whole", folder / "damaged", max(1, round(100 / args.percent)))
        whole, damaged = Side(folder / "whole", args), Side(folder / "damaged", args)
        times: list[tuple[float, float]] = []
        counted = 0
        for number in range(args.passes + 1):
            before = damaged.bad
            pairs = list(zip(whole.run(), damaged.run(), strict=True))
            if number:
                times += pairs
                counted += damaged.bad - before
    whole_N, damaged_N = np.array(times).T
    low, high = interval(whole_N, damaged_N)
    samples = args.passes * args.samples
    print(f"{args.samples} samples, {cut} damaged; {counted / args.passes:.1f} replacements counted in a pass")
    print(f"whole {samples / whole_N.sum():.1f} samples/s, damaged {samples / damaged_N.sum():.1f} samples/s")
    print(f"measured ratio {whole_N.sum() / damaged_N.sum():.4f} (95 % interval {low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()

"""What damaged pictures cost: the same shards with and without them, passes in turn.

    python benchmarks/bad_samples.py --samples 4000 --percent 1

A damaged picture is its first half. Each is replaced by another sample and counted; ``data.max_bad_fraction`` is raised for it. Passes over
the two sets take turns, the first of each side is not counted. Without workers, time is that of the processor, which other work on the
machine does not count into.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

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
    """Passes over one set."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        image, text = ImageTransform("squash", args.size), TextOptions("clip")
        self.data = ShardData(str(folder), batch_size=64, text=text, max_tokens=77, image=image, workers=args.workers, max_bad_fraction=1.0)
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()
        self.clock = time.perf_counter if args.workers else time.process_time

    def run(self) -> tuple[float, int]:
        """Samples a second of a pass, and how many samples were replaced."""
        began, samples, bad = self.clock(), 0, 0
        for (batch,) in self.loader:
            samples += batch.size
            bad += len(batch.replaced)
            self.data.advance()
        return samples / (self.clock() - began), bad


def main() -> None:
    """See the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--percent", type=float, default=1.0)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes.write(folder / "whole", args.samples, 0, "train", shard_size=1000, progress=False)
        cut = damage(folder / "whole", folder / "damaged", max(1, round(100 / args.percent)))
        sides = {"whole": Side(folder / "whole", args), "damaged": Side(folder / "damaged", args)}
        rates: dict[str, list[float]] = {"whole": [], "damaged": []}
        counted = 0
        for number in range(args.passes + 1):
            for which in sorted(sides, reverse=number % 2 == 0):
                rate, bad = sides[which].run()
                counted += bad if number else 0
                rates[which] += [rate] if number else []
    ratios = sorted(d / w for d, w in zip(rates["damaged"], rates["whole"], strict=True))
    quartile = len(ratios) // 4
    low, high = ratios[quartile], ratios[-1 - quartile]
    print(f"{args.samples} samples, {cut} damaged; {counted / args.passes:.1f} replacements counted in a pass")
    print(f"whole {statistics.median(rates['whole']):.1f} samples/s, damaged {statistics.median(rates['damaged']):.1f} samples/s")
    print(f"measured ratio {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()

"""Samples per second of our loader against webdataset's default path: the same shards, pictures, resizing, tokenizer and workers.

    python benchmarks/loader.py --workers 1 --batch 64
    MMPRETRAIN_REAL_SHARDS=/path/to/shards python benchmarks/loader.py --set coco_cc --batch 25

Both sides resize to a square and tokenise one caption of each sample, drawn from all it has; what they deliver is compared. webdataset's
side is its default path: Pillow decodes and resizes. Ours takes ``--decoder``: ``auto``, its default path, or ``pil``, the same pixels.
webdataset shuffles shards and a buffer of 1000 samples, ours permutes the whole set and can continue at any step. Passes over the set take
turns; the first of each side is not counted, and neither is starting the workers, which stay.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions, Tokenizer
from mmpretrain.data_tools import scenes

BUFFER = 1000  # samples that webdataset shuffles among


class Convert:
    """What ``map`` does on webdataset's side: picture to uint8 (3, H, W), one caption to ids."""

    def __init__(self, transform: ImageTransform, tokenizer: Tokenizer) -> None:
        self.transform, self.tokenizer = transform, tokenizer

    def __call__(self, sample: tuple[str, Any, dict[str, Any]]) -> tuple[str, torch.Tensor, tuple[int, ...]]:
        key, picture, meta = sample
        return key, self.transform(picture), self.tokenizer.tokenize(random.choice(meta["captions"])).ids


def stack(rows: list[tuple[str, torch.Tensor, tuple[int, ...]]]) -> tuple[tuple[str, ...], torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Keys, pictures, padded ids and lengths, as our collation makes them."""
    keys, pictures, texts = zip(*rows, strict=True)
    ids_BT = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(ids_BT, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return tuple(keys), torch.stack(pictures), ids_BT, tuple(map(len, texts))


def texts_of(ids_BT: torch.Tensor, lengths: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[:n].tolist()) for row, n in zip(ids_BT, lengths, strict=True))


class Ours:
    """Passes over the set with ``ShardData``."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        image = ImageTransform("squash", args.size, normalize="clip", decoder=args.decoder)
        self.data = ShardData(
            str(folder), batch_size=args.batch, text=TextOptions("clip"), max_tokens=77, image=image, workers=args.workers
        )
        self.data.setup("fit")
        self.loader = self.data.train_dataloader()

    def run(self) -> Iterator[tuple[Any, ...]]:
        for (batch,) in self.loader:
            yield batch.keys, batch.image.pixels_BCHW, batch.text.ids_BT, batch.text.lengths
            self.data.advance()


class Theirs:
    """Passes over the set with webdataset's pipeline."""

    def __init__(self, ours: Ours, args: argparse.Namespace) -> None:
        urls = [str(path) for path in ours.data.reader.paths]
        dataset = (
            wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
            .shuffle(BUFFER)
            .decode("pil")
            .to_tuple("__key__", "jpg;jpeg;png;webp", "json")
            .map(Convert(replace(ours.data.transform, decoder="pil"), ours.data.tokenizer))
            .batched(args.batch, collation_fn=stack, partial=False)
        )
        stay = {"persistent_workers": True, "prefetch_factor": ours.data.prefetch} if args.workers else {}
        self.loader = DataLoader(dataset, batch_size=None, num_workers=args.workers, **stay)

    def run(self) -> Iterator[tuple[Any, ...]]:
        yield from self.loader


def rate(side: Ours | Theirs) -> float:
    """Samples per second of one pass."""
    begin, count = time.perf_counter(), 0
    for keys, *_ in side.run():
        count += len(keys)
    if not count:
        raise SystemExit("a worker got no whole batch: take fewer workers, a smaller --batch or more shards")
    return count / (time.perf_counter() - begin)


def same(ours: Ours, theirs: Theirs) -> tuple[int, float]:
    """Samples that both sides delivered in their first pass, and the share whose pictures are equal to the last bit.

    Raises:
        SystemExit: a text that is none of the captions of its sample.
    """
    tokenizer, reader = ours.data.tokenizer, ours.data.reader
    captions = {sample.key: {tokenizer.tokenize(text).ids for text in sample.captions} for sample in map(reader.read, range(len(reader)))}
    seen: list[dict[str, torch.Tensor]] = []
    for side in (ours, theirs):
        pictures: dict[str, torch.Tensor] = {}
        for keys, pixels_BCHW, ids_BT, lengths in side.run():
            pictures.update(zip(keys, pixels_BCHW, strict=True))
            for key, text in zip(keys, texts_of(ids_BT, lengths), strict=True):
                if text not in captions[key]:
                    raise SystemExit(f"{key}: a text is none of its captions")
        seen.append(pictures)
    both = seen[0].keys() & seen[1].keys()
    return len(both), sum(torch.equal(seen[0][key], seen[1][key]) for key in both) / max(len(both), 1)


def shards(args: argparse.Namespace, folder: Path) -> Path:
    """The folder of the set: of the real shards, or generated scenes."""
    if args.set == "scenes":
        return scenes.write(folder / "scenes", args.samples, 0, "train", shard_size=-(-args.samples // 8), progress=False)
    root = os.environ.get("MMPRETRAIN_REAL_SHARDS")
    if not root:
        raise SystemExit("MMPRETRAIN_REAL_SHARDS must name the folder of the real shards")
    return Path(root) / args.set


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="scenes", choices=["scenes", "coco_cc", "emoji_train"])
    parser.add_argument("--samples", type=int, default=2048, help="of the generated scenes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--decoder", default="auto", choices=["auto", "pil", "simplejpeg"], help="of our side")
    parser.add_argument("--workers", type=int, default=1, help="processes of each side")
    parser.add_argument("--passes", type=int, default=4, help="passes of each side that are counted")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(shards(args, Path(folder)), args)
        theirs = Theirs(ours, args)
        decoder = ours.data.transform.decoder
        count, equal = same(ours, theirs)  # the first pass, which starts the workers
        rows = []
        for i in range(args.passes):
            first, second = (ours, theirs) if i % 2 else (theirs, ours)
            a, b = rate(first), rate(second)
            rows.append((a, b) if first is ours else (b, a))
    ratios = sorted(a / b for a, b in rows)
    print(f"\n{args.set}, {count} samples, batch {args.batch}, {args.size} x {args.size} pixels, {args.workers} workers, decoder {decoder}")
    print(f"  outputs: {equal:.0%} of the pictures are equal to the last bit, every text is a caption of its sample")
    print(f"  ours {statistics.median(a for a, _ in rows):.0f} samples/s, webdataset {statistics.median(b for _, b in rows):.0f} samples/s")
    print(f"  measured ratio {statistics.median(ratios):.2f}x (smallest {ratios[0]:.2f}, largest {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()

"""Pictures per second of the two decoders on small JPEGs, and how far their pixels are apart.

    MMPRETRAIN_REAL_SHARDS=/path/to/shards python benchmarks/decode.py
    python benchmarks/decode.py --full

The photographs of coco_cc (generated ones without the real shards) are resized to a shorter side of 256 and saved at quality 70, 17 KB on
average, or taken as they are with ``--full``; both decoders bring them to 224 x 224. Passes take turns and are timed by the processor time
of this one thread, so that other load counts little.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmpretrain.data.decode import decode_image
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.reader import ShardReader


def photographs() -> tuple[list[bytes], str]:
    """JPEG files and where they come from."""
    if root := os.environ.get("MMPRETRAIN_REAL_SHARDS"):
        reader = ShardReader(sorted(Path(root, "coco_cc").glob("*.tar")))
        return [reader.read(number).images[0] for number in range(len(reader))], "coco_cc"
    rng, made = np.random.default_rng(0), []
    for _ in range(32):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        made.append(saved(Image.fromarray((np.asarray(coarse) * 0.9 + rng.normal(12, 6, (480, 640, 3))).clip(0, 255).astype(np.uint8)), 85))
    return made, "generated"


def saved(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def small(data: bytes) -> bytes:
    """The picture with a shorter side of 256 pixels."""
    image = decode_image(data)
    scale = 256 / min(image.size)
    return saved(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC), 70)


def rate(transform: ImageTransform, files: list[bytes]) -> float:
    begin = time.process_time()
    for data in files:
        transform.read([data])
    return len(files) / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the photographs at their own size")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--passes", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files, source = photographs()
    files = files if args.full else [small(data) for data in files]
    slow, fast = (ImageTransform("squash", args.size, decoder=name) for name in ("pil", "auto"))
    apart = [(slow.read([data]).int() - fast.read([data]).int()).abs() for data in files]
    rows = []
    for i in range(args.passes):
        first, second = (slow, fast) if i % 2 else (fast, slow)
        a, b = rate(first, files), rate(second, files)
        rows.append((a, b) if first is slow else (b, a))
    ratios = sorted(b / a for a, b in rows)
    print(
        f"{source}, {len(files)} JPEGs of {statistics.mean(map(len, files)) / 1000:.0f} KB to {args.size} x {args.size} pixels, one thread"
    )
    print(f"  pil        {statistics.median(a for a, _ in rows):.0f} pictures/s")
    print(f"  {fast.decoder:10} {statistics.median(b for _, b in rows):.0f} pictures/s")
    print(f"  ratio {statistics.median(ratios):.2f}x (smallest {ratios[0]:.2f}, largest {ratios[-1]:.2f})")
    mean = statistics.mean(float(one.float().mean()) for one in apart)
    print(f"  difference in grey values of 255: largest {max(int(one.max()) for one in apart)}, mean {mean:.4f}")


if __name__ == "__main__":
    main()

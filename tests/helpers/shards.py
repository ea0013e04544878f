"""Tiny shards for tests, written in milliseconds, and ways to damage them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
SHAPES = ("circle", "square", "triangle")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed: int, width: int = 24, height: int = 20, kind: str = "PNG") -> bytes:
    """A small picture of its own colour, so that samples can be told apart."""
    pixels = np.random.default_rng(seed).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = list(COLOURS.values())[seed % len(COLOURS)]
    return encoded(Image.fromarray(pixels), kind)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar with these members in this order, times 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def caption(number: int, variant: int = 0) -> str:
    """A caption that names the sample, so that texts can be matched to pictures."""
    colour, shape = list(COLOURS)[number % len(COLOURS)], SHAPES[number % len(SHAPES)]
    return (f"a {colour} {shape} number {number}", f"number {number} is a {shape} that is {colour}")[variant % 2]


def sample(number: int, key: str | None = None, captions: int = 2, **more: Any) -> list[tuple[str, bytes]]:
    """The members of one captioned sample with a minimal edit per caption."""
    key = key or f"k{number:05d}"
    texts = [caption(number, variant) for variant in range(captions)]
    edits = [[{"text": text.replace("number", "figure"), "kind": "word"}] for text in texts]
    meta = {"captions": texts, "edits": edits, "width": 24, "height": 20, "number": number, **more}
    return [(f"{key}.png", picture(number)), (f"{key}.txt", texts[0].encode()), (f"{key}.json", json.dumps(meta).encode())]


def statement(number: int, label: bool, key: str | None = None) -> list[tuple[str, bytes]]:
    """The members of one sample with a labelled statement, as NLVR has them: KEY.txt is the statement, no captions."""
    key, text = key or f"s{number:05d}", f"there is a {list(COLOURS)[number % len(COLOURS)]} block"
    meta = {"statement": text, "label": label}
    return [(f"{key}.png", picture(number)), (f"{key}.txt", text.encode()), (f"{key}.json", json.dumps(meta).encode())]


def write_shards(folder: Path, sizes: Sequence[int] = (5, 4, 3), captions: int = 2, more: Mapping[str, Any] | None = None) -> Path:
    """A folder of shards with these numbers of captioned samples, numbered from 0 over all shards."""
    number = 0
    for shard, size in enumerate(sizes):
        members = [member for n in range(number, number + size) for member in sample(n, captions=captions, **(more or {}))]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += size
    return folder


def write_statements(folder: Path, n: int = 12) -> Path:
    """One shard of labelled statements, every third one false."""
    write_tar(folder / "00000.tar", [member for i in range(n) for member in statement(i, label=i % 3 != 0)])
    return folder


class Keys:
    """A data set of the keys of a reader."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> str:
        return self.reader.read(number).key

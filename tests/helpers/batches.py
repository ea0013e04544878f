"""Small data modules and their batches, put into a form that does not depend on padding or layout."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.types import Batch, Collate, Draw, Example, Pixels, Text


class Seen(NamedTuple):
    """What the preparer below saw, as a batch."""

    coins: tuple[int, ...]
    others: tuple[str, ...]
    images: Pixels
    texts: Text


class Probe(NamedTuple):
    """A preparer that uses everything that a draw offers."""

    def prepare(self, example: Example, draw: Draw) -> Any:
        coin = int(draw.generator("probe", shared_by=2).integers(2)) ^ (draw.position % 2)
        image_key, (image, *_) = draw.other_visual(0)
        text_key, text = draw.other_text(1)
        assert example.key not in (image_key, text_key)
        return coin, f"{image_key}/{text_key}", image, text

    def collate(self, values, collate: Collate) -> Seen:
        coins, others, images, texts = zip(*values, strict=True)
        return Seen(coins, others, collate.pixels(images), collate.text(texts))


def data(shards, **options: Any) -> ShardData:
    """A small data module; ``rank``, ``world``, ``accumulate`` and ``preparers`` go to ``configure``."""
    place = {name: options.pop(name) for name in ("rank", "world", "accumulate", "preparers") if name in options}
    defaults = {"batch_size": 12, "text": TextOptions(vocab_size=300), "image": ImageTransform("clip", 8, randaugment=(2, 9))}
    made = ShardData(str(shards), **{**defaults, "max_tokens": 12, "workers": 0, "block": 2, "seed": 5, **options})
    made.configure(**{"preparers": {"probe": Probe()}, **place})
    made.setup("fit")
    return made


def flat(batches: list[Batch]) -> dict[str, Any]:
    """One batch of several, for comparison: padding differs between layouts, contents must not."""

    def texts(text: Text) -> list[list[int]]:
        return [row[:n].tolist() for row, n in zip(text.ids_BT, text.lengths, strict=True)]

    probes = [batch.targets["probe"] for batch in batches]
    return {
        "keys": [key for batch in batches for key in batch.keys],
        "draws": [key for batch in batches for key in batch.draw_keys_B.tolist()],
        "texts": [row for batch in batches for row in texts(batch.text)],
        "pixels": torch.cat([batch.image.pixels_BCHW for batch in batches]),
        "coins": [coin for probe in probes for coin in probe.coins],
        "others": [key for probe in probes for key in probe.others],
        "other pixels": torch.cat([probe.images.pixels_BCHW for probe in probes]),
        "other texts": [row for probe in probes for row in texts(probe.texts)],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a)


def whole(shards, world: int, accumulate: int, workers: int, steps: int = 2) -> list[dict[str, Any]]:
    """The global batches of the first steps, put together from all ranks."""
    ranks = [data(shards, rank=rank, world=world, accumulate=accumulate, workers=workers) for rank in range(world)]
    found = []
    for items in zip(*(made.train_dataloader() for made in ranks), strict=True):
        assert all(isinstance(item, tuple) and len(item) == accumulate for item in items)
        found.append(flat([items[rank][a] for a in range(accumulate) for rank in range(world)]))
        if len(found) == steps:
            break
    return found

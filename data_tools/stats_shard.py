"""What ``stats`` counts in one shard."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.decode import IMAGE
from mmpretrain.data.errors import BadSample
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools import histogram
from mmpretrain.data_tools.histogram import Counts
from mmpretrain.data_tools.language import guess
from mmpretrain.data_tools.split import place
from mmpretrain.types import Sample

MEASURES = {  # name -> what it says
    "words": "words of a caption",
    "characters": "characters of a caption",
    "captions": "captions of a sample",
    "width": "width of a picture, pixels",
    "height": "height of a picture, pixels",
    "aspect": "width over height",
    "kilobytes": "kB of a sample's pictures",
    "regions": "regions of a sample",
    "codes": "image codes of a sample",
}
TABLES = ("format", "language", "word", "caption")
_KEPT = 2000  # of the most frequent words and captions of a shard


def count_shard(item: Mapping[str, Any]) -> dict[str, Any]:
    """Histograms and tables of a shard, from texts and the index: what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``show``, how many candidates for the gallery; ``seed``, of their choice.

    Returns:
        ``counts`` by measure; ``tables``; ``samples``, ``bytes``, ``unreadable``; ``chosen``: [hash, sample] of the candidates.
    """
    reader = ShardReader([Path(item["shard"][0])])
    index = reader.indexes[0]
    counts: dict[str, Counts] = {name: {} for name in MEASURES}
    tables: dict[str, Counter[str]] = {name: Counter() for name in TABLES}
    candidates: list[tuple[float, int]] = []
    unreadable = 0
    for number in range(len(index)):
        try:
            sample = reader.read_at(0, number, images=False)
        except BadSample:
            unreadable += 1
            continue
        _count(index, number, sample, counts, tables)
        candidates.append((place(f"{index.path.name}/{sample.key}", item["seed"]), number))
    return {
        "samples": len(index),
        "bytes": index.tar_size,
        "unreadable": unreadable,
        "counts": counts,
        "tables": {name: dict(sorted(table.most_common(_KEPT))) for name, table in tables.items()},
        "distinct": {name: len(table) for name, table in tables.items()},
        "chosen": heapq.nsmallest(item["show"], candidates),
    }


def _count(index: ShardIndex, number: int, sample: Sample, counts: dict[str, Counts], tables: dict[str, Counter[str]]) -> None:
    histogram.add(counts["captions"], len(sample.captions))
    for caption in sample.captions:
        words = caption.split()
        histogram.add(counts["words"], len(words))
        histogram.add(counts["characters"], len(caption))
        tables["language"][guess(caption)] += 1
        tables["caption"][caption] += 1
        tables["word"].update(word.strip(".,;:!?\"'()").lower() for word in words)
    del tables["word"][""]
    width, height = int(index.widths_S[number]), int(index.heights_S[number])
    if width and height:
        histogram.add(counts["width"], width)
        histogram.add(counts["height"], height)
        histogram.add(counts["aspect"], width / height)
    if index.regions_S[number]:
        histogram.add(counts["regions"], int(index.regions_S[number]))
    if index.code_rows_S[number]:
        histogram.add(counts["codes"], int(index.code_rows_S[number]) * int(index.code_columns_S[number]))
    pictures = [one for one in index.members(number) if IMAGE.fullmatch(one[0])]
    tables["format"].update(one[0].rpartition(".")[2].replace("jpeg", "jpg") for one in pictures)
    if pictures:
        histogram.add(counts["kilobytes"], sum(one[2] for one in pictures) / 1000)

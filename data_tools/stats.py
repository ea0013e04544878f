"""``mmpretrain data stats``: one page about a set, with histograms and samples. It opens from disk and asks nothing of the network."""

from __future__ import annotations

import argparse
import base64
import heapq
import io
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mmpretrain.data.cache import write_atomic
from mmpretrain.data.decode import decode_image, join
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data_tools import histogram, markup_charts
from mmpretrain.data_tools.common import megabytes, scratch, table, tool_parser
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.indexing import index
from mmpretrain.data_tools.stats_shard import MEASURES, TABLES, count_shard
from mmpretrain.report.markup import Html, document, tag
from mmpretrain.report.markup import join as together

_THUMBNAIL = 256  # pixels
_ROWS = 12  # of a table on the page
_TEXTS = 5  # captions of a sample on the page
_TITLES = {"format": "Formats", "language": "Languages, guessed", "word": "Frequent words", "caption": "Captions that repeat"}


class Stats(NamedTuple):
    """What was counted over all shards."""

    shards: int
    samples: int
    unreadable: int
    size: int  # bytes
    counts: dict[str, dict[str, int]]  # measure -> histogram
    tables: dict[str, Counter[str]]
    chosen: list[tuple[Path, int]]  # samples for the gallery


class Shown(NamedTuple):
    """A sample of the gallery."""

    name: str
    picture: bytes | None  # JPEG
    texts: tuple[str, ...]


def count(paths: Sequence[Path], show: int = 24, seed: int = 0, engine: Mapping[str, Any] | None = None) -> Stats:
    """Count a set. The gallery holds the samples with the smallest hashes, so it does not depend on the number of shards.

    Raises:
        DataError: a damaged shard.
    """
    index(paths, engine=engine)
    items = {str(path): {"shard": stamp(path), "show": show, "seed": seed} for path in paths}
    state = scratch("stats", items)
    found = run(count_shard, items, title="count", state=state, **(engine or {}))
    tables: dict[str, Counter[str]] = {name: Counter() for name in TABLES}
    for one in found.values():
        for name, values in one["tables"].items():
            tables[name].update(values)
    chosen = heapq.nsmallest(show, ((hashed, number, path) for path in paths for hashed, number in found[str(path)]["chosen"]))
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return Stats(
        len(paths),
        sum(one["samples"] for one in found.values()),
        sum(one["unreadable"] for one in found.values()),
        sum(one["bytes"] for one in found.values()),
        {name: histogram.merged(one["counts"][name] for one in found.values()) for name in MEASURES},
        tables,
        [(path, number) for _, number, path in chosen],
    )


def gallery(chosen: Sequence[tuple[Path, int]]) -> list[Shown]:
    """The chosen samples with small pictures; those that cannot be read have none."""
    readers: dict[Path, ShardReader] = {}
    shown = []
    for path, number in chosen:
        reader = readers.setdefault(path, ShardReader([path]))
        try:
            sample = reader.read(number)
            picture = _small(join([decode_image(data) for data in sample.images])) if sample.images else None
        except BadSample as error:
            shown.append(Shown(reader.indexes[0].key(number), None, (str(error),)))
            continue
        texts = (*sample.captions, *(f"{one.text} ({'true' if one.label else 'false'})" for one in sample.statements))
        shown.append(Shown(sample.key, picture, texts[:_TEXTS]))
    return shown


def _small(image: Image.Image) -> bytes:
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def page(name: str, stats: Stats, shown: Sequence[Shown]) -> str:
    """The page as text."""
    charts = [
        tag("figure", tag("figcaption", title), markup_charts.bars(stats.counts[measure], title), class_="chart")
        for measure, title in MEASURES.items()
        if stats.counts[measure]
    ]
    tables = [
        tag("figure", tag("figcaption", _TITLES[key]), markup_charts.counted(rows), class_="chart")
        for key in TABLES
        if (rows := _top(stats, key))
    ]
    tiles = {"samples": stats.samples, "captions": histogram.total(stats.counts["words"]), "shards": stats.shards}
    shown_tiles = [tag("div", tag("span", key), tag("strong", f"{value:,}".replace(",", "\u202f"))) for key, value in tiles.items()]
    shown_tiles += [tag("div", tag("span", "size"), tag("strong", megabytes(stats.size)))]
    if stats.unreadable:
        shown_tiles += [tag("div", tag("span", "cannot be read"), tag("strong", stats.unreadable))]
    body = together(
        [
            tag("header", tag("p", "Statistics of a data set", class_="eyebrow"), tag("h1", name), class_="page"),
            tag(
                "main",
                tag("section", tag("div", *shown_tiles, class_="tiles")),
                tag("section", tag("h2", "Histograms"), tag("div", *charts, class_="charts")),
                tag("section", tag("h2", "Most frequent"), tag("div", *tables, class_="charts")) if tables else None,
                tag("section", tag("h2", "Samples"), tag("div", *map(_card, shown), class_="queries")) if shown else None,
            ),
            tag("footer", "Written by ", tag("b", "mmpretrain data stats"), ". This page is one file and asks nothing of the network."),
        ]
    )
    return document(f"{name} · mmpretrain", body)


def _top(stats: Stats, key: str) -> list[tuple[str, int]]:
    """The most frequent entries, the first of equals by their text; of captions only those that repeat."""
    rows = sorted(stats.tables[key].items(), key=lambda row: (-row[1], row[0]))[:_ROWS]
    return [row for row in rows if row[1] > 1] if key == "caption" else rows


def _card(one: Shown) -> Html:
    if one.picture is None:
        picture = tag("span", "no picture", class_="gap", role="img", aria_label=one.name)
    else:
        picture = tag("img", src=f"data:image/jpeg;base64,{base64.b64encode(one.picture).decode()}", alt=f"picture of {one.name}")
    texts = tag("ul", *[tag("li", tag("span", text)) for text in one.texts], class_="captions")
    body = tag("div", tag("div", picture, class_="subject"), tag("div", texts), class_="image-query")
    return tag("div", body, tag("small", one.name), class_="query")


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Write the page of a set; returns the exit code.

    Raises:
        DataError: a source that does not exist, or a damaged shard.
    """
    text = "Write one HTML page about a set: histograms of captions and pictures, frequent words, samples"
    parser = tool_parser(parser_class, "stats", text, "mmpretrain data stats shards/ --out stats.html")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    parser.add_argument("--out", type=Path, default=Path("stats.html"), help="default stats.html")
    parser.add_argument("--show", type=int, default=24, help="samples on the page (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples")
    options = parser.parse_args(args)
    if options.show < 0:
        raise DataError(f"--show {options.show}: at least 0")
    paths = list(expand(options.shards))
    stats = count(paths, options.show, options.seed, options_of(options))
    name = ", ".join(dict.fromkeys(path.resolve().parent.name for path in paths))
    write_atomic(options.out, page(name, stats, gallery(stats.chosen)).encode("utf-8"))
    quantiles = lambda counts: [histogram.total(counts), *(histogram.quantile(counts, share) for share in (0, 0.5, 0.95, 1))]
    rows = [(title, *quantiles(stats.counts[measure])) for measure, title in MEASURES.items() if stats.counts[measure]]
    table(name, ("", "number", "least", "median", "95 %", "most"), rows)
    print(options.out)
    return 0

"""``mmpretrain data mix``: new shards from several sets, interleaved by weights."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.common import named_sources, table, tool_parser
from mmpretrain.data_tools.engine import options_of
from mmpretrain.data_tools.indexing import index
from mmpretrain.data_tools.rewrite import Row, rewrite
from mmpretrain.data_tools.shards import SHARD_SIZE

_NAME = re.compile(r"[\w-]+")


def interleave(weights: Sequence[float], n: int) -> np.ndarray:
    """Which source each of ``n`` places takes: int64 (n,). After every place each source has its share to within one sample.

    Place k goes to the source that is furthest behind k times its weight; the first of equals.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    taken = np.zeros(len(shares))
    found = np.empty(n, dtype=np.int64)
    for at in range(n):
        source = int(np.argmax(shares * (at + 1) - taken))
        taken[source] += 1
        found[at] = source
    return found


def plan(sizes: Sequence[int], weights: Sequence[float] | None, n: int | None, seed: int, repeat: bool) -> list[tuple[int, int, int]]:
    """(source, sample, how often it came before) of each place.

    Args:
        sizes: samples of the sources.
        weights: None: all samples of all sources, once.
        n: places; None: as many as there are before a source would repeat.
        repeat: whether a source that is used up starts again, in another order.

    Raises:
        DataError: a source is too small and may not repeat.
    """
    weights = [float(size) for size in sizes] if weights is None else weights
    most = min(int(size * sum(weights) / weight) for size, weight in zip(sizes, weights, strict=True))
    n = most if n is None else n
    places = interleave(weights, n)
    used = np.bincount(places, minlength=len(sizes))
    short = [source for source, size in enumerate(sizes) if used[source] > size]
    if short and not repeat:
        names = ", ".join(f"source {source + 1} has {sizes[source]} samples, {used[source]} are asked for" for source in short)
        raise DataError(f"{names}: give a smaller --n, another weight, or --repeat")
    orders = [_orders(size, int(used[source]), seed, source) for source, size in enumerate(sizes)]
    next_of = [0] * len(sizes)
    found = []
    for source in places.tolist():
        at = next_of[source]
        next_of[source] += 1
        found.append((source, int(orders[source][at]), at // sizes[source]))
    return found


def _orders(size: int, wanted: int, seed: int, source: int) -> np.ndarray:
    """The samples of a source in a random order, one order after another until there are ``wanted``."""
    rounds = range(max(-(-wanted // size), 1))
    return np.concatenate([np.random.Generator(np.random.PCG64([seed, source, number])).permutation(size) for number in rounds])


def mix(
    sources: Mapping[str, Sequence[Path]],
    out: Path,
    weights: Sequence[float] | None = None,
    n: int | None = None,
    seed: int = 0,
    repeat: bool = False,
    shard_size: int = SHARD_SIZE,
    engine: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write the mixture to ``out``. Keys become ``SOURCE/KEY``, and ``SOURCE/KEY~2`` where a sample comes a second time.

    Returns:
        source -> samples.

    Raises:
        DataError: an empty source, one that is too small, or ``out`` holds something else.
    """
    inputs = [path for paths in sources.values() for path in paths]
    found = index(inputs, engine=engine)
    ends = {name: np.cumsum([found[path]["samples"] for path in paths]) for name, paths in sources.items()}
    names = list(sources)
    sizes = [int(ends[name][-1]) for name in names]
    if 0 in sizes:
        raise DataError(f"the source {names[sizes.index(0)]!r} has no sample")
    first = np.concatenate([[0], np.cumsum([len(paths) for paths in sources.values()])])
    rows: list[Row] = []
    keys: dict[int, Any] = {}
    for source, sample, before in plan(sizes, weights, n, seed, repeat):
        shard = int(np.searchsorted(ends[names[source]], sample, side="right"))
        number = sample - (int(ends[names[source]][shard - 1]) if shard else 0)
        shard += int(first[source])
        rows.append([shard, number, {"prefix": names[source], "suffix": f"~{before + 1}" if before else ""}])
        keys[source] = keys.get(source, 0) + 1
    made = {"tool": "mix", "sources": names, "weights": list(weights or ()), "seed": seed, "repeat": repeat}
    rewrite(out, {"": rows}, inputs, made, shard_size, engine or {})
    return {name: keys.get(source, 0) for source, name in enumerate(names)}


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Mix sets; returns the exit code.

    Raises:
        DataError: arguments or sources that do not fit.
    """
    example = "mmpretrain data mix coco=shards/coco cc=shards/cc3m --weights 1 3 --n 100000 --out mixed/"
    text = "Write one set from several, each in a random order of its own, interleaved by weights to within one sample"
    parser = tool_parser(parser_class, "mix", text, example)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]SOURCE", help="sets; the name goes in front of the keys")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards")
    parser.add_argument("--weights", type=float, nargs="+", help="one for each source (default: all samples of all, once)")
    parser.add_argument("--n", type=int, help="samples to write (default: as many as no source has to repeat for)")
    parser.add_argument("--repeat", action="store_true", help="let a source that is used up begin again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    options = parser.parse_args(args)
    sources = named_sources(options.sources)
    if options.weights is not None and (len(options.weights) != len(sources) or not all(0 < one < math.inf for one in options.weights)):
        raise DataError(f"--weights: one positive number for each of the {len(sources)} sources")
    if options.n is not None and options.n < 1:
        raise DataError(f"--n {options.n}: at least one sample")
    if bad := [name for name in sources if not _NAME.fullmatch(name)]:
        raise DataError(f"the name {bad[0]!r} cannot stand in a key; give another: NAME=SOURCE")
    counts = mix(sources, options.out, options.weights, options.n, options.seed, options.repeat, options.shard_size, options_of(options))
    whole = sum(counts.values())
    table(str(options.out), ("source", "samples", "%"), [(name, count, 100 * count / max(whole, 1)) for name, count in counts.items()])
    return 0

"""``mmpretrain data index``: make or refresh the index of shards. Making an index is the check of a shard."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data.index import build, fingerprint, index_path, load, remake, save
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.common import megabytes, table, tool_parser
from mmpretrain.data_tools.engine import options_of, run, stamp

_SHOWN = 40  # shards in the table


def index_shard(item: Mapping[str, Any]) -> dict[str, Any]:
    """Make the index of one shard where it is missing, old, or to be refreshed (whatever its bytes were before): what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``refresh``.

    Raises:
        DataError: a damaged shard, or an index that cannot be written.
    """
    path = Path(item["shard"][0])
    target = index_path(path)
    found = None if item["refresh"] else load(path, target)
    made = found is None
    if found is None:
        found = build(path) if item["refresh"] else remake(path, target)
        save(found, target)
    texts = int(found.captions_S.sum()) + int(found.statements_S.sum())
    return {
        "made": made,
        "index": str(target),
        "samples": len(found),
        "texts": texts,
        "pictures": int(found.images_S.sum()),
        "bytes": found.tar_size,
        "bad": found.bad,
        "problems": list(found.problems),
        "ignored": found.ignored,
    }


def index(paths: Sequence[Path], refresh: bool = False, engine: Mapping[str, Any] | None = None) -> dict[Path, dict[str, Any]]:
    """Make the indexes of shards; those that are fresh stay, so that a second call does only the rest.

    Args:
        refresh: make them all again.
        engine: arguments of :func:`mmpretrain.data_tools.engine.run`.

    Raises:
        DataError: a damaged shard.
    """
    items = {str(path): {"shard": stamp(path), "refresh": refresh} for path in paths}
    found = run(index_shard, items, title="index", **(engine or {}))
    return {path: found[str(path)] for path in paths}


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Index the named shards and print what each has; returns the exit code.

    Raises:
        DataError: a source that does not exist, or a damaged shard.
    """
    text = (
        "Make the index of shards, or refresh it where a shard changed. A damaged shard is refused: mmpretrain data check names all damage"
    )
    parser = tool_parser(parser_class, "index", text, "mmpretrain data index shards/ --workers 4")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    parser.add_argument("--refresh", action="store_true", help="make every index again, also fresh ones, of the bytes as they are now")
    options = parser.parse_args(args)
    paths = expand(options.shards)
    found = index(paths, options.refresh, options_of(options))
    columns = ("shard", "samples", "texts", "pictures", "MB", "unusable")
    rows = [(path.name, one["samples"], one["texts"], one["pictures"], one["bytes"] / 1e6, one["bad"]) for path, one in found.items()]
    more = f" (the first {_SHOWN} of {len(rows)})" if len(rows) > _SHOWN else ""
    table(f"Shards{more}", columns, rows[:_SHOWN])
    for path, one in found.items():
        if one["bad"]:
            print(f"{path}: {one['bad']} samples cannot be used, such as {one['problems'][0]}")
    ignored: Counter[str] = Counter()
    for one in found.values():
        ignored.update(one["ignored"])
    if ignored:
        print("never read: " + ", ".join(f"{count} x {name}" for name, count in ignored.most_common(10)))
    indexes = [load(path, Path(one["index"])) for path, one in found.items()]
    missing = [path for path, one in zip(paths, indexes, strict=True) if one is None]
    if missing:
        raise DataError(f"{missing[0]}: changed while it was indexed; run the command again")
    samples, size = sum(one["samples"] for one in found.values()), sum(one["bytes"] for one in found.values())
    made = sum(one["made"] for one in found.values())
    print(
        f"{samples} samples in {len(paths)} shards, {megabytes(size)}, {made} indexes made, {len(paths) - made} were fresh, "
        f"fingerprint {fingerprint([one for one in indexes if one is not None])[:16]}"
    )
    return 0

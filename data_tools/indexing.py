"""``mmpretrain data index``: make or refresh the index of shards. Making an index is the check of a shard."""

from __future__ import annotations

import argparse


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Index the named shards and print how many samples each has; returns the exit code.

    Raises:
        DataError: a source that does not exist, or a damaged shard.
    """
    from mmpretrain.data.index import fingerprint, open_indexes
    from mmpretrain.data.sources import expand

    parser = parser_class(prog="mmpretrain data index", description="Make or refresh the index of shards, checking every member.")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    paths = expand(parser.parse_args(args).shards)
    indexes = open_indexes(paths)
    for path, found in zip(paths, indexes, strict=True):
        print(f"{path}: {len(found)} samples")
    print(f"{sum(len(found) for found in indexes)} samples in {len(paths)} shards, fingerprint {fingerprint(indexes)[:16]}")
    return 0

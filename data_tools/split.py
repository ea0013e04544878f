"""``mmpretrain data split``: parts of a set, by the hash of a key or of a metadata field. What belongs together stays together."""

from __future__ import annotations

import argparse
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.decode import decode_json
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.common import table, tool_parser
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.rewrite import STATE, Row, rewrite
from mmpretrain.data_tools.shards import SHARD_SIZE, fresh_folder, read_samples

_NAME = re.compile(r"[\w-]+")


def value_of(meta: Mapping[str, Any], field: str) -> Any:
    """The value of a dotted field of ``KEY.json``; None where it is missing."""
    found: Any = meta
    for part in field.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def groups_of_shard(item: Mapping[str, Any]) -> list[str]:
    """What each sample of a shard is put to a part by, in their order: what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``field`` of the metadata or None; ``pattern`` for keys or None.

    Raises:
        DataError: a sample without the field, or a key that the pattern does not fit.
    """
    path, field, pattern = Path(item["shard"][0]), item["field"], item["pattern"]
    found = []
    for key, members in read_samples(path):
        if field is not None:
            try:
                value = value_of(decode_json(members["json"]), field) if "json" in members else None
            except BadSample as error:
                raise DataError(f"{path} key {key!r}: {error}") from None
            if value is None or isinstance(value, list | dict):
                raise DataError(f"{path} key {key!r}: KEY.json has no single value {field!r} to split by")
            found.append(str(value))
        elif pattern is not None:
            match = re.search(pattern, key)
            if match is None:
                raise DataError(f"{path} key {key!r}: the pattern {pattern!r} of --group-key does not fit it")
            found.append(match[1] if match.groups() else match[0])
        else:
            found.append(key)
    return found


def place(group: str, seed: int) -> float:
    """A number in [0, 1) for a group: its hash, so that it does not depend on the other samples."""
    digest = hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def parse_parts(texts: Sequence[str]) -> dict[str, float]:
    """``NAME=SHARE`` ... -> shares that sum to 1.

    Raises:
        DataError: not of that form, or shares that do not sum to 1.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, _, share = text.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not _NAME.fullmatch(name) or name in found or not 0 < value < 1:
            raise DataError(f"--parts {text}: write NAME=SHARE with a share between 0 and 1, such as train=0.9 val=0.1")
        found[name] = value
    if abs(sum(found.values()) - 1) > 1e-9:
        raise DataError(f"--parts: the shares sum to {sum(found.values()):g}, not to 1")
    return found


def assign(groups: Sequence[str], parts: Mapping[str, float] | None, seed: int) -> list[str]:
    """The part of each group: by the hash, or, without ``parts``, the group itself is the name of its part."""
    if parts is None:
        for group in set(groups):
            if not _NAME.fullmatch(group):
                raise DataError(f"--by-value: {group!r} cannot be the name of a folder")
        return list(groups)
    ends, end = [], 0.0
    for name, share in parts.items():
        end += share
        ends.append((end, name))
    last = ends[-1][1]
    return [next((name for end, name in ends if place(group, seed) < end), last) for group in groups]


def split(
    paths: Sequence[Path],
    out: Path,
    parts: Mapping[str, float] | None,
    field: str | None = None,
    pattern: str | None = None,
    seed: int = 0,
    shard_size: int = SHARD_SIZE,
    engine: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write each part to ``out / NAME``, samples in the order of the set.

    Args:
        parts: name -> share; None: the values of ``field`` name the parts.
        field: of the metadata, dotted; samples of one value go to one part.
        pattern: of keys; samples that share what its first group (or the whole pattern) matches go to one part.

    Returns:
        part -> samples.

    Raises:
        DataError: samples without the field, or ``out`` holds something else.
    """
    state = fresh_folder(out, STATE)
    items = {str(path): {"shard": stamp(path), "field": field, "pattern": pattern} for path in paths}
    found = run(groups_of_shard, items, title="read groups", state=state, **(engine or {}))
    rows: dict[str, list[Row]] = {name: [] for name in parts or ()}
    for shard, path in enumerate(paths):
        for sample, name in enumerate(assign(found[str(path)], parts, seed)):
            rows.setdefault(name, []).append([shard, sample])
    made = {"tool": "split", "parts": dict(parts or {}), "field": field, "pattern": pattern, "seed": seed}
    rewrite(out, {name: rows[name] for name in (parts or sorted(rows))}, paths, made, shard_size, engine or {})
    return {name: len(listed) for name, listed in rows.items()}


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Split a set; returns the exit code.

    Raises:
        DataError: arguments or samples that do not fit.
    """
    example = "mmpretrain data split shards/ --out parts/ --parts train=0.9 val=0.1 --group url"
    text = "Split a set by hashes: the part of a sample depends on its key (or group) and the seed alone, not on the other samples"
    parser = tool_parser(parser_class, "split", text, example)
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    parser.add_argument("--out", type=Path, required=True, help="new folder; each part becomes a folder in it")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--parts", nargs="+", metavar="NAME=SHARE", help="such as train=0.9 val=0.1")
    kind.add_argument("--by-value", metavar="FIELD", help="a part for each value of this field of KEY.json, such as split")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--group", metavar="FIELD", help="samples with the same value of this field (a.b reaches inside) stay together")
    group.add_argument("--group-key", metavar="REGEX", help="samples whose keys match the same text stay together, such as '^[^-]+'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    options = parser.parse_args(args)
    if options.by_value and (options.group or options.group_key):
        raise DataError("--by-value names the parts by the field itself: leave out --group and --group-key")
    if options.group_key:
        try:
            re.compile(options.group_key)
        except re.error as error:
            raise DataError(f"--group-key {options.group_key!r} is no regular expression ({error})") from None
    parts = parse_parts(options.parts) if options.parts else None
    field = options.by_value or options.group
    counts = split(
        expand(options.shards), options.out, parts, field, options.group_key, options.seed, options.shard_size, options_of(options)
    )
    whole = sum(counts.values())
    table(str(options.out), ("part", "samples", "%"), [(name, count, 100 * count / max(whole, 1)) for name, count in counts.items()])
    return 0

"""``mmpretrain data check``: the doctor of shards. A table, ``sizes.json``, ``quarantine.jsonl``, exit code 1 where there is damage."""

from __future__ import annotations

import argparse
import base64
import itertools
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data import quarantine
from mmpretrain.data.cache import writable
from mmpretrain.data.errors import DataError
from mmpretrain.data.quarantine import FILE as QUARANTINE
from mmpretrain.data.sources import expand
from mmpretrain.data_tools import histogram
from mmpretrain.data_tools.check_shard import KINDS, check_shard, keys_of
from mmpretrain.data_tools.common import megabytes, scratch, table, tool_parser, write_json
from mmpretrain.data_tools.engine import options_of, run, stamp
from mmpretrain.data_tools.shards import read_manifest, read_samples

SIZES = "sizes.json"
DAMAGED = 1  # the exit code
NEEDS = ("picture", "text")
_SHOWN = 40  # problems in the table
_NAMED = {"captions": "captions of a sample", "words": "words of a caption", "kilobytes": "kB of a picture"}


class Problem(NamedTuple):
    """Something wrong with a shard, or with one sample of it."""

    shard: Path
    key: str | None  # None: the shard itself
    kind: str  # one of KINDS
    reason: str


class Checked(NamedTuple):
    """What :func:`check` found."""

    shards: dict[Path, dict[str, Any]]  # see check_shard
    problems: list[Problem]

    @property
    def samples(self) -> int:
        return sum(one["samples"] for one in self.shards.values())


def check(
    paths: Sequence[Path],
    decode: bool = True,
    ignore: Collection[str] = (),
    need: Collection[str] | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Checked:
    """Check shards one by one and, where they lie in one folder, against each other: a folder is a set of its own.

    Args:
        decode: decode every picture; False reads its header only.
        ignore: kinds of problems that are none.
        need: what every sample must have, of ``picture`` and ``text``; None: what at least half of the samples of a set have.
        engine: arguments of :func:`mmpretrain.data_tools.engine.run`.
    """
    manifests = {folder: read_manifest(folder) for folder in dict.fromkeys(path.parent for path in paths)}
    entries = {folder: {one["file"]: one for one in (found or {}).get("shards", ())} for folder, found in manifests.items()}
    items = {str(path): {"shard": stamp(path), "decode": decode, "manifest": entries[path.parent].get(path.name)} for path in paths}
    state = scratch("check", items)
    results = run(check_shard, items, title="check", state=state, **(engine or {}))
    shards = {path: results[str(path)] for path in paths}
    problems = [Problem(path, one["key"], one["kind"], one["reason"]) for path, found in shards.items() for one in found["problems"]]
    problems += _missing(paths, manifests)
    for folder in manifests:
        inside = {path: one for path, one in shards.items() if path.parent == folder}
        problems += _incomplete(inside, need) + _repeated(inside)
    place = {path: number for number, path in enumerate(paths)}
    problems = [one for one in problems if one.kind not in ignore]
    problems.sort(key=lambda one: place.get(one.shard, len(place)))  # stable: the order of the shard is kept
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return Checked(shards, problems)


def _missing(paths: Sequence[Path], manifests: Mapping[Path, Mapping[str, Any] | None]) -> list[Problem]:
    """Shards of a manifest that are not there; asked only of folders that are checked whole."""
    found = []
    for folder, manifest in manifests.items():
        if manifest and {path for path in paths if path.parent == folder} == set(folder.glob("*.tar")):
            gone = [one["file"] for one in manifest["shards"] if not (folder / one["file"]).is_file()]
            found += [Problem(folder / name, None, "missing shard", "the manifest names it, but it is not there") for name in gone]
    return found


def _incomplete(shards: Mapping[Path, Mapping[str, Any]], need: Collection[str] | None) -> list[Problem]:
    samples = sum(one["samples"] for one in shards.values())
    found = []
    for name in NEEDS:
        lacking = sum(one["lacking"][name]["count"] for one in shards.values())
        if not (2 * lacking <= samples if need is None else name in need):
            continue
        for path, one in shards.items():
            count, keys = one["lacking"][name]["count"], one["lacking"][name]["keys"]
            if count and not keys:
                keys = [key for key, members in read_samples(path) if _lacks(key, members, name)]
            found += [Problem(path, key, "incomplete", f"no {name}") for key in keys]
    return found


def _lacks(key: str, members: Mapping[str, bytes], name: str) -> bool:
    from mmpretrain.data.decode import assemble

    try:
        sample = assemble(key, members)
    except DataError:
        return False
    return not (sample.images if name == "picture" else sample.captions or sample.statements)


def _repeated(shards: Mapping[Path, Mapping[str, Any]]) -> list[Problem]:
    """Keys of two shards: split over a border, or simply twice. The later one is the problem."""
    paths = list(shards)
    found = []
    for before, path in itertools.pairwise(paths):
        key = shards[path]["first"]
        if key is not None and shards[before]["last"] == key:
            found.append(Problem(path, key, "split key", f"{before.name} ends with the same key"))
    split = {(one.shard, one.key) for one in found}
    hashes = [np.frombuffer(base64.b64decode(one["hashes"]), dtype="<u8") for one in shards.values()]
    joined, owner = np.concatenate(hashes), np.repeat(np.arange(len(paths)), [len(one) for one in hashes])
    starts = np.concatenate([[0], np.cumsum([len(one) for one in hashes])])
    order = np.argsort(joined, kind="stable")
    fresh = np.concatenate([[True], joined[order[1:]] != joined[order[:-1]]])[: len(order)]
    first = order[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]  # beside ``order``: the first place of the same key
    again = {int(at): int(owner[place]) for at, place in zip(order[~fresh], first[~fresh], strict=True)}
    names: dict[int, list[str]] = {}
    for at in sorted(again):
        number = int(owner[at])
        if number not in names:
            names[number] = keys_of(paths[number])
        key = names[number][at - int(starts[number])]
        if (paths[number], key) not in split:
            found.append(Problem(paths[number], key, "duplicate key", f"also in {paths[again[at]].name}"))
    return found


def report(checked: Checked) -> None:
    """Print the tables."""
    several = len({path.parent for path in checked.shards}) > 1
    named = ((str(one.shard) if several else one.shard.name, one) for one in checked.problems[:_SHOWN])
    rows = [(shard, one.key or "(the shard)", one.kind, one.reason) for shard, one in named]
    if rows:
        more = len(checked.problems) - len(rows)
        table(f"Problems{f' (the first {_SHOWN}, {more} more)' if more else ''}", ("shard", "key", "kind", "reason"), rows, numbers=False)
        kinds = Counter(one.kind for one in checked.problems)
        table("By kind", ("kind", "problems", "meaning"), [(kind, kinds[kind], KINDS[kind]) for kind in KINDS if kinds[kind]])
    sums = {
        name: histogram.merged(one["counts"][name] for one in checked.shards.values())
        for name in ("captions", "words", "width", "height", "kilobytes")
    }
    columns = ("", "number", "least", "median", "mean", "95 %", "most")
    quantiles = lambda counts: (
        histogram.total(counts), histogram.quantile(counts, 0), histogram.quantile(counts, 0.5), histogram.mean(counts),
        histogram.quantile(counts, 0.95), histogram.quantile(counts, 1),
    )  # fmt: skip
    table(
        "Captions and pictures", columns, [(_NAMED.get(name, f"{name} of a picture"), *quantiles(counts)) for name, counts in sums.items()]
    )
    size = sum(one["bytes"] for one in checked.shards.values())
    hurt = len({one.shard for one in checked.problems})
    print(
        f"{checked.samples} samples in {len(checked.shards)} shards, {megabytes(size)}: {len(checked.problems)} problems in {hurt} shards"
    )
    unverified = sum(not one["verified"] for one in checked.shards.values())
    if unverified:
        print(
            f"{unverified} shards have neither an index nor a sum in a manifest: a flipped bit in their bytes cannot be seen. "
            "Run mmpretrain data index on them while they are good"
        )


def write_lists(checked: Checked, out: Path | None) -> list[Path]:
    """Write ``sizes.json`` and ``quarantine.jsonl`` into each folder of shards, or into ``out``.

    The quarantine lists samples, each once; what other tools or people wrote there stays. A shard that is damaged as a whole is not in it:
    the loader refuses it, so copy it again.

    Raises:
        DataError: a folder cannot be written, or ``out`` is given for shards of several folders.
    """
    folders = sorted({path.parent for path in checked.shards})
    if out is not None and len(folders) > 1:
        raise DataError(f"--out {out}: the shards lie in {len(folders)} folders, whose names may be equal; check one folder at a time")
    written = []
    for folder in folders:
        target = out or folder
        if out is None and not writable(folder):
            raise DataError(f"{folder} cannot be written: name a folder for {SIZES} and {QUARANTINE} by --out")
        write_json(target / SIZES, {path.name: one["samples"] for path, one in checked.shards.items() if path.parent == folder})
        rows = {(one.shard.name, one.key): one for one in reversed(checked.problems) if one.shard.parent == folder and one.key is not None}
        lines = [{"shard": shard, "key": key, "reason": one.kind, "detail": one.reason} for (shard, key), one in reversed(rows.items())]
        quarantine.replace(target / QUARANTINE, "check", lines, {path.name for path in checked.shards if path.parent == folder})
        written += [target / SIZES, target / QUARANTINE]
    return written


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Check the named shards; 0: sound, 1: damaged.

    Raises:
        DataError: a source that does not exist, or lists that cannot be written.
    """
    text = (
        "Find all damage of shards: cuts, flipped bits, doubled and split keys, incomplete samples, bad texts and pictures, bombs, pickles"
    )
    parser = tool_parser(parser_class, "check", text, "mmpretrain data check shards/ --workers 4")
    parser.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    parser.add_argument("--out", type=Path, help=f"folder for {SIZES} and {QUARANTINE} (default: the folder of the shards)")
    parser.add_argument("--fast", action="store_true", help="read the headers of pictures only, do not decode them")
    parser.add_argument("--ignore", action="append", default=[], choices=list(KINDS), metavar="KIND", help=f"one of: {', '.join(KINDS)}")
    parser.add_argument("--need", action="append", choices=NEEDS, help="what every sample must have (default: what half of them have)")
    options = parser.parse_args(args)
    paths = expand(options.shards)
    if options.out is None and not all(writable(path.parent) for path in paths):
        raise DataError(f"{paths[0].parent} cannot be written: name a folder for {SIZES} and {QUARANTINE} by --out")
    found = check(paths, not options.fast, options.ignore, options.need, options_of(options))
    report(found)
    for path in write_lists(found, options.out):
        print(path)
    return DAMAGED if found.problems else 0

"""Shards with regions, their manifest and ``regions.json``, written by whatever maker the plan names; and the report of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import NAME, RegionsInfo, read_info, write_info
from mmpretrain.data_tools.common import megabytes, table
from mmpretrain.data_tools.engine import run, stamp
from mmpretrain.data_tools.regions_shard import Counts, shard
from mmpretrain.data_tools.shards import fresh_folder, write_manifest

STATE = ".state"
RANDOM = "random weights: shapes are right, numbers mean nothing"


def fill(
    out: Path,
    info: RegionsInfo,
    works: Mapping[Path, Mapping[str, Any]],
    replace: bool = False,
    on_bad: str = "stop",
    name: str | None = None,
    **engine: Any,
) -> dict[str, Counts]:
    """Write the shards, their manifest and ``regions.json``; go on where an interrupted run with the same options stopped.

    Args:
        out: new folder.
        info: what the shards say of their regions.
        works: shard -> options of its maker.
        replace, on_bad: see ``regions_shard.shard``.
        name: of the set in its manifest; the folder's by default.
        engine: arguments of ``engine.run``.

    Returns:
        file name of a shard -> what was done to it.
    """
    names = [path.name for path in works]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two shards are called {twice}; give folders with shards of one name in commands of their own")
    if any(path.resolve().parent == out.resolve() for path in works):
        raise DataError(f"--out {out} is the folder of the shards themselves; choose another one")
    state = fresh_folder(out, STATE)
    before = read_info(out)
    if before is not None and before != info:
        was = f"a run with another extractor or other options was interrupted here ({before.source})"
        raise DataError(f"{out}: {was}; remove the folder, or choose another --out")
    write_info(out, info)
    common = {"replace": replace, "on_bad": on_bad}
    items = {
        path.name: {"source": stamp(path), "target": str(out / path.name), "options": _plain(made), **common}
        for path, made in works.items()
    }
    found = run(shard, items, state=state, valid=_whole(out), **engine)
    counts = {name: Counts(**one) for name, one in found.items()}
    shards = [{"file": name, "samples": one.samples, "bytes": one.bytes, "sha256": one.sha256} for name, one in counts.items()]
    write_manifest(out, shards, {"tool": "regions", "fingerprint": info.fingerprint}, name)
    shutil.rmtree(state)
    return counts


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _whole(out: Path) -> Callable[[str, Any], bool]:
    def there(name: str, result: Any) -> bool:
        return (out / name).is_file() and (out / name).stat().st_size == result["bytes"]

    return there


def report(out: Path, info: RegionsInfo, counts: Mapping[str, Counts], seconds: float) -> int:
    """Print the table of what :func:`fill` did and what is to be known; returns the exit code."""
    total = Counts(
        *(
            sum(getattr(one, field) for one in counts.values())
            for field in ("samples", "with_regions", "regions", "missing", "bad", "bytes")
        )
    )
    table(
        f"{out}: {info.source}",
        ("", "samples", "with regions", "per picture", "without", "bad", "size"),
        [
            (
                name,
                one.samples,
                one.with_regions,
                f"{one.regions / max(one.with_regions, 1):.1f}",
                one.missing,
                one.bad,
                megabytes(one.bytes),
            )
            for name, one in (*(list(counts.items()) if len(counts) <= 20 else ()), ("all", total))
        ],
    )
    if info.random:
        print(f"{RANDOM} ({NAME} says so)")
    for name, measured in info.measured.get("held_out", {}).items():
        stated = ", ".join(f"{head} {one['accuracy']:.2%}" for head, one in measured["heads"].items())
        print(f"the extractor's accuracy on {name}: {stated}")
    for problem in [one.problem for one in counts.values() if one.problem][:3]:
        print(problem)
    print(f"{total.samples} samples, {total.regions} regions of {info.width} values in {seconds:.1f} s; {NAME} {info.fingerprint[:12]}")
    if total.missing:
        print(f"{total.missing} samples got none: the store has no record of them, or they have no labelled boxes")
    if not total.with_regions:
        print("no sample has regions; --boxes proposals finds boxes where samples have none")
    return 1 if total.bad or not total.with_regions else 0

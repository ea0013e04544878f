"""Shards with regions, their manifest and ``regions.json``, written by whatever maker the plan names; and the report of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.codes_info import same_tokenizer
from mmpretrain.data.codes_info import write_info as write_codes
from mmpretrain.data.errors import DataError
from mmpretrain.data.regions_info import NAME, RegionsInfo, read_info, write_info
from mmpretrain.data_tools.common import megabytes, table
from mmpretrain.data_tools.derive import derive
from mmpretrain.data_tools.regions_shard import Counts, shard

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
    autoencoder = same_tokenizer(path.parent for path in works)

    def begin() -> None:
        before = read_info(out)
        if before is not None and before != info:
            was = f"a run with another extractor or other options was interrupted here ({before.source})"
            raise DataError(f"{out}: {was}; remove the folder, or choose another --out")
        write_info(out, info)
        if autoencoder is not None:
            write_codes(out, autoencoder)

    items = {path: {"options": made, "replace": replace, "on_bad": on_bad} for path, made in works.items()}
    found = derive(shard, out, items, begin, {"tool": "regions", "fingerprint": info.fingerprint}, name, **engine)
    return {file: Counts(**one) for file, one in found.items()}


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

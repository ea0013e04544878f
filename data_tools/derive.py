"""New shards with a member more, one for each old one and of its name: what ``regions`` and ``tokens`` write with. Resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import carried
from mmpretrain.data_tools.engine import Function, run, stamp
from mmpretrain.data_tools.shards import fresh_folder, write_manifest

STATE = ".state"


def derive(
    function: Function,
    out: Path,
    works: Mapping[Path, Mapping[str, Any]],
    begin: Callable[[], None],
    made: Mapping[str, Any],
    name: str | None = None,
    **engine: Any,
) -> dict[str, dict[str, Any]]:
    """Write the shards and their manifest; go on where an interrupted run with the same options stopped.

    Args:
        function: what runs for each shard: gets ``source`` (its stamp), ``target`` and the work of the shard, returns at least samples,
            bytes and sha256 of what it wrote.
        out: new folder.
        works: shard -> JSON types.
        begin: called before the first shard is written and after the check of the folder: writes what stands beside the shards, or refuses
            an ``out`` that an interrupted run with other options left.
        made: tool and options, for the manifest.
        name: of the set in its manifest; the folder's by default.
        engine: arguments of ``engine.run``.

    Returns:
        file name of a shard -> what ``function`` returned.

    Raises:
        DataError: two shards of one name, ``out`` is their folder or holds something else.
    """
    names = [path.name for path in works]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two shards are called {twice}; give folders with shards of one name in commands of their own")
    if any(path.resolve().parent == out.resolve() for path in works):
        raise DataError(f"--out {out} is the folder of the shards themselves; choose another one")
    state = fresh_folder(out, STATE)
    begin()
    items = {path.name: plain({**work, "source": stamp(path), "target": str(out / path.name)}) for path, work in works.items()}

    def whole(file: str, result: Any) -> bool:
        return (out / file).is_file() and (out / file).stat().st_size == result["bytes"]

    found = run(function, items, state=state, valid=whole, **engine)
    shards = [{"file": file, **{fact: one[fact] for fact in ("samples", "bytes", "sha256")}} for file, one in found.items()]
    write_manifest(out, shards, made, name)
    carried.write(out, _listed(works))
    shutil.rmtree(state)
    return found


def _listed(works: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Shard, key and entry of the samples, and of all their views, that lists beside the old shards name."""
    paths = list(works)
    for (shard, _), entry in carried.listed(paths).items():
        for view in range(works[paths[shard]].get("views", 1)):
            yield paths[shard].name, f"{entry['key']}~{view + 1}" if view else entry["key"], entry


def plain(value: Any) -> Any:
    """JSON types as they come back from a file."""
    return json.loads(json.dumps(value))

"""What ``quarantine.jsonl`` beside old shards lists is listed beside the new ones, too: no tool brings a sample back by copying it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmpretrain.data import quarantine
from mmpretrain.data.cache import write_atomic
from mmpretrain.data.reader import ShardReader

Listed = dict[tuple[int, int], dict[str, str]]  # (shard, sample) -> its entry


def listed(paths: Sequence[Path]) -> Listed:
    """The samples of these shards that lists beside them name."""
    if not any((folder / quarantine.FILE).is_file() for folder in {path.parent for path in paths}):
        return {}
    return quarantine.entries(ShardReader(paths))


def write(folder: Path, found: Iterable[tuple[str, str, dict[str, str]]]) -> None:
    """Write the list of a folder of new shards: (shard, key, old entry) of each; nothing where there is none."""
    lines = [json.dumps({**entry, "shard": shard, "key": key}, ensure_ascii=False) + "\n" for shard, key, entry in found]
    if lines:
        write_atomic(folder / quarantine.FILE, "".join(lines).encode("utf-8"))
        said = f"{folder}: {len(lines)} samples were listed in {quarantine.FILE} and are so here; training leaves them out"
        print(f"mmpretrain: {said}", file=sys.stderr)

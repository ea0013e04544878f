"""Files beside shards that say what made their members, and the check that no two makers are mixed.

Numbers of a detector or of a codebook mean something together with their maker alone: training on shards of one and validating on those of
another would go on without an error and mean nothing. ``regions_info`` and ``codes_info`` have the two kinds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmpretrain.data.errors import DataError
from mmpretrain.data.index import ShardIndex
from mmpretrain.data.reader import ShardReader

MOST = 16 << 20  # bytes of such a file


class Made(Protocol):
    """What such a file says at least."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def source(self) -> str: ...


M = TypeVar("M", bound=Made)
Parse = Callable[[dict[str, Any], Path | str], M]
Found = Iterable[tuple[Path | str, M | None]]


def parsed(data: bytes, path: Path | str, parse: Parse[M]) -> M:
    """What the bytes of the file at ``path`` say.

    Raises:
        DataError: they are no JSON object, or ``parse`` refuses them.
    """
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: it is no JSON ({error}); make the shards again") from None
    return parse(found if isinstance(found, dict) else {}, path)


def read(path: Path, parse: Parse[M]) -> M | None:
    """What a file says, None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > MOST:
        raise DataError(f"{path}: {path.stat().st_size} bytes are more than {MOST}; make the shards again")
    return parsed(path.read_bytes(), path, parse)


def beside(
    readers: Iterable[ShardReader], name: str, parse: Parse[M], has: Callable[[ShardIndex], bool]
) -> Iterator[tuple[Path | str, M | None]]:
    """(folder, what its file ``name`` says) of every folder, local or remote, with a shard that ``has`` such members."""
    seen = set()
    for reader in readers:
        for shard, (path, index) in enumerate(zip(reader.paths, reader.indexes, strict=True)):
            if path.parent in seen or not has(index):
                continue
            seen.add(path.parent)
            data = reader.beside(shard, name)
            yield path.parent, parsed(data, f"{path.parent}/{name}", parse) if data is not None else None


def one(found: Found[M], what: str, never: str, tool: str) -> M | None:
    """The one maker of all folders whose file says who it was; None where none does.

    Args:
        what: the members, for the message; ``never``: why they cannot be mixed; ``tool``: what makes them.

    Raises:
        DataError: two folders of different makers, naming both.
    """
    first: tuple[Path | str, M] | None = None
    for folder, info in found:
        if info is None:
            continue
        if first is None:
            first = folder, info
        elif info.fingerprint != first[1].fingerprint:
            raise DataError(
                f"the {what} of {first[0]} were made by {first[1].source} ({first[1].fingerprint[:12]}) and those of {folder} by "
                f"{info.source} ({info.fingerprint[:12]}): {never}; make both with the same one ({tool}), or leave one out"
            )
    return first[1] if first else None

"""What a user writes to name shards -> the list of tar files.

A source is a folder (all ``*.tar`` in it), a tar file, a pattern with braces (``{00000..00012}``, ``{a,b}``), several of these joined by
``::``, or the name ``scenes``: the generated set, made at first use (``scenes:val``, ``scenes:compositional``, ... name its splits;
``scenes?n=20000&seed=1`` asks for another number of training samples or another seed).
``~`` and ``${VARIABLE}`` are expanded. Nothing is ever run: ``pipe:`` and other schemes are refused.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmpretrain.data.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:(//)?")
_SCENES = re.compile(r"scenes($|:(?!:)|\?)")
_MOST = 1_000_000  # shards of one pattern


def expand(sources: str | Sequence[str], split: str = "train") -> tuple[Path, ...]:
    """The tar files of ``sources``, in the order written; a folder's in the order of their names.

    Args:
        sources: one or several sources.
        split: which split of ``scenes`` is meant where the source does not say.

    Raises:
        DataError: a path that does not exist, an unset variable, a scheme, or no source at all.
    """
    listed = [sources] if isinstance(sources, str) else list(sources)
    paths = [path for text in listed for one in str(text).split("::") for path in _expand_one(one.strip(), split)]
    if not paths:
        raise DataError("data: no source given; name a folder of .tar shards, a tar file, or 'scenes'")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise DataError(f"data: {path} is named twice; a sample would be seen twice in an epoch")
        seen.add(path.resolve())
    return tuple(paths)


def _expand_one(text: str, split: str) -> list[Path]:
    if _SCENES.match(text):
        return _scenes(text.removeprefix("scenes").removeprefix(":"), split)
    if not text:
        raise DataError("data: an empty source; name a folder of .tar shards, a tar file, or 'scenes'")
    text = _VARIABLE.sub(_variable, text)
    if scheme := _SCHEME.match(text):
        kind = "commands are never run" if scheme[0].startswith("pipe") else "only local files are read; download the shards first"
        raise DataError(f"data: source {text!r} is refused: {kind}")
    if Path(text).expanduser().exists():  # before braces: a real name may hold them
        return _files(Path(text).expanduser(), text)
    return [file for name in braces(text) for file in _files(Path(name).expanduser(), text)]


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if not value:
        raise DataError(f"data: source {match.string!r} needs the environment variable {match[1]}, which is not set")
    return value


def _files(path: Path, text: str) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            raise DataError(f"data: {path} holds no .tar file; a shard folder holds NNNNN.tar files")
        return found
    if path.is_file():
        return [path]
    raise DataError(f"data: {path} does not exist" + (f" (from {text!r})" if str(path) != text else "") + "; check the path")


def _scenes(text: str, split: str) -> list[Path]:
    """``[SPLIT][?n=N&seed=S&size=P]`` of the generated set."""
    from mmpretrain.data_tools import scenes

    named, _, options = text.partition("?")
    wanted: dict[str, int] = {}
    for option in filter(None, options.split("&")):
        name, _, value = option.partition("=")
        if name not in ("n", "seed", "size") or not value.isdigit():
            raise DataError(
                f"data: 'scenes' has the options n, seed and size, each a number, not {option!r}; such as 'scenes?n=20000&seed=1'"
            )
        wanted[name] = int(value)
    try:
        made = scenes.embedded(**wanted)
    except ValueError as error:
        raise DataError(f"data: scenes?{options}: {error}") from None
    if (named or split) not in made:
        raise DataError(f"data: 'scenes' has no split {named!r}; it has {', '.join(sorted(made))}")
    return _files(Path(made[named or split]), f"scenes:{named or split}")


def braces(text: str) -> Iterator[str]:
    """``a{0..2}{x,y}`` -> a0x, a0y, a1x, ... Ranges keep their zeros."""
    parts = _BRACES.split(text)
    choices: list[list[str]] = []
    for place, part in enumerate(parts):
        if place % 2 == 0:
            choices.append([part])
        elif span := _RANGE.fullmatch(part):
            first, last = int(span[1]), int(span[2])
            if last < first or last - first >= _MOST:
                raise DataError(f"data: the range {{{part}}} in {text!r} is empty or too long")
            choices.append([str(n).zfill(len(span[1])) for n in range(first, last + 1)])
        else:
            choices.append(part.split(","))
    return ("".join(chosen) for chosen in itertools.product(*choices))

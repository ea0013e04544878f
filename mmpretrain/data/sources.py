"""What a user writes to name shards -> the list of tar files.

A source is a folder (all ``*.tar`` in it), a tar file, a pattern with braces (``{00000..00012}``, ``{a,b}``), several of these joined by
``::``, or the name ``scenes``: the generated set, made at first use (``scenes:val``, ``scenes:compositional``, ... name its splits;
``scenes?n=20000&seed=1`` asks for another number of training samples or another seed, ``scenes?regions=128`` for regions with features of
128 values).
Files and folders (which end in ``/``) may lie at ``s3://``, ``gs://``, ``http://`` and ``https://`` addresses; ``-`` is standard input.
``~`` and ``${VARIABLE}`` are expanded. Nothing is run: ``pipe:COMMAND`` needs its own flag, other schemes are refused.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data.place import SCHEMES, Remote, shown
from mmpretrain.data.redact import REMOVED, redact
from mmpretrain.data.remote import listing, look_all
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.data.stream import standard_input

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_SCENES = re.compile(r"scenes($|:(?!:)|\?)")
_JOIN = re.compile(r"::(?![^\[\]]*\])")  # not that of [::1]
_MOST = 1_000_000  # shards of one pattern

Shard = Path | Remote


def expand(sources: str | Sequence[str], split: str = "train") -> tuple[Path, ...]:
    """The tar files of ``sources`` on this machine, in the order written; a folder's in the order of their names.

    Args:
        sources: one or several sources.
        split: which split of ``scenes`` is meant where the source does not say.

    Raises:
        DataError: a path that does not exist, an unset variable, a scheme, or no source at all.
    """
    found = [place for text in _parts(sources) for place in _expand_one(text, split)]
    for place in found:
        if isinstance(place, str):
            kind = "commands are not run here" if place.startswith("pipe:") else "only local files are read here"
            raise DataError(f"data: source {shown(place)!r} is refused: {kind}; copy the shards to a folder first")
    _distinct(found)
    return tuple(Path(place) for place in found)


def shards(
    sources: str | Sequence[str], split: str = "train", options: RemoteOptions | None = None, allow_pipe: bool = False
) -> tuple[Shard, ...]:
    """As :func:`expand`, with shards that lie elsewhere, as their servers describe them now, and standard input (``-``).

    Args:
        options: how they are reached.
        allow_pipe: whether ``pipe:COMMAND`` is run.

    Raises:
        DataError: as :func:`expand`; a remote shard that cannot be found; ``pipe:`` without the flag.
    """
    options = options or RemoteOptions()
    places: list[Path | str | Remote] = []
    for text in _parts(sources):
        for place in [standard_input(options)] if text == "-" else _expand_one(text, split):
            if isinstance(place, str) and place.startswith("pipe:") and not allow_pipe:
                raise DataError(f"data: source {shown(place)!r} is refused: it would run a command; data.allow_pipe=true allows it")
            if isinstance(place, str) and place.endswith("/") and not place.startswith("pipe:"):
                places += listing(place, options)
            else:
                places.append(place)
    _distinct(places)
    found = look_all([place for place in places if isinstance(place, str)], options)
    _tell(found)
    looked = iter(found)
    return tuple(next(looked) if isinstance(place, str) else place for place in places)


def _tell(found: Sequence[Remote]) -> None:
    """Say which shards may change unseen, once on a machine."""
    loose = [one for one in found if one.size is None or not one.tag]
    if loose and os.environ.get("LOCAL_RANK", "0") == "0":
        more = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
        print(
            f"mmpretrain: nothing tells the version of {loose[0]}{more}: resuming is exact while the copy is in the cache; "
            "without it the bytes are read again from the start, and refused if they differ",
            file=sys.stderr,
        )


def _parts(sources: str | Sequence[str]) -> list[str]:
    listed = [sources] if isinstance(sources, str) else list(sources)
    return [one.strip() for text in listed for one in _JOIN.split(str(text))]


def _distinct(places: Sequence[Path | str | Remote]) -> None:
    if not places:
        raise DataError("data: no source given; name a folder of .tar shards, a tar file, or 'scenes'")
    seen: set[str] = set()
    for place in places:
        name = str(place.resolve()) if isinstance(place, Path) else place.url if isinstance(place, Remote) else place
        if name in seen:
            raise DataError(f"data: {redact(str(place))} is named twice; a sample would be seen twice in an epoch")
        seen.add(name)


def _expand_one(text: str, split: str) -> list[Path] | list[str]:
    if _SCENES.match(text):
        if "?" not in text and Path("scenes").is_dir():
            _tell_generated(Path("scenes").resolve())
        return _scenes(text.removeprefix("scenes").removeprefix(":"), split)
    if not text:
        raise DataError("data: an empty source; name a folder of .tar shards, a tar file, or 'scenes'")
    text = _VARIABLE.sub(_variable, text)
    if scheme := _SCHEME.match(text):
        return _addresses(text, scheme[1].lower(), scheme[2] or "")
    if _at_home(text, text).exists():  # before braces: a real name may hold them
        return _files(_at_home(text, text), text)
    return [file for name in braces(text) for file in _files(_at_home(name, text), text)]


@functools.cache
def _tell_generated(folder: Path) -> None:
    """Say that a folder of the name is not what ``scenes`` means, once for each folder."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print("mmpretrain: scenes: the generated set is taken; for the folder here write ./scenes", file=sys.stderr)


def _at_home(name: str, text: str) -> Path:
    """The path, with ``~`` and ``~USER`` expanded."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"data: source {text!r}: there is no home folder of {Path(name).parts[0]}; write the whole path") from None


def _addresses(text: str, scheme: str, slashes: str) -> list[str]:
    """The addresses or commands of a source that has a scheme."""
    if REMOVED in text:
        raise DataError(f"data: {shown(text)!r}: its credentials were removed when it was saved; write them again, best as ${{VARIABLE}}")
    known = scheme == "pipe" or (slashes and scheme in SCHEMES)
    if not known:
        raise DataError(f"data: source {shown(text)!r} is refused: only local paths, {', '.join(SCHEMES)} addresses and '-' are read")
    return [scheme + name[len(scheme) :] for name in braces(text)]


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
    named = f" (from {text!r})" if str(path) != text else ""
    raise DataError(f"data: {path} does not exist{named}; check the path, or make shards there: mmpretrain data --help")


def _scenes(text: str, split: str) -> list[Path]:
    """``[SPLIT][?n=N&seed=S&size=P&regions=F]`` of the generated set."""
    from mmpretrain.data_tools import scenes

    named, _, options = text.partition("?")
    wanted: dict[str, Any] = {}
    for option in filter(None, options.split("&")):
        name, _, value = option.partition("=")
        if name not in ("n", "seed", "size", "regions") or not value.isdigit():
            raise DataError(
                f"data: 'scenes' has the options n, seed, size and regions, each a number, not {option!r}; such as 'scenes?n=20000&seed=1'"
            )
        wanted[name] = int(value)
    try:
        if "regions" in wanted:
            from mmpretrain.data_tools import scenes_regions

            made = scenes_regions.embedded(wanted.pop("regions"), **wanted)
        else:
            made = scenes.embedded(**wanted)
    except ValueError as error:
        raise DataError(f"data: scenes?{options}: {error}") from None
    if (named or split) not in made:
        raise DataError(f"data: 'scenes' has no split {named!r}; it has {', '.join(sorted(made))}")
    return _files(Path(made[named or split]), f"scenes:{named or split}")


def braces(text: str) -> Iterator[str]:
    """``a{0..2}{x,y}`` -> a0x, a0y, a1x, ... Ranges keep their zeros; ``{x}`` is no pattern."""
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
            choices.append(part.split(",") if "," in part else ["{" + part + "}"])
    return ("".join(chosen) for chosen in itertools.product(*choices))

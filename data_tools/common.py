"""What the tools share: sources named on the command line, tables, numbers as people read them."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import cache_root, write_atomic
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.engine import add_options
from mmpretrain.report.printing import printer


def tool_parser(parser_class: type[argparse.ArgumentParser], name: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of ``mmpretrain data NAME``: its help ends with an example; the options of the engine are there."""
    parser = parser_class(
        prog=f"mmpretrain data {name}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    return parser


def named_sources(texts: Sequence[str]) -> dict[str, list[Path]]:
    """``NAME=SOURCE`` or ``SOURCE`` -> name -> shards; a source without a name is called as its folder.

    Raises:
        DataError: a source does not exist, or two have one name.
    """
    from mmpretrain.data.errors import DataError

    found: dict[str, list[Path]] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or "/" in name:
            name, source = "", text
        paths = list(expand(source))
        name = name or paths[0].resolve().parent.name
        if name in found:
            raise DataError(f"two sources are called {name!r}; name them: NAME=SOURCE")
        found[name] = paths
    return found


def scratch(tool: str, items: Any) -> Path | None:
    """A folder in the cache for the finished items of a tool that writes no folder of its own; None where the cache cannot be written."""
    name = hashlib.sha256(json.dumps(items, sort_keys=True).encode("utf-8")).hexdigest()[:24]
    folder = cache_root() / "state" / f"{tool}-{name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def device_of(name: str, option: str) -> str:
    """The device that an option names: cpu, cuda, cuda:1, ...; ``auto`` is a GPU where there is one.

    Raises:
        DataError: it cannot be used here.
    """
    import torch

    from mmpretrain.data.errors import DataError

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        if reason.startswith("Expected one of"):  # a list of all that torch has a name for
            reason = "there is no such device; take cpu, cuda or cuda:1"
        raise DataError(f"{option} {name} cannot be used: {reason}") from None
    return chosen


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = True) -> None:
    """Print a table; the first column is text, the others are numbers unless told otherwise."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title, style="table.title"), title_justify="left")  # Text: names of files are no markup
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if numbers and number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(text(value)) for value in row))
    printer().print(shown)


def text(value: object) -> str:
    """A value in a table: thousands apart, three digits of a fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return f"{value:.3g}"


def megabytes(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:,.1f} MB".replace(",", " ")


def write_json(path: Path, value: Any) -> None:
    """A JSON file, indented, replaced in one move."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """A file of JSON lines, replaced in one move."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"))

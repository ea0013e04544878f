"""Errors that are the user's to mend: shown as one line, exit code 2, no traceback."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable

EXIT_USER = 2


class UserError(ValueError):
    """Something the user typed or a file they named is wrong. The message names the file or option and the remedy."""


def meant(text: str) -> str:
    """Of jsonargparse's message that a value fits no type of several: what the one type found that looked into it; else the whole text."""
    form = r"Does not validate against any of the Union subtypes\s+Subtypes: .*?Errors:(\n +- )(.*)\n *Given value type: .*\Z"
    found = re.search(form, text, re.DOTALL)
    inside = [one for one in found[2].split(found[1]) if not one.startswith("Expected")] if found else []
    return f"{text[: found.start()]}{inside[0]}" if found and len(inside) == 1 else text


def of_worker(error: BaseException | str) -> str:
    """The message of an error; of one that a worker of the loader raised, without the traceback and the notes that torch puts around it."""
    text = str(error)
    if not text.startswith("Caught ") or "Original Traceback" not in text:
        return text
    said = re.split(rf"^(?:\w+\.)*{type(error).__name__}: ", text, flags=re.MULTILINE)[-1]
    return said.split("\nmmpretrain: while at ")[0]


def one_line(error: BaseException | str) -> str:
    """The message on one line; an OSError names its file, an error of a worker its own message."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror or type(error).__name__}: {error.filename}"
    else:
        text = meant(of_worker(error)) or type(error).__name__
    return " ".join(text.split())


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading space, or the empty string. The dashes of options are no likeness."""
    bare = {one.lstrip("-"): one for one in known}
    found = difflib.get_close_matches(word.lstrip("-"), bare, n=1, cutoff=0.6)
    return f" Did you mean '{bare[found[0]]}'?" if found else ""


def show(error: BaseException | str) -> int:
    """Print one line to stderr and return the exit code. With MMPRETRAIN_TRACEBACK=1 an exception is raised again instead."""
    if isinstance(error, BaseException) and os.environ.get("MMPRETRAIN_TRACEBACK") == "1":
        raise error
    print(f"mmpretrain: error: {one_line(error)}", file=sys.stderr)
    return EXIT_USER

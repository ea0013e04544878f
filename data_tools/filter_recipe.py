"""Recipes of ``filter``: a YAML file with a list of steps, checked before anything is read.

::

    about: what it follows
    steps:
      - name: large enough        # in the report
        where: min_side >= 200    # samples: a condition on fields of the sample
      - captions: words in [3, 4] # single captions: a condition on fields of the caption and its sample
      - repeated: {images: 10}    # captions that stand with more than 10 different pictures
      - relevance: {threshold: 0.25}   # or {fraction: 0.3}: the best part of all pairs; by the checkpoint of --checkpoint
      - best: {}                  # of all captions of one picture, also in other samples, the most relevant
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.expressions import Condition, parse

KINDS = ("where", "captions", "repeated", "relevance", "best")


class Step(NamedTuple):
    """One step: ``where`` and ``captions`` have a condition, the others options."""

    name: str
    kind: str
    condition: Condition | None = None
    options: Mapping[str, float] = {}


def shipped() -> list[str]:
    """Names of the recipes that come with the suite."""
    folder = resources.files("mmpretrain.data_tools").joinpath("recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load(text: str) -> list[Step]:
    """The steps of a recipe: a file, or the name of one that comes with the suite.

    Raises:
        DataError: no such recipe, or one that cannot be read, naming the step.
    """
    path = Path(text)
    if not path.is_file():
        found = resources.files("mmpretrain.data_tools").joinpath("recipes", f"{text}.yaml")
        if not found.is_file():
            raise DataError(f"--recipe {text}: neither a file nor one of {', '.join(shipped())}")
        body = found.read_text(encoding="utf-8")
    else:
        body = path.read_text(encoding="utf-8")
    try:
        whole = yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise DataError(f"--recipe {text}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("steps"), list) or not whole["steps"]:
        raise DataError(f"--recipe {text}: it needs a list of steps")
    return checked([_step(entry, number, text) for number, entry in enumerate(whole["steps"], 1)])


def _step(entry: Any, number: int, text: str) -> Step:
    where = f"--recipe {text}, step {number}"
    kinds = [kind for kind in KINDS if kind in entry] if isinstance(entry, dict) else []
    if len(kinds) != 1 or set(entry) - {"name", kinds[0]}:
        raise DataError(f"{where}: write one of {', '.join(KINDS)}, and a name if you like")
    try:
        return make(kinds[0], entry[kinds[0]], str(entry.get("name") or ""))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def make(kind: str, value: Any, name: str = "") -> Step:
    """A step of its kind and what a recipe writes beside it.

    Raises:
        DataError: a condition or an option that cannot be read.
    """
    if kind in ("where", "captions"):
        if not isinstance(value, str):
            raise DataError(f"{kind} needs a condition, such as 'width >= 200'")
        return Step(name or f"{kind}: {value}", kind, parse(value))
    allowed = {"repeated": ("images",), "relevance": ("threshold", "fraction"), "best": ()}[kind]
    options = dict(value or {}) if isinstance(value, dict | None) else {"": value}
    if set(options) - set(allowed) or (allowed and len(options) != 1) or not all(_number(one) for one in options.values()):
        raise DataError(f"{kind} needs {' or '.join(allowed) or 'no option'}: a number" if allowed else f"{kind} has no options")
    if not 0 < options.get("fraction", 1) <= 1 or options.get("images", 1) < 1:
        raise DataError(f"{kind}: {options} is out of range")
    return Step(name or " ".join([kind, *(f"{key} {one:g}" for key, one in options.items())]), kind, None, options)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked(steps: Sequence[Step]) -> list[Step]:
    """The steps, with names that differ.

    Raises:
        DataError: ``best`` without a relevance before it.
    """
    found: list[Step] = []
    for step in steps:
        if step.kind == "best" and not any(one.kind == "relevance" for one in found):
            raise DataError("best chooses by relevance: put a relevance step before it")
        same = sum(one.name == step.name for one in found)
        found.append(step._replace(name=f"{step.name} ({same + 1})") if same else step)
    return found

"""The argument parser of ``fit`` and its like: jsonargparse's, with every error in one line: the key, its file, the nearest name."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from mmpretrain.cli.errors import nearest


class Refused(Exception):
    """The parser refused its input. Not a ValueError, which jsonargparse would catch and wrap."""


class Parser(LightningArgumentParser):
    """``origin`` (dotted key -> file that set it) is filled by the command line before it parses."""

    origin: Mapping[str, str] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside a parser, for the arguments of a class: the outer one adds where it is
            super().error(message, ex)
        raise Refused(explain(message, options(self), type(self).origin)) from ex


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Every dotted key that the parser and its sub-commands know at their first levels."""
    found = []
    for action in parser._actions:
        found += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
        if isinstance(action.choices, Mapping):
            found += [name for inner in action.choices.values() if isinstance(inner, argparse.ArgumentParser) for name in options(inner)]
    return [name for name in dict.fromkeys(found) if name not in ("help", "print_config")]


def accepted(class_path: str) -> list[str]:
    """Names of the arguments of a class given by its import path; those of its bases too where it takes ``**kwargs``."""
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    base: Any
    for base in inspect.getmro(found):
        if base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _where(key: str, origin: Mapping[str, str]) -> str:
    """`` (in FILE)`` where the key, or its parent, was set by a file; the empty string otherwise."""
    parts = key.split(".")
    while parts:
        prefix = ".".join(parts)
        files = {path for name, path in origin.items() if name == prefix or name.startswith(f"{prefix}.")}
        if len(files) == 1:
            return f" (in {files.pop()})"
        parts = parts[:-1]
    return ""


def _unknown(key: str, known: Iterable[str], origin: Mapping[str, str]) -> str:
    return f"unknown key '{key}'{_where(key, origin) if key in origin else ''}.{nearest(key, known)}"


def _plain(text: str) -> str:
    """Python's way of writing types, made readable."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    return text.replace("typing.Literal", "one of ").replace("NoneType", "null")


def explain(message: str, known: Iterable[str], origin: Mapping[str, str]) -> str:
    """A message of jsonargparse 4.5x as one line of ours; a message of another form is shown as it is, on one line."""
    known = list(known)
    if found := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        word = found[1].split("=")[0]
        if not word.startswith("-"):
            return f"'{word}' is not an option; options start with '--'.{nearest(word, known)}"
        return f"unknown option '{word}'.{_option(word, known)}"
    if found := re.search(r"does not accept option '([^']+)'", message):
        group = re.search(r"Group '([^']+)' does not", message)
        key = f"{group[1]}.{found[1]}" if group and not found[1].startswith(group[1]) else found[1]
        return _unknown(_strip(key), known, origin)
    if found := re.search(r"arguments? (?:are|is) required: (.+)", message):
        keys = [_strip(key) for key in re.split(r",\s*", found[1].strip())]
        return f"missing: {', '.join(keys)}. Give a recipe (--config vilt.yaml) or --{keys[0]} VALUE; mmpretrain systems lists the recipes"
    keys = [_strip(key) for key in re.findall(r'[Pp]arser key "([^"]+)"', message)]
    classes = re.findall(r"class_path '([^']+)'", message)
    key = ".".join(dict.fromkeys(keys))
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        owner = classes[-1] if classes else ""
        names = accepted(owner)
        takes = f" It takes: {', '.join(names)}." if names else ""
        guess = nearest(found[1], names)
        return f"{key}: {owner or 'it'} has no argument '{found[1]}'{_where(key, origin)}.{guess or takes}"
    body = re.sub(r'[Pp]arser key "[^"]+":', "", message)
    body = re.sub(r"Problem with given class_path '([^']+)':", "", body)
    body = _plain(" ".join(body.split()))
    if "has no attribute" in body and classes:
        body = f"there is no class '{classes[-1]}'"
    return f"{key}{_where(key, origin)}: {body}" if key else body


def _option(word: str, known: list[str]) -> str:
    guess = nearest(word.lstrip("-"), known)
    return guess.replace("'", "'--", 1) if guess else " See --help"


def _strip(key: str) -> str:
    return re.sub(r"^(fit|validate|test|predict)\.", "", key)

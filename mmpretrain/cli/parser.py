"""The argument parser of ``fit`` and its like: jsonargparse's, with every error in one line: the key, its file, the nearest name."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from mmpretrain.cli.errors import meant, nearest

set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning turns it on: addresses of shards would be read as values

TYPED = "on the command line"
FORMS = {"data.val": ("a mapping NAME: SOURCE, for example {{mine: {}}}", "scenes:val")}  # key -> what it takes, an example of a source


class Refused(Exception):
    """The parser refused its input. Not a ValueError, which jsonargparse would catch and wrap."""


class Parser(LightningArgumentParser):
    """``origin`` (dotted key -> file that set it) and ``typed`` (keys) are filled by the command line before it parses."""

    origin: Mapping[str, str] = {}
    typed: Collection[str] = ()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser inside a parser, for the arguments of a class: the outer one adds where it is
            super().error(message, ex)
        raise Refused(explain(message, options(self), type(self).origin, type(self).typed)) from ex


def options(parser: argparse.ArgumentParser) -> list[str]:
    """Every dotted key that the parser and its sub-commands know at their first levels."""
    found = []
    for action in parser._actions:
        found += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
        if isinstance(action.choices, Mapping):
            found += [name for inner in action.choices.values() if isinstance(inner, argparse.ArgumentParser) for name in options(inner)]
    return [name for name in dict.fromkeys(found) if name not in ("help", "print_config")]


def _imported(class_path: str) -> Any:
    """The class of an import path; None where there is none."""
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None


def _kind(class_path: str, argument: str) -> str:
    """The import path of the class that an argument of a class is, or may be."""
    kind = get_type_hints(_imported(class_path).__init__).get(argument)
    kinds = [one for one in (kind, *get_args(kind)) if inspect.isclass(one)]
    return f"{kinds[0].__module__}.{kinds[0].__qualname__}" if kinds else ""


def accepted(class_path: str) -> list[str]:
    """Names of the arguments of a class given by its import path; those of its bases too where it takes ``**kwargs``."""
    found = _imported(class_path)
    if found is None:
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


def places(origin: Mapping[str, str], typed: Iterable[str]) -> dict[str, str]:
    """Key -> where it was set, in words. Keys are as messages have them: without ``init_args``."""
    found = {_bare(key): f"in {file}" for key, file in origin.items()}
    return found | dict.fromkeys(map(_bare, typed), TYPED)


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")


def _where(key: str, at: Mapping[str, str]) -> str:
    """`` (in FILE)`` or `` (on the command line)``: where the key, or its parent, was set; the empty string where several have a part."""
    parts = _bare(key).split(".")
    for stop in range(len(parts), 0, -1):  # what was typed for a parent replaced what files said of it
        if at.get(".".join(parts[:stop])) == TYPED:
            return f" ({TYPED})"
    while parts:
        prefix = ".".join(parts)
        found = {place for name, place in at.items() if name == prefix or name.startswith(f"{prefix}.")}
        if len(found) == 1:
            return f" ({found.pop()})"
        parts = parts[:-1]
    return ""


def _unknown(key: str, known: Iterable[str], at: Mapping[str, str]) -> str:
    return f"unknown key '{key}'{_where(key, at) if key in at else ''}.{nearest(key, known)}"


def _no_argument(key: str, name: str, owner: str, at: Mapping[str, str]) -> str:
    """That a class has no such argument: where it was given, and what is meant, in the class or in one of its parts."""
    below = {one.removeprefix(f"{_bare(key)}."): place for one, place in at.items() if one.startswith(f"{_bare(key)}.")}
    given = {place for one, place in below.items() if name in one.split(".")}
    where = f" ({given.pop()})" if len(given) == 1 else _where(key, at)
    known = accepted(owner)
    guess = nearest(name, known)
    if not guess:
        inner = [one for one in below if one.partition(".")[0] in known and "." in one]
        close = difflib.get_close_matches(name, {one.rpartition(".")[2] for one in inner}, n=1, cutoff=0.6)
        meant = [f"'{one}'" for one in inner if close and one.endswith(f".{close[0]}")]
        guess = f" Did you mean {' or '.join(meant)}?" if meant else ""
    takes = f" It takes: {', '.join(known)}." if known else ""
    return f"{key}: {owner or 'it'} has no argument '{name}'{where}.{guess or takes}"


def _classless(key: str, base: str, at: Mapping[str, str]) -> str:
    """That an object of a dict names no class: which one, and where it was given, which the parser does not say; or that it names ``base``,
    of which there are no objects."""
    below = [one.removeprefix(f"{_bare(key)}.").split(".") for one in at if one.startswith(f"{_bare(key)}.")]
    named = [name for name, *rest in below if rest == ["class_path"]]
    wrong = list(dict.fromkeys(name for name, *rest in below if rest and name not in named))
    if not wrong:
        return f"{key}{_where(key, at)}: of {base} there are no objects; name a class that is built on it"
    key = f"{key}.{wrong[0]}" if len(wrong) == 1 else key
    there = f" There are: {', '.join(named)}." if named else ""
    return f"{key}{_where(key, at)}: names no class_path.{nearest(wrong[0], named) if len(wrong) == 1 else ''}{there}"


def _full(key: str, at: Mapping[str, str]) -> str:
    """A key of a message with the name from a dict that messages leave out, where only one fits; what was typed goes first."""
    parts = key.split(".")
    for names in ([one for one, place in at.items() if place == TYPED], at):
        heads = {tuple(one.split(".")[: len(parts) + 1]) for one in names}
        if any(list(head[: len(parts)]) == parts for head in heads):
            return key
        fits = {head for head in heads if any([*head[:n], *head[n + 1 :]] == parts for n in range(1, len(parts)))}
        if len(fits) == 1:
            return ".".join(fits.pop())
    return key


def _plain(text: str) -> str:
    """Python's way of writing types, made readable."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"NestedArg\(key='([^']*)', val='?(.*?)'?\)", r"{\1: \2}", text)
    return text.replace("a typing.Literal", "one of ").replace("typing.Literal", "one of ").replace("NoneType", "null")


def _union(key: str, text: str) -> str:
    """What jsonargparse says of a value that fits no type of several, in short, where it says no more than that."""
    text = re.sub(r"^- Expected a path but .* either not accessible or invalid - ", "", text)
    form = r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: (.*) Given value type: \S+ Given value: (.*)$"
    found = re.search(form, text)
    if found is None or not all(part.startswith("Expected") for part in found[2].removeprefix("- ").split(" - ")):
        return text
    if key in FORMS:
        says, example = FORMS[key]
        return says.format(found[3] if re.fullmatch(r"[\w./:?=-]+", found[3]) else example)
    return f"{text[: found.start()]}expected {found[1]}, not {found[3]}"


def explain(message: str, known: Iterable[str], origin: Mapping[str, str], typed: Collection[str] = ()) -> str:
    """A message of jsonargparse 4.5x as one line of ours; a message of another form is shown as it is, on one line."""
    known, at, message = list(known), places(origin, typed), meant(message)
    if found := re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        word = found[1].split("=")[0]
        if not word.startswith("-"):
            return f"'{word}' is not an option; options start with '--'.{nearest(word, known)}"
        return f"unknown option '{word}'.{_option(word, known)}"
    keys = [_strip(key) for key in re.findall(r'[Pp]arser key "([^"]+)"', message)]
    classes = re.findall(r"class_path '([^']+)'", message)
    if found := re.search(r"does not accept option '([^']+)'", message):
        group = re.search(r"Group '([^']+)' does not", message)
        if group and classes:
            return _no_argument(_full(".".join([*keys, group[1]]), at), found[1], _kind(classes[-1], group[1]), at)
        key = f"{group[1]}.{found[1]}" if group and not found[1].startswith(group[1]) else found[1]
        return _unknown(_strip(key), known, at)
    if found := re.search(r"arguments? (?:are|is) required: (.+)", message):
        lacks = [_strip(key) for key in re.split(r",\s*", found[1].strip())]
        if classes:
            key = _full(".".join(keys), at)
            return f"{key}{_where(key, at)}: {classes[-1]} needs {', '.join(lacks)}"
        return f"missing: {', '.join(lacks)}. Give a recipe (--config vilt.yaml) or --{lacks[0]} VALUE; mmpretrain systems lists them"
    key = ".".join(dict.fromkeys(keys))
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        return _no_argument(key, found[1], classes[-1] if classes else "", at)
    if found := re.search(r"Expected an instantiatable class, but (\S+) is abstract", message):
        return _classless(key, found[1], at)
    key = _full(key, at)
    body = re.sub(r'[Pp]arser key "[^"]+":', "", message)
    body = re.sub(r"Problem with given class_path '([^']+)':", "", body)
    body = _plain(" ".join(body.split()))
    if "has no attribute" in body and classes:
        body = f"there is no class '{classes[-1]}'"
    hint = "; YAML wants a space behind each colon: {a: 1}" if re.search(r"[{,]\s*[\w.]+:[^\s,{}]+[,}]", body) else ""
    return f"{key}{_where(key, at)}: {_union(key, body)}{hint}" if key else body


def _option(word: str, known: list[str]) -> str:
    guess = nearest(word.lstrip("-"), known)
    return guess.replace("'", "'--", 1) if guess else " See --help"


def _strip(key: str) -> str:
    return re.sub(r"^(fit|validate|test|predict)\.", "", key)

"""Layered YAML: ``defaults:`` lists the files a file builds on; later files and dotted options win. Resolved here, before jsonargparse.

Rules: mappings merge key by key; lists and scalars are replaced; the mappings of free names in ``WHOLE`` are replaced whole, so that a
recipe states its complete list of objectives; a layer that names the class of ``model.system`` states all of it, as the files of ``sizes/``
do; where a later layer changes another ``class_path``, the earlier ``init_args`` are dropped. The arguments of an object may be written
without ``class_path`` (``optimizer: {lr: 1e-4}``): over a layer that names the class they are its ``init_args``, below one they are
dropped with their class.
Each file of a chain is applied once, where it is first named. Imports nothing heavy.
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmpretrain.cli.errors import UserError

CHECKPOINT = "the checkpoint"  # where a key comes from that only the layer below sets
WHOLE = frozenset({"model.objectives", "data.train", "data.val", "trainer.logger", "trainer.callbacks"})
SYSTEM = "model.system"
_NEAR = 3  # most names of files that are like a wrong one


class Layers(NamedTuple):
    """A resolved configuration, the files it came from in the order applied, and the file that set each dotted key."""

    config: dict[str, Any]
    files: tuple[Path, ...]
    origin: dict[str, str]

    def says(self, key: str) -> bool:
        """Whether a file that the user named sets ``key``."""
        return self.origin.get(key, CHECKPOINT) != CHECKPOINT


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with two repairs: ``1e-4`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                what = "a key must be a word, not a mapping or a list; is it '{{ ... }}' of a template that was not filled in?"
                raise yaml.constructor.ConstructorError(None, None, what, key_node.start_mark)
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def shipped() -> Path:
    """The folder of the shipped configurations."""
    return Path(str(importlib.resources.files("mmpretrain.configs")))


def names() -> list[str]:
    """Every shipped YAML, relative to the folder, recipes first."""
    root = shipped()
    found = [str(path.relative_to(root)) for path in root.rglob("*.yaml")]
    return sorted(found, key=lambda name: (name.count("/"), name))


def find(name: str, beside: Path | None = None) -> Path:
    """The file for ``name``: beside the file that names it, then on disk, then shipped. ``.yaml`` may be left out.

    Raises:
        UserError: no such file; names the nearest shipped ones.
    """
    for spelling in (name, f"{name}.yaml"):
        places = ([beside / spelling] if beside else []) + [Path(spelling).expanduser(), shipped() / spelling]
        for path in places:
            if path.is_file():
                return path.resolve()
    where = f" (named by 'defaults' of a file in {beside})" if beside else ""
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        more = f", or give --ckpt_path {name} to go on with it" if (folder / "checkpoints").is_dir() else ""
        raise UserError(f"{name}: the folder of a run, not a file; name its configuration {folder / 'config.yaml'}{more}")
    if folder.is_dir():
        raise UserError(f"{name}: a folder, not a file of configuration")
    stems = [known.removesuffix(".yaml") for known in names()]
    near = difflib.get_close_matches(name.removesuffix(".yaml"), stems, n=_NEAR, cutoff=0.6)
    guess = " Did you mean " + " or ".join(f"'{stem}.yaml'" for stem in near) + "?" if near else ""
    raise UserError(f"there is no file '{name}'{where}, neither here nor a shipped one.{guess} mmpretrain systems lists the recipes")


def parsed(text: str) -> Any:
    """The value of an option as typed; a text that is no YAML stays a text."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError):
        return text


def read(path: Path) -> dict[str, Any]:
    """One YAML file as a dict.

    Raises:
        UserError: unreadable, not YAML, or not a mapping; names file, line and column.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path}{place}: not readable as YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError of a text that is not UTF-8, or a date that there is not
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: the file must be a mapping of keys to values, not a {type(value).__name__}")
    return value


def _chain(path: Path, open_files: tuple[Path, ...], rename: Callable[[str], str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    if path in open_files:
        raise UserError(f"{path}: 'defaults' goes round in a circle: {' -> '.join(p.name for p in (*open_files, path))}")
    config = read(path)
    listed = config.pop("defaults", [])
    if isinstance(listed, str):
        listed = [listed]
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise UserError(f"{path}: 'defaults' must be a list of file names")
    for name in listed:
        yield from _chain(find(rename(name), beside=path.parent), (*open_files, path), rename)
    yield path, config


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``upper`` over ``lower`` by the rules of this module; neither is changed."""
    result = dict(lower)
    for key, value in upper.items():
        dotted = f"{prefix}{key}"
        before = result.get(key)
        whole = dotted in WHOLE or (dotted == SYSTEM and isinstance(value, Mapping) and "class_path" in value)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and not whole:
            result[key] = merge(*_same_form(before, value), f"{dotted}.")
        else:
            result[key] = value
    return result


def _same_form(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Two mappings that may both describe an object, as ``merge`` needs them: of one form, and of one class."""
    if "class_path" in upper:
        same = upper["class_path"] == lower.get("class_path", upper["class_path"])
        return {k: v for k, v in lower.items() if k == "class_path" or (k == "init_args" and same)}, upper
    if "class_path" in lower and not {"init_args", "dict_kwargs"} & set(upper):
        return lower, {"init_args": upper}
    return lower, upper


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; an empty mapping is a leaf."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(origin: Mapping[str, str], keys: Sequence[str], path: str) -> dict[str, str]:
    """``origin`` after a file has set ``keys``: what they replaced came from nowhere."""
    whole = [one for one in WHOLE if any(key.startswith(f"{one}.") for key in keys)]
    whole += [SYSTEM] if f"{SYSTEM}.class_path" in keys else []
    gone = tuple(f"{key}." for key in (*keys, *whole))
    parents = {key[:place] for key in keys for place, sign in enumerate(key) if sign == "."}
    return {key: file for key, file in origin.items() if not key.startswith(gone) and key not in parents} | dict.fromkeys(keys, path)


def layer(requested: list[str], below: Mapping[str, Any] | None = None, rename: Callable[[str], str] = str) -> Layers:
    """Resolve the files of ``--config`` in order, over ``below`` (a checkpoint's configuration, say). ``rename``: what is read in the place
    of a file that ``defaults`` names."""
    config: dict[str, Any] = dict(below or {})
    origin = dict.fromkeys((key for key, _ in leaves(config)), CHECKPOINT)
    files: list[Path] = []
    for name in requested:
        for path, content in _chain(find(name), (), rename):
            if path in files:
                continue
            files.append(path)
            config = merge(config, content)
            origin = _set(origin, [key for key, _ in leaves(content)], str(path))
    return Layers(config, tuple(files), origin)


def typed_keys(argv: list[str]) -> dict[str, Any]:
    """Dotted options of a command line, as typed: key -> value text, None for a bare flag."""
    found: dict[str, Any] = {}
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            bare = index >= len(argv) or argv[index].startswith("--")
            value = None if bare else argv[index]
            index += 0 if bare else 1
        found[key] = value
    return found

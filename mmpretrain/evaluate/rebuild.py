"""Builds the classes that a checkpoint names, and no others.

A checkpoint is data, possibly somebody else's. It names classes by import path, so a careless loader would import and call whatever it
says. Here a path must lie in the packages of this suite that hold models, layers, objectives and data transforms, must name a class,
and the class must be a subclass of what the place calls for. Nothing outside ``mmpretrain`` is ever imported for a checkpoint.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

_PATH = re.compile(r"mmpretrain\.(nn|models|objectives|data)(\.[A-Za-z_][A-Za-z0-9_]*)+")


class RefusedCheckpoint(ValueError):
    """The checkpoint asks for something that loading a model does not need."""


def resolve(path: Any, base: type, where: str) -> type:
    """The class at ``path``.

    Args:
        path: import path as the checkpoint has it.
        base: the class must be this or a subclass of it.
        where: key in the checkpoint, for messages.

    Raises:
        RefusedCheckpoint: the path leaves the suite, does not exist, or names something else than a subclass of ``base``.
    """
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise RefusedCheckpoint(f"{where}: the checkpoint names {path!r}; only classes of mmpretrain's models, nn, objectives and data")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise RefusedCheckpoint(f"{where}: the checkpoint names {path!r}, which this version of mmpretrain lacks ({error})") from None
    if not isinstance(found, type) or not issubclass(found, base):
        raise RefusedCheckpoint(f"{where}: the checkpoint names {path!r}, which is not a {base.__name__}")
    return found


def build(node: Any, base: type, where: str) -> Any:
    """Instantiate ``{"class_path": ..., "init_args": {...}}``; nested nodes are built first.

    Nested nodes must be subclasses of what the constructor's annotation asks for, where it names a class.

    Raises:
        RefusedCheckpoint: see :func:`resolve`; or the arguments do not fit the constructor.
    """
    if not isinstance(node, Mapping) or "class_path" not in node:
        raise RefusedCheckpoint(f"{where}: expected a class_path with init_args, found {type(node).__name__}")
    kind = resolve(node["class_path"], base, where)
    arguments = dict(node.get("init_args") or {})
    return construct(kind, arguments, where)


def construct(kind: type, arguments: Mapping[str, Any], where: str) -> Any:
    """``kind(**arguments)`` with nested nodes built and lists turned into the tuples that the annotations ask for."""
    hints = _hints(kind)
    known = inspect.signature(kind).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    unknown = [key for key in arguments if key not in known and not takes_any]
    if unknown:
        raise RefusedCheckpoint(f"{where}: {kind.__name__} has no argument {unknown[0]!r}; the checkpoint is of another version")
    values = {key: _value(value, hints.get(key, Any), f"{where}.{key}") for key, value in arguments.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise RefusedCheckpoint(f"{where}: {kind.__name__} cannot be built from the checkpoint: {error}") from None


def _hints(kind: type) -> dict[str, Any]:
    """Annotations of the constructor and of the bases that it passes keywords to."""
    hints: dict[str, Any] = {}
    for parent in reversed(kind.__mro__):
        init = parent.__dict__.get("__init__")
        if isinstance(init, types.FunctionType):
            hints.update(typing.get_type_hints(init))
    return hints


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _value(value: Any, hint: Any, where: str) -> Any:
    known = [option for option in _options(hint) if isinstance(option, type)]
    classes = [option for option in known if option.__module__.partition(".")[0] in ("mmpretrain", "torch")]
    if isinstance(value, Mapping) and "class_path" in value:
        fitting = [option for option in classes if _fits(value["class_path"], option, where)]
        return build(value, (fitting or classes or [nn.Module])[0], where)
    if isinstance(value, Mapping) and classes:
        return construct(classes[0], value, where)
    if isinstance(value, Mapping):
        return {key: _value(item, Any, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        items = [_value(item, Any, f"{where}[{i}]") for i, item in enumerate(value)]
        wants_tuple = any((typing.get_origin(option) or option) is tuple for option in _options(hint))
        return _tuples(items) if wants_tuple else items
    return value


def _fits(path: Any, base: type, where: str) -> bool:
    try:
        resolve(path, base, where)
    except RefusedCheckpoint:
        return False
    return True


def _tuples(items: list[Any]) -> tuple[Any, ...]:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in items)

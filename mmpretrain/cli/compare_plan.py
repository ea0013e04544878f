"""What ``mmpretrain compare`` is to run: recipes resolved, and where they differ beside the system."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.cli.errors import UserError
from mmpretrain.cli.layering import find, layer, leaves, names, parsed

# Section, then key: how a system is shown a sample, and what trains it. All else below ``model`` is the system, but for the conditions
SHOWN = {"data.image", "data.show", "data.regions", "data.tags", "data.answers", "data.text", "data.max_tokens"}
TRAINING = {"model.optimizer", "model.schedule", "model.ema_decay"}
CONDITIONS = {"model.seed", "model.transforms"}  # weights to start from are a transform
UNMEASURED = ("final", "panels")  # sections that change no run
ABSENT = "(not set)"
_NAMED = 3  # most systems that are named for one value


class Recipe(NamedTuple):
    """One system of a comparison."""

    label: str
    config: dict[str, Any]  # resolved, with what was typed
    own: Mapping[str, Any] = {}  # its file alone, resolved
    notes: tuple[str, ...] = ()  # how it is run otherwise than its file says
    origin: Mapping[str, str] = {}  # dotted key -> the file that set it


class Difference(NamedTuple):
    """A key that is no part of a system and has not the same value everywhere."""

    key: str
    values: Mapping[str, Any]  # by label

    @property
    def own(self) -> bool:
        """Whether systems usually have it their own way: optimiser, schedule, how they are shown a sample."""
        return place_of(self.key) in SHOWN | TRAINING

    def shown(self) -> str:
        """One line for the user; many that agree are "the others"."""
        of: dict[str, list[str]] = {}
        for label, value in self.values.items():
            of.setdefault(str(value), []).append(label)
        most = max(of, key=lambda value: len(of[value]))
        many = len(of) > 1 and len(of[most]) > _NAMED
        parts = [f"{value} ({', '.join(labels)})" for value, labels in of.items() if not (many and value == most)]
        parts += [f"{most} (the others)"] if many else []
        return f"{self.key}: {'; '.join(parts)}"


def resized(size: str) -> Callable[[str], str]:
    """``sizes/vilt-tiny.yaml`` -> ``sizes/vilt-<size>.yaml``, for ``layer``.

    Raises (when called):
        UserError: there is no such size; names those that there are.
    """

    def rename(name: str) -> str:
        folder, _, file = name.rpartition("/")
        if folder != "sizes":
            return name
        stem = file.removesuffix(".yaml")
        family = stem.split("-tiny")[0] if "-tiny" in stem else stem.rpartition("-")[0]
        wanted = f"sizes/{family}-{size}.yaml"
        if wanted not in names():
            known = [one.removeprefix(f"sizes/{family}-").removesuffix(".yaml") for one in names() if one.startswith(f"sizes/{family}-")]
            raise UserError(f"--size {size}: there is no {wanted}; sizes of {family} are {', '.join(known)}")
        return wanted

    return rename


def resolve(requested: Sequence[str], common: Sequence[str], typed: Mapping[str, Any], size: str | None) -> list[Recipe]:
    """The recipes with the common files above them and typed options above those. Equal names get a number.

    Raises:
        UserError: fewer than two recipes, a file that is not there or has no system, or no such size.
    """
    if len(requested) < 2:
        raise UserError("compare needs two recipes or more, for example: mmpretrain compare vilt.yaml clip.yaml --out comparison")
    found: list[Recipe] = []
    for name in requested:
        layers = layer([name, *common], rename=resized(size) if size else str)
        config = copy.deepcopy(layers.config)
        for key, value in typed.items():
            put(config, key, value)
        if not (config.get("model") or {}).get("system"):
            raise UserError(f"{find(name)}: no recipe, because it names no model.system; mmpretrain systems lists the recipes")
        stem = Path(name).stem
        count = [Path(other).stem for other in requested[: len(found)]].count(stem)
        found.append(Recipe(f"{stem}-{count + 1}" if count else stem, config, layer([name]).config, origin=layers.origin))
    return found


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in place, as ``fit`` does: below an object with ``class_path``, its arguments are in ``init_args``. A text is read
    as YAML."""
    *parents, last = key.split(".")
    for part in parents:
        config = _arguments(config, part)
        if not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part]
    _arguments(config, last)[last] = parsed(value) if isinstance(value, str) else value


def _arguments(config: dict[str, Any], key: str) -> dict[str, Any]:
    if "class_path" not in config or key in ("class_path", "init_args", "dict_kwargs"):
        return config
    inside: dict[str, Any] = config.setdefault("init_args", {})
    return inside


def place_of(key: str) -> str:
    """The section and the key below it of a dotted key: what the sets above name."""
    section, _, rest = key.partition(".")
    return f"{section}.{rest.partition('.')[0]}"


def is_system(key: str) -> bool:
    """Whether a key is what the comparison is of, or changes no run."""
    place, section = place_of(key), key.partition(".")[0]
    return section in UNMEASURED or (section == "model" and place not in TRAINING | CONDITIONS)


def differences(recipes: Sequence[Recipe]) -> list[Difference]:
    """Keys outside of the system whose values are not the same in all recipes, in the order of the first one."""
    tables = {one.label: dict(leaves(one.config)) for one in recipes}
    keys = dict.fromkeys(key for table in tables.values() for key in table if not is_system(key))
    found = [Difference(key, {label: table.get(key, ABSENT) for label, table in tables.items()}) for key in keys]
    return [one for one in found if any(value != next(iter(one.values.values())) for value in one.values.values())]

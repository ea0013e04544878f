"""``mmpretrain compare``: recipes brought onto the data of the first one (``--alike``), and phases onto the steps of the comparison."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.cli.compare_plan import SHOWN, TRAINING, Recipe, is_system, place_of
from mmpretrain.cli.errors import UserError

PAIRS = "pairs"  # what a source gives where it does not say (data.train.NAME.reads)


def alike(recipes: Sequence[Recipe], training: bool) -> list[Recipe]:
    """The recipes with everything but the system, and how it is shown a sample, as the first one has it.

    The sources of the first that are texts or pictures alone are left out. What a recipe says of sources of its own follows: its objectives
    read all of the common data, and those that read none of its pairs are left out, as masked words of texts alone are.

    Args:
        training: optimiser and schedule too.

    Raises:
        UserError: the first recipe has no pairs, or nothing is left of the objectives of another.
    """
    kept_by_each = SHOWN | (set() if training else TRAINING)
    own = lambda key: is_system(key) or place_of(key) in kept_by_each
    first, made = _pairs_alone(recipes[0]), list[Recipe]()
    for one in (first, *recipes[1:]):
        config: dict[str, Any] = {}
        for source, mine in ((first.config, False), (one.config, True)):
            for section, value in source.items():
                if not isinstance(value, Mapping):
                    if not mine:
                        config[section] = value
                    continue
                kept = {key: inner for key, inner in value.items() if own(f"{section}.{key}") is mine}
                if kept:
                    config.setdefault(section, {}).update(copy.deepcopy(kept))
        before = recipes[0].config if one is first else one.config
        made.append(_unasked(_follow(one._replace(config=config), _sources(before)), before))
    return made


def _unasked(recipe: Recipe, before: Mapping[str, Any]) -> Recipe:
    """A recipe that asked questions, on data whose questions are not told: without answers, so that its question answering rests."""
    asked, asks = ("questions" in str((config.get("data") or {}).get("text_from")) for config in (before, recipe.config))
    if not asked or asks:
        return recipe
    recipe.config["data"]["answers"] = None
    told = recipe.config["data"].get("text_from", "captions")
    return recipe._replace(notes=(*recipe.notes, f"no questions are asked: texts are {told}, as those of the first recipe"))


def _sources(config: Mapping[str, Any]) -> dict[str, str]:
    """The named sources of a recipe -> what each gives; {} where it has one without a name."""
    train = (config.get("data") or {}).get("train")
    if not isinstance(train, Mapping):
        return {}
    return {name: (spec or {}).get("reads") or PAIRS for name, spec in train.items()}


def _pairs_alone(recipe: Recipe) -> Recipe:
    """The recipe without its sources of texts or pictures alone."""
    gives = _sources(recipe.config)
    if set(gives.values()) <= {PAIRS}:
        return recipe
    kept = [name for name, reads in gives.items() if reads == PAIRS]
    if not kept:
        raise UserError(f"--alike: {recipe.label} stands first and has no source of pairs; put another recipe first")
    config = copy.deepcopy(recipe.config)
    config["data"]["train"] = {name: config["data"]["train"][name] for name in kept}
    return recipe._replace(config=config)


def _follow(recipe: Recipe, gave: Mapping[str, str]) -> Recipe:
    """A recipe whose sources were those of ``gave``, on the data that it has now."""
    if not gave or _sources(recipe.config) == gave:
        return recipe
    model, notes = recipe.config["model"], list(recipe.notes)
    objectives: dict[str, Any] = {}
    for name, node in (model.get("objectives") or {}).items():
        arguments = node.get("init_args") or {}
        listed = arguments.get("sources")
        if listed and not any(gave.get(source) == PAIRS for source in listed):
            notes.append(f"{name} is left out: it reads {', '.join(listed)} alone, which the common data do not have")
            continue
        arguments = {key: value for key, value in arguments.items() if key != "sources"}
        objectives[name] = {**node, "init_args": arguments} if "init_args" in node else node
    if not objectives:
        raise UserError(f"--alike: no objective of {recipe.label} reads pairs; leave the recipe out")
    gone = set(model.get("objectives") or {}) - set(objectives)
    model["objectives"] = objectives
    for row in model.get("phases") or ():
        row["set"] = {path: value for path, value in (row.get("set") or {}).items() if path.partition(".")[0] not in gone}
    if model.get("task_weights"):
        model["task_weights"] = {name: weight for name, weight in model["task_weights"].items() if name not in gone}
    return recipe._replace(notes=tuple(notes))


def paced(recipe: Recipe) -> Recipe:
    """The recipe with phases that end at the same part of the run as in its file, however many steps the comparison takes."""
    phases, steps = recipe.config["model"].get("phases"), (recipe.config.get("trainer") or {}).get("max_steps")
    if not phases or not recipe.steps or not steps or steps == recipe.steps:
        return recipe
    config, ends, last = copy.deepcopy(recipe.config), list[int](), 0
    for row in config["model"]["phases"]:
        for value in (row.get("set") or {}).values():
            if isinstance(value, dict) and "over" in value:
                value["over"] = max(1, round(value["over"] * steps / recipe.steps))
        if row.get("until") is not None:
            last = row["until"] = max(last + 1, round(row["until"] * steps / recipe.steps))
            ends.append(last)
    parts = ", ".join(map(str, ends))
    note = f"its phases end after {parts} of {steps} steps, as in its own {recipe.steps}" if ends else ""
    return recipe._replace(config=config, notes=(*recipe.notes, note) if note else recipe.notes)

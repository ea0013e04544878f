"""``mmpretrain compare``: recipes brought onto the data of the first one (``--alike``), and what follows from other data or steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmpretrain.cli.compare_plan import SHOWN, TRAINING, Recipe, is_system, place_of
from mmpretrain.cli.errors import UserError

PAIRS = "pairs"  # what a source gives where it does not say (data.train.NAME.reads)


def alike(recipes: Sequence[Recipe], training: bool) -> list[Recipe]:
    """The recipes with everything but the system, and how it is shown a sample, as the first one has it. Sources of the first that are
    texts or pictures alone are left out.

    Args:
        training: optimiser and schedule too.

    Raises:
        UserError: the first recipe has no pairs.
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
        origin = {key: file for key, file in first.origin.items() if not own(key)} | {k: f for k, f in one.origin.items() if own(k)}
        made.append(one._replace(config=config, origin=origin))
    return made


def settled(recipe: Recipe) -> Recipe:
    """The recipe made to run where its data or the number of its steps are not those of its file: see the three functions below.

    Raises:
        UserError: nothing is left of its objectives.
    """
    return _paced(_unasked(_follow(recipe._replace(config=copy.deepcopy(recipe.config)))))


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


def _follow(recipe: Recipe) -> Recipe:
    """Objectives that name sources of the recipe's own read all of the data that stand in their place; those that read none of its pairs
    are left out, as masked words of texts alone are."""
    gave, gives = _sources(recipe.own), _sources(recipe.config)
    if not gave or gives == gave or not set(gives.values()) <= {PAIRS}:
        return recipe
    model, notes = recipe.config["model"], list(recipe.notes)
    objectives: dict[str, Any] = {}
    for name, node in (model.get("objectives") or {}).items():
        arguments = node.get("init_args") or {}
        listed = arguments.get("sources") or ()
        there = [source for source in listed if source in gives]
        if listed and not there and not any(gave.get(source) == PAIRS for source in listed):
            notes.append(f"{name} is left out: it reads {', '.join(listed)} alone, which these data do not have")
            continue
        kept = {key: value for key, value in arguments.items() if key != "sources"} | ({"sources": there} if there else {})
        objectives[name] = {**node, "init_args": kept} if "init_args" in node else node
    if not objectives:
        raise UserError(f"no objective of {recipe.label} reads pairs; leave the recipe out")
    gone = set(model.get("objectives") or {}) - set(objectives)
    model["objectives"] = objectives
    for row in model.get("phases") or ():
        row["set"] = {path: value for path, value in (row.get("set") or {}).items() if path.partition(".")[0] not in gone}
    if model.get("task_weights"):
        model["task_weights"] = {name: weight for name, weight in model["task_weights"].items() if name not in gone}
    return recipe._replace(notes=tuple(notes))


def _unasked(recipe: Recipe) -> Recipe:
    """A recipe that asks questions, on data whose questions are not told, has no answers, so that its question answering rests."""
    told, tells = ((config.get("data") or {}).get("text_from", "captions") for config in (recipe.own, recipe.config))
    if "questions" not in str(told) or "questions" in str(tells):
        return recipe
    recipe.config["data"]["answers"] = None
    return recipe._replace(notes=(*recipe.notes, f"no questions are asked: texts are {tells} here"))


def _paced(recipe: Recipe) -> Recipe:
    """Phases end at the same part of the run as in the recipe's file, however many steps the comparison takes."""
    phases, (own, steps) = recipe.config["model"].get("phases"), map(_steps, (recipe.own, recipe.config))
    if not phases or not own or not steps or steps == own or (recipe.own.get("model") or {}).get("phases") != phases:
        return recipe
    ends, last = list[int](), 0
    for row in phases:
        for value in (row.get("set") or {}).values():
            if isinstance(value, dict) and "over" in value:
                value["over"] = max(1, round(value["over"] * steps / own))
        if row.get("until") is not None:
            last = row["until"] = max(last + 1, round(row["until"] * steps / own))
            ends.append(last)
    note = f"its phases end after {', '.join(map(str, ends))} of {steps} steps, as in its own {own}"
    return recipe._replace(notes=(*recipe.notes, note) if ends else recipe.notes)


def _steps(config: Mapping[str, Any]) -> int | None:
    return (config.get("trainer") or {}).get("max_steps")

"""``mmpretrain compare``: several recipes trained and measured alike, one after another, each run in a process of its own."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mmpretrain.cli import compare_alike, compare_plan
from mmpretrain.cli.commands import MEASUREMENTS, OneLine, at_least, guarded, named_sets
from mmpretrain.cli.compare_plan import Recipe
from mmpretrain.cli.errors import UserError, nearest
from mmpretrain.cli.layering import typed_keys

LIMIT = 256
MOST_SEED = 2**32 - 1  # of numpy, and so of Lightning
OF_OURS = {"seed_everything": "--seeds", "ckpt_path": "--out", "trainer.default_root_dir": "--out"}


class Job(NamedTuple):
    """One run: a recipe and a seed."""

    recipe: Recipe
    seed: int
    folder: Path
    config: Path  # the file it is trained with
    measured: tuple[str, ...]  # options of ``evaluate``

    @property
    def name(self) -> str:
        return f"{self.recipe.label}, seed {self.seed}"

    @property
    def plan(self) -> dict[str, Any]:
        """What a finished run must have been made with to be taken as it is."""
        return {"config": self.recipe.config, "seed": self.seed}

    def fit(self) -> list[str]:
        """Continues where an interruption left it; the end is measured by ``evaluate``."""
        words = ["fit", "--config", str(self.config), "--seed_everything", str(self.seed), "--ckpt_path", "last"]
        return [*words, "--final.measure", "false"]

    def evaluate(self) -> list[str]:
        return ["evaluate", str(self.folder), *self.measured, "--out", str(self.folder / "evaluation.json")]


def parser() -> argparse.ArgumentParser:
    made = OneLine(
        prog="mmpretrain compare",
        description="Train several recipes with the same data, steps and seeds, measure them by the same protocol, and write one table, "
        "one plot and one page. Every other option is a dotted key of fit and holds for all: --data.workers 2.",
        allow_abbrev=False,
    )
    made.add_argument("recipes", nargs="*", metavar="RECIPE", help="two recipes or more, as for fit --config: vilt.yaml clip.yaml")
    made.add_argument("--systems", default="", metavar="A,B", help="the same, by name: vilt,clip")
    made.add_argument("--config", action="append", default=[], metavar="FILE", help="above every recipe: data and the like; repeatable")
    made.add_argument("--size", metavar="NAME", help="of every system: tiny, base, large; default: as the recipes say")
    made.add_argument("--steps", type=at_least(1), help="of every run; default: as the recipes say")
    made.add_argument("--batch", type=at_least(1), help="samples of a step of every run; default: as the recipes say")
    made.add_argument("--seeds", default="0", metavar="0,1,2", help="one run of every recipe for each; default: 0")
    help_ = "take everything but the system from the first recipe: data, batch size, steps; with training, optimiser and schedule too"
    made.add_argument("--alike", nargs="?", const="data", choices=("data", "training"), help=help_)
    made.add_argument("--data", action="append", default=[], metavar="[NAME=]SOURCE", help="measured on; default: the validation sets")
    help_ = "what is measured, as for evaluate; default: all that fits"
    made.add_argument("--only", action="append", default=[], choices=MEASUREMENTS, help=help_)
    made.add_argument("--limit", type=at_least(1), default=LIMIT, help=f"most samples of each set and measurement, default {LIMIT}")
    made.add_argument("--captions", type=at_least(1), default=1, help="of each image in retrieval, default 1")
    made.add_argument("--out", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison")
    made.add_argument("--restart", action="store_true", help="do runs again that DIR has with other options")
    return made


def run(argv: list[str]) -> int:
    made = parser()
    ours, theirs = _split(made, argv[1:])
    return guarded(_compare, made.parse_intermixed_args(ours), _forwarded(made, theirs))


def _split(made: argparse.ArgumentParser, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our words, and the options that are none of ours with their values, in any order: a value of theirs must not pass for a recipe."""
    known = {option for action in made._actions for option in action.option_strings}
    ours: list[str] = []
    theirs: list[str] = []
    side = ours
    for number, word in enumerate(words):
        if word.startswith("--"):
            side = ours if word.partition("=")[0] in known else theirs
        elif side is theirs and ("=" in words[number - 1] or not words[number - 1].startswith("--")):
            side = ours  # the value has been given
        side.append(word)
    return ours, theirs


def _forwarded(made: argparse.ArgumentParser, rest: Sequence[str]) -> dict[str, Any]:
    """Dotted options of ``fit`` among those that are none of ours.

    Raises:
        UserError: an option that neither knows, or one that has another name here.
    """
    typed = typed_keys(list(rest))
    for key in typed:
        if key in OF_OURS:
            raise UserError(f"--{key}: give {OF_OURS[key]} to compare")
        if "." not in key and key not in ("loggers",):
            known = [option for action in made._actions for option in action.option_strings]
            raise UserError(f"compare: unknown option '--{key}'.{nearest(f'--{key}', known)} Options of fit are dotted: --data.workers 2")
    return typed


def _seeds(text: str) -> list[int]:
    """The seeds of ``--seeds``, each once.

    Raises:
        UserError: something else, or a number that is no seed.
    """
    try:
        seeds = list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        raise UserError(f"--seeds {text}: whole numbers with commas between them, such as 0,1,2") from None
    if odd := [seed for seed in seeds if not 0 <= seed <= MOST_SEED]:
        raise UserError(f"--seeds {text}: a seed is a number from 0 to {MOST_SEED}, not {odd[0]}")
    return seeds


def _jobs(options: argparse.Namespace, typed: Mapping[str, Any]) -> tuple[list[Job], list[compare_plan.Difference]]:
    wanted = [*options.recipes, *(name.strip() for name in options.systems.split(",") if name.strip())]
    fixed = {"trainer.max_steps": options.steps, "data.batch_size": options.batch}
    typed = {**typed, **{key: value for key, value in fixed.items() if value is not None}}
    seeds = _seeds(options.seeds)
    recipes = compare_plan.resolve(wanted, options.config, typed, options.size)
    if options.alike:
        recipes = compare_alike.alike(recipes, options.alike == "training")
    recipes = [compare_alike.settled(recipe) for recipe in recipes]
    measured = ["--limit", str(options.limit), "--captions", str(options.captions)]
    for option, values in (("--data", options.data), ("--only", options.only)):
        measured += [word for value in values for word in (option, value)]
    jobs = []
    for seed in seeds:  # a seed of every recipe first, so that an early end still compares all of them
        for recipe in recipes:
            folder = (options.out / "runs" / f"{recipe.label}-seed{seed}").resolve()
            jobs.append(Job(recipe, seed, folder, (options.out / "configs" / f"{recipe.label}.yaml").resolve(), tuple(measured)))
    return jobs, compare_plan.differences(recipes)


def _compare(options: argparse.Namespace, typed: Mapping[str, Any]) -> int:
    from mmpretrain.cli import compare_check, compare_result, compare_run

    jobs, apart = _jobs(options, typed)
    of = {job.recipe.label: job.recipe for job in jobs}
    for recipe in of.values():
        compare_check.check(recipe, typed)
    if options.data:
        named_sets(options.data, None)  # opened, to know before the first run that they can be measured on
    for job in jobs:
        compare_run.check(job, options.restart)
    notes = [f"not alike: {one.shown()}" for one in apart if not one.own]
    own = [one.shown() for one in apart if one.own]
    if notes:
        hint = "" if options.alike else "; --alike takes them all from the first recipe"
        print(f"mmpretrain: warning: the recipes differ in more than the system{hint}", file=sys.stderr)
    for note in notes:
        print(f"  {note}", file=sys.stderr)
    changed = [f"{label}: {note}" for label, recipe in of.items() for note in recipe.notes]
    for note in changed:
        print(f"mmpretrain: {note}", file=sys.stderr)
    if own:
        keys = ", ".join(dict.fromkeys(".".join(one.key.split(".")[:2]) for one in apart if one.own))
        print(f"mmpretrain: each recipe has its own {keys}{'' if options.alike == 'training' else ' (--alike training)'}", file=sys.stderr)
    for job in jobs:
        job.config.parent.mkdir(parents=True, exist_ok=True)
        text = f"# {job.recipe.label}, as mmpretrain compare trains it\n{yaml.safe_dump(job.recipe.config, sort_keys=False)}"
        job.config.write_text(text, encoding="utf-8")
    try:
        failed = compare_run.run_all(jobs)
    except KeyboardInterrupt:
        print("mmpretrain: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    notes += [*changed, *(f"{name} failed: {why}" for name, why in failed.items())]
    done = [job for job in jobs if job.name not in failed]
    command = shlex.join(["mmpretrain", *sys.argv[1:]]) if sys.argv[1:2] == ["compare"] else "mmpretrain compare"
    if not done:
        return 1
    compare_result.write(done, options.out, notes, own, command)
    return 1 if failed else 0

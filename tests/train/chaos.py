"""Kills a training of two ranks again and again, at random moments or inside saves, and compares how it ends with a run nobody killed.

    PYTHONPATH=.:tests python tests/train/chaos.py --kills 100 --tmpdir beside --folder /tmp/chaos
    PYTHONPATH=.:tests python tests/train/chaos.py --kills 100 --tmpdir /dev/shm --folder /tmp/chaos-shm
    PYTHONPATH=.:tests python tests/train/chaos.py --kills 100 --shards --alone --folder /tmp/chaos-shards

The ranks say which step they are at and when a save begins. Every other kill falls a random part of a step after a random step that is
still to come, the others a random part of a save after the beginning of one of the next two saves. After each kill every checkpoint in
the folder must fit its manifest, ``last`` must lead to one, and no step that was saved may be lost. A run continues where the kill left
it until it is done; its weights and averages must be equal to the last bit to those of the run that was left alone, and its metrics
line by line. With ``--alone`` every other kill meets one rank only, and the other must end by itself within a minute. With ``--shards``
ViLT is trained on shards, which a worker of each rank reads. Processes are forked from one that has imported everything, so that a kill
costs a second or two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers.shards import write_shards
from train.chaos_ranks import STEPS, Training, start

from mmpretrain.train import atomic

REACH = 8  # a kill falls into one of so many steps
PATIENCE = 60.0  # seconds that a rank has to notice that another is gone


def ended(pids: list[int]) -> list[int] | None:
    """Exit codes, once all have ended."""
    codes = [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) for pid in pids]
    return None if any(code is None for code in codes) else [code.si_status for code in codes]


def wait(pids: list[int], until: Any, seconds: float = 300.0) -> bool:
    """Wait for a condition; False when the ranks ended before."""
    limit = time.monotonic() + seconds
    while not until():
        if ended(pids) is not None:
            return False
        if time.monotonic() > limit:
            kill(pids)
            raise TimeoutError("the ranks do not get on")
        time.sleep(0.0005)
    return True


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    reap(pids)


def reap(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


class Found(NamedTuple):
    """A look at the folder after a kill."""

    unreadable: list[str]
    step: int  # of what ``last`` leads to; 0: nothing was saved yet


def look(folder: Path) -> Found:
    files = atomic.steps_in(folder / "checkpoints")
    bad = [f"{path.name}: {reason}" for path in files if (reason := atomic.fault(path)) is not None]
    if not files:
        return Found(bad, 0)
    try:
        chosen = atomic.choose(folder / "checkpoints" / "last.ckpt")
        return Found(bad, int(atomic.load(chosen)["global_step"]))
    except atomic.CheckpointError as error:
        return Found([*bad, str(error)], 0)


def writing(folder: Path) -> bool:
    """Whether a file of a save has another name still."""
    return any((folder / "checkpoints").glob(".*.tmp-*"))


class Strike(NamedTuple):
    """One start and one kill."""

    hit: bool = False  # the kill came before the run was done
    inside: bool = False  # the writer was inside a save
    hung: bool = False  # the rank that was left had to be killed as well


def strike(training: Training, folder: Path, dice: random.Random, in_save: bool, alone: bool) -> Strike:
    """Start the ranks and kill both, or one of them."""
    pids, signs = start(training, folder)
    if alive := wait(pids, lambda: signs.read()["steps"]):
        first = signs.read()["steps"]
        what, number = ("saves", 1 + dice.randrange(2)) if in_save else ("steps", min(STEPS, first + dice.randrange(REACH)))
        alive = wait(pids, lambda: signs.read()[what] >= number and (not in_save or writing(folder)))
    if alive:
        time.sleep(dice.random() * (signs.read()["save_s" if in_save else "step_s"] or 0.02))
    if ended(pids) is not None:
        codes = reap(pids)
        if any(codes):
            raise RuntimeError(f"the ranks ended with {codes}:\n{(folder / 'rank-0.log').read_text()[-3000:]}")
        return Strike()
    inside = writing(folder)
    if not alone:
        kill(pids)
        return Strike(True, inside)
    victim = dice.randrange(len(pids))
    os.kill(pids[victim], signal.SIGKILL)
    until = time.monotonic() + PATIENCE
    while ended(pids) is None and time.monotonic() < until:
        time.sleep(0.01)
    hung = ended(pids) is None
    kill(pids)
    return Strike(True, inside, hung)


def finish(training: Training, folder: Path) -> Strike:
    """A start that nobody kills."""
    if any(reap(start(training, folder)[0])):
        raise RuntimeError((folder / "rank-0.log").read_text()[-3000:])
    return Strike()


def same(a: Path, b: Path) -> bool:
    """Whether two runs ended alike: weights and averages to the last bit, metrics line by line."""
    first, second = (torch.load(folder / "end.pt", weights_only=True) for folder in (a, b))
    equal = all(first[part].keys() == second[part].keys() for part in first)
    equal = equal and all(torch.equal(first[part][name], second[part][name]) for part in first for name in first[part])
    return equal and losses(a) == losses(b)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


class Outcome(NamedTuple):
    kills: int
    in_saves: int  # a temporary file of a save was there
    alone: int  # of one rank
    runs: int  # that came to their end
    unreadable: list[str]
    lost: list[str]  # saved steps that were gone after a kill
    hung: list[str]  # ranks that did not end when the other was gone
    different: list[str]  # runs that did not end like the one that was left alone
    seconds: float


def chaos(training: Training, folder: Path, kills: int, alone: bool = False, seed: int = 0, say: Any = None) -> Outcome:
    """``kills`` kills over as many runs as they take."""
    dice, began, whole = random.Random(seed), time.monotonic(), folder / "whole"
    finish(training, whole)
    done = in_saves = singly = runs = 0
    unreadable: list[str] = []
    lost: list[str] = []
    hung: list[str] = []
    different: list[str] = []
    while done < kills or runs == 0:
        here, before = folder / f"run-{runs}", 0
        while not (here / "end.pt").exists():
            one = alone and done % 4 > 1
            struck = strike(training, here, dice, done % 2 == 1, one) if done < kills else finish(training, here)
            done, in_saves, singly = done + struck.hit, in_saves + struck.inside, singly + (one and struck.hit)
            hung += [f"{here.name}: kill {done}"] * struck.hung
            found = look(here)
            unreadable += found.unreadable
            if found.step < before:
                lost.append(f"{here.name}: step {before} was saved, {found.step} is left")
            before = found.step
            if say is not None:
                say(f"kill {done}: {here.name} at step {found.step}{', in a save' if struck.inside else ''}{', one rank' if one else ''}")
        if not same(here, whole):
            different.append(here.name)
        runs += 1
        shutil.rmtree(here)  # the whole run stays, for a look
    return Outcome(done, in_saves, singly, runs, unreadable, lost, hung, different, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--tmpdir", default="beside", help="TMPDIR of the ranks: a folder, or 'beside': on the disk of --folder")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go; what is there is removed")
    parser.add_argument("--shards", action="store_true", help="train ViLT on shards, with workers")
    parser.add_argument("--alone", action="store_true", help="kill one rank only, every other time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tmpdir = options.folder.with_name(options.folder.name + "-tmp") if options.tmpdir == "beside" else Path(options.tmpdir)
    tmpdir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    shutil.rmtree(options.folder, ignore_errors=True)
    shards = write_shards(options.folder / "shards", sizes=(12, 12)) if options.shards else None
    training = Training(tmpdir, shards)
    outcome = chaos(training, options.folder, options.kills, options.alone, options.seed, lambda line: print(line, flush=True))
    print(json.dumps(outcome._asdict(), indent=1))
    return 1 if outcome.unreadable or outcome.lost or outcome.hung or outcome.different else 0


if __name__ == "__main__":
    sys.exit(main())

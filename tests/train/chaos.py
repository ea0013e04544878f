"""Kills a training of two ranks again and again, at random moments or inside saves, and compares how it ends with a run nobody killed.

    PYTHONPATH=.:tests python tests/train/chaos.py --kills 100 --tmpdir beside --folder /tmp/chaos
    PYTHONPATH=.:tests python tests/train/chaos.py --kills 100 --tmpdir /dev/shm --folder /tmp/chaos-shm

The ranks say which step they are at and when a save begins. Every other kill falls a random part of a step after a random step that is
still to come, the others a random part of a save after the beginning of one of the next two saves. After each kill
every checkpoint in the folder must fit its manifest, ``last`` must lead to one, and no step that was saved may be lost. A run continues
where the kill left it until it is done; its weights and averages must be equal to the last bit to those of the run that was left alone,
and its metrics line by line. Processes are forked from one that has imported everything, so that a kill costs a second or two.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from train.fakes import FakeData
from train.runs import build, quiet, trainer
from train.spawn import free_port

from mmpretrain.train import atomic
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.signals import Preemption

STEPS, WORLD = 24, 2
REACH = 8  # a kill falls into one of so many steps
BALLAST = 1_000_000  # float32 numbers in the state, so that a save takes about as long as the steps between two


class Signs:
    """What rank 0 tells the killer: the steps and the saves that it has begun in this start, and how long the last of each took."""

    LAYOUT = struct.Struct("qqdd")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, self.LAYOUT.size)

    def read(self) -> dict[str, Any]:
        return dict(zip(("steps", "saves", "step_s", "save_s"), self.LAYOUT.unpack_from(self.memory), strict=True))

    def write(self, **changes: float) -> None:
        self.LAYOUT.pack_into(self.memory, 0, *(self.read() | changes).values())


class Tells(pl.Callback):
    """Steps, with the number that they have in the run."""

    def __init__(self, signs: Signs) -> None:
        self.signs, self.before = signs, time.perf_counter()

    def on_train_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        if fitter.is_global_zero:
            now = time.perf_counter()
            self.signs.write(steps=fitter.global_step + 1, step_s=now - self.before)
            self.before = now


def telling(signs: Signs) -> Any:
    """``atomic.save`` that says when it begins and how long it took."""
    save = atomic.save

    def told(checkpoint: Any, path: Path) -> None:
        signs.write(saves=signs.read()["saves"] + 1)
        began = time.perf_counter()
        save(checkpoint, path)
        signs.write(save_s=time.perf_counter() - began)

    return told


def fit(folder: Path, signs: Signs) -> None:
    """The training of one rank, from ``last``."""
    quiet()
    module = build(dropout=0.1, ema_decay=0.9)
    module.root.model.register_buffer("ballast", torch.arange(float(BALLAST)))
    callbacks = [Metrics(), Tells(signs), Preemption(), Checkpoints(every_n_steps=2, keep_last=2)]
    layout = {"strategy": "ddp", "devices": WORLD, "enable_checkpointing": True, "log_every_n_steps": 3}
    fitter = trainer(STEPS, callbacks, default_root_dir=folder, **layout)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=7), ckpt_path="last")
    if fitter.is_global_zero:
        end = {"parameters": module.root.state_dict(), "ema": module.ema.state()}
        torch.save(end, folder / "end.tmp")
        os.replace(folder / "end.tmp", folder / "end.pt")


def rank(number: int, port: int, folder: Path, signs: Signs, tmpdir: Path) -> int:
    """Fork a rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        log = os.open(folder / f"rank-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        places = {"RANK": number, "LOCAL_RANK": number, "GROUP_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
        os.environ |= {name: str(value) for name, value in (places | {"MASTER_PORT": port}).items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "chaos", "TORCHELASTIC_RESTART_COUNT": "0", "TMPDIR": str(tmpdir)}
        atomic.save = telling(signs)
        fit(folder, signs)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - whatever it is, it is in the log
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def start(folder: Path, tmpdir: Path) -> tuple[list[int], Signs]:
    """Fork the ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    signs, port = Signs(), free_port()
    return [rank(number, port, folder, signs, tmpdir) for number in range(WORLD)], signs


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


def strike(folder: Path, tmpdir: Path, dice: random.Random, in_save: bool) -> tuple[bool, bool]:
    """One start and one kill.

    Returns:
        whether the kill came before the run was done, and whether the writer was inside a save.
    """
    pids, signs = start(folder, tmpdir)
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
        return False, False
    inside = writing(folder)
    kill(pids)
    return True, inside


def finish(folder: Path, tmpdir: Path) -> tuple[bool, bool]:
    """A start that nobody kills."""
    if any(reap(start(folder, tmpdir)[0])):
        raise RuntimeError((folder / "rank-0.log").read_text()[-3000:])
    return False, False


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
    runs: int  # that came to their end
    unreadable: list[str]
    lost: list[str]  # saved steps that were gone after a kill
    different: list[str]  # runs that did not end like the one that was left alone
    seconds: float


def chaos(folder: Path, kills: int, tmpdir: Path, seed: int = 0, say: Any = None) -> Outcome:
    """``kills`` kills over as many runs as they take."""
    dice, began = random.Random(seed), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    whole = folder / "whole"
    finish(whole, tmpdir)
    done = in_saves = runs = 0
    unreadable: list[str] = []
    lost: list[str] = []
    different: list[str] = []
    while done < kills or runs == 0:
        here, before = folder / f"run-{runs}", 0
        while not (here / "end.pt").exists():
            hit, inside = strike(here, tmpdir, dice, in_save=done % 2 == 1) if done < kills else finish(here, tmpdir)
            done, in_saves = done + hit, in_saves + inside
            found = look(here)
            unreadable += found.unreadable
            if found.step < before:
                lost.append(f"{here.name}: step {before} was saved, {found.step} is left")
            before = found.step
            if say is not None:
                say(f"kill {done}: {here.name} at step {found.step}{', in a save' if inside else ''}")
        if not same(here, whole):
            different.append(here.name)
        runs += 1
        shutil.rmtree(here)  # the whole run stays, for a look
    return Outcome(done, in_saves, runs, unreadable, lost, different, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--tmpdir", default="beside", help="TMPDIR of the ranks: a folder, or 'beside': on the disk of --folder")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go; what is there is removed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tmpdir = options.folder.with_name(options.folder.name + "-tmp") if options.tmpdir == "beside" else Path(options.tmpdir)
    tmpdir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    outcome = chaos(options.folder, options.kills, tmpdir, options.seed, lambda line: print(line, flush=True))
    print(json.dumps(outcome._asdict(), indent=1))
    return 1 if outcome.unreadable or outcome.lost or outcome.different else 0


if __name__ == "__main__":
    sys.exit(main())

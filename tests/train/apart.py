"""Ranks of which one is slow, or was given other data. Executed as a script by each rank: ``apart.py DIR``; the shards lie in DIR."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from train import systems
from train.runs import build, quiet, run, trainer

from mmpretrain.train.watchdog import Watchdog

SECONDS = 4.0


class OneRankIsSlow(pl.Callback):
    """The last rank stands still before its third step."""

    def on_train_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        if fitter.global_step == 2 and fitter.global_rank == fitter.world_size - 1:
            time.sleep(SECONDS)


def slow(folder: Path) -> dict[str, Any]:
    """The others wait; watchdogs say so and end nothing."""
    folder.mkdir(exist_ok=True)
    fast = run(build(), steps=5, strategy="ddp", devices=2)
    began = time.monotonic()
    waited = run(build(), steps=5, strategy="ddp", devices=2, callbacks=[OneRankIsSlow(), Watchdog(seconds=1.0)], default_root_dir=folder)
    seconds = time.monotonic() - began
    equal = all(torch.equal(value, waited.parameters[name]) for name, value in fast.parameters.items())
    return {"seconds": seconds, "equal": equal and fast.losses == waited.losses}


def other(folder: Path) -> dict[str, Any]:
    """Every rank has its own shards, seed or size of the batch; what it is told instead of training."""
    rank = torch.distributed.get_rank()
    found = {}
    for what, change in {"shards": {}, "seed": {"seed": rank}, "size": {"batch_size": 8 + 2 * rank}}.items():
        source = systems.data(folder.parent / f"shards-{rank if what == 'shards' else 0}", "clip")
        vars(source).update(change)
        try:
            trainer(2, strategy="ddp", devices=2).fit(systems.build("clip"), datamodule=source)
            found[what] = "nothing"
        except RuntimeError as error:
            found[what] = str(error)
    return found


def main() -> None:
    """Both, in one process group."""
    folder = Path(sys.argv[1])
    quiet()
    run(build(), steps=1, strategy="ddp", devices=2)  # makes the process group
    results = {event.__name__: event(folder / event.__name__) for event in (slow, other)}
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

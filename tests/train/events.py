"""What one rank alone goes through and all must answer to. Executed as a script by each rank: ``events.py DIR``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from train.fakes import FakeData, FakeMLM, FakeModel, Poison
from train.resume import go
from train.runs import build, full, quiet, run, trainer

import mmpretrain.train.strategies  # noqa: F401  registers the names
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.guard import NonFiniteStep
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import Constant


def poisoned(**settings: Any) -> Pretrain:
    """NaN for sample s13: the second step, on rank 1 of 2."""
    torch.manual_seed(0)
    return Pretrain(FakeModel(), {"mlm": FakeMLM(), "match": Poison("s13", view="match")}, Optimizer(lr=1e-3), Constant(), **settings)


class OneRankIsTold(pl.Callback):
    """SIGUSR1 to the last rank alone."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def guard_on_one_rank(folder: Path) -> dict[str, Any]:
    """Both ranks stop at the same step with the same keys; skipping leaves both with equal parameters."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        try:
            run(poisoned(), steps=4, strategy=strategy, devices=2)
        except NonFiniteStep as error:
            found[f"{strategy}/stop"] = str(error)
        module = poisoned(on_nonfinite="skip")
        trace = run(module, steps=4, strategy=strategy, devices=2)
        found[f"{strategy}/skip"] = {"finite": all(bool(torch.isfinite(p).all()) for p in trace.parameters.values())}
        found[f"{strategy}/sum"] = sum(float(p.double().sum()) for p in trace.parameters.values())
    return found


def preemption(folder: Path) -> dict[str, Any]:
    """One rank gets the signal; both save and leave after the same step, and continue."""
    found: dict[str, Any] = {}
    for strategy in ("ddp", "fsdp2"):
        here = folder / strategy
        try:
            go(here, 9, strategy=strategy, devices=2, callbacks=[OneRankIsTold()])
        except SystemExit as leave:
            found[strategy] = {"code": leave.code}
        found[strategy]["saved"] = sorted(p.name for p in (here / "checkpoints").glob("step-*.ckpt"))
        fitter = go(here, 9, strategy=strategy, devices=2)
        found[strategy]["end"] = fitter.global_step
    return found


def checkpoint_matrix(folder: Path) -> dict[str, Any]:
    """Saved after five steps by one layout, continued to ten by another; parameters are left for comparison."""
    quiet()
    rank = torch.distributed.get_rank()
    for strategy in ("ddp", "fsdp2"):
        keeper = Checkpoints(directory=str(folder / f"by-{strategy}"), every_n_steps=5)
        fitter = trainer(5, [keeper], strategy=strategy, devices=2, enable_checkpointing=True)
        fitter.fit(build(ema_decay=0.9), datamodule=FakeData())
    for saved, strategy in (("ddp", "fsdp2"), ("fsdp2", "ddp"), ("fsdp2", "fsdp2")):
        keeper = Checkpoints(directory=str(folder / f"by-{saved}"), every_n_steps=None)
        module = build(ema_decay=0.9)
        fitter = trainer(10, [keeper], strategy=strategy, devices=2, enable_checkpointing=True)
        fitter.fit(module, datamodule=FakeData(), ckpt_path=str(folder / f"by-{saved}" / "step-00000005.ckpt"))
        state = {"parameters": {n: full(p) for n, p in module.root.named_parameters()}, "ema": module.ema.state()}
        if rank == 0:
            torch.save(state, folder / f"{saved}-{strategy}.pt")
    return {}


def disagreement(folder: Path) -> dict[str, Any]:
    """Ranks that were given different things stop before the first collective that would hang or mix them up."""
    try:
        run(build(seed=torch.distributed.get_rank()), steps=1, strategy="ddp", devices=2)
    except RuntimeError as error:
        return {"says": str(error)}
    return {"says": "nothing"}


def main() -> None:
    """All events in one process group, results per rank."""
    folder = Path(sys.argv[1])
    quiet()
    run(build(), steps=1, strategy="ddp", devices=2)  # makes the process group
    results = {event.__name__: event(folder / event.__name__) for event in (guard_on_one_rank, preemption, checkpoint_matrix, disagreement)}
    (folder / f"rank-{torch.distributed.get_rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()

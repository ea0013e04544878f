"""Back to the last good checkpoint within a run, the data going on behind the bad steps.

Parameters, optimiser states and averages become those of the newest checkpoint that verifies. Steps are still counted by the data: the
number of the step, the schedule and the position in the data go on, so that the samples between that checkpoint and the bad step are not
seen again, and a later checkpoint continues like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from mmpretrain.train import events
from mmpretrain.train.atomic import CheckpointError, shared_choice
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.guard import NonFiniteStep
from mmpretrain.train.optim import apply_settings

MOST = 3  # rollbacks to one and the same checkpoint


class RollBack:
    """Remembers where it went, so that it does not go there for ever."""

    def __init__(self) -> None:
        self.last: Path | None = None
        self.times = 0

    def __call__(self, trainer: Any, module: Any) -> None:
        """Restore, where the guard asks for it. Every rank must call it.

        Raises:
            NonFiniteStep: there is no checkpoint, or the same one was restored three times.
        """
        if not module.guard.wants_rollback:
            return
        module.guard.wants_rollback = False
        keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)
        try:
            if keeper is None:
                raise CheckpointError("the run keeps no checkpoints")
            path = shared_choice(keeper.find(trainer) / "last.ckpt")
        except CheckpointError as error:
            raise NonFiniteStep(f"after {trainer.global_step} steps: nothing to roll back to: {error}") from error
        self.times = self.times + 1 if path == self.last else 1
        self.last = path
        if self.times > MOST:
            raise NonFiniteStep(f"after {trainer.global_step} steps: {path.name} was restored {MOST} times, and training goes wrong again")
        saved = trainer.strategy.load_checkpoint(path)
        trainer.strategy.load_model_state_dict(saved, strict=True)
        trainer.strategy.load_optimizer_state_dict(saved)
        for optimizer in trainer.optimizers:
            apply_settings(optimizer, module.settings)
        module.lr_schedulers().apply()  # the rates that came back are those of the checkpoint's step
        if module.ema is not None and saved.get("ema") is not None:
            module.ema.load(saved["ema"])
        events.note(trainer, "rollback", checkpoint=path.name, to=int(saved["global_step"]))
        rank_zero_warn(f"after {trainer.global_step} steps: weights and optimiser are those of {path.name} again; the data go on")

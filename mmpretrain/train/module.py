"""The LightningModule: introduces a model to its objectives and carries out optimiser steps.

One item of the training loader is one optimiser step: the micro-batches of this rank. Optimisation is manual in Lightning's sense,
because the step owns accumulation, the backward plan, the number guard and clipping; one optimiser, so ``global_step`` counts once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mmpretrain.methods.adversarial import Adversarial
from mmpretrain.objectives.base import Objective
from mmpretrain.random import key_of, stream
from mmpretrain.train import clip, distributed
from mmpretrain.train.adversarial import checked, plan_of
from mmpretrain.train.ema import Ema
from mmpretrain.train.evaluation import EvaluatedModule
from mmpretrain.train.guard import StepGuard
from mmpretrain.train.meter import Meter, token_count
from mmpretrain.train.optim import Optimizer, apply_settings, group_settings, trained
from mmpretrain.train.parallel import prepare, set_gradient_sync
from mmpretrain.train.payload import check_complete, check_data, payload
from mmpretrain.train.phases import Phases
from mmpretrain.train.pretraining import Pretraining, materialise
from mmpretrain.train.rollback import RollBack
from mmpretrain.train.schedule import Schedule, Stages, StepScheduler
from mmpretrain.train.step import StepResult
from mmpretrain.train.tasks import checked as checked_weights
from mmpretrain.train.tasks import tasks
from mmpretrain.train.trainer import EngineFlags, run_steps
from mmpretrain.train.transforms import ModelTransform, transform
from mmpretrain.types import Batch, Preparer, Vocabulary

DATA_FACTS = ("fingerprint", "batch_size", "seed", "steps_per_epoch", "position")  # alike on every rank


class Pretrain(EvaluatedModule):
    """Pre-training of one system.

    Args:
        system: the model.
        objectives: name -> objective, in order; a recipe states the complete list.
        optimizer: what to optimise with.
        schedule: factor of the rate per optimiser step.
        task_schedule: ``all``: every objective at every step; ``sample``: one view per step, drawn from (seed, step) alike on every rank.
        task_weights: view -> relative frequency for ``sample``; equal if None.
        phases: rows ``{until: step, set: {"objective.attribute": value}, restart: false}``; ``model`` and ``adversarial`` have attributes
            too. A value may be a ramp ``{from: 0, to: 1, over: steps, shape: cosine}``; see ``train.phases``.
        transforms: changes of the model before any parallel plan, in order, such as weights to start from; None: none.
        compile: ``torch.compile`` of each block.
        activation_checkpointing: recompute blocks in the backward.
        ema_decay: keep an average of the parameters; None: none.
        ema_every: optimiser steps from one update of the average to the next.
        on_nonfinite: ``stop`` with an error, ``skip`` the step, or ``rollback`` to the last good checkpoint; all name the samples.
        on_spike: ``log``, ``skip`` or ``rollback`` where loss or gradient norm leave the range of the 128 steps before (6 sigma).
        max_skips: so many bad steps in a row stop the run.
        backward: ``plain``, or ``cached`` (contrastive losses over all micro-batches of a step).
        reduction: ``global``: means over all ranks and micro-batches; ``local``: means per process and micro-batch.
        seed: root of the random numbers drawn by the model (dropout) and of the task draw.
        adversarial: training on perturbed embeddings; None: none.
    """

    def __init__(
        self,
        system: nn.Module,
        objectives: dict[str, Objective],
        optimizer: Optimizer,
        schedule: Schedule,
        task_schedule: Literal["all", "sample"] = "all",
        task_weights: dict[str, float] | None = None,
        phases: Sequence[dict[str, Any]] = (),
        transforms: list[ModelTransform] | None = None,
        compile: bool = False,
        activation_checkpointing: bool = False,
        ema_decay: float | None = None,
        ema_every: int = 1,
        on_nonfinite: Literal["stop", "skip", "rollback"] = "stop",
        on_spike: Literal["log", "skip", "rollback"] = "log",
        max_skips: int = 10,
        backward: Literal["plain", "cached"] = "plain",
        reduction: Literal["global", "local"] = "global",
        seed: int = 0,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.root = Pretraining(system, objectives)
        self.optimizer, self.schedule = optimizer, schedule
        self.task_schedule, self.task_weights = task_schedule, checked_weights(self.root, task_schedule, task_weights)
        self.phases = Phases(phases)
        self.transforms, self.compile_blocks, self.activation_checkpointing = tuple(transforms or ()), compile, activation_checkpointing
        self.ema_decay, self.ema_every = ema_decay, ema_every
        self.guard, self.roll_back = StepGuard(on_nonfinite, on_spike, max_skips), RollBack()
        self.backward_plan, self.reduction, self.seed = backward, reduction, seed
        self.adversarial = checked(adversarial, backward, self.root.objectives)
        self.flags = EngineFlags()
        self.vocabulary: Vocabulary | None = None
        self.config: dict[str, Any] | None = None  # the resolved configuration, set by the command line
        self.ema: Ema | None = None
        self.meter = Meter()
        self.grad_norm = torch.zeros(())
        self.fetched_at = 0.0  # when the last item came from the loader, time.perf_counter
        self._result: StepResult | None = None
        self._batches: Sequence[Batch] = ()
        self._ema_state: dict[str, Tensor] | None = None

    # ------------------------------------------------------------------ set-up

    def preparers(self) -> dict[str, Preparer]:
        """The workers' halves of the objectives, for the data module."""
        found = {name: objective.preparer() for name, objective in self.root.objectives.items()}
        return {name: preparer for name, preparer in found.items() if preparer is not None}

    @property
    def objective_sources(self) -> dict[str, tuple[str, ...] | None]:
        """The sources of a mixture that each objective reads; None: all."""
        return {name: objective.sources for name, objective in self.root.objectives.items()}

    @property
    def engine(self) -> EngineFlags:
        """Clipping and accumulation: the trainer's flags, or ``self.flags`` under a plain Lightning Trainer."""
        return getattr(self._trainer, "engine", self.flags) if self._trainer is not None else self.flags

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimiser step."""
        return self.engine.accumulate

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.vocabulary is None:
            self.vocabulary = getattr(datamodule, "vocabulary", None)
        if stage == "fit":
            facts = {"trainer.accumulate_grad_batches": self.engine.accumulate, "model.seed": self.seed}
            facts |= {f"data.{name}": getattr(datamodule, name, None) for name in DATA_FACTS}
            distributed.agree(facts)

    def configure_model(self) -> None:
        """Materialise, bind, transform and, where the strategy says so, shard. Runs once, however often Lightning calls it.

        What is drawn here depends on the seed alone, so that every rank and every strategy starts from the same weights.
        """
        if self.root.bound:
            return
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(key_of(self.seed, stream("train/init")) & ((1 << 63) - 1))
            materialise(self.root)
            self.root.bind(self.vocabulary)
        transform(self.root, self.transforms, self._trainer)
        strategy = self.trainer.strategy if self._trainer is not None else None
        prepare(self.root, strategy, checkpointing=self.activation_checkpointing, compile=self.compile_blocks)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer.build(self.root)
        schedule = Stages(self.schedule, self.phases.restarts()) if self.phases.restarts() else self.schedule
        scheduler = StepScheduler(optimizer, schedule, self.total_steps())
        self.settings = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def total_steps(self) -> int:
        """Optimiser steps that the schedule spans: ``schedule.total``, else those of the run.

        Raises:
            ValueError: the run has no end and the schedule no total.
        """
        total = self.schedule.total if self.schedule.total is not None else run_steps(self.trainer)
        if total is None:
            raise ValueError("the run has no end: set trainer.max_steps, trainer.max_epochs or the schedule's total")
        return total

    def owners(self) -> dict[str, Any]:
        """What ``phases`` may set attributes of, by name."""
        return {"model": self.root.model, **self.root.objectives, "adversarial": self.adversarial}

    def on_fit_start(self) -> None:
        self.phases.check(self.owners())
        if self.ema_decay is not None:
            self.ema, self._ema_state = Ema(self.root, self.ema_decay, self._ema_state, self.ema_every), None

    def on_train_start(self) -> None:
        for change in apply_settings(self.optimizers().optimizer, self.settings):  # what the user says wins over the checkpoint
            pl.utilities.rank_zero_warn(f"optimizer: {change}")

    def on_validation_start(self) -> None:
        if self.ema is None and self.ema_decay is not None and self._ema_state is not None:  # a checkpoint is evaluated, not trained on
            self.ema = Ema(self.root, self.ema_decay, self._ema_state)

    def ema_weights(self) -> AbstractContextManager[None]:
        """The averaged parameters in place of the raw ones; without EMA, nothing changes."""
        return nullcontext() if self.ema is None else self.ema.applied()

    # ------------------------------------------------------------------ the step

    def tasks(self, step: int, source: str = "") -> list[str]:
        """The objectives of optimiser step ``step`` on a batch of ``source``: a pure function of (seed, step, source)."""
        return tasks(self.root, step, source, self.seed, self.task_schedule, self.task_weights)

    def seed_step(self, step: int) -> None:
        """Random numbers of a step depend on (seed, step, rank) alone, so that a resumed run draws what an unbroken one would."""
        torch.manual_seed(key_of(self.seed, step, distributed.rank()) & ((1 << 63) - 1))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.fetched_at = time.perf_counter()
        return batch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        for callback in self.trainer.callbacks:  # the module's hook comes after those of all callbacks
            if (free := getattr(callback, "free", None)) is not None:
                free()

    def training_step(self, batch: Sequence[Batch], batch_idx: int) -> Tensor:
        """One optimiser step.

        Args:
            batch: the micro-batches of this rank.

        Returns:
            this rank's share of the loss, detached; the mean over ranks is the loss.
        """
        batches = (batch,) if isinstance(batch, Batch) else tuple(batch)
        step = self.trainer.global_step
        self.seed_step(step)
        self.phases.apply(step, self.owners())
        optimizer = self.optimizers()
        if step in self.phases.restarts():
            optimizer.optimizer.state.clear()
        optimizer.zero_grad(set_to_none=True)
        self._batches = batches
        self.guard.keep(self.root)
        plan = plan_of(self.backward_plan, self.adversarial, self.trainer.precision_plugin)
        self._result = plan(self.root, batches, self.tasks(step, batches[0].source), self._backward, self.reduction)
        optimizer.step()  # on_before_optimizer_step guards and clips
        self._result = self._result._replace(stats={**self._result.stats, **self.root.after_step()})
        self.guard.put_back()  # behind what objectives changed
        self.roll_back(self.trainer, self)
        self.lr_schedulers().observe(self._result.loss, self._result.finite_K.all())
        self.lr_schedulers().step()
        if self.ema is not None:
            self.ema.update(self.trainer.global_step)
        self.meter.add_step(self._result)
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "advance"):
            datamodule.advance()
        loss, self._result, self._batches = self._result.loss, None, ()
        return loss

    def _backward(self, loss: Tensor, last: bool) -> None:
        set_gradient_sync(self.trainer.strategy, self.root, last)
        with torch.autocast(self.device.type, enabled=False):
            self.manual_backward(loss)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Guard, then clip. With fp16's loss scaling the gradients are unscaled here; the scaler itself skips on overflow."""
        parameters = [p for p in trained(optimizer) if p.grad is not None]
        norm = clip.total_norm(parameters).to(self.device)
        self.grad_norm = norm
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not self.guard.passes(self.trainer, optimizer, self._batches, self._result, norm, scaled):
            optimizer.zero_grad(set_to_none=True)
        elif self.engine.gradient_clip_val:
            clip.clip_gradients(parameters, self.engine.gradient_clip_val, norm, self.engine.gradient_clip_algorithm)

    def settle(self) -> None:
        """Before a save: act on what the guard knows but has not read yet."""
        self.guard.settle(self.trainer)
        self.roll_back(self.trainer, self)

    def tokens(self, batches: Sequence[Batch]) -> int:
        """Real tokens of micro-batches."""
        spec = self.root.model.spec
        return sum(token_count(batch, spec.patch_size, spec.feature_width is not None, spec.codes > 0) for batch in batches)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mmpretrain"] = payload(self)
        checkpoint["guard"], checkpoint["meter"] = self.guard.state_dict(), self.meter.state(self.device)
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        check_data(checkpoint.get("mmpretrain") or {}, getattr(self.trainer, "datamodule", None))
        if self.trainer.state.fn == "fit":
            check_complete(checkpoint)
            if "guard" in checkpoint:  # absent from checkpoints of the first version
                self.guard.load_state_dict(checkpoint["guard"])
                self.meter.load(checkpoint["meter"])
        self._ema_state, self.ema = checkpoint.get("ema"), self.ema if self.trainer.state.fn == "fit" else None
        if self.ema is not None:  # of the weights before: FSDP2 loads when the run has begun
            self.ema = Ema(self.root, self.ema.decay, self._ema_state, self.ema_every)

"""Validation, test and prediction steps of ``Pretrain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from mmpretrain.train import distributed
from mmpretrain.train.meter import Meter
from mmpretrain.train.payload import CheckpointError
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch


class EvaluatedModule(pl.LightningModule):
    """A LightningModule with a ``root``, evaluated by the losses and metrics of its objectives, exact over batches and ranks."""

    root: Pretraining
    meters: dict[str, Meter]

    def cpu(self) -> EvaluatedModule:
        """To the CPU; a module that still is on the meta device stays there: Lightning moves it when a set-up fails, too, and must not
        hide that failure behind another one."""
        return self if any(parameter.is_meta for parameter in self.parameters()) else super().cpu()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Raises CheckpointError, in one line, where the weights are those of another model."""
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            _, *lines = str(error).splitlines() or [""]
            if not lines:
                raise
            more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
            found = " ".join(lines[0].split())[:300]
            raise CheckpointError(f"the checkpoint is of another model than the configuration builds: {found}{more}") from error

    def _evaluate(self, batch: Batch, dataloader_idx: int, stage: str) -> None:
        name = self._loader_name(dataloader_idx, stage)
        if name not in self.meters:
            self._pool()
        meter = self.meters.setdefault(name, Meter())
        for name, score in self.root(batch, self.root.reading(batch.source)).items():
            meter.add(f"{name}/loss", score.sum, score.count)
            for stat, (total, count) in score.stats.items():
                meter.add(f"{name}/{stat}", total, count)

    def _pool(self) -> None:
        """What the objectives saw of the validation set that is over."""
        pooled = self.root.pooled()
        for name, (value, count) in pooled.items() if self.meters else ():
            next(reversed(self.meters.values())).add(name, value, count)

    def _loader_name(self, index: int, stage: str) -> str:
        names = list(getattr(getattr(self.trainer, "datamodule", None), "val_names", ()))
        many = len(names) > 1 and index < len(names)
        return f"{stage}/{names[index]}" if many and index > 0 else stage

    def _start_evaluation(self, counts: Sequence[int | float]) -> None:
        self.meters = {}
        distributed.agree({"the number of evaluation batches (every rank needs as many)": list(counts)})

    def _end_evaluation(self) -> None:
        self._pool()
        weights = {f"{name}/loss": float(objective.weight) for name, objective in self.root.objectives.items()}
        for prefix, meter in self.meters.items():
            values = meter.read(self.device)
            if values:
                values["loss"] = sum(weight * values[name] for name, weight in weights.items() if name in values)
            for name, value in values.items():
                self.log(f"{prefix}/{name}", value, rank_zero_only=False, sync_dist=False)
            if prefix == "val" and values and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
                self.lr_schedulers().validated(values["loss"])

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Losses (``val/loss`` is their weighted sum, as in training) and metrics of all objectives; means are exact over batches and
        ranks. Of several validation sets the first has the plain names, the others ``val/<set>/...``."""
        self._evaluate(batch, dataloader_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As ``validation_step``."""
        self._evaluate(batch, dataloader_idx, "test")

    def on_validation_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.num_sanity_val_batches if self.trainer.sanity_checking else self.trainer.num_val_batches)

    def on_test_epoch_start(self) -> None:
        self._start_evaluation(self.trainer.num_test_batches)

    def on_validation_epoch_end(self) -> None:
        self._end_evaluation()

    def on_test_epoch_end(self) -> None:
        self._end_evaluation()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """``keys``, and for each view the hidden states of the batch as it is; ``<objective>/score`` where an objective scores pairs."""
        hidden = self.root(batch, None, "hidden")
        found: dict[str, Any] = {"keys": batch.keys, **hidden}
        for view in self.root.order():
            for name in view.names:
                if callable(score := getattr(self.root.objectives[name], "score", None)):
                    found[f"{name}/score"] = score(hidden[view.name])
        return found

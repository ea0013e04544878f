"""Retrieval, matching and masked-word accuracy during training, on the live model, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mmpretrain.data import regions_info
from mmpretrain.data.tags import tagger
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result
from mmpretrain.evaluate.suite import MEASUREMENTS, Limits, Progress, evaluate, metrics

_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Measure(pl.Callback):
    """At validations, measures what the model can do on the validation sets and logs ``val/retrieval/<set>/i2t_R@1`` and the like.

    Every rank computes the same numbers: sharded parameters are gathered by the forward of the root, which all ranks must enter.

    Args:
        every: at every so many validations.
        samples: most samples of each measurement.
        retrieval: most images for retrieval; None: ``samples``. A fusion model scores retrieval x retrieval x captions pairs, of the
            first set only.
        captions: of each image in retrieval; None: all, or what keeps a fusion model within 65,536 pairs.
        only: what to measure, out of ``retrieval``, ``matching``, ``mlm`` and ``zeroshot``.
        weights: ``raw``, ``ema``, or ``auto``: the average where the run keeps one.
    """

    def __init__(
        self,
        every: int = 1,
        samples: int = 128,
        retrieval: int | None = 64,
        captions: int | None = 1,
        only: Sequence[str] = MEASUREMENTS,
        weights: Literal["auto", "raw", "ema"] = "auto",
    ) -> None:
        if every < 1 or samples < 2 or (retrieval is not None and retrieval < 2):
            raise ValueError(f"Measure: every={every} must be at least 1, samples={samples} and retrieval={retrieval} at least 2")
        if unknown := [name for name in only if name not in MEASUREMENTS]:
            raise ValueError(f"Measure: only={unknown[0]!r} is not one of {', '.join(MEASUREMENTS)}")
        if weights not in ("auto", "raw", "ema"):
            raise ValueError(f"Measure: weights={weights!r} must be auto, raw or ema")
        self.every, self.samples, self.retrieval, self.captions = every, samples, retrieval, captions
        self.only, self.weights = tuple(only), weights
        self.results: list[Result] = []
        self._seen = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.weights == "ema" and stage == "fit" and getattr(pl_module, "ema_decay", None) is None:
            raise ValueError("Measure: weights=ema needs model.ema_decay")

    def state_dict(self) -> dict[str, int]:
        return {"seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Keep the rhythm of ``every`` over a resumption."""
        self._seen = int(state_dict["seen"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._seen += 1
        if (self._seen - 1) % self.every:
            return
        limits = Limits(captions=self.captions, fusion_sets=1).at_most(self.samples)
        if self.retrieval is not None:
            limits = limits._replace(retrieval=min(self.retrieval, self.samples))
        self.results = measure(trainer, pl_module, self.only, limits, self.weights)
        for name, value in metrics(self.results).items():
            pl_module.log(name, value, sync_dist=False, rank_zero_only=False)


def measure(
    trainer: pl.Trainer,
    pl_module: Any,
    only: Sequence[str] = MEASUREMENTS,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    weights: str = "auto",
    progress: Progress | None = None,
) -> list[Result]:
    """What ``evaluate`` finds of the live model on the validation sets of the data module; every rank must call it."""
    averaged = pl_module.ema is not None and weights != "raw"
    with averages(pl_module) if averaged else nullcontext():
        return evaluate(live(trainer, pl_module, "ema" if averaged else "raw"), trainer.datamodule, only, limits, progress=progress)


def live(trainer: pl.Trainer, pl_module: Any, weights: str = "raw") -> Pretrained:
    """The model under training as a ``Pretrained``. All its methods must be called on every rank alike."""
    data, root = trainer.datamodule, pl_module.root
    known, tags = getattr(data, "set", None), getattr(data, "tags", None)
    info = None if tags is None else data.regions_info or regions_info.check_readers(data.val_readers.values())
    return Pretrained.from_parts(
        root.model,
        root.objectives,
        data.tokenizer,
        data.transform,
        data.vocabulary,
        config=pl_module.config,
        weights=weights,
        source=f"step {trainer.global_step}",
        shown=getattr(data, "shown", Shown()),
        by_source={} if known is None else {name: known.shown(name) for name in known.specs if name},
        tagger=None if tags is None else tagger(tags, info),
        runner=lambda function: root(function, mode="call"),
        autocast=_AUTOCAST.get(str(trainer.precision)),
    )


@contextmanager
def averages(pl_module: Any) -> Iterator[None]:
    """The averaged parameters in place of the raw ones. Gathered copies of the root are dropped before and after."""
    _drop(pl_module.root)
    with pl_module.ema_weights():
        try:
            yield
        finally:
            _drop(pl_module.root)


def _drop(root: nn.Module) -> None:
    """Under FSDP2 the root keeps its gathered parameters after a forward; what is written to the shards would not be seen."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

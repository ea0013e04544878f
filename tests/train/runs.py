"""Short runs of the fake system, and what they leave behind, for comparison between layouts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from train.fakes import FakeContrast, FakeData, FakeMatch, FakeMLM, FakeModel

from mmpretrain.methods.adversarial import Adversarial
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.train.trainer import Trainer


class Trace(NamedTuple):
    losses: list[float]  # mean over ranks, per step
    norms: list[float]
    parameters: dict[str, Tensor]  # full tensors
    metrics: dict[str, float]
    tied: bool


class Recorder(pl.Callback):
    """Loss and gradient norm of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Pretrain, outputs: Any, batch: Any, index: int) -> None:
        loss = outputs["loss"].detach().clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(loss)
            loss /= torch.distributed.get_world_size()
        self.losses.append(loss.item())
        self.norms.append(module.grad_norm.item())


def quiet() -> None:
    """No hints of Lightning in test output."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def build(contrast: bool = False, dropout: float = 0.0, optimizer: Mapping[str, Any] | None = None, **settings: Any) -> Pretrain:
    """The fake system, the same parameters every time."""
    torch.manual_seed(0)
    if "adversarial" in settings:
        settings["adversarial"] = Adversarial(**settings["adversarial"])
    objectives = {"mlm": FakeMLM(), "match": FakeMatch(view="match", weight=0.5)}
    if contrast:
        objectives = {"contrast": FakeContrast(view="match"), **objectives}
    return Pretrain(FakeModel(dropout), objectives, Optimizer(lr=3e-3, **(optimizer or {})), WarmupLinear(warmup=2, total=10), **settings)


def trainer(steps: int = 10, callbacks: list[pl.Callback] | None = None, **flags: Any) -> Trainer:
    """A silent trainer on the CPU."""
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{**defaults, **silent, "max_steps": steps, "max_epochs": -1, "callbacks": callbacks or [], **flags})


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run(module: Pretrain, steps: int = 10, ckpt_path: str | None = None, data: FakeData | None = None, **flags: Any) -> Trace:
    """Fit and record."""
    quiet()
    recorder = Recorder()
    callbacks = [recorder, *flags.pop("callbacks", [])]
    fitter = trainer(steps, callbacks, **flags)
    fitter.fit(module, datamodule=data or FakeData(), ckpt_path=ckpt_path, weights_only=True)
    root = module.root
    parameters = {name: full(p) for name, p in root.named_parameters()}
    tied = "mlm" not in root.objectives or root.objectives["mlm"].decoder.weight is root.model.words.weight
    metrics = {name: float(value) for name, value in fitter.callback_metrics.items()}
    return Trace(recorder.losses, recorder.norms, parameters, metrics, tied)


def largest(a: list[float], b: list[float]) -> float:
    """Largest relative difference."""
    assert len(a) == len(b)
    return max(abs(x - y) / max(1.0, abs(x)) for x, y in zip(a, b, strict=True))


def drift(a: Trace, b: Trace) -> float:
    """Largest difference of parameters, without the attention key bias (its gradient is zero in theory, noise in practice)."""
    assert a.parameters.keys() == b.parameters.keys()
    worst = 0.0
    for name, x in a.parameters.items():
        difference = (x - b.parameters[name]).abs()
        if name.endswith("qkv.bias"):
            third = len(x) // 3
            difference = torch.cat([difference[:third], difference[2 * third :]])
        worst = max(worst, difference.max().item())
    return worst

"""Transforms of a model for the tests, and, as a script, ``transformed.py KIND``: two ranks that apply one."""

from __future__ import annotations

import sys
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn
from train.runs import build, full, quiet, trainer

from mmpretrain.methods.transform import Around, ModelTransform


class Fill(ModelTransform):
    """Every parameter gets a value; the call is noted."""

    initialises: ClassVar[bool] = True

    def __init__(self, value: float = 0.5) -> None:
        self.value, self.calls = value, 0

    @torch.no_grad()
    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        self.calls += 1
        for parameter in model.parameters():
            parameter.fill_(self.value)
        return model


class Change(Fill):
    """The same, as a change of the model itself, which every command makes anew."""

    initialises: ClassVar[bool] = False


class ByRank(Fill):
    """Other values on every rank: a mistake."""

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        self.value = float(dist.get_rank())
        return super().__call__(model, around)


class OneFails(Fill):
    """The second rank does not find its file."""

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        if dist.get_rank() == 1:
            raise FileNotFoundError("no such file of weights")
        return super().__call__(model, around)


class Draws(Fill):
    """Random values, from the generator of the process."""

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        return model


KINDS = {"fill": Fill, "rank": ByRank, "fails": OneFails, "draws": Draws}


def main(kind: str, strategy: str) -> None:
    """Print the first values of the word table, or the error of this rank."""
    from train.fakes import FakeData

    quiet()
    torch.manual_seed(int(dist.get_rank()) if dist.is_initialized() else 0)
    module = build(transforms=[KINDS[kind]()])
    module.optimizer.lr = 0.0
    try:
        trainer(1, strategy=strategy, devices=2).fit(module, datamodule=FakeData())
    except (RuntimeError, OSError) as error:
        print(f"refused: {type(error).__name__}: {error}", flush=True)
        return
    print("values", full(module.root.model.words.weight)[0, :2].tolist(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

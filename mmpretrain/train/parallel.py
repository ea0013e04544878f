"""How blocks are wrapped and gradients are synchronised under each strategy. Order: compile, checkpointing, sharding."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mmpretrain.train.pretraining import Pretraining, assert_tied, ties
from mmpretrain.train.strategies import FSDP2Strategy


def prepare(root: Pretraining, strategy: Any, checkpointing: bool = False, compile: bool = False) -> None:
    """Wrap the blocks of ``root`` and shard it where ``strategy`` is FSDP2.

    Raises:
        ValueError: a strategy that this engine does not know.
        RuntimeError: the plan has untied parameters that were one.
    """
    groups = ties(root)
    for block in root.blocks():
        if compile:
            block.forward = torch.compile(block.forward)  # what is run again too: the compiler does not look into a recomputation
        if checkpointing:
            recompute(block)
    if isinstance(strategy, FSDP2Strategy):
        strategy.shard(root, root.blocks())
    elif isinstance(strategy, DDPStrategy) and not isinstance(strategy, DeepSpeedStrategy):
        # what a step leaves out (a head, a pooler) keeps grad None on every rank, so that AdamW's momentum does not move it
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    elif not (strategy is None or isinstance(strategy, SingleDeviceStrategy)):
        raise ValueError(f"trainer.strategy: {type(strategy).__name__} would not train this system right; take auto, ddp, fsdp2 or zero2")
    assert_tied(root, groups)


def recompute(block: nn.Module) -> None:
    """Keep only the inputs of ``block`` and run it again in the backward. Names of parameters stay as they are."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def set_gradient_sync(strategy: Any, root: nn.Module, sync: bool) -> None:
    """Whether the next backward reduces gradients over ranks: only the last one of a step does."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(sync)
    elif isinstance(strategy.model, DistributedDataParallel):
        strategy.model.require_backward_grad_sync = sync

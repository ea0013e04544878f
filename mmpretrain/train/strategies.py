"""FSDP2 under Lightning's Trainer: sharded data parallelism that also runs on the CPU with gloo, so that every plan is tested.

Registered names: ``fsdp2`` and ``zero3`` (parameters, gradients and optimiser states sharded), ``zero2`` (parameters kept whole
between forward and backward). A name takes no arguments; for those write ``strategy: {class_path:
mmpretrain.train.strategies.FSDP2Strategy, init_args: {...}}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import fully_shard


class FSDP2Strategy(ModelParallelStrategy):
    """``fully_shard`` per block and root over all ranks.

    Args:
        reshard_after_forward: free gathered parameters after the forward (ZeRO-3); False keeps them until the backward (ZeRO-2).
        process_group_backend: ``gloo``, ``nccl``; None: by device.
    """

    strategy_name = "fsdp2"

    def __init__(self, reshard_after_forward: bool = True, process_group_backend: str | None = None) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )
        self.reshard_after_forward = reshard_after_forward

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes  # Lightning's "auto" is the number of nodes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False  # DTensor and inference mode do not mix
        super().setup(trainer)

    def shard(self, root: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Shard in place: each block is a unit; tables and heads stay in the root's unit, so that ties hold."""
        mesh = self.device_mesh["data_parallel"]
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, with plain types only."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def register() -> None:
    """Make the names known to ``--trainer.strategy``; harmless when called again."""
    for name, description, arguments in (
        ("fsdp2", "FSDP2: parameters, gradients and optimiser states sharded over all ranks", {}),
        ("zero3", "the same as fsdp2", {}),
        ("zero2", "FSDP2 with parameters kept whole between forward and backward", {"reshard_after_forward": False}),
    ):
        StrategyRegistry.register(name, FSDP2Strategy, description=description, override=True, **arguments)


register()

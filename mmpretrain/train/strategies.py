"""FSDP2 under Lightning's Trainer: sharded data parallelism that also runs on the CPU with gloo, so that every plan is tested.

Registered names: ``fsdp2`` and ``zero3`` (parameters, gradients and optimiser states sharded), ``zero2`` (parameters kept whole
between forward and backward). A name takes no arguments; for those write ``strategy: {class_path:
mmpretrain.train.strategies.FSDP2Strategy, init_args: {...}}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mmpretrain.train import distributed
from mmpretrain.train.atomic import AtomicCheckpointIO
from mmpretrain.train.optim import trained


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
        self.checkpoint_io = AtomicCheckpointIO()

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_processes * self.num_nodes  # Lightning's "auto" is the number of nodes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False  # DTensor and inference mode do not mix
        super().setup(trainer)

    def shard(self, root: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Shard in place: each block is a unit; tables and heads stay in the root's unit, so that ties hold.
        Rank 0's values are everybody's, however each rank was seeded."""
        distributed.equalise((*root.parameters(), *root.buffers()), self.root_device)
        mesh = self.device_mesh["data_parallel"]
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The whole state in the form of one process; empty but on rank 0. Every rank must call it. (torch's own collector fails on
        parameters that have never had a gradient, a head that was not drawn yet or an unused pooler.)"""
        found = getattr(optimizer, "_optimizer", optimizer).state_dict()
        whole = {key: {name: _whole(value) for name, value in entry.items()} for key, entry in found["state"].items()}
        return {**found, "state": whole} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Verified, plain types only, the same file on every rank; model and optimiser are restored from it.

        Raises:
            CheckpointError: no usable file.
        """
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        assert self.model is not None and self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=self.lightning_module.strict_loading)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        # not strict: validation has no optimisers although the checkpoint has their states (``Pretrain`` refuses to fit without states)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            restore_optimizer(optimizer, state)
        return checkpoint


def _whole(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a whole state into an optimiser whose parameters may be sharded."""
    parameters = list(trained(optimizer))
    sharded = {}
    for key, entry in state["state"].items():
        parameter = parameters[key]
        like = isinstance(parameter, DTensor)
        sharded[key] = {
            name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
            if like and isinstance(value, torch.Tensor) and value.shape == parameter.shape
            else value
            for name, value in entry.items()
        }
    optimizer.load_state_dict({**state, "state": sharded})


def register() -> None:
    """Make the names known to ``--trainer.strategy``; harmless when called again."""
    for name, description, arguments in (
        ("fsdp2", "FSDP2: parameters, gradients and optimiser states sharded over all ranks", {}),
        ("zero3", "the same as fsdp2", {}),
        ("zero2", "FSDP2 with parameters kept whole between forward and backward", {"reshard_after_forward": False}),
    ):
        StrategyRegistry.register(name, FSDP2Strategy, description=description, override=True, **arguments)


register()

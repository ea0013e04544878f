"""A rank that ends with collectives under way that nobody waits for: ``leaving.py whole | failed``."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from mmpretrain.train import distributed


def whole() -> None:
    """Two thousand sums whose tensors only gloo's threads hold."""
    with distributed.left_at_exit():
        dist.init_process_group("gloo")
    for _ in range(2000):
        dist.all_reduce(torch.ones(1000), async_op=True)


def failed() -> None:
    """Each rank awaits what the other is to send, more often than gloo has threads, and its run ends with an error."""
    with distributed.left_at_exit():
        dist.init_process_group("gloo")
        for _ in range(5):
            dist.broadcast(torch.ones(1000), src=1 - dist.get_rank(), async_op=True)
        raise ValueError("the run failed")


if __name__ == "__main__":
    whole() if sys.argv[1] == "whole" else failed()

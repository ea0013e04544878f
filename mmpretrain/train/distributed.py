"""The few collectives of training, all harmless without a process group."""

from __future__ import annotations

import atexit
import contextlib
import gc
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """True when a process group with more than one rank exists."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Ranks; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def sum_(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
    return tensor


def min_(tensor: Tensor) -> Tensor:
    """Minimum over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return tensor


def max_(tensor: Tensor) -> Tensor:
    """Maximum over ranks, in place."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


_host: tuple[Any, dist.ProcessGroup | None] | None = None  # the default process group, and one of gloo beside it


def host_max(value: int) -> int:
    """Maximum over ranks of a number on the host. No device is asked or waited for. Every rank must call it."""
    global _host
    if not is_distributed():
        return value
    if _host is None or _host[0] is not dist.group.WORLD:
        known = "gloo" in str(dist.get_backend()) or "gloo" in str(dist.get_backend_config())
        made: Any = None if known else dist.new_group(backend="gloo")
        _host = (dist.group.WORLD, made)
    box = torch.tensor([value])
    dist.all_reduce(box, op=dist.ReduceOp.MAX, group=_host[1])
    return int(box)


@contextmanager
def left_at_exit() -> Iterator[None]:
    """The process group that is made inside is left when the program ends, before the interpreter goes. Its threads would else let go
    of tensors in an interpreter that is gone, and the program that had done all its work would end by SIGABRT (PyTorch #179291).
    After an error it is not left: that would wait for ranks that may never come; only threads that still work are waited for."""
    atexit.unregister(leave)
    atexit.unregister(let_rest)
    atexit.register(let_rest)
    yield
    atexit.register(leave)


def leave() -> None:
    """Leave the process group: end its threads."""
    global _host
    _host = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # what holds the group, a wrapped model say, holds its threads
        let_rest()


def let_rest(seconds: float = 5.0) -> None:
    """Wait until gloo's threads, if there are any (DTensor's caches hold a group for as long as the program lives), work no more: a
    thread that waits for another rank does not count. Where the system shows no threads (not on Linux) nobody is waited for."""
    deadline = time.monotonic() + seconds
    working = bool(_states())
    while working and time.monotonic() < deadline:
        time.sleep(0.02)  # gives them the interpreter, too
        working = "R" in _states()


def _states() -> list[str]:
    """R (works), S (sleeps) or another letter of ``proc(5)``, for every thread of gloo."""
    found = []
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread is gone
            _, name, state = path.read_text().replace("(", ")").split(")")
            found += [state.split()[0]] if "gloo" in name else []
    return found


def equalise(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Rank 0's values into the tensors of every rank, by way of ``device``, one at a time: NCCL knows no tensors on the CPU."""
    if is_distributed():
        for tensor in tensors:
            there = tensor.detach().to(device)
            dist.broadcast(there, src=0)
            tensor.detach().copy_(there)


def broadcast_object(value: T, source: int = 0) -> T:
    """What rank ``source`` holds, on every rank."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """What every rank holds, on every rank."""
    if not is_distributed():
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def agree(facts: Mapping[str, Any]) -> None:
    """Raise RuntimeError on every rank, naming what differs, unless all ranks hold the same facts."""
    everywhere = gather_objects(dict(facts))
    for name, value in everywhere[0].items():
        found = [other[name] for other in everywhere]
        if any(one != value for one in found):
            raise RuntimeError(f"ranks disagree on {name}: {', '.join(f'{one} on rank {i}' for i, one in enumerate(found))}")

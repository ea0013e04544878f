"""Batches on their way from a worker to the training process, in shared memory: where there is no room for one, the run says so at once.

torch moves the tensors of an item into shared memory in a thread of the worker, when the item has left it. An error there reaches nobody,
and the training process waits for ever, or until ``data.timeout``. Here they are moved before the item leaves.
"""

from __future__ import annotations

import contextlib
import errno
import io
import pickle
import shutil
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor

from mmpretrain.data.errors import DataError

T = TypeVar("T")
_FOLDER = "/dev/shm"
_FILES = "Too many open files"


class NoRoom(DataError):
    """There is no shared memory, or no file descriptor, for a batch.

    Args:
        said: by the system; torch hands over the traceback of a worker. The message is one line in either case.
    """

    def __init__(self, said: str) -> None:
        if _FILES in said:
            why, remedy = "the processes have no file descriptor left", "raise the limit (ulimit -n 65536), or lower"
        else:
            try:
                size = f" ({shutil.disk_usage(_FOLDER).total >> 20} MiB)"
            except OSError:
                size = ""
            why, remedy = f"{_FOLDER}{size} is full", "give it more room (docker run --shm-size=8g, mount -o remount,size=8g), or lower"
        super().__init__(
            f"data: no shared memory for the batches of the workers of a DataLoader: {why}; {remedy} data.workers, data.prefetch or "
            "data.batch_size; data.workers=0 needs none"
        )


@contextlib.contextmanager
def room() -> Iterator[None]:
    """Within, a lack of shared memory is a :class:`NoRoom`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        lacks = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE)
        if not lacks and "shared memory" not in str(error):
            raise
        raise NoRoom(str(error)) from error


class _Mover(pickle.Pickler):
    """Walks through whatever can be pickled; its tensors are moved, not written."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        if obj.device.type == "cpu" and obj.untyped_storage().nbytes():
            obj.share_memory_()
        return True


def share(item: T) -> T:
    """``item`` with all its tensors in shared memory.

    Raises:
        NoRoom: for one of them.
    """
    with room():
        _Mover(io.BytesIO()).dump(item)
    return item

"""Where files that can be made again are kept, how they are written, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of an OSError that says that there is no room


def cache_root() -> Path:
    """``$MMPRETRAIN_CACHE``, else ``~/.cache/mmpretrain``. It may not exist yet."""
    return Path(os.environ.get("MMPRETRAIN_CACHE") or Path.home() / ".cache" / "mmpretrain").expanduser()


def writable(folder: Path) -> bool:
    """Whether files may be made in ``folder``. A folder without any write bit is respected as read-only, also for root."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside that names no file names ``path``: those of a write, such as that the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


@contextlib.contextmanager
def locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of ``name`` among the processes of this machine.

    Without a writable cache folder or without flock there is no lock: writes are atomic anyway.

    Args:
        wait: until it is free; otherwise the value is False where another process has it.
    """
    folder = cache_root() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / hashlib.sha256(name.encode()).hexdigest()[:24], "wb")
    except OSError:
        yield True
        return
    with file:
        held = flock(file.fileno(), wait=wait)
        try:
            yield held
        finally:
            if held:
                unlock(file.fileno())


def flock(file: int, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file; False where another one holds it and ``wait`` is False. True, without a lock, where there are none."""
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (OSError, ImportError):
        return True
    return True


def unlock(file: int) -> None:
    """Give up the lock of an open file, also where a forked process has it open too."""
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_UN)

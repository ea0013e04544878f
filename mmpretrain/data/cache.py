"""Where files that can be made again are kept, how they are written, and locks between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_root() -> Path:
    """``$MMPRETRAIN_CACHE``, else ``~/.cache/mmpretrain``. It may not exist yet."""
    return Path(os.environ.get("MMPRETRAIN_CACHE") or Path.home() / ".cache" / "mmpretrain").expanduser()


def writable(folder: Path) -> bool:
    """Whether files may be made in ``folder``. A folder without any write bit is respected as read-only, also for root."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` so that a reader sees the old or the new file, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
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
def locked(name: str) -> Iterator[None]:
    """Hold the lock of ``name`` among the processes of this machine.

    Without a writable cache folder or without flock there is no lock: writes are atomic anyway.
    """
    folder = cache_root() / "locks"
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / hashlib.sha256(name.encode()).hexdigest()[:24], "wb")
    except (OSError, ImportError):
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

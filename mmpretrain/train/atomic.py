"""Files that are either whole or absent: written beside their target on the same file system, synchronised, then renamed.

Lightning 2.6 writes checkpoints through TMPDIR; where that is another file system, its rename is a copy and a kill leaves a torn
file. Here each checkpoint has a manifest ``NAME.json`` with size and SHA-256, so that a torn or altered file is found before use.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from mmpretrain.train import distributed
from mmpretrain.train.payload import CheckpointError, assert_plain


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an error, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def point(link: Path, target: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target`` in the same folder; at no moment is there none."""
    fresh = link.with_name(f".{link.name}.tmp-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.name)
    os.replace(fresh, link)
    sync_directory(link.parent)


class _Hashing:
    """A write-only file that hashes what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha.update(data)
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = error  # torch's writer makes another error of it
            raise
        self.bytes += written
        return written

    def flush(self) -> None:
        self.file.flush()


def manifest_path(path: Path) -> Path:
    """Where the manifest of a checkpoint lies."""
    return path.with_name(path.name + ".json")


def _recorded(manifest: Path) -> str | None:
    """The SHA-256 that a manifest names; None where there is none, or it is unreadable: its checkpoint is passed over anyway."""
    try:
        entry = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    sha = entry.get("sha256") if isinstance(entry, dict) else None
    return sha if isinstance(sha, str) else None


def save(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint and its manifest. While an existing file is replaced the manifest names both versions, so that a kill at
    any moment leaves a file that its manifest knows.

    Raises:
        TypeError: the checkpoint holds something that would not load with ``weights_only=True``.
        OSError: disk full, no permission; the old file is untouched.
    """
    assert_plain(checkpoint)
    manifest = manifest_path(path)
    old = _recorded(manifest) if path.exists() else None
    with replacing(path) as file:
        hashing = _Hashing(file)
        try:
            torch.save(checkpoint, cast(IO[bytes], hashing))
        except RuntimeError:
            if hashing.error is not None:
                raise hashing.error from None
            raise
        entry = {"file": path.name, "bytes": hashing.bytes, "sha256": hashing.sha.hexdigest(), "step": checkpoint.get("global_step")}
        write_text(manifest, json.dumps({**entry, "previous": old}) + "\n")
    if old is not None:
        write_text(manifest, json.dumps({**entry, "previous": None}) + "\n")


def fault(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when it is whole. Without a manifest (a file from elsewhere) it must be an archive with
    an end, as ``torch.save`` writes."""
    if not path.is_file():
        return "there is no such file"
    manifest = manifest_path(path)
    if not manifest.exists():
        return None if zipfile.is_zipfile(path) else "not a readable checkpoint (neither a manifest nor a whole archive)"
    try:
        entry = json.loads(manifest.read_bytes())
        known = {entry["sha256"], entry.get("previous")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest {manifest.name} is unreadable ({error})"
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            sha.update(chunk)
    return None if sha.hexdigest() in known else f"its {path.stat().st_size} bytes do not match its manifest"


def load(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint, verified, with plain types only.

    Raises:
        CheckpointError: missing, torn, altered, or holding more than plain types.
    """
    if (reason := fault(path)) is not None:
        raise CheckpointError(f"{path}: {reason}")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # of damaged bytes the unpickler of torch may say anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({unreadable(error)})") from error


def unreadable(error: Exception) -> str:
    """Why a file is no checkpoint, in short. What torch says of pickles is not repeated: it advises to load them all the same,
    or to save them anew."""
    if isinstance(error, pickle.UnpicklingError) or "torch.save" in str(error):
        return "it is damaged, or holds more than tensors and plain types"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's way to files. With ``tolerant`` an OSError of a save is kept in ``error`` (ranks that wait are not left waiting)."""

    def __init__(self, tolerant: bool = False) -> None:
        self.tolerant, self.error = tolerant, None  # type: bool, OSError | None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.error = None
        try:
            save(checkpoint, Path(path))
        except OSError as error:
            if not self.tolerant:
                raise
            self.error = error

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        return load(shared_choice(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        for file in (Path(path), manifest_path(Path(path))):
            file.unlink(missing_ok=True)


def steps_in(directory: Path) -> list[Path]:
    """Checkpoints of a folder, newest step first."""
    return sorted(directory.glob("step-*.ckpt"), reverse=True)


def choose(path: Path) -> Path:
    """The file to load for a path: for ``.../last.ckpt`` the newest whole checkpoint of the folder, saying which were passed over.

    Raises:
        CheckpointError: nothing there is whole.
    """
    if path.name != "last.ckpt":
        target = path.resolve()
        if (reason := fault(target)) is not None:
            raise CheckpointError(f"{path}: {reason}")
        return target
    first = [path.resolve()] if path.exists() else []
    candidates = first + [file for file in steps_in(path.parent) if file.resolve() not in first]
    for candidate in candidates:
        reason = fault(candidate)
        if reason is None:
            return candidate
        print(f"{candidate}: {reason}; trying the checkpoint before it", flush=True)
    raise CheckpointError(f"{path.parent}: no usable checkpoint" + ("" if candidates else ", the folder holds none"))


def shared_choice(path: str | Path) -> Path:
    """``choose`` on rank 0, for all ranks, so that they never load different files."""
    answer: tuple[str, bool] | None = None
    if distributed.rank() == 0:
        try:
            answer = (str(choose(Path(path))), True)
        except CheckpointError as error:
            answer = (str(error), False)
    text, fine = distributed.broadcast_object(answer)
    if not fine:
        raise CheckpointError(text)
    return Path(text)

"""Shards of generated scenes: any amount with ``write``, the embedded default with ``embedded``, the command with ``main``.

A sample depends on (seed, split, index) alone, so the files are the same whatever the number of processes. Worker processes are
plain sub-processes that write whole shards: nothing is forked from a program that may already run threads or hold a GPU, and the
caller's own script is not imported again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import FULL
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.engine import Lines
from mmpretrain.data_tools.scenes_samples import SPLITS, VERSION, members

SHARD_SIZE = 512
IMAGE_SIZE = 64
SIDES = (32, 1024)  # of pictures, least and most
EMBEDDED = {"train": 10_000, "val": 512, "compositional": 512, "pairs": 512, "pairs_val": 256}
_CHUNK = 32  # samples between two reports of a worker
_Report = Callable[[int], None]


def shard_bytes(seed: int, split: str, start: int, stop: int, size: int = IMAGE_SIZE, report: _Report | None = None) -> bytes:
    """A USTAR archive of samples start..stop-1: times, owners and order fixed, so equal bytes for one version of Pillow."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(start, stop):
            for name, data in members(seed, split, index, size):
                entry = tarfile.TarInfo(name)  # mtime 0, mode 0644, no owner
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
            if report and ((index - start + 1) % _CHUNK == 0 or index == stop - 1):
                report((index - start) % _CHUNK + 1)
    return buffer.getvalue()


def _write_shards(task: dict[str, Any], report: _Report) -> None:
    """The shards ``task["numbers"]`` of a set."""
    for number in task["numbers"]:
        start = number * task["shard_size"]
        stop = min(task["n"], start + task["shard_size"])
        data = shard_bytes(task["seed"], task["split"], start, stop, task["size"], report)
        Path(task["out"], f"{number:05d}.tar").write_bytes(data)


def _run_workers(task: dict[str, Any], workers: int, report: _Report) -> None:
    """Shards dealt out to ``workers`` sub-processes, each a plain ``python -m`` of this module."""
    root = str(Path(__import__("mmpretrain").__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []
    refused: list[list[Any]] = []

    def listen(process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            found = json.loads(line)
            refused.append(found) if isinstance(found, list) else report(found)

    try:
        for worker in range(workers):
            own = json.dumps({**task, "numbers": task["numbers"][worker::workers]})
            command = [sys.executable, "-m", "mmpretrain.data_tools.scenes", "--worker", own]
            running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment))
            threads.append(threading.Thread(target=listen, args=(running[-1],), daemon=True))
            threads[-1].start()
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    for thread in threads:
        thread.join()
    if refused:
        raise OSError(*refused[0])
    if any(codes):
        code = next(filter(None, codes))
        raise RuntimeError(f"a process that wrote scenes for {task['out']} ended with code {code}; its error stands above")


def _worker(text: str) -> int:
    """A sub-process: prints a number for each report; an OSError, which ends it, as the list of its arguments."""
    try:
        _write_shards(json.loads(text), lambda count: print(count, flush=True))
    except OSError as error:
        print(json.dumps([str(error)] if error.errno is None else [error.errno, error.strerror, error.filename]), flush=True)
        return 1
    return 0


@contextlib.contextmanager
def _progress(total: int, title: str, wanted: bool) -> Iterator[_Report]:
    """A bar on stderr where that is a terminal, else a line at times, where it is wanted."""
    if not (wanted and sys.stderr.isatty()):
        yield Lines(total, 0, title, wanted)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda n: progress.advance(bar, n)


def _workers(wanted: int | None, shards: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or min(cores, 8), shards))


def write(
    out: Path,
    n: int,
    seed: int,
    split: str,
    shard_size: int = SHARD_SIZE,
    progress: bool = False,
    size: int = IMAGE_SIZE,
    workers: int | None = None,
) -> Path:
    """Write ``n`` samples of ``split`` into the new folder ``out``: NNNNN.tar and manifest.json. The folder appears complete or not at all.

    split: one of SPLITS; ``pairs`` and ``pairs_val`` are samples of two pictures. size: side of the pictures in pixels; the worlds and
    the texts do not depend on it. workers: processes, one for each core by default (at most 8); the result does not depend on it.

    Raises ValueError for an impossible argument, FileExistsError if ``out`` exists and is not empty, OSError of this process or a worker.
    """
    out = Path(out)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: it must be one of {', '.join(SPLITS)}")
    if n < 1 or shard_size < 1:
        raise ValueError(f"n = {n} and shard_size = {shard_size} must be at least 1")
    if not SIDES[0] <= size <= SIDES[1]:
        raise ValueError(f"size = {size}: the side of the pictures must be {SIDES[0]} to {SIDES[1]} pixels")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    shards = -(-n // shard_size)
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    task = {"out": str(temporary), "n": n, "seed": seed, "split": split, "shard_size": shard_size, "size": size}
    try:
        with _progress(n, f"scenes: {split}", progress) as report:
            count = _workers(workers, shards) if n > 2 * _CHUNK else 1
            if count == 1:
                _write_shards({**task, "numbers": list(range(shards))}, report)
            else:
                _run_workers({**task, "numbers": list(range(shards))}, count, report)
        _write_manifest(temporary, n, seed, split, shard_size, size)
        os.replace(temporary, out)
    except OSError as error:
        if error.errno in FULL:
            error.filename = str(out)  # the name that is known
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _write_manifest(folder: Path, n: int, seed: int, split: str, shard_size: int, size: int) -> None:
    shards = []
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        data = path.read_bytes()
        samples = min(n, (number + 1) * shard_size) - number * shard_size
        shards.append({"file": path.name, "samples": samples, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    generator = {"name": "scenes", "version": VERSION, "seed": seed, "split": split, "image_size": size}
    manifest = {"name": f"scenes_{split}", "samples": n, "generator": generator, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def complete(folder: Path) -> bool:
    """Whether the folder holds every shard of its manifest in full length."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all((folder / shard["file"]).stat().st_size == shard["bytes"] for shard in manifest["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def cache_folder(cache: Path | None = None) -> Path:
    """``cache``, else $MMPRETRAIN_CACHE, else ~/.cache/mmpretrain."""
    return Path(cache or os.environ.get("MMPRETRAIN_CACHE") or Path.home() / ".cache" / "mmpretrain").expanduser()


@contextlib.contextmanager
def one_process(path: Path, waiting: str) -> Iterator[bool]:
    """One process at a time where the platform has flock; elsewhere the rename alone keeps the folders whole. Yields whether locked.

    waiting: what is said on stderr where another process is at work.
    """
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"mmpretrain: {waiting}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield True


def embedded(
    cache: Path | None = None,
    n: int | None = None,
    seed: int = 0,
    size: int = IMAGE_SIZE,
    progress: bool = True,
    workers: int | None = None,
) -> dict[str, Path]:
    """The folders of the embedded data set by split, made at first use in ``cache_folder(cache)``; safe with several processes at once.

    n: training samples (default EMBEDDED["train"]). Folders are named by generator version, split, n, seed and size, so that another
    wish never overwrites what is there; an incomplete or damaged folder is made again.
    """
    home = cache_folder(cache) / f"scenes-v{VERSION}"
    counts = {**EMBEDDED, "train": n or EMBEDDED["train"]}
    folders = {split: home / f"{split}-n{count}-seed{seed}-{size}px" for split, count in counts.items()}
    if all(complete(folder) for folder in folders.values()):
        return folders
    try:
        home.mkdir(parents=True, exist_ok=True)
        with one_process(home / ".lock", f"another process is making scenes in {home}; waiting for it") as exclusive:
            missing = [split for split in folders if not complete(folders[split])]
            if missing and progress and not sys.stderr.isatty():
                total = sum(counts[split] for split in missing)
                print(f"mmpretrain: making {total} generated scenes in {home}, once", file=sys.stderr)
            for split in missing:
                if exclusive:  # what lies here was left by a process that was killed
                    for left in home.glob(f".tmp-{folders[split].name}-*"):
                        shutil.rmtree(left, ignore_errors=True)
                _make(folders[split], counts[split], seed, split, progress, size, workers)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno not in FULL:
            raise
        remedy = "no room; free space there, or " if error.errno in FULL else ""
        remedy += "set MMPRETRAIN_CACHE to a folder that you may write"
        raise type(error)(f"cannot write the generated scenes to {home}: {remedy}") from error
    return folders


def _make(folder: Path, n: int, seed: int, split: str, progress: bool, size: int, workers: int | None) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    try:
        write(folder, n, seed, split, SHARD_SIZE, progress, size, workers)
    except OSError:
        if not complete(folder):  # without flock another process may have been first
            raise


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """``mmpretrain data scenes --out DIR --n N --seed S [...]``; returns the exit code.

    Raises:
        DataError: an option out of its range.
        OSError: the folder exists or cannot be written.
    """
    parser = parser_class(prog="mmpretrain data scenes", description="Write generated scenes with captions as WebDataset shards.")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the shards and manifest.json")
    parser.add_argument("--n", type=int, required=True, help="how many samples")
    parser.add_argument("--seed", type=int, default=0, help="samples depend on seed, split and index alone (default 0)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default train")
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help=f"side of the pictures in pixels (default {IMAGE_SIZE})")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"samples in one shard (default {SHARD_SIZE})")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one for each core, at most 8)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    chosen = parser.parse_args(args)
    for option, value in (("n", chosen.n), ("shard-size", chosen.shard_size), ("workers", chosen.workers)):
        if value is not None and value < 1:
            raise DataError(f"--{option} {value}: at least 1 is needed")
    if not SIDES[0] <= chosen.size <= SIDES[1]:
        raise DataError(f"--size {chosen.size}: the side of the pictures must be {SIDES[0]} to {SIDES[1]} pixels")
    write(chosen.out, chosen.n, chosen.seed, chosen.split, chosen.shard_size, not chosen.quiet, chosen.size, chosen.workers)
    print(f"{chosen.n} samples of {chosen.split} in {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(_worker(sys.argv[2]))

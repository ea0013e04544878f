"""One function over many items (shards, parts of a table): in this process, in a pool of processes, or on a Ray cluster.

All tools of ``mmpretrain data`` run on it::

    def sizes(item):  # at the top level of a module; JSON types in, JSON types out; files are written by data.cache.write_atomic
        return {"bytes": os.path.getsize(item["path"])}

    run(sizes, {path.name: {"path": str(path)} for path in paths}, title="sizes", workers=4, state=out / ".state")

The engine changes nothing of the results: items and results pass through JSON everywhere, and come back in the order of the items. With
``state`` the result of each finished item is kept in a file, so that the same call after a kill does only the rest. Processes of the pool
are plain ``python -m mmpretrain.data_tools.engine_worker``: nothing is forked from a program that may run threads, the caller's own script
is not imported again, and what passes between them is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpretrain.data.cache import FULL, locked, write_atomic
from mmpretrain.data.errors import DataError

ENGINES = ("local", "ray")
EVERY = 15.0  # seconds between two lines of progress where there is no terminal
_MOST = 64  # processes by default

Function = Callable[[Any], Any]


class WorkerError(RuntimeError):
    """An item failed for a reason that no user can mend. The message names the item; the traceback of the worker is a note."""


def run(
    function: Function,
    items: Mapping[str, Any],
    *,
    title: str = "",
    engine: str = "local",
    workers: int | None = None,
    state: Path | None = None,
    valid: Callable[[str, Any], bool] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """``function(work)`` for every item; name -> result in the order of ``items``.

    Args:
        function: a pure function at the top level of an importable module; takes and returns JSON types.
        items: name -> work. The name stands in messages.
        title: of the progress bar, on stderr.
        engine: ``local`` (processes of this machine) or ``ray`` (``RAY_ADDRESS`` names a cluster; without it one is started here; paths
            must mean the same on every machine of it).
        workers: processes, or items at a time on Ray; one for each core by default. The results do not depend on it. 1: in this process.
        state: a folder for the results of finished items; a second call with the same function and work takes them from there.
        valid: whether a kept result still holds (its output file is there); asked in this process.
        progress: show a bar, or a line at times and at the end where stderr is no terminal.

    Raises:
        DataError: a worker refused its item (DataError, OSError), a process was killed, or Ray is not installed.
        OSError: there was no room for what a worker wrote; names the file.
        WorkerError: any other error in a worker.
        KeyboardInterrupt: Ctrl-C; the processes have ended, and finished items are kept.
    """
    if engine not in ENGINES:
        raise DataError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    ref = reference(function)
    texts = {name: json.dumps(work, sort_keys=True, allow_nan=False) for name, work in items.items()}
    with _State(state, ref, title) as kept:
        found = {name: kept.read(name, text) for name, text in texts.items()}
        done = {name: reply for name, reply in found.items() if reply is not None and (valid is None or valid(name, reply["result"]))}
        left = {name: text for name, text in texts.items() if name not in done}
        with _bar(len(items), len(done), title, progress) as advance:
            for name, reply in _replies(ref, left, engine, worker_count(workers, len(left))):
                if "error" in reply:
                    raise _error(name, reply["error"])
                kept.write(name, texts[name], reply)
                done[name] = reply
                advance()
    return {name: done[name]["result"] for name in items}


def worker_count(wanted: int | None, items: int) -> int:
    """How many processes: as many as asked for (one for each core by default, at most 64), never more than items, at least one."""
    if wanted is not None and wanted < 1:
        raise DataError(f"--workers {wanted}: at least one process is needed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted or min(cores, _MOST), items))


def add_options(parser: argparse._ActionsContainer) -> None:
    """The options that every tool has: ``--workers``, ``--engine`` and ``--quiet``."""
    parser.add_argument("--workers", type=int, help="processes (default: one for each core); the result does not depend on it")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="ray: on a Ray cluster, pip install 'mmpretrain-vl[ray]'")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def options_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`run` from the options of :func:`add_options`."""
    return {"engine": parsed.engine, "workers": parsed.workers, "progress": not parsed.quiet}


def stamp(path: Path) -> list[Any]:
    """What tells whether a file changed, for the work of an item: its path, size and time of change."""
    found = path.stat()
    return [str(path), found.st_size, found.st_mtime_ns]


def reference(function: Function) -> str:
    """``module:name`` of a function.

    Raises:
        ValueError: it cannot be imported by that name (a lambda, an inner function, a function of ``__main__``).
    """
    ref = f"{function.__module__}:{function.__qualname__}"
    if function.__module__ == "__main__" or resolve(ref) is not function:
        raise ValueError(f"{ref} must stand at the top level of an importable module to run in another process")
    return ref


def resolve(ref: str) -> Function | None:
    """The function of ``module:name``; None where there is none."""
    module, _, name = ref.partition(":")
    return getattr(importlib.import_module(module), name, None)


def call(ref: str, text: str) -> dict[str, Any]:
    """One item: ``{"result": ...}`` or ``{"error": {type, message, user, full, trace}}``. The same for pool, Ray and this process."""
    try:
        function = resolve(ref)
        if function is None:
            raise ImportError(f"there is no {ref}")
        result = function(json.loads(text))
        return {"result": json.loads(json.dumps(result, allow_nan=False))}
    except Exception as error:  # noqa: BLE001  whatever it is, it travels to the caller, who raises it with the name of the item
        user = isinstance(error, DataError | OSError)
        message = str(error) or type(error).__name__
        full = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) and error.errno in FULL else None
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.strerror or type(error).__name__}: {error.filename}"
        return {"error": {"type": type(error).__name__, "message": message, "user": user, "full": full, "trace": traceback.format_exc()}}


def _error(name: str, error: Mapping[str, Any]) -> Exception:
    message = error["message"]
    if error["full"]:
        number, reason, file = error["full"]
        return OSError(number, reason, file or name)
    if error["user"]:
        return DataError(message if name in message else f"{name}: {message}")
    made = WorkerError(f"{name}: {error['type']}: {message}")
    made.add_note(f"In the worker:\n{error['trace']}")
    return made


def _replies(ref: str, texts: Mapping[str, str], engine: str, workers: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, reply) as items finish."""
    if engine == "ray":
        from mmpretrain.data_tools.engine_ray import replies
    elif workers == 1:
        yield from ((name, call(ref, text)) for name, text in texts.items())
        return
    else:
        from mmpretrain.data_tools.engine_pool import replies
    with contextlib.closing(replies(ref, texts, workers)) as found:
        yield from found


class _State:
    """The folder with the results of finished items; one process at a time uses it."""

    def __init__(self, folder: Path | None, ref: str, title: str) -> None:
        self.folder, self.ref, self.title = folder, ref, title
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _State:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stack.enter_context(locked(str(self.folder.resolve())))
            for left in self.folder.glob(".*"):  # parts of files that a killed process was writing
                left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _file(self, name: str, text: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(json.dumps([self.ref, name, text]).encode()).hexdigest()[:32]}.json"

    def read(self, name: str, text: str) -> dict[str, Any] | None:
        """The reply kept for an item; None where there is none that can be read."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self._file(name, text).read_text(encoding="utf-8"))
            return found if found["name"] == name and "result" in found else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, name: str, text: str, reply: Mapping[str, Any]) -> None:
        if self.folder is not None:
            body = json.dumps({"name": name, "result": reply["result"]}, allow_nan=False)
            write_atomic(self._file(name, text), body.encode("utf-8"))


@contextlib.contextmanager
def _bar(total: int, done: int, title: str, wanted: bool) -> Iterator[Callable[[], None]]:
    """A bar on stderr where that is a terminal, else lines. Yields what to call for each finished item."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if wanted and done:
        console.print(f"{title}: {done} of {total} were finished before", highlight=False)
    if not wanted or not console.is_terminal:
        line = Lines(total, done, title, wanted)
        yield lambda: line(1)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console) as shown:
        task = shown.add_task(title, total=total, completed=done)
        yield lambda: shown.advance(task)


class Lines:
    """Progress on stderr without a terminal: a line at times, and the last one."""

    def __init__(self, total: int, done: int, title: str, wanted: bool) -> None:
        self.total, self.done, self.title, self.wanted = total, done, title, wanted
        self.last = time.monotonic()

    def __call__(self, n: int) -> None:
        self.done += n
        if self.wanted and (self.done == self.total or time.monotonic() - self.last >= EVERY):
            self.last = time.monotonic()
            print(f"{self.title}: {self.done}/{self.total}", file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    """The environment of a worker: this one, the same import path, one thread for each library."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if isinstance(entry, str))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

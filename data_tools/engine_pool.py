"""Processes of this machine for :mod:`mmpretrain.data_tools.engine`."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.engine import environment

_GRACE = 10.0  # seconds that a process gets to remove what it was writing


def replies(ref: str, texts: Mapping[str, str], workers: int) -> Generator[tuple[str, dict[str, Any]]]:
    """(name, reply) of every item as it finishes. Closing the generator, or an error in it, ends the processes.

    Raises:
        DataError: a process ended by itself (out of memory, a signal), naming its item.
    """
    todo: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, dict[str, Any] | int]] = queue.SimpleQueue()
    for entry in texts.items():
        todo.put(entry)
    command = [sys.executable, "-m", "mmpretrain.data_tools.engine_worker", ref]
    processes: list[subprocess.Popen[str]] = []
    threads: list[threading.Thread] = []
    try:
        for _ in range(workers):
            # a process group of its own: Ctrl-C reaches this process alone, which ends the others
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=environment(),
                start_new_session=True,
            )
            processes.append(process)
            threads.append(threading.Thread(target=_feed, args=(process, todo, done), daemon=True))
            threads[-1].start()
        for _ in range(len(texts)):
            name, reply = done.get()
            if isinstance(reply, int):
                cause = f"signal {signal.Signals(-reply).name}" if reply < 0 else f"code {reply}"
                hint = "; out of memory? Try fewer --workers" if reply == -signal.SIGKILL else ""
                raise DataError(f"{name}: the process that worked on it ended with {cause}{hint}. Run the command again to continue")
            yield name, reply
    finally:
        _end(processes)
        for thread in threads:
            thread.join()
        for process in processes:
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()


def _feed(process: subprocess.Popen[str], todo: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
    """Hand items to one process until there are none."""
    assert process.stdin is not None and process.stdout is not None
    while True:
        try:
            name, text = todo.get_nowait()
        except queue.Empty:
            return
        try:
            process.stdin.write(text + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        if not line.endswith("\n"):
            done.put((name, process.wait()))
            return
        done.put((name, json.loads(line)))


def _end(processes: list[subprocess.Popen[str]]) -> None:
    """End what still runs: asked first, so that half-written files are removed."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

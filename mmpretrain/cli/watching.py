"""How far a long measurement is: a bar at a terminal, a line at times elsewhere. Imports nothing heavy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmpretrain.report.markup import duration

EVERY = 15.0  # seconds between two lines where the output is not a terminal


@contextmanager
def watch(console: Console | None = None, every: float = EVERY) -> Iterator[Callable[[str, int, int], None]]:
    """What ``evaluate.suite.evaluate`` takes as ``progress``: called with (what, done, total), it shows the newest ``what``.

    Args:
        console: stderr where there is none.
        every: see ``EVERY``.
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
    clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    begun = said = time.monotonic()
    task: TaskID | None = None
    shown = ""
    with Progress(*columns, *clock, console=console, disable=not console.is_terminal, transient=True) as bar:

        def step(what: str, done: int, total: int) -> None:
            nonlocal said, task, shown
            if task is None or what != shown:
                if task is not None:
                    bar.remove_task(task)
                task, shown = bar.add_task(what, total=total), what
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and now - said >= every:
                said = now
                text = f"{what}: {done:,} of {total:,}, {duration(now - begun)}"
                console.print(text, highlight=False, soft_wrap=True, markup=False)

        yield step

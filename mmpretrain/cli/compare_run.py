"""The runs of a comparison: trained and measured one after another, each in a process of its own; what is finished is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpretrain.cli.errors import UserError
from mmpretrain.train.places import VARIABLE

if TYPE_CHECKING:
    from mmpretrain.cli.compare import Job

PLAN, MEASURED, LOG = "comparison.json", "evaluation.json", "log.txt"
POLL = 0.5  # seconds


def plain(path: Path) -> Any:
    """A JSON file; None where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def check(job: Job, restart: bool) -> None:
    """A folder of an earlier comparison must be of the same run; ``restart`` removes it where it is not.

    Raises:
        UserError: it is of another one.
    """
    saved = plain(job.folder / PLAN)
    if not job.folder.exists() or (isinstance(saved, dict) and saved.get("plan") == json.loads(json.dumps(job.plan))):
        return
    if not isinstance(saved, dict):
        raise UserError(f"{job.folder}: there already, and not of a comparison; choose another --out")
    if not restart:
        apart = _apart(saved.get("plan"), json.loads(json.dumps(job.plan)))
        raise UserError(f"{job.folder}: trained with other options ({apart}); choose another --out, or --restart to do it again")
    shutil.rmtree(job.folder)


def _apart(there: Any, here: Any, prefix: str = "") -> str:
    """The first key in which two plans differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*here, *there]):
            if here.get(key) != there.get(key):
                return _apart(there.get(key), here.get(key), f"{prefix}.{key}" if prefix else key)
    return f"{prefix.removeprefix('config.')}: {there} there, {here} here"


def finished(job: Job) -> bool:
    """Trained to the end and measured as this comparison asks."""
    saved = plain(job.folder / PLAN) or {}
    return saved.get("measured") == list(job.measured) and plain(job.folder / MEASURED) is not None


def run_all(jobs: Sequence[Job]) -> dict[str, str]:
    """Do every run that is not finished.

    Returns:
        what failed: the name of a run and the last line that it said. The others go on.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM; the run that was under way has saved by then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, failed = Console(stderr=True), {}
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("runs"))
    clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[doing]}", style="cyan", markup=False))
    with Progress(*columns, *clock, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("compare", total=len(jobs), doing="")
        for number, job in enumerate(jobs, 1):
            tell = lambda text, job=job: progress.update(task, doing=f"{job.name}: {text}")
            begin, name = time.monotonic(), f"run {number} of {len(jobs)}: {job.name}"
            if finished(job):
                why, what = None, "finished before"
            else:
                if not console.is_terminal:
                    say(f"{name}, begun; it writes to {job.folder / LOG}")
                why = _run(job, tell)
                what = f"{time.monotonic() - begin:.0f} s" if why is None else f"failed: {why}"
            if why is not None:
                failed[job.name] = why
            progress.advance(task)
            say(f"{name}, {what}")
    signal.signal(signal.SIGTERM, before)
    return failed


def _run(job: Job, tell: Callable[[str], None]) -> str | None:
    """Train and measure one run; None, or why it failed."""
    saved = plain(job.folder / PLAN) or {}
    job.folder.mkdir(parents=True, exist_ok=True)
    if not saved.get("trained"):
        _save(job)
        begin = time.monotonic()
        why = _command(job.fit(), job.folder, lambda: tell(_step(job)))
        seconds = float(saved.get("seconds", 0.0)) + time.monotonic() - begin
        _save(job, seconds=seconds, **({} if why else {"trained": True}))
        if why is not None:
            return why
        saved = {"seconds": seconds}
    why = _command(job.evaluate(), job.folder, lambda: tell("measuring"))
    if why is None:
        _save(job, seconds=saved.get("seconds", 0.0), trained=True, measured=list(job.measured))
    return why


def _save(job: Job, **more: Any) -> None:
    text = json.dumps({"plan": job.plan, "commands": [job.fit(), job.evaluate()], **more}, indent=2)
    partial = job.folder / f".{PLAN}"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(job.folder / PLAN)


def _command(words: Sequence[str], folder: Path, look: Callable[[], None]) -> str | None:
    """A command of this program in a process of its own, whose run folder is ``folder``; None, or the last line that it said.

    Raises:
        KeyboardInterrupt: the user's; the run has saved by then.
    """
    environment = {**os.environ, VARIABLE: str(folder)}
    with (folder / LOG).open("ab") as log:
        program = [sys.executable, "-m", "mmpretrain_cli_entry", *words]
        process = subprocess.Popen(
            program, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,  # the terminal's SIGINT is for this process, which then tells the run once
        )  # fmt: skip
        try:
            while process.poll() is None:
                look()
                time.sleep(POLL)
        except BaseException:
            process.terminate()  # a run saves on SIGTERM
            process.wait()
            raise
    if process.returncode == 0:
        return None
    said = (folder / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(said) if line.strip()), f"exit code {process.returncode}")
    return f"{last.removeprefix('mmpretrain: error: ')} (see {folder / LOG})"


def _step(job: Job) -> str:
    """How far training is, from the last line of its metrics."""
    steps = (job.recipe.config.get("trainer") or {}).get("max_steps")
    try:
        with (job.folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().splitlines()
        step = json.loads(lines[-1])["step"]
    except (OSError, ValueError, KeyError, IndexError):
        return "starting"
    return f"step {step}" + (f" of {steps}" if steps else "")

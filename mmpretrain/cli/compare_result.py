"""What a comparison leaves: ``comparison.md``, ``.json``, ``.svg`` and ``.html``, and the table on the screen."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from mmpretrain.cli.compare_run import MEASURED, PLAN, plain
from mmpretrain.report import comparison, comparison_page, comparison_plot
from mmpretrain.report.comparison import Comparison, Outcome
from mmpretrain.report.printing import printer
from mmpretrain.report.run import Run, Series

if TYPE_CHECKING:
    from rich.table import Table

    from mmpretrain.cli.compare import Job

SPEED = "speed/samples_per_s"


def outcome(job: Job, metrics: Mapping[str, Series]) -> Outcome:
    """A finished run."""
    measured, saved = plain(job.folder / MEASURED) or {}, plain(job.folder / PLAN) or {}
    config = job.recipe.config
    facts: dict[str, float] = {}
    if measured.get("parameters"):
        facts["parameters"] = float(measured["parameters"])
    if speeds := sorted(value for value in (metrics[SPEED].values if SPEED in metrics else ()) if math.isfinite(value)):
        facts["samples/s"] = speeds[len(speeds) // 2]
    steps = max((series.steps[-1] for series in metrics.values() if series.steps), default=0)
    batch = (config.get("data") or {}).get("batch_size")
    facts["steps"] = (config.get("trainer") or {}).get("max_steps") or steps
    if batch:
        facts["samples seen"] = facts["steps"] * batch
    facts["minutes, fit as a whole"] = float(saved.get("seconds", 0.0)) / 60
    return Outcome(job.recipe.label, job.seed, tuple(measured.get("rows", ())), facts, str(job.folder))


def history(runs: Sequence[tuple[Job, Mapping[str, Series]]]) -> dict[str, dict[str, Series]]:
    """System -> metric -> its mean over seeds, at the steps that all seeds have."""
    grouped: dict[str, list[Mapping[str, Series]]] = {}
    for job, metrics in runs:
        grouped.setdefault(job.recipe.label, []).append(metrics)
    found: dict[str, dict[str, Series]] = {}
    for label, many in grouped.items():
        for name in many[0]:
            if all(name in metrics for metrics in many):
                found.setdefault(label, {})[name] = _mean([metrics[name] for metrics in many])
    return found


def _mean(series: Sequence[Series]) -> Series:
    tables = [dict(zip(one.steps, one.values, strict=True)) for one in series]
    times = dict(zip(series[0].steps, series[0].times, strict=True))
    steps = tuple(step for step in series[0].steps if all(step in table for table in tables))
    return Series(steps, tuple(times[step] for step in steps), tuple(fmean(table[step] for table in tables) for step in steps))


def write(done: Sequence[Job], out: Path, notes: Sequence[str], own: Sequence[str], command: str) -> Comparison:
    """Write the four files, print the table and where they are.

    Args:
        notes: what the reader must know before the numbers.
        own: what each system has its own way.
        command: as it was typed.
    """
    read = [(job, Run.open(job.folder).metrics()) for job in done]
    systems = list(dict.fromkeys(job.recipe.label for job in done))
    made = comparison.compare([outcome(job, metrics) for job, metrics in read], systems)
    commands = {"this comparison": command}
    for job in {job.recipe.label: job for job in reversed(done)}.values():
        words = " && ".join(shlex.join(["mmpretrain", *words]) for words in (job.fit(), job.evaluate()))
        commands[f"{job.name} alone"] = f"MMPRETRAIN_RUN_DIR={shlex.quote(str(job.folder))} {words}"
    files = {
        "comparison.md": comparison.markdown(made, [*notes, *(f"each its own way: {one}" for one in own)]),
        "comparison.json": json.dumps(comparison.plain(made, command=command, notes=list(notes), own=list(own)), indent=2) + "\n",
        "comparison.svg": comparison_plot.drawing(made),
        "comparison.html": comparison_page.render(made, notes, own, commands, history(read)),
    }
    console = printer()
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    for table in tables(made, console.width):
        console.print(table)
    for name in files:
        console.print(str(out / name), soft_wrap=True, highlight=False, markup=False)
    return made


def tables(made: Comparison, width: int) -> list[Table]:
    """The headline measurements and the facts, in as many tables as it takes for the systems to fit in a line of ``width`` characters."""
    rows = [_row(made, line) for line in made.lines if line.headline]
    facts = [(fact, "", [comparison.shown(found.get(system), False) for system in made.systems]) for fact, found in made.facts.items()]
    left = 8 + max(len(name) + len(chance) for name, chance, _ in [*rows, *facts, ("measurement", "", [])])
    places = [max(len(system), *(len(cells[i]) for _, _, cells in [*rows, *facts])) + 3 for i, system in enumerate(made.systems)]
    groups: list[list[int]] = [[]]
    for i, size in enumerate(places):
        if groups[-1] and left + sum(places[j] for j in groups[-1]) + size > width:
            groups.append([])
        groups[-1].append(i)
    return [_table(made, rows, facts, group) for group in groups]


Row = tuple[str, str, list[str]]  # name, chance, one cell for each system


def _row(made: Comparison, line: comparison.Line) -> Row:
    chance = "" if line.chance is None else comparison.number(line.chance, line.share)
    cells = [comparison.shown(line.systems.get(system), line.share) for system in made.systems]
    return f"{line.name}{' ≠' if line.unlike else ''}", chance, cells


def _table(made: Comparison, rows: Sequence[Row], facts: Sequence[Row], group: Sequence[int]) -> Table:
    from rich.table import Column, Table
    from rich.text import Text

    title = f"Comparison, seeds {', '.join(map(str, made.seeds))}"
    systems = [Column(Text(made.systems[i])) for i in group]  # Text: names of recipes are no markup
    found = Table("measurement", "chance", *systems, title=title, title_justify="left")
    for column in found.columns[1:]:
        column.justify = "right"
    leaders = [comparison.leader(line) for line in made.lines if line.headline]
    for (name, chance, cells), best in zip(rows, leaders, strict=True):
        found.add_row(Text(name), chance, *(f"[bold]{cells[i]}[/bold]" if made.systems[i] == best else cells[i] for i in group))
    found.add_section()
    for name, chance, cells in facts:
        found.add_row(name, chance, *(cells[i] for i in group))
    return found

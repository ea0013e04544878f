"""The end of ``fit``: the last evaluation, the table on the screen, ``result.json`` and the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmpretrain.cli.watching import watch
from mmpretrain.evaluate import suite
from mmpretrain.evaluate.result import Result, rows, shown
from mmpretrain.report.page import write_report
from mmpretrain.report.printing import printer
from mmpretrain.report.run import Run
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.dashboard import WandbDashboard
from mmpretrain.train.measure import measure
from mmpretrain.train.run_dir import write_result

SPEED = (("speed/samples_per_s", "samples/s"), ("speed/tokens_per_s", "tokens/s"), ("data/wait_share", "share of time waiting for data"))
LIMITS = suite.Limits(matching=256, mlm=256, mim=256, likelihood=256, fusion_sets=1)


class Final(pl.Callback):
    """Measures the trained model while it still stands on its devices, on every rank alike.

    Args:
        samples: most samples of each set and measurement; None: 256 for matching and masked words, and for retrieval all by a dual
            encoder, 256 images with one caption each of the first set by a fusion model (65,536 forwards of pairs).
        measure: False leaves the last evaluation out.
    """

    def __init__(self, samples: int | None = None, measure: bool = True) -> None:
        if samples is not None and samples < 2:
            raise ValueError(f"final.samples={samples} must be at least 2")
        self.samples, self.measure = samples, measure
        self.results: list[Result] = []
        self.interrupted = False

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self.measure or trainer.fast_dev_run or not trainer.datamodule.val_sources:
            return
        console = Console(stderr=True, quiet=not trainer.is_global_zero)
        try:
            with watch(console) as progress:
                self.results = measure(trainer, pl_module, limits=LIMITS.at_most(self.samples), progress=progress)
        except KeyboardInterrupt:  # the training is saved; only this is cut short
            self.interrupted = True
            line = f"mmpretrain: the last evaluation was interrupted; mmpretrain evaluate {trainer.default_root_dir} makes up for it"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def speed(run: Path) -> list[dict[str, Any]]:
    """Rows with the medians over the run of what ``metrics.jsonl`` says of speed and waiting."""
    metrics = Run.open(run).metrics()
    found = []
    for name, _ in SPEED:
        values = sorted(value for value in (metrics[name].values if name in metrics else ()) if math.isfinite(value))
        if values:
            found.append({"name": name, "value": values[len(values) // 2]})
    return found


def places(trainer: pl.Trainer) -> dict[str, str]:
    """Where the checkpoints are (``checkpoint`` is the one that was measured, the end of the run) and the W&B run."""
    found: dict[str, str] = {}
    keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)
    if keeper is not None:
        for name, what in (("last", "checkpoint"), ("best", "best")):
            path = keeper.find(trainer) / f"{name}.ckpt"
            if path.exists():
                found[what] = str(path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbDashboard) and (address := logger.location()):
            found["wandb"] = address
    return found


def finish(trainer: pl.Trainer, run: Path, console: Console | None = None) -> None:
    """Write ``result.json`` and the report page, and print the table. Rank 0 only."""
    results = next((callback.results for callback in trainer.callbacks if isinstance(callback, Final)), [])
    where = {"run": str(run), **places(trainer)}
    page = run / "report.html"
    write_result(run, [*rows(results), *speed(run)], **where, report=str(page))
    write_report(run)
    console = console or printer()
    console.print(table(results, speed(run)))
    for name, place in {**where, "report": str(page)}.items():
        console.print(f"{name:<10} {place}", soft_wrap=True, highlight=False, markup=False)


def logged(command: str, found: Sequence[Mapping[str, float]]) -> None:
    """Print what ``validate`` or ``test`` logged, each metric once with its whole name."""
    made = Table("metric", title=command.capitalize(), title_justify="left")
    made.columns[0].overflow = "fold"
    made.add_column("value", justify="right", no_wrap=True)
    for name, value in {name: value for one in found for name, value in one.items()}.items():
        made.add_row(Text(name), f"{value:.6g}")
    printer().print(made)


def headline(name: str) -> bool:
    """Whether a result belongs into the short table; everything is in result.json and on the page."""
    parts = name.split("/")
    if parts[0] == "retrieval":
        return "_R@" in name
    if parts[0] == "matching":
        return len(parts) == 4
    return parts[0] != "zeroshot" or name.endswith(("@1", "top1", "accuracy"))


def table(results: Sequence[Result], speeds: Sequence[Mapping[str, Any]]) -> Table:
    """The table at the end of ``fit``: measurement, value, chance, count; then speed and waiting."""
    made = Table(title="Result", title_justify="left")
    made.add_column("measurement", overflow="fold")
    for column in ("value", "chance", "count"):
        made.add_column(column, justify="right")
    for result in results:
        if headline(result.name):
            chance = "" if result.chance is None else f"{100 * result.chance:.1f} %"
            made.add_row(Text(result.name), shown(result.name, result.value), chance, str(result.stamp.count))
    made.add_section()
    names = dict(SPEED)
    for row in speeds:
        value = f"{100 * row['value']:.1f} %" if row["name"].endswith("share") else f"{row['value']:,.0f}"
        made.add_row(names[row["name"]], value, "", "")
    return made

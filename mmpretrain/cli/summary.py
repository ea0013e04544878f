"""The end of ``fit``: the last evaluation, the table on the screen, ``result.json`` and the report page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table

from mmpretrain.evaluate import suite
from mmpretrain.evaluate.result import Result, rows
from mmpretrain.report.run import Run
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.measure import Measure, measure
from mmpretrain.train.run_dir import write_result

SPEED = (("speed/samples_per_s", "samples/s"), ("speed/tokens_per_s", "tokens/s"), ("data/wait_share", "share of time waiting for data"))


class Final(pl.Callback):
    """Measures the trained model while it still stands on its devices, on every rank alike."""

    def __init__(self) -> None:
        self.results: list[Result] | None = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        chosen = next((callback for callback in trainer.callbacks if isinstance(callback, Measure)), None)
        if chosen is None or trainer.fast_dev_run or not trainer.datamodule.val_sources:
            return
        limits = suite.Limits().at_most(chosen.final)
        with Console(stderr=True).status("evaluating the trained model") if trainer.is_global_zero else _silent():
            self.results = measure(pl_module, limits, chosen.weights)


class _silent:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


def speed(run: Path) -> list[dict[str, Any]]:
    """Rows with the medians over the run of what ``metrics.jsonl`` says of speed and waiting."""
    metrics = Run.open(run).metrics()
    found = []
    for name, _ in SPEED:
        values = sorted(value for value in (metrics[name].values if name in metrics else ()) if math.isfinite(value))
        if values:
            found.append({"name": name, "value": values[len(values) // 2]})
    return found


def places(trainer: pl.Trainer, run: Path) -> dict[str, str]:
    """Where the checkpoint and the W&B run are."""
    found: dict[str, str] = {}
    keeper = next((callback for callback in trainer.callbacks if isinstance(callback, Checkpoints)), None)
    if keeper is not None:
        for name in ("best", "last"):
            path = keeper.find(trainer) / f"{name}.ckpt"
            if path.exists():
                found["checkpoint"] = str(path)
                break
    for logger in trainer.loggers:
        if "wandb" in type(logger).__name__.lower():
            experiment = logger.experiment
            found["wandb"] = str(getattr(experiment, "url", None) or getattr(experiment, "dir", None) or run / "wandb")
    return found


def finish(trainer: pl.Trainer, run: Path, final: Final, console: Console | None = None) -> None:
    """Write ``result.json`` and the report page, and print the table. Rank 0 only."""
    from mmpretrain.report.page import write_report

    results = final.results or []
    where = {"run": str(run), **places(trainer, run)}
    page = run / "report.html"
    write_result(run, [*rows(results), *speed(run)], **where, report=str(page))
    write_report(run)
    (console or Console()).print(table(results, speed(run), {**where, "report": str(page)}))


def headline(name: str) -> bool:
    """Whether a result belongs into the short table; everything is in result.json and on the page."""
    parts = name.split("/")
    if parts[0] == "retrieval":
        return "_R@" in name
    if parts[0] == "matching":
        return len(parts) == 4
    return parts[0] != "zeroshot" or name.endswith(("@1", "top1", "accuracy"))


def table(results: Sequence[Result], speeds: Sequence[Mapping[str, Any]], where: Mapping[str, str]) -> Table:
    """The table at the end of ``fit``: measurement, value, chance, count; then speed; then paths."""
    made = Table("", "value", "chance", "count", title="Result", title_justify="left", pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    for result in results:
        if headline(result.name):
            chance = "" if result.chance is None else f"{100 * result.chance:.1f} %"
            made.add_row(result.name, f"{100 * result.value:.1f} %", chance, str(result.stamp.count))
    made.add_section()
    names = dict(SPEED)
    for row in speeds:
        value = f"{100 * row['value']:.1f} %" if row["name"].endswith("share") else f"{row['value']:,.0f}"
        made.add_row(names[row["name"]], value, "", "")
    made.add_section()
    made.caption = "\n".join(f"{name}: {path}" for name, path in where.items())
    made.caption_justify = "left"
    return made

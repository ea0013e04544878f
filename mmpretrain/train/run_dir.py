"""The run directory: everything one run leaves behind.

    runs/<recipe>-<YYYYmmdd-HHMMSS>/
        config.yaml         the resolved configuration
        environment.json    versions, hardware, command line
        metrics.jsonl       one JSON object a line: step, epoch, time, and metrics by name
        events.jsonl        bad steps with their samples, spikes, failed saves, stalls, signals
        checkpoints/        step-*.ckpt with manifests, last.ckpt, best.ckpt
        predictions/        what mmpretrain predict writes, one file for each checkpoint
        panels/<step>/      pictures and tables people look at
        result.json         the final table
        report.html         the report page
        wandb/              offline or online files of W&B
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmpretrain.data.redact import redacted
from mmpretrain.train.atomic import write_text
from mmpretrain.train.payload import as_json, versions
from mmpretrain.train.places import VARIABLE, folder_name

_SETUP, _LOGGERS = ("config.yaml", "environment.json"), ("wandb", "tensorboard", "csv-")  # written before the first step


def create(root: str | Path = "runs", recipe: str = "run", now: float | None = None) -> Path:
    """Make the folder of a new run, or take the one a parent process chose (``MMPRETRAIN_RUN_DIR``).

    Raises:
        OSError: the folder cannot be made.
    """
    if chosen := os.environ.get(VARIABLE):
        path = Path(chosen)
        path.mkdir(parents=True, exist_ok=True)
        return path
    name = folder_name(recipe)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    for attempt in range(1000):
        path = Path(root) / (f"{name}-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        os.environ[VARIABLE] = str(path.resolve())
        return path
    raise OSError(f"{root}: a thousand runs of {name} started in this second")


def discard(path: Path) -> None:
    """Remove the folder of a run that ended before its first step, unless it holds more than set-up and loggers write."""
    found = {file.relative_to(path) for file in path.rglob("*") if not file.is_dir()}
    if path.is_dir() and all(file.parts[0] in _SETUP or (len(file.parts) > 1 and file.parts[0].startswith(_LOGGERS)) for file in found):
        shutil.rmtree(path, ignore_errors=True)
        if os.environ.get(VARIABLE) == str(path.resolve()):
            del os.environ[VARIABLE]


def environment() -> dict[str, Any]:
    """What results depend on beside the configuration."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "command": redacted(sys.argv),
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "cuda": cuda,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 2)


def describe(path: Path, config: str | None = None, **more: Any) -> None:
    """Write environment.json, with ``more`` in it, and config.yaml from its text."""
    write_text(path / "environment.json", as_json({**environment(), **more}))
    if config is not None:
        write_text(path / "config.yaml", config)


def write_result(path: Path, rows: Sequence[Mapping[str, Any]], **more: Any) -> Path:
    """Write result.json.

    Args:
        rows: ``{"name": str, "value": float | str}`` with optional ``chance`` and ``stamp``.
        more: further entries (paths of the checkpoint, of the report, of the W&B run).

    Raises:
        ValueError: a row has no name or no value.
    """
    for row in rows:
        if "name" not in row or "value" not in row:
            raise ValueError(f"a row of the final table needs name and value: {dict(row)}")
    target = path / "result.json"
    write_text(target, json.dumps({"rows": [dict(row) for row in rows], **more}, indent=2, default=str) + "\n")
    return target

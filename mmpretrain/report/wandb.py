"""``mmpretrain report RUN --wandb``: the definition of a W&B report of a run, and, where a key and wandb-workspaces are there, the report.

The definition is plain JSON (``wandb-report.json`` in the run directory): sections of line plots and media panels by metric name. W&B
itself can only be told through its server, so without a key the definition is what there is, and the command can be repeated later.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from mmpretrain.report import curves
from mmpretrain.report.panels_schema import KINDS
from mmpretrain.report.run import Run

DEFINITION = "wandb-report.json"
PROJECT = "mmpretrain"
STEP = "trainer/global_step"  # the x axis of Lightning's logger
PICTURES = tuple(f"pictures/{kind}" for kind in KINDS)
_RUN_FOLDER = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-([A-Za-z0-9]+)")


def has_key() -> bool:
    """Whether W&B could log in without asking: a key in the environment, or in the netrc file for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    try:
        return netrc.netrc(os.environ.get("NETRC", str(Path.home() / ".netrc"))).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def mode() -> str:
    """``WANDB_MODE`` where it is set, else online with a key and offline without."""
    chosen = os.environ.get("WANDB_MODE", "").strip().lower()
    if chosen:
        return {"dryrun": "offline", "run": "online"}.get(chosen, chosen)
    return "online" if has_key() else "offline"


def definition(run: Run) -> dict[str, Any]:
    """Sections of panels for the metrics that the run has; equal metrics of training and validation share a plot."""
    plots: dict[tuple[str, str], list[str]] = {}
    for name in run.metrics():
        section, title, _ = curves.place(name)
        plots.setdefault((section, title), []).append(name)
    sections = []
    for section in curves.SECTIONS:
        inside = [
            {"kind": "line", "title": title, "x": STEP, "y": sorted(names)} for (s, title), names in sorted(plots.items()) if s == section
        ]
        if inside:
            sections.append({"name": section, "panels": inside})
    kinds = {stored.panel.kind for stored in run.panels()}
    media = [{"kind": "media", "title": key.partition("/")[2], "keys": [key]} for key in PICTURES if key.partition("/")[2] in kinds]
    if media:
        sections.append({"name": "Pictures", "panels": media})
    return {
        "version": 1,
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "entity": os.environ.get("WANDB_ENTITY"),
        "run": run.path.resolve().name,
        "run_id": _run_id(run.path),
        "title": f"{run.name}: {run.path.resolve().name}",
        "sections": sections,
    }


def write_definition(run: Path, out: Path | None = None) -> str:
    """Write the definition, and the report itself where that is possible.

    Args:
        run: the run directory.
        out: the file; ``wandb-report.json`` in the run directory by default.

    Returns:
        what to tell the user: where the definition is, and the address of the report or what is missing for it.

    Raises:
        NoRunError: ``run`` is not a run directory.
    """
    opened = Run.open(run)
    described = definition(opened)
    out = opened.path / DEFINITION if out is None else Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if (asked := os.environ.get("WANDB_MODE", "").strip()) and mode() != "online":
        return f"{out}\nnot sent: WANDB_MODE is {asked}"
    if not has_key():
        return f"{out}\nnot sent: no W&B key. `wandb login`, `wandb sync {opened.path}/wandb/*run-*`, then this command again"
    if importlib.util.find_spec("wandb_workspaces") is None:
        return f"{out}\nnot sent: `pip install wandb-workspaces`, then this command again"
    try:
        return f"{out}\n{send(described)}"
    except Exception as error:  # noqa: BLE001 - wandb-workspaces raises bare Exception; the definition is written already
        return f"{out}\nnot sent: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def send(described: dict[str, Any]) -> str:
    """Create the report on the W&B server by wandb-workspaces; returns its address. Needs the network."""
    import wandb_workspaces.reports.v2 as wr

    where = {"project": described["project"]} | ({"entity": described["entity"]} if described["entity"] else {})
    blocks: list[Any] = [wr.TableOfContents()]
    for section in described["sections"]:
        panels = [
            wr.LinePlot(title=panel["title"], x=panel["x"], y=panel["y"])
            if panel["kind"] == "line"
            else wr.MediaBrowser(title=panel["title"], media_keys=panel["keys"])
            for panel in section["panels"]
        ]
        runset = wr.Runset(**where, name=described["run"], query=described["run"])
        blocks += [wr.H2(section["name"]), wr.PanelGrid(runsets=[runset], panels=panels)]
    report = wr.Report(**where, title=described["title"][:128], description="Written by mmpretrain report --wandb", blocks=blocks)
    report.save()
    return str(report.url)


def _run_id(path: Path) -> str | None:
    """The id of the newest W&B run in the directory."""
    ids = [(folder.name, match[1]) for folder in (path / "wandb").glob("*run-*") if (match := _RUN_FOLDER.fullmatch(folder.name))]
    return max(ids)[1] if ids else None

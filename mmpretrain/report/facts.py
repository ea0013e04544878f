"""What is known of a run apart from its numbers: command, date, versions, machine."""

from __future__ import annotations

import datetime
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpretrain.report.markup import Html, duration, number, tag
from mmpretrain.report.run import Result, Run, Series

_COMMAND = ("command", "argv")


def header(run: Run, metrics: Mapping[str, Series], result: Result | None, environment: Mapping[str, Any]) -> Html:
    """The head of the page: recipe, state, command, date, versions, machine."""
    steps = [step for series in metrics.values() for step in series.steps[-1:]]
    times = [t for series in metrics.values() for t in (series.times[:1] + series.times[-1:]) if math.isfinite(t)]
    finished = result is not None
    status = tag("span", "✓ finished" if finished else "not finished", class_="pill good" if finished else "pill near")
    facts = [
        ("started", _started(environment, times)),
        ("lasted", duration(max(times) - min(times)) if len(times) > 1 else None),
        ("steps", number(max(steps)) if steps else None),
        ("versions", _versions(environment)),
        ("machine", _machine(environment)),
    ]
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    command = next((_command(environment[key]) for key in _COMMAND if environment.get(key)), None)
    return tag(
        "header",
        tag("p", "mmpretrain · pre-training run", class_="eyebrow"),
        tag("h1", run.name, " ", status),
        tag("p", str(run.path.resolve().name), class_="folder") if run.path.resolve().name != run.name else None,
        tag("pre", tag("code", "$ ", command), class_="command", tabindex=0, aria_label="command") if command else None,
        tag("dl", *listed, class_="facts"),
        class_="page",
    )


def _command(value: Any) -> str:
    """The command line as it would be typed: the program by its name, ``python -m package`` by the package."""
    if not isinstance(value, list) or not value:
        return str(value)
    program = Path(str(value[0]))
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *(str(item) for item in value[1:])])


def _started(environment: Mapping[str, Any], times: list[float]) -> str | None:
    for key in ("started", "date", "time"):
        value = environment.get(key)
        if isinstance(value, str):
            return value.replace("T", " ")[:19]
        if isinstance(value, (int, float)):
            times = [float(value)]
    return datetime.datetime.fromtimestamp(min(times), datetime.UTC).strftime("%Y-%m-%d %H:%M UTC") if times else None


def _versions(environment: Mapping[str, Any]) -> str | None:
    versions = environment.get("versions", environment.get("packages"))
    if not isinstance(versions, Mapping):
        return None
    wanted = [name for name in ("mmpretrain", "mmpretrain-vl", "torch", "lightning", "python") if versions.get(name)]
    return ", ".join(f"{name.removesuffix('-vl')} {versions[name]}" for name in wanted) or None


def _machine(environment: Mapping[str, Any]) -> str | None:
    machine = environment.get("machine", environment)
    if not isinstance(machine, Mapping):
        return str(machine)
    found = [machine[key] for key in ("cuda", "accelerator", "processor", "cpu") if machine.get(key)]
    named = [", ".join(str(item) for item in value) if isinstance(value, list) else str(value) for value in found]
    sizes = [f"{machine[key]} {unit}" for key, unit in (("cores", "cores"), ("memory_gib", "GiB")) if machine.get(key)]
    return ", ".join(named + sizes) or None


def table(environment: Mapping[str, Any]) -> Html:
    """Everything that was noted about the machine, collapsed."""
    flat = _flat(environment)
    rows = [tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in flat]
    box = tag(
        "div", tag("table", tag("tbody", *rows), class_="plain"), class_="scroll", tabindex=0, role="region", aria_label="environment"
    )
    return tag("details", tag("summary", f"Machine, versions and command, {len(rows)} entries"), box)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list):
        return [(prefix, _command(value) if prefix in _COMMAND else ", ".join(str(item) for item in value))]
    return [(prefix, str(value))]

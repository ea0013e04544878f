"""``mmpretrain systems [--json]``: what can be trained, read from the headers of the shipped recipes. Imports nothing heavy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from mmpretrain.cli.commands import OneLine
from mmpretrain.cli.layering import layer, names, shipped
from mmpretrain.report.printing import printer

FIELDS = ("system", "paper", "command", "parameters", "expected", "proof")


class Recipe(NamedTuple):
    """The header of a recipe. ``parameters`` is the exact count of the trained module, heads included."""

    recipe: str  # as given to --config
    system: str
    paper: str
    objectives: tuple[str, ...]
    command: str
    parameters: int
    expected: str
    proof: str


def header(path: Path) -> dict[str, str]:
    """The ``# key: value`` lines at the top of a YAML; a line that starts with ``#   `` continues the value above."""
    fields: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        found = re.match(r"# ([a-z]+): (.*)$", line)
        if found:
            key = found[1]
            fields[key] = found[2].strip()
        elif key and line.startswith("#   "):
            fields[key] = f"{fields[key]} {line[1:].strip()}"
    return fields


def recipes() -> list[Recipe]:
    """Every shipped recipe: the YAML files whose header names a system."""
    found = []
    for name in names():
        fields = header(shipped() / name)
        if "system" not in fields:
            continue
        objectives = layer([name]).config.get("model", {}).get("objectives", {})
        found.append(
            Recipe(
                recipe=name,
                system=fields["system"],
                paper=fields.get("paper", ""),
                objectives=tuple(objectives),
                command=fields.get("command", ""),
                parameters=int(fields.get("parameters", "0").replace(",", "").split()[0]),
                expected=fields.get("expected", ""),
                proof=fields.get("proof", ""),
            )
        )
    return found


def markdown() -> str:
    """The table of the README."""
    rows = ["| system | recipe | objectives | parameters | proved against |", "|---|---|---|---|---|"]
    for r in recipes():
        rows.append(f"| [{r.system}]({r.paper}) | `{r.recipe}` | {', '.join(r.objectives)} | {r.parameters:,} | {r.proof} |")
    return "\n".join(rows)


def run(argv: list[str]) -> int:
    parser = OneLine(prog="mmpretrain systems", description="List the systems, their objectives and recipes.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON, one object a recipe")
    form.add_argument("--markdown", action="store_true", help="as the table of the README")
    options = parser.parse_args(argv[1:])
    if options.json:
        print(json.dumps([recipe._asdict() for recipe in recipes()], indent=2))
        return 0
    if options.markdown:
        print(markdown())
        return 0
    from rich.table import Table

    table = Table("system", "recipe", "objectives", "parameters", "proved against", box=None, pad_edge=False)
    for r in recipes():
        table.add_row(r.system, r.recipe, ", ".join(r.objectives), f"{r.parameters:,}", r.proof)
    printer().print(table)
    return 0

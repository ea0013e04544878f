"""Several systems measured alike: means and spreads over seeds, and what keeps two numbers from being compared. Without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from mmpretrain.report.markup import number

HEADLINE = re.compile(
    r"retrieval/[^/]+/\w+_R@(1|10)|matching/[^/]+/[^/]+/(accuracy|preferred)|(mlm|mim)/[^/]+/accuracy|zeroshot/[^/]+/(top1|\w+@1)"
    r"|likelihood/[^/]+/[^/]+/(accuracy|perplexity)|reconstruction/[^/]+/(psnr|usage)"
)
SPREAD = "standard deviation over seeds"
BOLD = "Bold: ahead of the second by more than twice the standard error of the difference (of seeds, and of a test set of that size)."


class Outcome(NamedTuple):
    """One finished run and what was measured of it."""

    system: str
    seed: int
    rows: tuple[Mapping[str, Any], ...]  # of ``evaluate --out``: name, value, chance, stamp
    facts: Mapping[str, float]  # by name: parameters, samples/s, training time, steps, ...
    run: str  # folder


class Values(NamedTuple):
    """One quantity of one system, by seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        return fmean(self.by_seed.values())

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds (n - 1); None for one seed."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


_LOWER = re.compile(r".*(rank|/mse|/dead)|likelihood/.*/(loss\w*|perplexity)")  # the lowest is best
_NO_SHARES = ("rank", "/mse", "/dead", "/psnr", "/perplexity")  # ends of names


class Line(NamedTuple):
    """One measurement of all systems."""

    name: str
    chance: float | None
    systems: Mapping[str, Values]  # those that have it
    protocols: Mapping[str, str]  # how it was measured, by system
    counted: int  # samples, pairs or tokens behind the number, of the system that has the fewest
    unlike: str | None  # why the numbers are not comparable; None: they are

    @property
    def share(self) -> bool:
        """Whether it lies between 0 and 100 %."""
        values = [v for of in self.systems.values() for v in of.by_seed.values()]
        return not self.name.endswith(_NO_SHARES) and not self.lower and all(0 <= v <= 1 for v in values)

    @property
    def lower(self) -> bool:
        """Whether the lowest is best."""
        return bool(_LOWER.fullmatch(self.name))

    @property
    def headline(self) -> bool:
        """Whether it belongs into the short table."""
        return bool(HEADLINE.fullmatch(self.name))

    @property
    def plotted(self) -> bool:
        """Whether it belongs into the plot, which is of shares."""
        return self.headline and self.share


class Comparison(NamedTuple):
    """What the page, the table and the JSON file tell."""

    systems: tuple[str, ...]
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    facts: Mapping[str, Mapping[str, Values]]  # fact -> system -> values
    outcomes: tuple[Outcome, ...]


def compare(outcomes: Sequence[Outcome], systems: Sequence[str]) -> Comparison:
    """The runs, in the order of ``systems`` and of the measurements of the first ones."""
    names = list(dict.fromkeys(str(row["name"]) for system in systems for one in outcomes if one.system == system for row in one.rows))
    facts: dict[str, dict[str, dict[int, float]]] = {}
    for one in outcomes:
        for fact, value in one.facts.items():
            facts.setdefault(fact, {}).setdefault(one.system, {})[one.seed] = float(value)
    made = {fact: {system: Values(found[system]) for system in systems if system in found} for fact, found in facts.items()}
    lines = tuple(_line(name, outcomes, systems) for name in names)
    seeds = tuple(sorted({one.seed for one in outcomes}))
    return Comparison(tuple(systems), seeds, lines, made, tuple(outcomes))


def _line(name: str, outcomes: Sequence[Outcome], systems: Sequence[str]) -> Line:
    values: dict[str, dict[int, float]] = {}
    stamps: dict[str, Mapping[str, Any]] = {}
    chances: list[float] = []
    for system in systems:
        for one in outcomes:
            row = next((row for row in one.rows if one.system == system and row["name"] == name), None)
            if row is None or not isinstance(row["value"], int | float) or not math.isfinite(row["value"]):
                continue
            values.setdefault(system, {})[one.seed] = float(row["value"])
            stamps.setdefault(system, row.get("stamp") or {})
            chances += [float(row["chance"])] if isinstance(row.get("chance"), int | float) else []
    told = lambda stamp: f"{stamp.get('data', '')}: {stamp.get('protocol', '')}; {stamp.get('count', '?')} counted"
    protocols = {system: told(stamp) for system, stamp in stamps.items()}
    chance = chances[0] if chances and max(chances) - min(chances) < 1e-6 else None
    count = min((int(stamp.get("count") or 0) for stamp in stamps.values()), default=0)
    return Line(name, chance, {system: Values(found) for system, found in values.items()}, protocols, count, _unlike(stamps))


def _unlike(stamps: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why two systems were not measured on the same: other data, or another number of samples, pairs or tokens."""
    for key, what in (("data", "other data"), ("count", "other numbers of samples, pairs or tokens")):
        found = {system: str(stamp.get(key)) for system, stamp in stamps.items()}
        if len(set(found.values())) > 1:
            return f"{what}: {', '.join(f'{system} {value}' for system, value in found.items())}"
    return None


def leader(line: Line) -> str | None:
    """The system whose mean is best by more than twice the standard error of the difference to the second; None without such a lead.

    The error has the spread over seeds in it, and, of shares, what a test set of that size leaves open (binomial, once for each system).
    Needs two seeds of each; of ranks, errors, losses and unused codes the lowest is best.
    """
    sign = -1 if line.lower else 1
    order = sorted(line.systems, key=lambda system: -sign * line.systems[system].mean)
    if line.unlike or len(order) < 2:
        return None
    first, second = (line.systems[system] for system in order[:2])
    errors = [_variance(values, line) for values in (first, second)]
    if any(error is None for error in errors):
        return None
    return order[0] if sign * (first.mean - second.mean) > 2 * math.sqrt(sum(error or 0.0 for error in errors)) else None


def _variance(values: Values, line: Line) -> float | None:
    """Of a mean; None where one seed leaves it open."""
    if values.spread is None:
        return None
    sampled = values.mean * (1 - values.mean) / line.counted if line.share and line.counted else 0.0
    return values.spread**2 / len(values.by_seed) + sampled


def shown(values: Values | None, share: bool) -> str:
    """``83.4 ± 1.2 %``, ``1 234``, or a dash."""
    if values is None:
        return "–"
    if values.spread is None:
        return number(values.mean, share)
    if share:
        return f"{100 * values.mean:.1f} ± {100 * values.spread:.1f} %"
    return number(values.mean) if values.spread == 0 else f"{number(values.mean)} ± {number(values.spread)}"


def markdown(made: Comparison, notes: Sequence[str] = ()) -> str:
    """The table as Markdown, with what it does not tell below."""
    head = ["measurement", "chance", *made.systems]
    rows = [f"| {' | '.join(head)} |", f"|{'|'.join(['---', *['---:'] * (len(head) - 1)])}|"]
    for line in made.lines:
        best, mark = leader(line), " ≠" if line.unlike else ""
        cells = [shown(line.systems.get(system), line.share) for system in made.systems]
        cells = [f"**{cell}**" if system == best else cell for system, cell in zip(made.systems, cells, strict=True)]
        rows.append(f"| {line.name}{mark} | {'' if line.chance is None else number(line.chance, line.share)} | {' | '.join(cells)} |")
    for fact, found in made.facts.items():
        rows.append(f"| {fact} | | {' | '.join(shown(found.get(system), False) for system in made.systems)} |")
    told = [f"Seeds {', '.join(map(str, made.seeds))}; ± is the {SPREAD}. {BOLD}"]
    told += [f"≠ {line.name}: {line.unlike}." for line in made.lines if line.unlike]
    return "\n".join(["# Comparison", "", *rows, "", *[f"- {note}" for note in (*told, *notes)], ""])


def plain(made: Comparison, **more: Any) -> dict[str, Any]:
    """The comparison as plain types, for JSON."""

    def values(of: Mapping[str, Values]) -> dict[str, Any]:
        seeds = lambda v: {str(seed): value for seed, value in v.by_seed.items()}
        return {system: {"mean": v.mean, "spread": v.spread, "values": seeds(v)} for system, v in of.items()}

    lines = [
        {
            "name": line.name,
            "chance": line.chance,
            "comparable": line.unlike is None,
            "why_not": line.unlike,
            "leader": leader(line),
            "systems": values(line.systems),
            "protocols": dict(line.protocols),
        }
        for line in made.lines
    ]
    runs = [{"system": one.system, "seed": one.seed, "run": one.run} for one in made.outcomes]
    facts = {fact: values(found) for fact, found in made.facts.items()}
    head = {"systems": list(made.systems), "seeds": list(made.seeds), "spread": SPREAD}
    return {**head, **more, "measurements": lines, "facts": facts, "runs": runs}

"""The plot of a comparison: SVG without a script, in the page's colours, or a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmpretrain.report.comparison import SPREAD, Comparison, Values, shown
from mmpretrain.report.markup import Html, join, number, tag

COLOURS = ("#3b4cc0", "#d95f02", "#0b8a6a", "#b0308f", "#8a6d00", "#0f84b8", "#c1323f", "#6b6f76")  # the page's, for a drawing on its own
WIDTH, LABEL, RIGHT, TOP, LANE, GAP, FOOT = 960, 330, 64, 12, 15, 14, 28  # of the drawing, in its own units


def colour(place: int) -> str:
    """Of the system at that place."""
    return f"var(--c{place % len(COLOURS)},{COLOURS[place % len(COLOURS)]})"


def _mark(place: int, told: Html | None, x: float, y: float) -> Html:
    """The mean of the system at that place: a dot, or a square where the colours have come round."""
    style = f"fill:{colour(place)}"
    if place < len(COLOURS):
        return tag("circle", told, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, style=style)
    return tag("rect", told, x=f"{x - 4.5:.1f}", y=f"{y - 4.5:.1f}", width=9, height=9, style=style)


def plot(made: Comparison) -> Html:
    """Every headline share with a lane for each system: a dot for the mean, a bar for the spread, a ring for each seed, a dashed line
    for chance."""
    lines = [line for line in made.lines if line.plotted]
    place: Callable[[float], float] = lambda value: LABEL + (WIDTH - LABEL - RIGHT) * value
    y, parts = TOP + 22.0 * _legend_rows(made.systems), [_legend(made.systems)]
    top = y
    for line in lines:
        tall = LANE * len(made.systems)
        name = f"{line.name}{' ≠' if line.unlike else ''}"
        parts.append(tag("text", name, x=LABEL - 12, y=f"{y + tall / 2 + 4:.1f}", style=_words("end", "--ink,#1c1e21")))
        if line.chance is not None:
            ends = {"x1": f"{place(line.chance):.1f}", "x2": f"{place(line.chance):.1f}", "y1": f"{y:.1f}", "y2": f"{y + tall:.1f}"}
            told = tag("title", f"chance {number(line.chance, True)}")
            parts.append(tag("line", told, style="stroke:var(--soft,#6b6f76);stroke-width:1.5;stroke-dasharray:3 3", **ends))
        for i, system in enumerate(made.systems):
            if system in line.systems:
                parts.append(_lane(line.systems[system], f"{system}, {line.name}", y + LANE * (i + 0.5), i, place))
        y += tall + GAP
    grid = [_axis(place(share / 100), top - 4, y - GAP + 4, f"{share} %") for share in (0, 25, 50, 75, 100)]
    height = y - GAP + FOOT
    label = f"{len(lines)} measurements of {len(made.systems)} systems: mean, {SPREAD} and each seed"
    attributes = {"viewBox": f"0 0 {WIDTH} {height:.0f}", "role": "img", "aria_label": label, "xmlns": "http://www.w3.org/2000/svg"}
    return tag("svg", *grid, *parts, style="width:100%;font:12px system-ui,sans-serif", **attributes)


def _words(anchor: str, ink: str) -> str:
    return f"text-anchor:{anchor};fill:var({ink})"


def _axis(x: float, top: float, bottom: float, told: str) -> Html:
    ends = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": f"{top:.1f}", "y2": f"{bottom:.1f}"}
    words = tag("text", told, x=f"{x:.1f}", y=f"{bottom + 15:.1f}", style=_words("middle", "--soft,#6b6f76"))
    return join([tag("line", style="stroke:var(--line,#d8dade)", **ends), words])


def _lane(values: Values, told: str, y: float, which: int, place: Callable[[float], float]) -> Html:
    x, paint = place(values.mean), colour(which)
    ring = {"r": 3.2, "style": f"fill:none;stroke:{paint};stroke-width:1.2"}
    said = lambda seed, value: tag("title", f"{told}, seed {seed}: {number(value, True)}")
    rings = [tag("circle", said(seed, v), cx=f"{place(v):.1f}", cy=f"{y:.1f}", **ring) for seed, v in values.by_seed.items()]
    spread = values.spread or 0.0
    low, high = place(max(values.mean - spread, 0)), place(min(values.mean + spread, 1))
    bar = tag("line", x1=f"{low:.1f}", x2=f"{high:.1f}", y1=f"{y:.1f}", y2=f"{y:.1f}", style=f"stroke:{paint};stroke-width:3;opacity:0.5")
    dot = _mark(which, tag("title", f"{told}: {shown(values, True)}"), x, y)
    end = max(high, *(place(v) for v in values.by_seed.values()))
    words = tag("text", number(values.mean, True), x=f"{end + 9:.1f}", y=f"{y + 4:.1f}", style=_words("start", "--soft,#6b6f76"))
    return tag("g", bar, *rings, dot, words)


def _legend_rows(systems: Sequence[str]) -> int:
    return (len(systems) + 5) // 6


def _legend(systems: Sequence[str]) -> Html:
    parts = []
    for i, system in enumerate(systems):
        x, y = LABEL + (WIDTH - LABEL) / 6 * (i % 6), TOP + 22 * (i // 6)
        parts += [_mark(i, None, x, y)]
        parts += [tag("text", system, x=f"{x + 10:.1f}", y=y + 4, style=_words("start", "--ink,#1c1e21"))]
    return tag("g", *parts)


def drawing(made: Comparison) -> str:
    """The plot as a file of its own, on white."""
    text = plot(made)
    return text.replace("<line", '<rect width="100%" height="100%" fill="#fff"/><line', 1) + "\n"

"""Histograms and counted lists as HTML, without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmpretrain.data_tools import histogram
from mmpretrain.report.markup import Html, join, number, tag

_WIDTH, _HEIGHT, _FOOT, _SIDE = 420, 190, 24, 8  # of the drawing, in its own units


def bars(counts: Mapping[str, int], title: str) -> Html:
    """A histogram as SVG: each bar tells its range and count; below stand the ends and the median."""
    found = histogram.bars(counts)
    most = max(count for *_, count in found)
    step = (_WIDTH - 2 * _SIDE) / len(found)
    parts = []
    for place, (low, high, count) in enumerate(found):
        tall = max((_HEIGHT - _FOOT - 20) * count / most, 1.0 if count else 0.0)
        said = number(low) if high - low == 1 and low == int(low) else f"{number(low)} to {number(high)}"
        attributes = {"x": f"{_SIDE + place * step:.1f}", "y": f"{_HEIGHT - _FOOT - tall:.1f}", "height": f"{tall:.1f}"}
        width = f"{max(step - 1, 0.5):.1f}"
        parts.append(tag("rect", tag("title", f"{said}: {number(count)}"), width=width, class_="c0", style="fill:var(--c)", **attributes))
    line = {"x1": _SIDE, "x2": _WIDTH - _SIDE, "y1": _HEIGHT - _FOOT, "y2": _HEIGHT - _FOOT, "class_": "grid"}
    median = histogram.quantile(counts, 0.5)
    ends = (
        (_SIDE, "start", number(histogram.quantile(counts, 0))),
        (_WIDTH / 2, "middle", f"median {number(median)}, mean {number(histogram.mean(counts))}"),
        (_WIDTH - _SIDE, "end", number(histogram.quantile(counts, 1))),
    )
    words = [tag("text", said, x=x, y=_HEIGHT - 7, style=f"text-anchor:{anchor}") for x, anchor, said in ends]
    words.append(tag("text", number(most), x=_SIDE, y=12))
    label = f"histogram: {title}, {number(histogram.total(counts))} values, median {number(median)}"
    drawing = tag("svg", *parts, tag("line", **line), *words, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
    return tag("div", drawing, class_="plot")


def counted(rows: Sequence[tuple[str, int]]) -> Html:
    """A table of texts and how often each came, with bars."""
    most = max(count for _, count in rows)
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", number(count), class_="n"),
            tag("td", tag("span", tag("b", style=f"width:{100 * count / most:.1f}%"), class_="bar", aria_hidden="true"), class_="wide"),
        )
        for name, count in rows
    ]
    return join([tag("table", tag("tbody", *lines))])

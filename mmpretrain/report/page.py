"""``mmpretrain report RUN``: one self-contained HTML page of a run.

Everything is inside the file (style, script, data, pictures); its content security policy forbids every request. It opens from disk.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mmpretrain.report import curves, facts, galleries
from mmpretrain.report.markup import Html, Pictures, asset, document, join, number, script_json, tag
from mmpretrain.report.run import PANELS, Result, Row, Run, Series

REPORT = "report.html"
_SHARE = re.compile(r"accuracy|preferred|usage|\bacc\b|R@\d|recall|top-?\d|share|waiting|%", re.IGNORECASE)
_HEADLINES = 5


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        run: the run directory.
        out: the file to write; ``report.html`` in the run directory by default.

    Returns:
        the file. It replaces an older one in one move, so that a reader never sees half a page.

    Raises:
        NoRunError: ``run`` is not a run directory (a ValueError with one line for the user).
        OSError: the file cannot be written.
    """
    opened = Run.open(run)
    out = opened.path / REPORT if out is None else Path(out)
    text = render(opened)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return out


def render(run: Run) -> str:
    """The page of an opened run as text."""
    metrics, result, environment = run.metrics(), run.result(), run.environment
    made, pictures = curves.charts(metrics), Pictures(run.path / PANELS)
    parts: list[tuple[str, str, Html]] = []
    parts.append(("result", "Result", _result(result) if result and result.rows else _no_result(metrics)))
    parts.append(("curves", "Curves", _curves(made) if made else tag("p", "No metrics have been written yet.", class_="empty")))
    parts.extend(galleries.sections(run.panels(), pictures))
    if run.config_text is not None:
        parts.append(("config", "Configuration", _config(run.config_text)))
    if environment:
        parts.append(("environment", "Environment", facts.table(environment)))
    warnings = [*run.warnings, *pictures.warnings]
    sections = [tag("section", tag("h2", title), body, id=anchor) for anchor, title, body in parts]
    body = join(
        [
            facts.header(run, metrics, result, environment),
            tag("nav", *[tag("a", title, href=f"#{anchor}") for anchor, title, _ in parts], aria_label="Sections"),
            tag("main", _warnings(warnings) if warnings else None, *sections),
            tag("footer", "Written by ", tag("b", "mmpretrain report"), ". This page is one file and asks nothing of the network."),
            script_json("charts", curves.payload(made)),
            script_json("pictures", pictures.data),
            Html(f"<script>{asset('page.js')}</script>"),
        ]
    )
    noscript = tag("noscript", tag("p", "Curves and pictures need JavaScript; the tables below do not.", class_="empty"))
    return document(f"{run.name} · mmpretrain", join([noscript, body]))


def _no_result(metrics: Mapping[str, Series]) -> Html:
    words = "The final table is written when training ends; this run has none yet. These are the last values of the curves."
    last = [(name, series.values[-1]) for name, series in sorted(metrics.items()) if series.values]
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", number(value), class_="n")) for name, value in last]
    table = tag("div", tag("table", tag("tbody", *rows)), class_="scroll", tabindex=0, role="region", aria_label="last values")
    return join([tag("p", words, class_="empty"), tag("details", tag("summary", "Last values"), table) if rows else None])


def _result(result: Result) -> Html:
    stamps = list(dict.fromkeys(row.stamp for row in result.rows if row.stamp))
    headlines = _headlines(result.rows)
    head = tag(
        "tr",
        *[tag("th", text, scope="col") for text in ("measure", "value", "chance")],
        tag("th", "0 to 100 %", scope="col", class_="wide"),
    )
    rows = [_row(row, stamps) for row in result.rows]
    notes = [tag("li", stamp, id=f"stamp-{i}") for i, stamp in enumerate(stamps, 1)]
    paths = [tag("div", tag("dt", name.replace("_", " ")), tag("dd", tag("code", value))) for name, value in result.notes.items()]
    return join(
        [
            tag("div", *[_tile(row) for row in headlines], class_="tiles") if headlines else None,
            tag(
                "div",
                tag("table", tag("thead", head), tag("tbody", *rows)),
                class_="scroll",
                tabindex=0,
                role="region",
                aria_label="final table",
            ),
            tag("div", tag("h3", "How each number was measured"), tag("ol", *notes), class_="stamps") if notes else None,
            tag("dl", *paths, class_="facts paths") if paths else None,
        ]
    )


def _headlines(rows: tuple[Row, ...]) -> list[Row]:
    """One row of each kind of measurement, of the first set measured; the last of a family, such as R@10 of R@1, R@5, R@10."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        parts = re.sub(r"@\d+$", "", row.name).split("/")
        detail = len(parts) > 4 or parts[-1] == "preferred" or re.search(r"_(without|other)_(image|text)$", parts[-1])
        if row.chance is None or not isinstance(row.value, float) or detail:
            continue
        kind = (parts[0], *parts[2:]) if len(parts) > 2 else tuple(parts)  # without the name of the set
        if kind not in found or found[kind].name.split("/")[1:2] == parts[1:2]:
            found[kind] = row
    return list(found.values())[:_HEADLINES]


def _is_share(row: Row) -> bool:
    return isinstance(row.value, float) and 0 <= row.value <= 1 and bool(_SHARE.search(row.name))


def _shown(row: Row) -> str:
    return number(row.value, _is_share(row)) if isinstance(row.value, float) else row.value


def _tile(row: Row) -> Html:
    assert row.chance is not None and isinstance(row.value, float)
    against = f"chance {number(row.chance, _is_share(row))}"
    if row.chance > 0 and row.value / row.chance >= 2:
        against += f" · {row.value / row.chance:.1f} times chance"
    return tag("div", tag("span", row.name.replace("_", " ").replace("/", " ")), tag("strong", _shown(row)), tag("small", against))


def _row(row: Row, stamps: list[str]) -> Html:
    mark = None
    if row.stamp:
        place = stamps.index(row.stamp) + 1
        mark = tag("sup", tag("a", place, href=f"#stamp-{place}", title=row.stamp, aria_label=f"measured as in note {place}"))
    bar = ""
    if _is_share(row):
        chance = Html("") if row.chance is None else tag("i", style=f"left:{100 * min(row.chance, 1):.2f}%")
        bar = tag("span", tag("b", style=f"width:{100 * float(row.value):.2f}%"), chance, class_="bar", aria_hidden="true")
    beside = "" if row.chance is None else number(row.chance, _is_share(row))
    return tag(
        "tr", tag("th", row.name, mark, scope="row"), tag("td", _shown(row), class_="n"), tag("td", beside, class_="n dim"), tag("td", bar)
    )


def _curves(made: list[curves.Chart]) -> Html:
    tools = tag(
        "div",
        tag(
            "label",
            "smoothing ",
            tag("input", type="range", min=0, max=0.98, step=0.02, value=0.8, id="smooth"),
            tag("output", "0.80", for_="smooth"),
        ),
        tag("label", tag("input", type="checkbox", id="log"), " log scale"),
        tag("label", tag("input", type="checkbox", id="clock"), " minutes instead of steps"),
        class_="tools",
    )
    blocks = []
    for section in curves.SECTIONS:
        inside = [(i, chart) for i, chart in enumerate(made) if chart.section == section]
        if inside:
            figures = [
                tag("figure", tag("figcaption", chart.title), tag("div", class_="plot", data_chart=i), class_="chart")
                for i, chart in inside
            ]
            blocks.append(
                tag("details", tag("summary", tag("h3", section)), tag("div", *figures, class_="charts"), open=True, class_="group")
            )
    return join([tools, *blocks])


def _config(text: str) -> Html:
    lines = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\s*(?:- )*)([\w./-]+)(:)(.*)", line)
        comment = line.lstrip().startswith("#")
        lines.append(
            join([match[1], tag("span", match[2], class_="key"), match[3], match[4]]) if match else tag("i", line) if comment else line
        )
    box = tag("pre", tag("code", join(lines, "\n")), tabindex=0, aria_label="resolved configuration")
    return tag("details", tag("summary", f"Resolved configuration, {len(lines)} lines"), box)


def _warnings(lines: list[str]) -> Html:
    return tag("aside", tag("b", "Parts of this run could not be read"), tag("ul", *[tag("li", line) for line in lines]), class_="warnings")

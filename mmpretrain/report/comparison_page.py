"""The page of a comparison: one file that opens without network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from mmpretrain.report import curves
from mmpretrain.report.comparison import BOLD, SPREAD, Comparison, Line, leader, shown
from mmpretrain.report.comparison_plot import plot
from mmpretrain.report.markup import Html, asset, document, join, number, script_json, tag
from mmpretrain.report.run import Series

LIGHT = "font-weight:400"


def render(
    made: Comparison, notes: Sequence[str], own: Sequence[str], commands: Mapping[str, str], history: Mapping[str, Mapping[str, Series]]
) -> str:
    """The page.

    Args:
        notes: what the reader must know before the numbers: where the runs were not alike, which failed.
        own: what each system has its own way.
        commands: what was run, by what it does.
        history: system -> metric of training -> curve (mean over seeds).
    """
    charts = _charts(history)
    parts = [("result", "Result", join([_picture(made), _table(made)])), ("method", "How it was measured", _protocols(made, own))]
    if charts:
        parts.append(("curves", "Curves", _curves(charts)))
    parts += [("runs", "Runs", _runs(made)), ("commands", "Commands", _commands(commands))]
    title = f"Comparison of {', '.join(made.systems)}"
    seeds = tag("div", tag("dt", "seeds"), tag("dd", ", ".join(map(str, made.seeds))))
    facts = [tag("div", tag("dt", "systems"), tag("dd", len(made.systems))), seeds]
    head = tag(
        "header",
        tag("p", "mmpretrain · controlled comparison", class_="eyebrow"),
        tag("h1", ", ".join(made.systems)),
        tag("dl", *facts, class_="facts"),
        class_="page",
    )
    told = tag("ul", *[tag("li", note) for note in notes])
    warned = tag("aside", tag("b", "Read this first"), told, class_="warnings") if notes else None
    body = join(
        [
            head,
            tag("nav", *[tag("a", name, href=f"#{anchor}") for anchor, name, _ in parts], aria_label="Sections"),
            tag("main", warned, *[tag("section", tag("h2", name), inner, id=anchor) for anchor, name, inner in parts]),
            tag("footer", "Written by ", tag("b", "mmpretrain compare"), ". This page is one file and asks nothing of the network."),
            script_json("charts", curves.payload(charts)),
            script_json("pictures", {}),
            Html(f"<script>{asset('page.js')}</script>"),
        ]
    )
    return document(f"{title} · mmpretrain", body)


def _picture(made: Comparison) -> Html:
    if not any(line.plotted for line in made.lines):
        why = "Nothing was measured that lies between 0 and 100 %: see the table." if made.lines else "No measurement was made of any run."
        return tag("p", why, class_="empty")
    words = f"Dot: mean; bar: {SPREAD}; rings: each seed; dashed: chance. ≠: not measured on the same."
    return tag("figure", plot(made), tag("figcaption", words, class_="note"))


def _table(made: Comparison) -> Html:
    facts = []
    for fact, found in made.facts.items():
        cells = [tag("td", shown(found.get(system), False), class_="n", style=LIGHT) for system in made.systems]
        facts.append(tag("tr", tag("th", fact, scope="row"), tag("td"), *cells))
    short = [_row(line, made.systems) for line in made.lines if line.headline]
    rest = [_row(line, made.systems) for line in made.lines if not line.headline]
    words = tag("p", f"± is the {SPREAD}. {BOLD}", class_="note")
    more = tag("details", tag("summary", f"{len(rest)} more measurements"), _box(made, rest, "more measurements")) if rest else None
    return join([_box(made, [*short, *facts], "comparison"), words, more])


def _box(made: Comparison, rows: Sequence[Html], label: str) -> Html:
    right = [tag("th", text, scope="col", style="text-align:right") for text in ("chance", *made.systems)]
    table = tag("table", tag("thead", tag("tr", tag("th", "measurement", scope="col"), *right)), tag("tbody", *rows))
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=label)


def _row(line: Line, systems: Sequence[str]) -> Html:
    best = leader(line)
    cells = [
        tag("td", shown(line.systems.get(system), line.share), class_="n", style=None if system == best else LIGHT) for system in systems
    ]
    mark = tag("span", " ≠", title=line.unlike) if line.unlike else None
    chance = "" if line.chance is None else number(line.chance, line.share)
    return tag("tr", tag("th", line.name, mark, scope="row"), tag("td", chance, class_="n dim"), *cells)


def _protocols(made: Comparison, own: Sequence[str]) -> Html:
    unlike = [tag("li", tag("b", line.name), f": {line.unlike}") for line in made.lines if line.unlike]
    rows = []
    for line in made.lines:
        told = list(dict.fromkeys(line.protocols.values()))
        for text in told:
            of = [system for system, protocol in line.protocols.items() if protocol == text]
            who = "" if len(told) == 1 else ", ".join(of)
            rows.append(tag("tr", tag("th", line.name, scope="row"), tag("td", who), tag("td", text)))
    box = tag("div", tag("table", tag("tbody", *rows), class_="plain"), class_="scroll", tabindex=0, role="region", aria_label="protocols")
    words = tag("p", "≠ Not to be compared, because the systems were not measured on the same:", class_="lead")
    alike = tag("p", "All systems were measured on the same data and on the same number of samples.", class_="lead")
    mine = tag("details", tag("summary", "What each system has its own way"), tag("ul", *[tag("li", one) for one in own])) if own else None
    protocols = tag("details", tag("summary", "Protocols"), box)
    return join([words if unlike else alike, tag("ul", *unlike) if unlike else None, mine, protocols])


def _charts(history: Mapping[str, Mapping[str, Series]]) -> list[curves.Chart]:
    """Metrics that two systems or more have, one chart each, a line for each system."""
    names = list(dict.fromkeys(name for found in history.values() for name in found))
    made = []
    for name in names:
        own = [(system, found[name]) for system, found in history.items() if name in found]
        section, title, line = curves.place(name)
        if len(own) > 1 and section in ("Objectives", "Validation", "Speed"):
            lines = tuple(curves.Line(system, curves.thin(series)) for system, series in own)
            no_share = re.search(r"rank|: (mse|dead|psnr|perplexity)$", title)
            shares = no_share is None and all(0 <= value <= 1 for _, series in own for value in series.values)
            unit = "%" if section == "Validation" and shares else ""
            made.append(curves.Chart(section, f"{title}, {line}" if line else title, unit, lines))
    return sorted(made, key=lambda chart: (curves.SECTIONS.index(chart.section), chart.title))


def _curves(charts: list[curves.Chart]) -> Html:
    slider = tag("input", type="range", min=0, max=0.98, step=0.02, value=0.8, id="smooth")
    tools = tag(
        "div",
        tag("label", "smoothing ", slider, tag("output", "0.80", for_="smooth")),
        tag("label", tag("input", type="checkbox", id="log"), " log scale"),
        tag("label", tag("input", type="checkbox", id="clock"), " minutes instead of steps"),
        class_="tools",
    )
    figures = [
        tag("figure", tag("figcaption", chart.title), tag("div", class_="plot", data_chart=i), class_="chart")
        for i, chart in enumerate(charts)
    ]
    words = "Metrics that at least two of the systems have; means over seeds."
    return join([tag("p", words, class_="lead"), tools, tag("div", *figures, class_="charts")])


def _runs(made: Comparison) -> Html:
    names = list(made.facts)
    right = [tag("th", text, scope="col", style="text-align:right") for text in ("seed", *names)]
    head = tag("tr", tag("th", "system", scope="col"), *right, tag("th", "folder", scope="col"))
    rows = []
    for one in made.outcomes:
        cells = [tag("td", number(one.facts[name]) if name in one.facts else "–", class_="n", style=LIGHT) for name in names]
        rows.append(tag("tr", tag("th", one.system, scope="row"), tag("td", one.seed, class_="n"), *cells, tag("td", tag("code", one.run))))
    box = tag("table", tag("thead", head), tag("tbody", *rows))
    return tag("div", box, class_="scroll", tabindex=0, role="region", aria_label="runs")


def _commands(commands: Mapping[str, str]) -> Html:
    code = lambda what, text: tag("pre", tag("code", "$ ", text), class_="command", tabindex=0, aria_label=what)
    return join([join([tag("h3", what), code(what, text)]) for what, text in commands.items()])

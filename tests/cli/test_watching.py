"""How far a measurement is: lines at times, or a bar at a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from mmpretrain.cli.watching import watch


def test_lines_where_there_is_no_terminal() -> None:
    for every, lines in ((0.0, 3), (60.0, 0)):
        out = io.StringIO()
        with watch(Console(file=out, width=20), every) as progress:
            progress("[red]: retrieval, pairs", 1, 2000)
            progress("[red]: retrieval, pairs", 2000, 2000)
            progress("b: matching, samples", 1, 4)
        assert out.getvalue().count("\n") == lines
    assert lines == 0
    out = io.StringIO()
    with watch(Console(file=out, width=20), 0.0) as progress:
        progress("[red]: retrieval, pairs", 1200, 2000)
    assert out.getvalue() == "[red]: retrieval, pairs: 1,200 of 2,000, 0 s\n"


def test_a_bar_at_a_terminal() -> None:
    out = io.StringIO()
    with watch(Console(file=out, force_terminal=True, width=100), 0.0) as progress:
        progress("[red]: retrieval, pairs", 3, 7)
        progress("b: matching, samples", 2, 4)
    told = out.getvalue()
    assert "b: matching, samples" in told and "2/4" in told and "of" not in told

"""Means and spreads over seeds, what is not to be compared, who leads, and the table, plot and page of it."""

import json
import re
import xml.dom.minidom

import pytest

from mmpretrain.report import comparison, comparison_page, comparison_plot
from mmpretrain.report.comparison import Comparison, Outcome, compare, leader, shown
from mmpretrain.report.run import Series

R1, MLM, RANK = "retrieval/few/i2t_R@1", "mlm/few/accuracy", "retrieval/few/i2t_median_rank"


def outcome(
    system: str, seed: int, *, r1: float, mlm: float | None = None, rank: float = 3.0, count: int = 10_000, data: str = "few@1"
) -> Outcome:
    stamp = {"data": data, "protocol": f"ranked by {system}", "count": count}
    rows = [{"name": R1, "value": r1, "chance": 0.1, "stamp": stamp}, {"name": RANK, "value": rank, "chance": None, "stamp": stamp}]
    rows += [] if mlm is None else [{"name": MLM, "value": mlm, "chance": None, "stamp": stamp}]
    return Outcome(system, seed, tuple(rows), {"parameters": 1000.0, "samples/s": 10.0 + seed}, f"/runs/{system}-{seed}")


@pytest.fixture
def made() -> Comparison:
    runs = [outcome("a", seed, r1=0.5 + 0.01 * seed, mlm=0.4, rank=2 + seed) for seed in (0, 1, 2)]
    return compare([*runs, *[outcome("b", seed, r1=0.3 + 0.01 * seed, rank=5 + seed) for seed in (0, 1, 2)]], ["a", "b"])


def line(made: Comparison, name: str) -> comparison.Line:
    return next(one for one in made.lines if one.name == name)


def test_means_and_spreads(made: Comparison) -> None:
    assert made.seeds == (0, 1, 2) and [one.name for one in made.lines] == [R1, RANK, MLM]
    values = line(made, R1).systems["a"]
    assert values.mean == pytest.approx(0.51) and values.spread == pytest.approx(0.01)
    assert shown(values, True) == "51.0 ± 1.0 %" and shown(None, True) == "–"
    assert shown(made.facts["parameters"]["a"], False) == "1\u202f000" and shown(made.facts["samples/s"]["b"], False) == "11 ± 1"
    assert set(line(made, MLM).systems) == {"a"}
    one = compare([outcome("a", 4, r1=0.25), outcome("b", 4, r1=0.25)], ["a", "b"])
    assert shown(line(one, R1).systems["a"], True) == "25.0 %" and line(one, R1).systems["a"].spread is None


def test_a_lead_is_more_than_twice_its_standard_error(made: Comparison) -> None:
    assert leader(line(made, R1)) == "a" and leader(line(made, RANK)) == "a"
    assert leader(line(made, MLM)) is None  # of one system alone
    few = [outcome(s, seed, r1=r + 0.01 * seed, count=20) for s, r in (("a", 0.5), ("b", 0.3)) for seed in (0, 1)]
    assert leader(line(compare(few, ["a", "b"]), R1)) is None  # 20 samples leave 0.2 open
    near = [outcome(s, seed, r1=r + 0.1 * seed) for s, r in (("a", 0.5), ("b", 0.4)) for seed in (0, 1)]
    assert leader(line(compare(near, ["a", "b"]), R1)) is None  # the seeds do
    once = [outcome("a", 0, r1=0.9), outcome("b", 0, r1=0.1)]
    assert leader(line(compare(once, ["a", "b"]), R1)) is None


@pytest.mark.parametrize(
    ("name", "low", "best", "plotted"),
    [
        ("likelihood/few/code/perplexity", 40.0, "low", False),
        ("likelihood/few/code/loss", 0.4, "low", False),  # no share, for all that it lies between 0 and 1
        ("likelihood/few/code/accuracy", 0.2, "high", True),
        ("mim/few/accuracy", 0.2, "high", True),
        ("reconstruction/few/psnr", 20.0, "high", False),
        ("reconstruction/few/perplexity", 20.0, "high", False),
    ],
)
def test_what_is_best_of_codes_and_what_is_plotted(name: str, low: float, best: str, plotted: bool) -> None:
    rows = lambda value: ({"name": name, "value": value, "chance": None, "stamp": {"data": "few@1", "count": 10_000}},)
    runs = [Outcome(s, seed, rows(low * times), {}, "/r") for s, times in (("low", 1), ("high", 2)) for seed in (0, 1)]
    made = compare(runs, ["low", "high"])
    assert leader(made.lines[0]) == best and made.lines[0].plotted == plotted
    assert made.lines[0].headline == (name not in ("likelihood/few/code/loss", "reconstruction/few/perplexity"))
    said = "Nothing was measured that lies between 0 and 100 %" in comparison_page.render(made, [], [], {}, {})
    assert said != plotted


@pytest.mark.parametrize(
    ("options", "why"), [({"count": 5}, "other numbers of samples"), ({"data": "many@2"}, "other data: a few@1, b many@2")]
)
def test_other_data_or_numbers_are_not_compared(options: dict, why: str) -> None:
    runs = [outcome("a", seed, r1=0.9) for seed in (0, 1)] + [outcome("b", seed, r1=0.1, **options) for seed in (0, 1)]
    made = compare(runs, ["a", "b"])
    assert why in line(made, R1).unlike and leader(line(made, R1)) is None
    assert f"| {R1} ≠ |" in comparison.markdown(made) and f"- ≠ {R1}: {why}" in comparison.markdown(made)
    assert "Not to be compared" in comparison_page.render(made, [], [], {}, {})
    told = comparison.plain(made)["measurements"][0]
    assert not told["comparable"] and why in told["why_not"]


def test_table_and_json(made: Comparison) -> None:
    rows = comparison.markdown(made, ["not alike: data.batch_size: 4 (a); 8 (b)"]).splitlines()
    assert rows[2:4] == ["| measurement | chance | a | b |", "|---|---:|---:|---:|"]
    assert f"| {R1} | 10.0 % | **51.0 ± 1.0 %** | 31.0 ± 1.0 % |" in rows and f"| {MLM} |  | 40.0 ± 0.0 % | – |" in rows
    assert "- not alike: data.batch_size: 4 (a); 8 (b)" in rows
    told = json.loads(json.dumps(comparison.plain(made, command="mmpretrain compare a b")))
    assert told["command"] == "mmpretrain compare a b" and told["measurements"][0]["leader"] == "a"
    assert told["measurements"][0]["systems"]["b"]["values"] == {"0": 0.3, "1": 0.31, "2": 0.32}
    assert [one["run"] for one in told["runs"]][:1] == ["/runs/a-0"]


def test_the_plot_stands_where_the_numbers_do(made: Comparison) -> None:
    text = comparison_plot.drawing(made)
    svg = xml.dom.minidom.parseString(text).documentElement
    assert svg.getAttribute("aria-label").startswith("2 measurements of 2 systems")  # ranks are not drawn
    dots = [node for node in svg.getElementsByTagName("circle") if node.getAttribute("r") == "5" and node.getElementsByTagName("title")]
    told = {node.getElementsByTagName("title")[0].firstChild.data: float(node.getAttribute("cx")) for node in dots}
    room = comparison_plot.WIDTH - comparison_plot.LABEL - comparison_plot.RIGHT
    assert told[f"a, {R1}: 51.0 ± 1.0 %"] == pytest.approx(comparison_plot.LABEL + 0.51 * room, abs=0.1)
    assert told[f"b, {R1}: 31.0 ± 1.0 %"] == pytest.approx(comparison_plot.LABEL + 0.31 * room, abs=0.1) and len(told) == 3
    assert len([node for node in svg.getElementsByTagName("circle") if node.getAttribute("r") == "3.2"]) == 9


def test_the_page_is_one_file(made: Comparison) -> None:
    curve = Series((1, 2), (0.0, 60.0), (0.5, 0.6))
    history = {"a": {"val/mlm/few/accuracy": curve, "train/loss": curve}, "b": {"val/mlm/few/accuracy": curve}}
    page = comparison_page.render(made, ["<not alike>"], ["data.image.mode: x (a)"], {"this comparison": "mmpretrain compare a b"}, history)
    assert "&lt;not alike&gt;" in page and "<not alike>" not in page
    for anchor in ("result", "method", "curves", "runs", "commands"):
        assert f'id="{anchor}"' in page
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])
    assert [chart["title"] for chart in charts] == ["mlm few: accuracy, with image"]  # what one system alone has is no comparison
    assert [part["name"] for part in charts[0]["lines"]] == ["a", "b"]
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", page)


def test_more_systems_than_colours_are_told_apart() -> None:
    names = [f"s{i}" for i in range(11)]
    many = compare([outcome(name, 0, r1=0.05 * i) for i, name in enumerate(names)], names)
    svg = xml.dom.minidom.parseString(comparison_plot.drawing(many)).documentElement
    squares = [node for node in svg.getElementsByTagName("rect") if node.getElementsByTagName("title")]
    assert [node.getElementsByTagName("title")[0].firstChild.data.split(",")[0] for node in squares] == names[8:]
    marks = [
        (node.tagName, node.getAttribute("style")) for node in [*svg.getElementsByTagName("circle"), *svg.getElementsByTagName("rect")]
    ]
    assert len({one for one in marks if one[1].startswith("fill:var(--c")}) == 11

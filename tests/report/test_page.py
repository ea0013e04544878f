"""The page: complete, escaped, self-contained; with a browser on the PATH it is opened too."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmpretrain.report import curves
from mmpretrain.report.galleries import spread
from mmpretrain.report.markup import Html, duration, number, script_json, tag
from mmpretrain.report.page import _headlines, write_report
from mmpretrain.report.run import NoRunError, Row, Run, Series

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import HOSTILE, write_run

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


class _Outline(HTMLParser):
    """Elements of a page; fails on unbalanced ones."""

    VOID = ("img", "input", "meta", "link", "br", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, name, attributes) -> None:
        self.seen.append((name, dict(attributes)))
        if name not in self.VOID:
            self.open.append(name)

    def handle_endtag(self, name) -> None:
        assert self.open and self.open.pop() == name, f"unbalanced {name}"


def _outline(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser.seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "vilt-20260101-120000")


def test_every_part_is_on_the_page(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "deep" / "page.html").read_text()
    for anchor in ("result", "curves", "retrieval", "masked", "alignment", "regions", "config", "environment"):
        assert f'<section id="{anchor}">' in text
    for words in ("mmpretrain fit --config vilt.yaml", "torch 2.15.0", "Example CPU, 2 cores, 16 GiB", "i2t_R@10", "86.1 %", "max_steps"):
        assert words in text
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]  # no partial file stays behind


def test_hidden_regions_are_framed_and_their_guesses_judged(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "page.html").read_text()
    part = text.partition('<section id="regions">')[2].partition("</section>")[0]
    frames = [attributes for name, attributes in _outline(part) if name == "rect"]
    assert len(frames) == 18 and {(f["x"], f["y"], f["width"], f["height"]) for f in frames} == {("0.1", "0.2", "0.4", "0.55")}
    assert "2 of 6 hidden regions are guessed right here." in part and "truth: </i>" not in part and "truth: none" in part
    assert part.count("guess good") == 6 and part.count("guess bad") == 12


def test_the_page_asks_for_nothing_and_escapes_everything(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "page.html").read_text()
    elements = _outline(text)
    assert HOSTILE not in text and "<img src=x" not in text
    for name, attributes in elements:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "action", "data"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:")), (name, key, value)
    assert sum(name == "script" for name, _ in elements) == 3
    assert not re.search(r"url\((?!#|[`'\"]?#)|@import", text)


def test_pictures_are_embedded_once(run: Path, tmp_path: Path) -> None:
    text = write_report(run, tmp_path / "page.html").read_text()
    pictures = json.loads(re.search(r'id="pictures">(.*?)</script>', text)[1])
    shown = [attributes["data-i"] for name, attributes in _outline(text) if name == "img"]
    assert set(shown) <= set(pictures) and len(shown) > 5 * len(pictures) > 0
    assert base64.b64decode(next(iter(pictures.values())).partition(",")[2]).startswith(b"\x89PNG")
    assert len(text) < 400_000


@pytest.mark.parametrize("part", ["metrics.jsonl", "config.yaml", "environment.json", "result.json", "panels"])
def test_any_part_may_be_missing(tmp_path: Path, part: str) -> None:
    folder = write_run(tmp_path / "vilt-20260101-120000", steps=8, panels=(8,))
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _outline(write_report(folder).read_text())
    assert (folder / "report.html").is_file()


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text("{}")
    text = write_report(tmp_path).read_text()
    assert "No metrics have been written yet" in text and "not finished" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoRunError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pictures_outside_the_run_are_not_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=4, panels=(4,))
    (tmp_path / "secret.png").write_bytes(b"secret")
    file = folder / "panels" / "4" / "alignment.json"
    file.write_text(file.read_text().replace("../images/s0.png", "../../../secret.png"))
    text = write_report(folder).read_text()
    assert base64.b64encode(b"secret").decode() not in text and "secret.png: not a picture inside panels/" in text


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("train/loss", ("Loss", "loss", "train")),
        ("val/loss", ("Loss", "loss", "val")),
        ("val/itm/accuracy_edit", ("Objectives", "itm accuracy by kind, val", "edit")),
        ("train/lr", ("Loss", "learning rate", "train")),
        ("val/itm/accuracy", ("Objectives", "itm accuracy", "val")),
        ("val/grammar/mlm/loss", ("Objectives", "mlm loss", "val grammar")),
        ("val/matching/scenes/random/accuracy", ("Validation", "matching scenes: accuracy", "random")),
        ("val/matching/scenes/edits/colour/preferred", ("Validation", "matching scenes: preferred by edit", "colour")),
        ("val/mlm/scenes/accuracy_without_image", ("Validation", "mlm scenes: accuracy", "without image")),
        ("val/mlm/scenes/accuracy_other_image", ("Validation", "mlm scenes: accuracy", "with another image")),
        ("val/mlm/scenes/accuracy", ("Validation", "mlm scenes: accuracy", "with image")),
        ("val/retrieval/scenes/i2t_median_rank", ("Validation", "retrieval scenes: median rank", "image to text")),
        ("val/likelihood/scenes/code/loss_other_text", ("Validation", "likelihood scenes code: loss", "loss other text")),
        ("test/likelihood/scenes/text/accuracy", ("Validation", "likelihood scenes text, test: accuracy", "accuracy")),
        ("val/zeroshot/emoji/top5", ("Validation", "zeroshot emoji", "top5")),
        ("val/retrieval/scenes/t2i_R@10", ("Validation", "retrieval scenes: text to image", "R@10")),
        ("speed/samples_per_s", ("Speed", "samples/s", "")),
        ("data/wait_share", ("Data", "share of time waiting", "")),
        ("mine", ("Other", "mine", "")),
    ],
)
def test_every_metric_has_its_place(name: str, place: tuple[str, str, str]) -> None:
    assert curves.place(name) == place


def test_thinning_keeps_spikes_and_ends() -> None:
    values = [float(i % 7) for i in range(50_000)]
    values[31_337] = 1e6
    thinned = curves.thin(Series(tuple(range(50_000)), tuple(float(i) for i in range(50_000)), tuple(values)))
    assert len(thinned.steps) <= curves.POINT_LIMIT and max(thinned.values) == 1e6
    assert (thinned.steps[0], thinned.steps[-1]) == (0, 49_999) and list(thinned.steps) == sorted(thinned.steps)


def test_values_that_are_not_finite_are_gaps() -> None:
    series = Series((1, 2, 3), (1.0, float("nan"), 3.0), (1.0, float("nan"), float("inf")))
    line = curves.payload(curves.charts({"train/loss": series}))[0]["lines"][0]
    assert line["y"] == [1.0, None, None] and line["t"] == [0.0, None, round(2 / 60, 3)]
    assert curves.charts({"x": Series((1,), (1.0,), (float("nan"),))}) == []


def test_markup() -> None:
    assert tag("a", "<b>", href='"&', data_x=1, hidden=False) == '<a href="&quot;&amp;" data-x="1">&lt;b&gt;</a>'
    assert tag("p", Html("<b>")) == "<p><b></p>" and "</script><" not in script_json("x", "</script><b>")[5:-9].replace("\\u003c", "")
    assert [duration(s) for s in (5, 65, 3700, 90000)] == ["5 s", "1 min 05 s", "1 h 01 min", "1 d 1 h"]
    assert [number(v) for v in (1e-5, 0.0513, 88.24, 3106.2, float("nan"))] == ["1e-05", "0.0513", "88.2", "3\u202f106", "not a number"]


def test_headlines_are_one_of_each_kind() -> None:
    names = [f"retrieval/{s}/{d}_R@{k}" for s in ("a", "b") for d in ("i2t", "t2i") for k in (1, 10)]
    names += ["matching/a/random/accuracy", "matching/a/random/preferred", "matching/a/edits/colour/accuracy", "mlm/a/accuracy"]
    names += ["mlm/a/accuracy_other_image", "mim/a/accuracy_other_text"]
    shown = [row.name for row in _headlines(tuple(Row(name, 0.5, 0.1) for name in names))]
    assert shown == ["retrieval/a/i2t_R@10", "retrieval/a/t2i_R@10", "matching/a/random/accuracy", "mlm/a/accuracy"]


def test_many_validations_are_thinned(run: Path) -> None:
    panels = Run.open(run).panels()
    assert spread(panels, 4)[0] is panels[0] and spread(panels, 4)[-1] is panels[-1] and len(spread(panels, 4)) == 4


def _browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", f"--user-data-dir={profile}"]
    command = [BROWSER, *flags.split(), *offline, "--hide-scrollbars", "--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def _asked_by_the_page(log: Path) -> set[str]:
    """Addresses of requests with a page behind them; the browser's own look-ups for updates have no origin."""
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = {params["url"] for params in events if "url" in params and params.get("initiator", "not an origin") != "not an origin"}
    return {url for url in asked if not url.startswith(("file:", "data:"))}


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH: the page was not opened in a browser")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_errors_or_requests(run: Path, tmp_path: Path, width: int) -> None:
    page, log, shot = write_report(run, tmp_path / "page.html"), tmp_path / "net.json", tmp_path / "shot.png"
    done = _browse(page, tmp_path / "a", f"--window-size={width},4000", f"--screenshot={shot}", f"--log-net-log={log}")
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert shot.stat().st_size > 20_000
    assert _asked_by_the_page(log) == set()
    dom = _browse(page, tmp_path / "b", f"--window-size={width},4000", "--dump-dom").stdout
    assert dom.count('class="line c0"') == dom.count('class="plot"') > 8  # every chart has drawn its first line
    assert "owned" not in re.search(r"<title>(.*?)</title>", dom)[1] and not re.search(r"<img(?![^>]*src=\"data:)", dom)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH: the check for requests was not checked")
def test_the_check_for_requests_sees_one(tmp_path: Path) -> None:
    page, log = tmp_path / "page.html", tmp_path / "net.json"
    page.write_text('<img src="http://example.invalid/x.png">')
    _browse(page, tmp_path / "a", f"--screenshot={tmp_path / 'shot.png'}", f"--log-net-log={log}")
    assert _asked_by_the_page(log) == {"http://example.invalid/x.png"}

"""The Python of the README and of the pages runs as it stands (that of ``docs/data.md``: tests/data/test_data_module.py)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import generation, tiny_dvae
from helpers.checkpoints import checkpoint
from PIL import Image
from report.synthetic import write_run

from mmpretrain.data_tools import scenes

TREE = Path(__file__).resolve().parents[2]
RUN = Path("runs/vilt-20260101-120000")  # the run that the pages speak of
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("beit", "clip", "data", "generate", "python", "report", "scenes", "vilt"))]


def blocks(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (TREE / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run_page(page: str) -> None:
    assert blocks(page)
    for block in blocks(page):
        exec(compile(block, page, "exec"), {})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the pictures that the pages use and a cache of its own."""
    for name in ("one.png", "two.png", "a.png"):
        Image.new("RGB", (80, 64), (200, 30, 30)).save(tmp_path / name)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_with_python_is_here() -> None:
    assert [page for page in ("README.md", *sorted(f"docs/{p.name}" for p in TREE.glob("docs/*.md"))) if blocks(page)] == PAGES


@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_examples_run(system: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(place / RUN / "checkpoints" / "last.ckpt", system)
    run_page("docs/python.md")
    assert "torch.Size([2, " in capsys.readouterr().out


def test_the_readme_runs(place: Path) -> None:
    checkpoint(place / RUN / "checkpoints" / "last.ckpt", "vilt")
    run_page("README.md")


@pytest.mark.parametrize("page", ["docs/beit.md", "docs/clip.md", "docs/vilt.md"])
def test_weights_are_mapped(place: Path, page: str) -> None:
    run_page(page)


def test_generation_runs(place: Path) -> None:
    last = {name: place / "runs" / name / "checkpoints" / "last.ckpt" for name in ("dvae", "dalle", "clip")}
    tiny_dvae.make(last["dvae"])
    generation.dalle(last["dalle"], last["dvae"])
    checkpoint(last["clip"], "clip")
    Image.new("RGB", (80, 64), (200, 30, 30)).save(place / "half.png")
    run_page("docs/generate.md")
    assert Image.open(place / "best.png").size == (16, 16)


def test_the_report_runs(place: Path) -> None:
    write_run(place / RUN)
    run_page("docs/report.md")
    assert list((place / RUN).glob("*.html"))


def test_scenes_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands but for the numbers of scenes, which would take a minute."""
    write = scenes.write
    monkeypatch.setattr(scenes, "EMBEDDED", dict.fromkeys(scenes.EMBEDDED, 4))
    monkeypatch.setattr(scenes, "write", lambda out, n, *args, **rest: write(out, min(n, 4), *args, **rest))
    run_page("docs/scenes.md")
    assert (place / "my_scenes" / "manifest.json").is_file()

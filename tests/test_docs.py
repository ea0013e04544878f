"""The README and the pages of ``docs/``: their table is the program's, their links lead somewhere, their commands run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import generation, scene_regions, tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.sources import put_all

from mmpretrain.cli.main import COMMANDS
from mmpretrain.cli.systems import markdown

TREE = Path(__file__).resolve().parent.parent
PAGES = [TREE / "README.md", TREE / "CONTRIBUTING.md", *sorted((TREE / "docs").glob("*.md"))]
RUN = "runs/vilt-20260101-120000"  # the run that the pages speak of
SETUP = ("pip install", "pytest", "ruff", "python benchmarks", "python -m benchmarks")  # what CI and the benchmarks do themselves
SMALL = ["--data.batch_size", "8", "--data.workers", "0", "--data.text.vocab_size", "300", "--trainer.max_steps", "1"]
SMALL += ["--final.samples", "4", "--measure.samples", "4", "--trainer.val_check_interval", "1"]
UNLESS_GIVEN = {"--panels.samples": "2", "--loggers": "[]"}


def commands(page: Path) -> list[str]:
    """Every command of the ``bash`` blocks of a page, one a line, joined where a line ends in a backslash."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]
    return [part for part in parts if not part.startswith(SETUP)]


def test_the_table_of_systems_is_the_programs():
    (table,) = re.findall(r"^<!-- systems: .*-->\n(.*?)^<!-- /systems -->$", PAGES[0].read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert table.strip() == markdown().strip()  # a row that the program no longer has fails too


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page):
    """A command in a block without a label would be run by no test; ``text`` is for those that cannot be."""
    fences = re.findall(r"^ *```(\w*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert "" not in fences[::2] and set(fences[1::2]) <= {""}


def test_the_readme_leads_to_every_page():
    found, queue = set(), [TREE / "README.md"]
    while queue:
        page = queue.pop()
        found.add(page)
        links = re.findall(r"\]\(([^)#\s:]+\.md)", page.read_text(encoding="utf-8"))
        queue += [path for link in links if (path := (page.parent / link).resolve()).exists() and path not in found]
    assert [page.name for page in PAGES if page not in found] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_commands_of_this_program(page):
    for command in commands(page):
        words = shlex.split(command)
        assert words[0] == "mmpretrain" and words[1] in {*COMMANDS, "--help", "--version"}, command


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run, small checkpoints and sources of the names that the pages use, and a few scenes in place of the embedded set."""
    folder = tmp_path_factory.mktemp("pages")
    put_all(folder)
    tiny_dvae.make(folder / "dvae.ckpt")
    last = {name: folder / "runs" / name / "checkpoints" / "last.ckpt" for name in ("dvae", "dalle", "clip")}
    tiny_dvae.make(last["dvae"])
    generation.dalle(last["dalle"], last["dvae"])
    checkpoint(last["clip"], "clip")
    for split, n in (("train", 16), ("val", 8)):
        scene_regions.write(folder / "few" / split, n, split)
    done = run(folder, "mmpretrain fit --config vilt.yaml", MMPRETRAIN_RUN_DIR=RUN)
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command as written, with small data for ``fit`` and for what would read the whole embedded set."""
    import os

    words = shlex.split(command.replace("scenes:val", str(folder / "few" / "val" / "plain")))
    if words[1] in ("fit", "compare"):
        recipe = words[words.index("--config") + 1] if "--config" in words else "vilt.yaml"
        words += [*scene_regions.sources(recipe, folder / "few" / "train", folder / "few" / "val"), *SMALL]
        words += [word for option, value in UNLESS_GIVEN.items() if option not in words for word in (option, value)]
        words += ["--steps", "1", "--limit", "4"] if words[1] == "compare" else []
    environment = {**os.environ, "MMPRETRAIN_CACHE": str(folder / "cache"), "WANDB_MODE": "offline", **environment}
    program = [sys.executable, "-m", "mmpretrain_cli_entry", *words[1:]]
    return subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, place):
    for command in commands(page):
        done = run(place, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

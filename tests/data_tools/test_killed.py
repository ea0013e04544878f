"""Every tool killed at every file that it writes: nothing half-written under a final name, and the same command gives the same bytes."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.child import Ended, child
from helpers.shards import encoded, sample, write_tar
from PIL import Image

from mmpretrain.cli.data import run as data

COMMANDS = {  # words before --out
    "split": ["split", "IN", "--parts", "a=0.5", "b=0.5", "--shard-size", "3"],
    "mix": ["mix", "one=IN", "two=MORE", "--weights", "2", "1", "--shard-size", "3"],
    "filter": ["filter", "IN", "--where", "min_side >= 4", "--captions", "words >= 3", "--repeated", "10", "--shard-size", "3"],
    "dedup": ["dedup", "IN", "--shard-size", "3"],
    "dedup, a list": ["dedup", "IN", "--list"],
    "stats": ["stats", "IN", "--out"],
    "scenegraph": ["scenegraph", "IN", "--shard-size", "3"],
}
FILES = {"dedup, a list": "list.jsonl", "stats": "stats.html"}  # one file instead of a folder


def killed_at(number: int, function: Callable[[], object]) -> Ended:
    """Run in a fork that is killed where it is about to finish its file or remove its folder ``number``, half of the file being written."""
    count = 0

    def counted(file: int | None = None) -> None:
        nonlocal count
        count += 1
        if count == number:
            if file is not None:
                os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def hooked() -> None:
        fsync, rmdir = os.fsync, os.rmdir
        os.fsync = lambda file: (counted(file), fsync(file))[1]
        os.rmdir = lambda *args, **options: (counted(), rmdir(*args, **options))[1]
        sys.exit(function())

    return child(hooked)


def tree(out: Path) -> dict[str, bytes]:
    """Every file, hidden ones included; a single file under its own name."""
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out.parent)): path.read_bytes() for path in sorted(files)}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Path]:
    """Three and two shards of two or three samples, one picture twice."""
    twice = [("twin.png", encoded(Image.new("RGB", (24, 20), (9, 90, 200)))), ("twin.txt", b"a plain picture")]
    other = [(f"other{name[4:]}", content) for name, content in twice]
    for folder, first, last in (("in", 0, 3), ("more", 3, 5)):
        for shard in range(first, last):
            own = [member for n in (2 * shard, 2 * shard + 1) for member in sample(n)]
            write_tar(tmp_path / folder / f"{shard}.tar", [*own, *{0: twice, 1: other}.get(shard, [])])
    return {"IN": tmp_path / "in", "MORE": tmp_path / "more"}


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_file(name, sets, tmp_path, own_cache):
    def command(out: Path) -> list[str]:
        words = [word.replace("IN", str(sets["IN"])).replace("MORE", str(sets["MORE"])) for word in COMMANDS[name]]
        return ["data", *words, *(() if name in FILES else ("--out",)), str(out), "--quiet", "--workers", "1"]

    def out(number: int) -> Path:
        (tmp_path / f"try{number}").mkdir()
        return tmp_path / f"try{number}" / FILES.get(name, "out")

    whole = out(0)
    assert data(command(whole)) == 0
    expected = tree(whole)
    assert name in FILES or sum(file.endswith(".tar") for file in expected) >= 3
    for number in itertools.count(1):
        made = out(number)
        for index in (index for folder in sets.values() for index in folder.glob("*.idx.npz")):
            index.unlink()
        run = functools.partial(data, command(made))
        ended = killed_at(number, run)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.output
        for file, content in tree(made).items():
            assert any(part.startswith(".") for part in Path(file).parts) or content == expected[file], f"kill {number}: {file} is no whole"
        again = child(lambda run=run: sys.exit(run()))
        assert again.code == 0, f"after kill {number}: {again.output}"
        assert tree(made) == expected, f"after kill {number}"
    assert tree(made) == expected and number > (5 if name in FILES else 10)

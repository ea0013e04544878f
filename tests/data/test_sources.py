"""Names of shards: folders, files, braces, lists, variables; commands and other schemes are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpretrain.data.errors import DataError
from mmpretrain.data.sources import braces, expand, shards


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{number:05d}.tar").touch()
    (tmp_path / "a" / "notes.txt").touch()
    return tmp_path


def names(paths) -> list[str]:
    return [f"{path.parent.name}/{path.stem[-1]}" for path in paths]


def test_every_way_to_name_shards(folder, monkeypatch):
    assert names(expand(str(folder / "a"))) == ["a/0", "a/1", "a/2"]
    assert names(expand(str(folder / "a" / "00001.tar"))) == ["a/1"]
    assert names(expand(f"{folder}/{{b,a}}/{{00001..00002}}.tar")) == ["b/1", "b/2", "a/1", "a/2"]
    assert names(expand(f"{folder}/b/00000.tar::{folder}/a")) == ["b/0", "a/0", "a/1", "a/2"]
    assert names(expand([f"{folder}/b/00002.tar", f"{folder}/a/00000.tar"])) == ["b/2", "a/0"]
    monkeypatch.setenv("SHARDS_HERE", str(folder))
    assert names(expand("${SHARDS_HERE}/a")) == ["a/0", "a/1", "a/2"]
    monkeypatch.setenv("HOME", str(folder))
    assert names(expand("~/b/00000.tar")) == ["b/0"]
    (folder / "odd{1,2}.tar").touch()
    assert expand(str(folder / "odd{1,2}.tar")) == (folder / "odd{1,2}.tar",)
    assert list(braces("x{8..11}y")) == ["x8y", "x9y", "x10y", "x11y"]
    assert list(braces("awk '{print}' {a,b}")) == ["awk '{print}' a", "awk '{print}' b"]


@pytest.mark.parametrize(
    "source,message",
    [
        ("pipe:touch canary", r"source 'pipe:touch ...' is refused: commands are not run here"),
        ("PIPE:touch canary", "commands are not run here"),
        ("s3://bucket/x.tar", "only local files are read here; copy the shards to a folder first"),
        ("https://me:hunter2@host/x.tar", r"source 'https://\*\*\*@host/x.tar' is refused: only local files are read here"),
        ("ftp://host/x.tar", "only local paths, http, https, s3, s3a, gs, gcs addresses and '-' are read"),
        ("s3:bucket/x.tar", "is refused"),
        ("zip://x.tar", "is refused"),
        ("/nowhere/x.tar", "/nowhere/x.tar does not exist"),
        ("/nowhere/{0..3}.tar", r"/nowhere/0.tar does not exist \(from '/nowhere/{0\.\.3}.tar'\)"),
        ("${SURELY_UNSET}/x", "needs the environment variable SURELY_UNSET, which is not set"),
        ("~surely-nobody/x", "source '~surely-nobody/x': there is no home folder of ~surely-nobody; write the whole path"),
        ("", "an empty source"),
        ([], "no source given"),
        ("x{3..1}", "is empty or too long"),
        ("x{0..99999999}", "is empty or too long"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        expand(source)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.fault(16)
@pytest.mark.parametrize("source", ["pipe:touch canary", "Pipe:touch canary", ["x.tar", "pipe:touch canary"], "x.tar::pipe:touch canary"])
def test_commands_are_refused_without_their_flag(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.tar").touch()
    with pytest.raises(DataError, match=r"source 'pipe:touch \.\.\.' is refused: it would run a command; data.allow_pipe=true allows it"):
        shards(source)
    assert not (tmp_path / "canary").exists()


def test_shards_of_this_machine_need_no_server(folder):
    assert shards(f"{folder}/b/00000.tar::{folder}/a") == expand(f"{folder}/b/00000.tar::{folder}/a")
    with pytest.raises(DataError, match="is named twice"):
        shards([str(folder / "a"), f"{folder}/b/../a/00001.tar"])
    with pytest.raises(DataError, match=r"http://\[::1\]:9/x\.tar is named twice"):
        shards("http://[::1]:9/x.tar::http://[::1]:9/x.tar")


def test_empty_folders_and_repeated_shards_are_refused(folder):
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        expand(str(folder))
    with pytest.raises(DataError, match="is named twice"):
        expand([str(folder / "a"), f"{folder}/b/../a/00001.tar"])


@pytest.fixture
def asked(folder, monkeypatch):
    """The options that the generated set is asked for; it is ``a`` and ``b``."""
    asked = []

    def embedded(**options: int) -> dict[str, Path]:
        asked.append(options)
        return {"train": folder / "a", "val": folder / "b"}

    package = pytest.importorskip("mmpretrain.data_tools")
    fake = SimpleNamespace(embedded=embedded)
    monkeypatch.setitem(sys.modules, "mmpretrain.data_tools.scenes", fake)
    monkeypatch.setattr(package, "scenes", fake, raising=False)
    return asked


def test_scenes_are_made_at_first_use(folder, asked):
    assert names(expand("scenes")) == ["a/0", "a/1", "a/2"] and names(expand("scenes", "val"))[0] == "b/0"
    assert names(expand(f"scenes:val::{folder}/a"))[:4] == ["b/0", "b/1", "b/2", "a/0"]
    expand("scenes?n=200&seed=3")
    assert asked[-1] == {"n": 200, "seed": 3}
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        expand("scenes:test")
    with pytest.raises(DataError, match="has the options n, seed, size and regions"):
        expand("scenes?many=3")


def test_a_folder_called_scenes_is_said_once(folder, asked, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    expand("scenes")
    assert capsys.readouterr().err == ""
    (folder / "scenes").mkdir()
    (folder / "scenes" / "00000.tar").touch()
    assert names(expand("./scenes")) == ["scenes/0"] and names(expand("scenes/")) == ["scenes/0"]
    expand("scenes?n=200")  # no name of a folder
    assert capsys.readouterr().err == ""
    for source in ("scenes:val", "scenes", ["scenes", "./scenes"]):
        expand(source)
    assert capsys.readouterr().err == "mmpretrain: scenes: the generated set is taken; for the folder here write ./scenes\n"
    assert len(asked) == 5

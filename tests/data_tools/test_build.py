"""``data build`` itself: bytes, order, kills, what is left out, exit codes, and that the shards are read."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers.building import put, read, run
from helpers.shards import encoded, picture
from helpers.sources import put_all
from PIL import Image

from mmpretrain.cli.main import main
from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import build, build_pictures
from mmpretrain.data_tools.formats import FORMATS

TREE = Path(__file__).resolve().parent.parent.parent


def few(folder, count=10):
    """A folder of captioned pictures."""
    files = {f"src/{n:02d}.jpg": n for n in range(count)}
    return put(folder, {**files, **{f"src/{n:02d}.txt": f"caption {n}" for n in range(count)}})


def shards(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_the_same_bytes_for_any_number_of_processes(tmp_path):
    few(tmp_path)
    one = run(tmp_path, "folder", "--source", "src", "--shard-size", "4", out="one")
    words = ["--source", str(tmp_path / "src"), "--shard-size", "4", "--workers", "2", "--out", str(tmp_path / "two")]
    assert main(["data", "build", "folder", *words]) == 0
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    with tarfile.open(tmp_path / "one/00000.tar") as archive:
        members = archive.getmembers()
    assert all((m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) == (0, 0, 0, "", "", 0o644) for m in members)
    listed = one.manifest["shards"]
    assert [(s["file"], s["samples"]) for s in listed] == [("00000.tar", 4), ("00001.tar", 4), ("00002.tar", 2)]
    assert all(hashlib.sha256(shards(tmp_path / "one")[s["file"]]).hexdigest() == s["sha256"] for s in listed)
    assert sorted(path.name for path in (tmp_path / "one").iterdir() if path.suffix != ".tar") == [
        *(f"{n:05d}.tar.idx.npz" for n in range(3)),
        "manifest.json",
    ]


def test_shuffling_is_over_all_shards_and_the_same_everywhere(tmp_path):
    few(tmp_path)
    words = ["folder", "--source", "src", "--shard-size", "4"]
    made = run(tmp_path, *words, "--shuffle", "1")
    assert list(made.samples) == ["05", "04", "08", "02", "07", "03", "01", "00", "09", "06"]
    assert list(run(tmp_path, *words, "--shuffle", "2", out="other").samples) != list(made.samples)
    assert list(run(tmp_path, *words, "--limit", "3", out="three").samples) == ["00", "01", "02"]


def test_read_by_the_data_module_and_by_webdataset(tmp_path):
    import webdataset

    from mmpretrain.data.index import open_index

    run(few(tmp_path), "folder", "--source", "src")
    put(tmp_path, {"t.txt": "only text\n", "bare/x.png": 1})
    run(tmp_path, "text", "--source", "t.txt", out="text")
    run(tmp_path, "folder", "--source", "bare", "--pictures-only", out="bare-out")
    index = open_index(tmp_path / "out/00000.tar")
    assert len(index) == 10 and index.captions_S.tolist() == [1] * 10 and index.images_S.tolist() == [1] * 10
    assert open_index(tmp_path / "text/00000.tar").images_S.tolist() == [0]
    assert open_index(tmp_path / "bare-out/00000.tar").captions_S.tolist() == [0]
    found = list(webdataset.WebDataset(str(tmp_path / "out/00000.tar"), shardshuffle=False))
    assert [one["__key__"] for one in found] == [f"{n:02d}" for n in range(10)]
    assert found[3]["jpg"] == picture(3, kind="JPEG") and found[3]["txt"] == b"caption 3"


class Stop(BaseException):
    """What a kill looks like to code that catches exceptions."""


def test_a_stopped_build_goes_on(tmp_path, monkeypatch):
    few(tmp_path)
    words = ["folder", "--source", "src", "--shard-size", "4"]
    run(tmp_path, *words, out="whole")
    looked, stop_at, check = [], 6, build_pictures.check

    def counting(data, how):
        if len(looked) == stop_at:
            raise Stop
        looked.append(how)
        return check(data, how)

    monkeypatch.setattr(build_pictures, "check", counting)
    with pytest.raises(Stop):
        run(tmp_path, *words)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.building/00000.tar").exists()
    stop_at = -1
    looked.clear()
    with monkeypatch.context() as patch:
        patch.setattr("mmpretrain.data_tools.formats.folder.walk", None)  # the source is not read again
        made = run(tmp_path, *words)
    assert len(looked) == 6 and len(made.samples) == 10 and shards(tmp_path / "out") == shards(tmp_path / "whole")
    assert not (tmp_path / ".out.building").exists()


def test_other_options_begin_anew(tmp_path, monkeypatch, capsys):
    few(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(build_pictures, "read", lambda place: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            run(tmp_path, "folder", "--source", "src", "--shard-size", "2")
    made = run(tmp_path, "folder", "--source", "src", "--shard-size", "5")
    assert "beginning anew" in capsys.readouterr().err and [one["samples"] for one in made.manifest["shards"]] == [5, 5]


def test_a_changed_file_in_a_folder_of_the_source_begins_anew(tmp_path, monkeypatch):
    put(tmp_path, {"books/deep/a.txt": "old\n"})
    with monkeypatch.context() as patch:
        patch.setattr(build, "_shards", lambda *_: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            run(tmp_path, "text", "--source", "books")
    put(tmp_path, {"books/deep/a.txt": "a new one\n"})
    assert [one.captions for one in run(tmp_path, "text", "--source", "books").samples.values()] == [("a new one",)]


@pytest.mark.slow
def test_killed_for_good_at_any_moment(tmp_path):
    """SIGKILL to the program and its processes after every few shards, until a build comes through."""
    put(tmp_path, {"t.txt": "".join(f"line {n} of a book\n" for n in range(2000))})
    run(tmp_path, "text", "--source", "t.txt", "--shard-size", "100", out="whole")
    words = ["data", "build", "text", "--source", "t.txt", "--shard-size", "100", "--workers", "2", "--out", "out"]
    code, kills = None, 0
    while code != 0:
        program = [sys.executable, "-m", "mmpretrain_cli_entry", *words]
        environment = {**os.environ, "PYTHONPATH": str(TREE)}
        process = subprocess.Popen(program, cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.PIPE)
        had = len(list(tmp_path.glob(".out.building/*.tar")))
        while process.poll() is None and len(list(tmp_path.glob(".out.building/*.tar"))) < had + 5:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.stderr.read()
        process.stderr.close()
    assert kills >= 2 and shards(tmp_path / "out") == shards(tmp_path / "whole")


def bad_pictures():
    half = picture(1, 64, 64, "JPEG")
    return {
        "empty": (b"", "picture is empty"),
        "gif": (encoded(Image.new("P", (4, 4)), "GIF"), "not JPEG, PNG or WebP"),
        "page": (b"<html>404</html>", "not JPEG, PNG or WebP"),
        "noise": (b"\0\1\2\3" * 9, "not JPEG, PNG or WebP"),
        "half": (half[: len(half) // 2], "picture is damaged"),
        "head": (b"\x89PNG\r\n\x1a\n" + bytes(9), "picture is damaged"),
        "bomb": (encoded(Image.new("L", (9000, 9000))), "picture has too many pixels"),
    }


def test_bad_pictures_are_named_with_their_reason(tmp_path):
    rows = "path,caption\n" + "".join(f"{name}.jpg,c\n" for name in bad_pictures()) + "gone.jpg,c\ngood.jpg,c\n"
    put(tmp_path, {"t.csv": rows, "good.jpg": 1, **{f"{name}.jpg": data for name, (data, _) in bad_pictures().items()}})
    words = ["table", "--source", "t.csv", "--image", "path", "--caption", "caption"]
    made = run(tmp_path, *words)
    reasons = [reason for _, reason in bad_pictures().values()]
    assert made.code == 1 and [one["reason"] for one in made.skipped] == [*reasons, "picture is missing"]
    assert [one["name"] for one in made.skipped] == [f"row-{n:09d}" for n in range(8)] and list(made.samples) == ["row-000000008"]
    assert made.manifest["made"]["skipped"]["not JPEG, PNG or WebP"] == {"count": 3, "first": [f"row-{n:09d}" for n in (1, 2, 3)]}
    header = run(tmp_path, *words, "--check", "header", out="header")
    assert [one["reason"] for one in header.skipped] == [*reasons[:4], *reasons[5:], "picture is missing"]  # not the half one
    first = run(tmp_path, *words, "--check", "none", out="none")
    assert len(first.samples) == 4 and "width" not in first.meta("row-000000008")


def test_sizes_are_upright(tmp_path):
    turned = encoded(Image.new("RGB", (30, 10)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    for how in ("full", "header"):
        assert build_pictures.check(turned, how) == ("jpg", 10, 30)


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("1", 1), ("2", 0), ("19%", 1), ("20%", 0)])
def test_how_much_may_be_missing(tmp_path, allowed, code):
    few(tmp_path)
    for n in (3, 4):
        (tmp_path / f"src/{n:02d}.txt").unlink()
    assert run(tmp_path, "folder", "--source", "src", "--max-missing", allowed).code == code


def test_texts_that_break_the_rules(tmp_path):
    rows = [{"p": "a.jpg", "c": "x" * 70_000}, {"p": "a.jpg", "c": "ok"}, {"p": "b.jpg", "c": "nul\0"}, {"p": "c.jpg", "c": "\ud800"}]
    put(tmp_path, {"t.jsonl": "\n".join(json.dumps(row) for row in rows), "a.jpg": 1, "b.jpg": 2, "c.jpg": 3, "d.jpg": 4})
    with open(tmp_path / "t.jsonl", "a") as file:
        file.write('\n{"p": "d.jpg", "c": "fine", "n": NaN}')
    made = run(tmp_path, "table", "--source", "t.jsonl", "--image", "p", "--caption", "c")
    assert {one["reason"] for one in made.skipped} == {"texts break the rules of shards", "text is not UTF-8"} and len(made.skipped) == 3
    assert list(made.samples) == ["row-000000004"] and "n" not in made.meta("row-000000004")


def test_two_records_of_one_name_and_a_full_target_are_refused(tmp_path, capfd):
    put(tmp_path, {"src/a.b.jpg": 1, "src/a_b.jpg": 2, "src/a.b.txt": "x", "src/a_b.txt": "y"})
    words = ["data", "build", "folder", "--source", str(tmp_path / "src"), "--quiet", "--workers", "1", "--out"]
    for out, says in ((tmp_path / "out", "1 keys come twice, first 'a_b'"), (tmp_path / "src", "exists and is not an empty folder")):
        assert main([*words, str(out)]) == 2
        error = capfd.readouterr().err
        assert says in error and error.count("\n") == 1, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    (tmp_path / "empty").mkdir()
    assert run(few(tmp_path / "x"), "folder", "--source", "src", out="../empty").code == 0


def test_nothing_but_bad_pictures(tmp_path):
    put(tmp_path, {"src/a.jpg": b"", "src/a.txt": "x"})
    with pytest.raises(DataError, match=r"no record became a sample.*picture is empty"):
        run(tmp_path, "folder", "--source", "src")


def test_the_table_has_a_third_column_where_there_is_something_to_name(tmp_path, capfd):
    few(tmp_path)
    words = ["data", "build", "folder", "--source", str(tmp_path / "src"), "--workers", "1", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    said = capfd.readouterr()
    assert "number" in said.out and "which" not in said.out and said.err == "shards of whole: 1/1\n"
    (tmp_path / "src/04.jpg").write_bytes(b"")
    assert main([*words, str(tmp_path / "part"), "--max-missing", "1"]) == 0
    assert "which" in capfd.readouterr().out


def test_every_format_has_a_help(capsys):
    with pytest.raises(SystemExit):
        main(["data", "build", "--help"])
    listed = capsys.readouterr().out
    for name, (module, what) in FORMATS.items():
        assert f"  {name} " in listed and what in listed
        importlib.import_module(f"mmpretrain.data_tools.formats.{module}")
        with pytest.raises(SystemExit) as stop:
            main(["data", "build", name, "--help"])
        assert stop.value.code == 0 and "--max-missing" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["data", "build", "koko"])
    assert stop.value.code == 2 and "invalid choice: 'koko'" in capsys.readouterr().err


def commands() -> list[list[str]]:
    import shlex

    page = (TREE / "docs/build.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    put_all(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands():
        assert main([*words[1:], "--quiet", "--workers", "1"]) == 0, words
        assert read(tmp_path / words[words.index("--out") + 1]).samples
    assert {words[3] for words in commands()} == set(FORMATS)


def test_stopped_at_the_very_end(tmp_path, monkeypatch):
    few(tmp_path)
    (tmp_path / "src/03.txt").unlink()
    (tmp_path / "src/04.jpg").write_bytes(b"")
    words = ["folder", "--source", "src", "--shard-size", "4", "--max-missing", "2"]

    finish = build._finish

    def stopped(*arguments):
        finish(*arguments)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(build, "_finish", stopped)
        with pytest.raises(Stop):
            run(tmp_path, *words)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.building/manifest.json").exists()
    made = run(tmp_path, *words)
    assert [one["name"] for one in made.skipped] == ["03", "04"] and len(made.samples) == 8
    assert not (tmp_path / "out/.work").exists() and not (tmp_path / ".out.building").exists()

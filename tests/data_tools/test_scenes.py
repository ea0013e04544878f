"""Shards, the cache and the command."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import mmpretrain
from mmpretrain.cli.main import main
from mmpretrain.data_tools import scenes
from mmpretrain.data_tools.scenes_language import words
from mmpretrain.data_tools.scenes_samples import members

ROOT = Path(mmpretrain.__file__).resolve().parent.parent  # what makes the package importable, installed or not


def read(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname, entry.mode) == (0, 0, 0, "", "", 0o644)
                assert entry.name not in found
                file = tar.extractfile(entry)
                assert file is not None
                found[entry.name] = file.read()
    return found


def test_write_is_the_same_for_any_number_of_processes(tmp_path):
    alone = scenes.write(tmp_path / "a", 70, 3, "train", shard_size=20, workers=1)
    together = scenes.write(tmp_path / "b", 70, 3, "train", shard_size=20, workers=3)
    names = [path.name for path in sorted(alone.iterdir())]
    assert names == ["00000.tar", "00001.tar", "00002.tar", "00003.tar", "manifest.json"]
    for name in names:
        assert (alone / name).read_bytes() == (together / name).read_bytes()
    longer = scenes.write(tmp_path / "c", 10, 3, "train", shard_size=7, workers=1)
    assert list(read(longer).items()) == list(read(alone).items())[:30]  # sample i depends on (seed, split, i) alone
    assert not list(tmp_path.glob(".tmp-*"))


def test_splits_and_seeds_differ():
    pictures = {members(seed, split, 0)[0][1] for seed in (0, 1) for split in ("train", "val", "compositional")}
    assert len(pictures) == 6


def test_texts_do_not_depend_on_hash_order_or_process():
    code = "from mmpretrain.data_tools.scenes_samples import members; import hashlib; h = hashlib.sha256();"
    code += "[h.update(data) for split in ('train', 'pairs') for i in range(8) for _, data in members(5, split, i)]; print(h.hexdigest())"
    answers = set()
    for salt in ("0", "1", "4242"):
        environment = {"PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT), "PATH": ""}
        answers.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(answers) == 1


def test_annotations_are_the_same_everywhere():
    """The golden texts of version 1: a change here needs a new VERSION, or caches hold something else than the code makes."""
    digest = hashlib.sha256()
    for split in scenes.SPLITS:
        for index in range(20):
            digest.update(members(0, split, index)[-1][1])
    assert scenes.VERSION == 1
    assert digest.hexdigest()[:32] == "d721cc9afe07baaa77d7477b68d5af85"


def test_sample_holds_everything(tmp_path):
    files = read(scenes.write(tmp_path / "val", 40, 0, "val"))
    keys = sorted({name.split(".")[0] for name in files})
    assert keys[0] == "val-00000000" and len(keys) == 40
    for key in keys:
        told = json.loads(files[key + ".json"])
        picture = Image.open(io.BytesIO(files[key + ".png"]))
        assert picture.mode == "RGB" and picture.size == (told["width"], told["height"]) == (64, 64)
        assert files[key + ".txt"].decode() == told["captions"][0]
        assert len(told["edits"]) == len(told["captions"]) >= 3
        assert all(set(edit) == {"text", "kind"} for edits in told["edits"] for edit in edits)
        for thing in told["objects"]:
            assert set(thing) == {"shape", "colour", "size", "material", "box"} and len(thing["box"]) == 4
        for subject, relation, thing in told["triples"]:
            a, b = (told["objects"][i]["box"] for i in (subject, thing))
            axis = 0 if relation in ("left of", "right of") else 1
            first, second = a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2
            assert first < second if relation in ("left of", "above") else first > second
        assert {type(s["label"]) for s in told["statements"]} <= {bool}
        assert {"exists", "count"} & {q["type"] for q in told["questions"]}
    assert len({word for key in keys for text in json.loads(files[key + ".json"])["captions"] for word in words(text)}) < 300


def test_pairs_hold_two_pictures(tmp_path):
    files = read(scenes.write(tmp_path / "pairs", 12, 0, "pairs", size=96))
    labels = []
    for key in sorted({name.split(".")[0] for name in files}):
        told = json.loads(files[key + ".json"])
        assert "captions" not in told and key + ".txt" not in files  # nothing here is a caption of one picture
        for side in (0, 1):
            assert Image.open(io.BytesIO(files[f"{key}.img{side}.png"])).size == (96, 96)
            assert told["images"][side]["objects"]
        labels += [statement["label"] for statement in told["statements"]]
    assert {True, False} == set(labels) and len(labels) >= 24


def test_embedded_is_made_once_and_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scenes, "EMBEDDED", {"train": 12, "val": 4, "compositional": 4, "pairs": 4, "pairs_val": 4})
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    folders = scenes.embedded()
    assert set(folders) == {"train", "val", "compositional", "pairs", "pairs_val"}
    assert "making 28 generated scenes" in capsys.readouterr().err
    shard = folders["val"] / "00000.tar"
    before, made = shard.read_bytes(), (folders["train"] / "00000.tar").stat().st_mtime_ns
    shard.write_bytes(before[:1000])  # a damaged shard is made again, the others are left alone
    left = folders["val"].parent / f".tmp-{folders['val'].name}-99999"
    left.mkdir()  # of a process that was killed
    assert scenes.embedded() == folders
    assert shard.read_bytes() == before and (folders["train"] / "00000.tar").stat().st_mtime_ns == made and not left.exists()
    other = scenes.embedded(n=6)
    assert other["train"] != folders["train"] and other["val"] == folders["val"]
    assert json.loads((other["train"] / "manifest.json").read_text())["samples"] == 6


def test_embedded_by_several_processes_at_once(tmp_path):
    code = "from mmpretrain.data_tools import scenes; scenes.EMBEDDED = dict.fromkeys(scenes.EMBEDDED, 8); scenes.embedded(workers=1)"
    environment = {"MMPRETRAIN_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT), "PATH": ""}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    said = b"".join(process.communicate()[1] for process in running)
    assert said.count(b"making 40 generated scenes") == 1
    assert sorted(path.name for path in (tmp_path / f"scenes-v{scenes.VERSION}").iterdir() if path.name.startswith(".")) == [".lock"]


def test_a_failing_worker_is_an_error(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(scenes.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended with code 1"):
        scenes.write(tmp_path / "a", 100, 0, "train", shard_size=50, workers=2)
    assert not list(tmp_path.iterdir())


FULL = """
import os, pathlib
def full(path, data):
    with open(path, "wb") as file:
        file.write(data[:1000])
    raise OSError(28, os.strerror(28))
pathlib.Path.write_bytes = full
"""


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capfd, workers):
    (tmp_path / "sitecustomize.py").write_text(FULL)  # of the sub-processes
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "here").mkdir()
    out = tmp_path / "here" / "out"
    with monkeypatch.context() as broken:
        if workers == "1":
            broken.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        command = ["data", "scenes", "--out", str(out), "--n", "100", "--shard-size", "20", "--workers", workers]
        assert main(command) == 2
    assert capfd.readouterr().err == f"mmpretrain: error: No space left on device: {out}; free space there or choose another --out\n"
    assert not list((tmp_path / "here").iterdir())
    if workers == "1":
        return
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OSError, match="scenes-v1: no room; free space there, or set MMPRETRAIN_CACHE to a folder"):
        scenes.embedded(n=1100, workers=3)


def test_manifest_sums(tmp_path):
    folder = scenes.write(tmp_path / "a", 9, 0, "train", shard_size=5)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["samples"] == 9 and [shard["samples"] for shard in manifest["shards"]] == [5, 4]
    for shard in manifest["shards"]:
        data = (folder / shard["file"]).read_bytes()
        assert shard["bytes"] == len(data) and shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_command(tmp_path, capsys):
    out = str(tmp_path / "shards")
    assert scenes.main(["--out", out, "--n", "3", "--seed", "1", "--split", "compositional", "--size", "48", "--shard-size", "2"]) == 0
    assert "3 samples of compositional" in capsys.readouterr().out
    assert scenes.complete(Path(out))
    for more, said in (
        (["--out", out, "--n", "3"], f"{out} exists and is not an empty folder: choose another --out or remove it"),
        (["--out", out + "2", "--n", "-5"], "--n -5: at least 1 is needed"),
        (["--out", out + "2", "--n", "5", "--shard-size", "0"], "--shard-size 0: at least 1 is needed"),
        (["--out", out + "2", "--n", "5", "--workers", "0"], "--workers 0: at least 1 is needed"),
        (["--out", out + "2", "--n", "5", "--size", "8"], "--size 8: the side of the pictures must be 32 to 1024 pixels"),
    ):
        assert main(["data", "scenes", *more]) == 2
        assert capsys.readouterr().err == f"mmpretrain: error: {said}\n"
    with pytest.raises(SystemExit) as stop:
        scenes.main(["--out", out + "2", "--n", "3", "--split", "trian"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.splitlines()[-1].startswith(
        "mmpretrain data scenes: error: argument --split: invalid choice: 'trian'"
    )


@pytest.mark.parametrize("more", [[], ["--quiet"]])
def test_quiet_shows_no_progress(tmp_path, monkeypatch, more):
    asked = []
    monkeypatch.setattr(scenes, "write", lambda *arguments: asked.append(arguments[5]))
    assert scenes.main(["--out", str(tmp_path / "shards"), "--n", "3", *more]) == 0
    assert asked == [not more]


def test_without_a_terminal_the_last_line_of_progress_is_shown(tmp_path, capsys):
    scenes.write(tmp_path / "shards", 3, 0, "train", shard_size=2, progress=True, workers=1)
    assert capsys.readouterr().err == "scenes: train: 3/3\n"


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="split 'test'"):
        scenes.write(tmp_path / "a", 1, 0, "test")
    with pytest.raises(ValueError, match="32 to 1024"):
        scenes.write(tmp_path / "a", 1, 0, "train", size=8)

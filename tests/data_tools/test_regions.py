"""``data regions``: shards with regions are the old shards and a member more, the same bytes however made, and say what made them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from helpers import tiny_extractor
from helpers.shards import sample, write_tar

from mmpretrain.cli.main import main as program
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.regions_info import read_info, same_extractor
from mmpretrain.data_tools import regions, regions_shard
from mmpretrain.data_tools.regions_net import load_extractor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(scenes, extractor, what it states)."""
    return tiny_extractor.make(tmp_path_factory.mktemp("extractor"))


def run(*words) -> int:
    return regions.main([*map(str, words), "--quiet"])


def sums(folder) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir()) if path.suffix in (".tar", ".json")
    }


def test_an_extractor_states_what_it_can(made):
    _, out, stated = made
    (found,) = stated["held_out"].values()
    assert set(found["heads"]) == {"class", "colour", "size", "material"} and found["boxes"] > 5
    assert found["heads"]["colour"]["accuracy"] > found["heads"]["colour"]["always_the_most_frequent"]
    info = load_extractor(out).info
    assert info.measured["held_out"] == stated["held_out"] and info.width == 48
    assert info.classes == ("circle", "cross", "heart", "square", "star", "triangle")
    assert [tuple(group) for group in info.groups] == [("colour", 0, 8), ("size", 8, 10), ("material", 10, 14)]


def test_the_same_training_gives_the_same_file(made, tmp_path):
    _, out, _ = made
    _, again, _ = tiny_extractor.make(tmp_path)
    assert again.read_bytes() == out.read_bytes()


def test_annotated_boxes(made, tmp_path, capsys):
    shards, out, _ = made
    assert run(shards, "--extractor", out, "--out", tmp_path / "a", "--workers", 1) == 0
    assert "the extractor's accuracy on a tenth: class" in capsys.readouterr().out
    old, new = (ShardReader(sorted(folder.glob("*.tar"))) for folder in (shards, tmp_path / "a"))
    assert len(new) == 60
    for number in (0, 31, 59):
        before, after = old.read(number), new.read(number)
        assert after._replace(regions=None) == before
        found = decode_regions(after.regions)
        wanted = np.array([thing["box"] for thing in before.meta["objects"]], dtype=np.float32)
        wanted[:, 2:] += wanted[:, :2]
        np.testing.assert_allclose(found.boxes, wanted)
        assert found.features.shape == (len(wanted), 48) and found.global_feature.shape == (48,)
        np.testing.assert_allclose(found.class_probs.sum(1), 1, atol=5e-3)
        for _, start, stop in read_info(tmp_path / "a").groups:
            np.testing.assert_allclose(found.attribute_probs[:, start:stop].sum(1), 1, atol=5e-3)
        assert found.classes.tolist() == found.class_probs.argmax(1).tolist()
        assert found.attributes.tolist() == found.attribute_probs[:, :8].argmax(1).tolist()


def test_the_bytes_do_not_depend_on_processes_or_threads(made, tmp_path):
    shards, out, _ = made
    run(shards, "--extractor", out, "--out", tmp_path / "one" / "x", "--workers", 1)
    torch.set_num_threads(2)
    try:
        run(shards, "--extractor", out, "--out", tmp_path / "two" / "x", "--workers", 2)
    finally:
        torch.set_num_threads(1)
    assert sums(tmp_path / "one" / "x") == sums(tmp_path / "two" / "x")
    with tarfile.open(tmp_path / "one" / "x" / "00000.tar") as archive:
        assert {(member.mtime, member.mode, member.uid) for member in archive.getmembers()} == {(0, 0o644, 0)}


def test_a_killed_run_goes_on_where_it_was(made, tmp_path, monkeypatch):
    shards, out, _ = made
    run(shards, "--extractor", out, "--out", tmp_path / "whole" / "x", "--workers", 1)
    ran, real = [], regions_shard._write

    def dies(source, target, maker, work):
        ran.append(source.name)
        if len(ran) == 2:
            target.with_name(f".{target.name}.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(source, target, maker, work)

    monkeypatch.setattr(regions_shard, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        run(shards, "--extractor", out, "--out", tmp_path / "cut" / "x", "--workers", 1)
    assert not (tmp_path / "cut" / "x" / "manifest.json").exists()
    other = tmp_path / "other.safetensors"
    shutil.copy(out, other)
    text = json.loads(out.with_suffix(".json").read_text())
    text["config"]["temperatures"] = [2.0] * 4
    other.with_suffix(".json").write_text(json.dumps(text))
    with pytest.raises(DataError, match="another extractor or other options"):
        run(shards, "--extractor", other, "--out", tmp_path / "cut" / "x", "--workers", 1)
    assert run(shards, "--extractor", out, "--out", tmp_path / "cut" / "x", "--workers", 1) == 0
    assert ran == ["00000.tar", "00001.tar", "00001.tar", "00002.tar"]
    assert sums(tmp_path / "cut" / "x") == sums(tmp_path / "whole" / "x")
    with pytest.raises(DataError, match="not an empty folder"):
        run(shards, "--extractor", out, "--out", tmp_path / "cut" / "x", "--workers", 1)


def test_proposals_for_pictures_without_labels(made, tmp_path):
    _, out, _ = made
    write_tar(tmp_path / "in" / "0.tar", [*sample(0), *sample(1)])
    words = [tmp_path / "in", "--extractor", out, "--workers", 1]
    assert run(*words, "--out", tmp_path / "a", "--boxes", "annotated") == 1  # none has any
    assert run(*words, "--out", tmp_path / "b", "--min-boxes", 3, "--max-boxes", 4) == 0
    found = decode_regions(ShardReader([tmp_path / "b" / "0.tar"]).read(0).regions)
    assert 1 <= len(found.boxes) <= 4 and found.image_size.tolist() == [20, 24]
    assert (np.diff(found.scores) <= 0).all()


def test_two_pictures_of_a_sample_lie_side_by_side(made, tmp_path):
    from mmpretrain.data_tools import scenes

    _, out, _ = made
    shards = scenes.write(tmp_path / "pairs", 2, 0, "pairs", workers=1)
    assert run(shards, "--extractor", out, "--out", tmp_path / "out", "--workers", 1) == 0
    one = ShardReader([tmp_path / "out" / "00000.tar"]).read(0)
    found, (left, right) = decode_regions(one.regions), (graph["objects"] for graph in one.meta["images"])
    assert found.image_size.tolist() == [64, 128] and len(found.boxes) == len(left) + len(right)
    assert (found.boxes[: len(left), 2] <= 64).all() and (found.boxes[len(left) :, 0] >= 64).all()


def test_bad_samples_stop_or_are_counted(made, tmp_path, capsys):
    _, out, _ = made
    broken = [("k2.png", b"no picture"), ("k2.json", b'{"captions": ["x"]}')]
    wrong = [sample(3)[0], ("k00003.json", json.dumps({"captions": ["x"], "objects": [{"box": [1, 2]}]}).encode())]
    write_tar(tmp_path / "in" / "0.tar", [*sample(0), *broken, *wrong, *sample(4)])
    words = [tmp_path / "in", "--extractor", out, "--workers", 1]
    with pytest.raises(DataError, match=r"0.tar key 'k2': picture cannot be decoded .*--on-bad skip"):
        run(*words, "--out", tmp_path / "a")
    assert run(*words, "--out", tmp_path / "b", "--on-bad", "skip") == 1
    assert "key 'k2'" in capsys.readouterr().out
    with tarfile.open(tmp_path / "b" / "0.tar") as archive:
        names = archive.getnames()
    assert [name for name in names if "regions" in name] == ["k00000.regions.npz", "k00004.regions.npz"]
    assert {"k2.png", "k00003.json"} <= set(names)


def test_regions_are_replaced_only_on_request_and_other_members_stay(made, tmp_path):
    _, out, _ = made
    write_tar(tmp_path / "in" / "0.tar", [*sample(0), ("k00000.seg.bin", b"1 2 3")])
    run(tmp_path / "in", "--extractor", out, "--out", tmp_path / "a", "--workers", 1)
    with tarfile.open(tmp_path / "a" / "0.tar") as archive:
        assert archive.extractfile("k00000.seg.bin").read() == b"1 2 3"
    with pytest.raises(DataError, match="has regions already; --replace"):
        run(tmp_path / "a", "--extractor", out, "--out", tmp_path / "b", "--workers", 1)
    assert run(tmp_path / "a", "--extractor", out, "--out", tmp_path / "c", "--workers", 1, "--replace") == 0
    assert sums(tmp_path / "a")["0.tar"] == sums(tmp_path / "c")["0.tar"]


def test_two_extractors_are_not_mixed(made, tmp_path):
    shards, out, _ = made
    one = next(iter(sorted(shards.glob("*.tar"))))
    run(one, "--extractor", out, "--out", tmp_path / "a", "--workers", 1)
    words = ["--random-weights", "--workers", 1, "--grid-side", 2]
    run(one, "--grid", "resnet10t", *words, "--out", tmp_path / "b")
    assert same_extractor([tmp_path / "a", shards]).source == "extractor extractor.safetensors"
    with pytest.raises(DataError, match="cannot be mixed"):
        same_extractor([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--extractor", "nothing.safetensors"], "nothing.safetensors does not exist"),
        (["--grid", "resnet10t"], "need --weights FILE"),
        (["--detector", "yolo", "--random-weights"], "--detector 'yolo' is not one of"),
        (["--grid", "no_model", "--random-weights"], "is no model of timm"),
        (["--store", "nothing.tsv", "--made-by", "x"], "nothing.tsv does not exist"),
        (["--store", "nothing.tsv"], "needs --made-by"),
        (["--fit", "--width", "0"], "at least 1"),
        (["--extractor", "x", "--min-boxes", "9", "--max-boxes", "3"], "must be ascending"),
    ],
)
def test_mistakes_are_one_line(words, message, tiny_shards, tmp_path, capsys):
    assert program(["data", "regions", str(tiny_shards), *words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_damaged_extractors_are_refused(made, tmp_path):
    _, out, _ = made
    for name in ("weights", "json", "names"):
        copy = tmp_path / f"{name}.safetensors"
        shutil.copy(out, copy)
        text = json.loads(out.with_suffix(".json").read_text())
        if name == "weights":
            copy.write_bytes(copy.read_bytes()[:-4])
        if name == "names":
            text["config"]["classes"] = text["config"]["classes"][:2]
        copy.with_suffix(".json").write_text("{" if name == "json" else json.dumps(text))
        with pytest.raises(DataError, match=rf"{name}\.(safetensors|json): "):
            load_extractor(copy)


def test_real_shards(made, real_shards, tmp_path):
    """NLVR (boxes in ``regions``) and photographs of which some have no boxes."""
    _, out, _ = made
    nlvr = sorted((real_shards / "nlvr_val").glob("*.tar"))[0]
    reader = ShardReader([nlvr])
    some = [(f"{one.key}.png", one.images[0]) for one in (reader.read(n) for n in range(3))]
    texts = [
        (f"{reader.read(n).key}.json", json.dumps({"captions": ["x"], "regions": reader.read(n).meta["regions"]}).encode())
        for n in range(3)
    ]
    write_tar(tmp_path / "in" / "0.tar", [member for pair in zip(some, texts, strict=True) for member in pair])
    assert run(tmp_path / "in", "--extractor", out, "--out", tmp_path / "out", "--workers", 1) == 0
    one = ShardReader([tmp_path / "out" / "0.tar"]).read(1)
    assert len(decode_regions(one.regions).boxes) == len(one.meta["regions"])

"""``mmpretrain data filter``: conditions, repetition, relevance and the best pair, with an account that adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.shards import encoded, picture, write_tar
from PIL import Image

import mmpretrain
from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.filter import Report, filter_shards
from mmpretrain.data_tools.filter_recipe import checked, load, make, shipped

LOCAL = {"workers": 1, "progress": False}


def one(key: str, captions: list[str], size: tuple[int, int] = (320, 320), **meta) -> list[tuple[str, bytes]]:
    meta = {"captions": captions, "edits": [[{"text": c, "kind": "x"}] for c in captions], **meta}
    return [(f"{key}.png", encoded(Image.new("RGB", size, (len(key), 7, 9)))), (f"{key}.json", json.dumps(meta).encode())]


def kept(out: Path) -> dict[str, tuple[str, ...]]:
    reader = ShardReader(sorted(out.glob("*.tar")))
    return {reader.read(n).key: reader.read(n).captions for n in range(len(reader))}


def adds_up(report: Report) -> bool:
    return all(
        [sum(counts.get(name, [0, 0])[i] for counts in report.dropped.values()) + report.kept[name][i] for i in (0, 1)] == report.seen[name]
        for name in report.seen
    )


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, list[Path]]:
    """Two sources with everything that conditions ask for."""
    web = [
        *one("fine", ["a man is riding a horse", "Ein Mann reitet auf einem Pferd"], score=0.9),
        *one("tiny", ["a small picture of the sea"], (120, 400)),
        *one("long", ["a long picture of the sea"], (1000, 300)),
        *one("short", ["horse", "on it"]),
    ]
    rest = [
        *one("german", ["ein Hund und eine Katze auf der Wiese"]),
        *one("dog", ["the dog is on a lawn"], score=0.1),
        ("odd.txt", b"\xff"),
    ]
    return {"web": [write_tar(tmp_path / "web" / "0.tar", web)], "rest": [write_tar(tmp_path / "rest" / "0.tar", rest)]}


def test_a_field_that_no_sample_has_is_said(tmp_path, sets, capsys):
    where = "score > 0.5 and (min_sid > 100 or max_side > 200 or scroe > 1 or qqq = 2)"
    inputs = [f"{name}={paths[0].parent}" for name, paths in sets.items()]
    assert data(["data", "filter", *inputs, "--workers", "1", "--quiet", "--out", str(tmp_path / "out"), "--where", where]) == 0
    said = capsys.readouterr().err
    assert said.splitlines() == [
        f"filter: no sample has a field {name!r}: no comparison with it holds; {hint}"
        for name, hint in (
            ("min_sid", "did you mean 'min_side'?"),
            ("qqq", "is it spelt right?"),
            ("scroe", "did you mean 'score'?"),
        )
    ]
    told = json.loads((tmp_path / "out" / "filter_report.json").read_text())
    assert told["missing"] == ["min_sid", "qqq", "scroe"] and told["near"] == {"min_sid": "min_side", "scroe": "score"}


def test_that_nothing_is_kept_is_said(tmp_path, sets, capsys):
    out = tmp_path / "out"
    command = ["data", "filter", str(sets["web"][0].parent), "--workers", "1", "--quiet", "--out", str(out), "--where", "width > 5000"]
    assert data(command) == 0 and not list(out.glob("*.tar"))
    assert capsys.readouterr().err == f"filter: nothing was kept: {out} has no shard\n"


def test_a_field_of_captions_among_the_conditions_of_samples_is_said(tmp_path, sets, capsys):
    command = ["data", "filter", str(sets["web"][0].parent), "--workers", "1", "--quiet", "--captions", "words > 1"]
    assert data([*command, "--out", str(tmp_path / "fine"), "--where", "captions > 0"]) == 0
    assert "field" not in capsys.readouterr().err
    assert data([*command, "--out", str(tmp_path / "out"), "--where", "words > 3"]) == 0
    assert "'words' is a field of captions: no comparison of --where with it holds; ask by --captions" in capsys.readouterr().err


def test_conditions_with_an_account(tmp_path, sets):
    steps = load("datacomp-basic")
    report = filter_shards(sets, tmp_path / "out", steps, engine=LOCAL)
    assert kept(tmp_path / "out") == {"fine": ("a man is riding a horse",), "dog": ("the dog is on a lawn",)}
    assert report.seen == {"web": [4, 6], "rest": [3, 2]} and report.kept == {"web": [1, 1], "rest": [1, 1]} and adds_up(report)
    assert report.dropped["caption not English"] == {"web": [0, 2], "rest": [1, 1]}  # "horse" is of no known language
    assert report.dropped["caption too short"] == {"web": [1, 1], "rest": [0, 0]}
    assert report.dropped["picture too long"]["web"] == [2, 2] and report.dropped["cannot be read"] == {"rest": [1, 0]}
    sample = ShardReader(sorted((tmp_path / "out").glob("*.tar"))).read(0)
    assert sample.meta == {"edits": [[{"text": "a man is riding a horse", "kind": "x"}]], "score": 0.9}
    assert json.loads((tmp_path / "out" / "filter_report.json").read_text())["kept"] == report.kept


def test_command_with_conditions_on_metadata(tmp_path, sets, capsys):
    command = ["data", "filter", f"a={sets['web'][0]}", str(sets["rest"][0].parent), "--workers", "1", "--quiet"]
    assert data([*command, "--out", str(tmp_path / "out"), "--where", "score >= 0.5 or source = rest"]) == 0
    assert set(kept(tmp_path / "out")) == {"fine", "german", "dog"}
    assert "a: samples" in capsys.readouterr().out.replace("\n", " ")
    for more, text in (
        ([], "nothing to filter by"),
        (["--where", "width >"], "a value is missing"),
        (["--recipe", "nowhere"], "neither a file nor one of datacomp-basic, datacomp-clip, lait"),
        (["--recipe", "lait", "--where", "a"], "stands alone"),
        (["--recipe", "lait"], "--checkpoint"),
        (["--best"], "put a relevance step before it"),
        (["--fraction", "2", "--checkpoint", "x"], "out of range"),
    ):
        with pytest.raises(UserError, match=text):
            data([*command, "--out", str(tmp_path / "no"), *more])


def test_captions_of_too_many_pictures(tmp_path):
    members = [m for n in range(4) for m in one("k" * (n + 1), ["click here", f"only this {n}"])]
    same = [(name.replace("k.", "copy."), content) for name, content in members[:2]]  # the same picture again is no other picture
    paths = [write_tar(tmp_path / "in" / "0.tar", members), write_tar(tmp_path / "in" / "1.tar", same)]
    report = filter_shards({"web": paths}, tmp_path / "a", [make("repeated", {"images": 4})], engine=LOCAL)
    assert report.kept == report.seen == {"web": [5, 10]}
    report = filter_shards({"web": paths}, tmp_path / "b", [make("repeated", {"images": 3})], engine=LOCAL)
    assert report.dropped == {"repeated images 3": {"web": [0, 5]}} and adds_up(report)
    assert kept(tmp_path / "b")["kk"] == ("only this 1",)


@pytest.mark.parametrize("system", ["clip", "vilt"])
def test_relevance_and_the_best_pair(tmp_path, system):
    path = checkpoint(tmp_path / "last.ckpt", system)
    texts = ["a red cube above a green ball", "two blue balls", "a small yellow cone", "the green cube"]
    members = [m for n in range(4) for m in [(f"k{n}.png", picture(n)), (f"k{n}.json", json.dumps({"captions": texts}).encode())]]
    members += [("copy.png", picture(0)), ("copy.txt", texts[0].encode()), ("bad.png", picture(1)[:80]), ("bad.txt", b"two blue balls")]
    source = {"web": [write_tar(tmp_path / "in" / "0.tar", members)]}
    steps = checked([make("relevance", {"fraction": 0.5}), make("best", None)])
    report = filter_shards(source, tmp_path / "out", steps, path, engine=LOCAL)
    assert report.seen == {"web": [6, 18]} and report.dropped["picture cannot be decoded"] == {"web": [1, 1]} and adds_up(report)
    expected = mmpretrain.load(path).score([picture(n) for n in range(4)], texts, mode="matrix")
    half = sorted([*expected.flatten().tolist(), expected[0, 0].item()], reverse=True)[round(0.5 * 17) - 1]
    found = kept(tmp_path / "out")
    reader = ShardReader(sorted((tmp_path / "out").glob("*.tar")))
    for n in range(4):
        row, key = expected[n], "copy" if n == 0 and "copy" in found else f"k{n}"  # pictures are equal, scores to the last bit may not be
        if row.max().item() < half + 1e-4:  # at the border either is right
            assert key not in found or row.max().item() > half - 1e-4
            continue
        assert found[key] == (texts[int(row.argmax())],)
        sample = next(reader.read(i) for i in range(len(reader)) if reader.read(i).key == key)
        assert sample.meta["relevance"] == pytest.approx([row.max().item()], abs=1e-3)
    assert not {"copy", "k0"} <= set(found) and sum(report.kept["web"]) == 2 * len(found)
    again = filter_shards(source, tmp_path / "again", steps, path, engine=LOCAL)
    assert again == report and (tmp_path / "again" / "00000.tar").read_bytes() == (tmp_path / "out" / "00000.tar").read_bytes()


@pytest.mark.parametrize("content", [None, b"junk", b""])
def test_a_checkpoint_that_is_none_is_refused_before_indexing(tmp_path, sets, content):
    path = tmp_path / "some.tar"
    if content is not None:
        path.write_bytes(content)
    command = ["data", "filter", str(sets["web"][0]), "--recipe", "lait", "--workers", "1", "--quiet", "--checkpoint", str(path)]
    with pytest.raises(UserError, match=r"some\.tar: ") as caught:
        data([*command, "--out", str(tmp_path / "out")])
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.npz")) and not (tmp_path / "out").exists()


def test_a_model_without_texts_gives_no_relevance(tmp_path, sets):
    path = tiny_dvae.make(tmp_path / "dvae.ckpt")
    with pytest.raises(DataError, match=r"dvae\.ckpt"):
        filter_shards(sets, tmp_path / "out", [make("relevance", {"fraction": 0.5})], path, engine=LOCAL)


def test_shipped_recipes_are_read():
    assert shipped() == ["datacomp-basic", "datacomp-clip", "lait"]
    assert [step.kind for step in load("lait")] == ["where", "captions", "captions", "relevance", "best", "repeated"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("steps: 3", "a list of steps"),
        ("steps: [{where: 3}]", "step 1: where needs a condition"), ("steps: [{where: a, best: }]", "one of"),
        ("steps: [{repeated: {images: x}}]", "a number"), ("steps: [{relevance: {threshold: 1, fraction: 1}}]", "threshold or fraction"),
        ("steps: [{best: {}}]", "put a relevance step before it"), ("{", "not YAML"), ("steps: [{eval: 1}]", "one of where"),
    ],
)  # fmt: skip
def test_mistakes_in_recipes(tmp_path, body, text):
    (tmp_path / "own.yaml").write_text(body)
    with pytest.raises(DataError, match=text):
        load(str(tmp_path / "own.yaml"))

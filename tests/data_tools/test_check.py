"""The doctor finds every kind of damage; what webdataset does with the same shards stands beside it."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import pytest
import webdataset
from helpers.shards import caption, encoded, picture, sample, write_tar
from PIL import Image

from mmpretrain.cli.data import run as data
from mmpretrain.data import quarantine
from mmpretrain.data.errors import DataError
from mmpretrain.data.index import open_index
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.check import Checked, check, write_lists
from mmpretrain.data_tools.check_shard import KINDS
from mmpretrain.data_tools.shards import write_manifest, write_shard

LOCAL = {"workers": 1, "progress": False}


def jpeg(number: int) -> bytes:
    rng = random.Random(number)
    return encoded(Image.frombytes("RGB", (48, 48), rng.randbytes(48 * 48 * 3)), "JPEG", quality=95)


def members(start: int, stop: int) -> list[tuple[str, bytes]]:
    """KEY.jpg, KEY.txt, KEY.json of numbered samples, as section 1.2 of the design has them; pictures of several blocks."""
    found = []
    for n in range(start, stop):
        meta = json.dumps({"number": n}).encode()
        found += [(f"{n:03d}.jpg", jpeg(n)), (f"{n:03d}.txt", f"caption {n}".encode()), (f"{n:03d}.json", meta)]
    return found


def spans(path: Path) -> dict[str, tuple[int, int, int]]:
    """Name -> (header, bytes, size) of every member."""
    import tarfile

    with tarfile.open(path) as archive:
        return {one.name: (one.offset, one.offset_data, one.size) for one in archive}


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def rename(path: Path, change) -> None:
    """Write shard a again with changed members."""
    write_tar(path, change(members(0, 20)))


def dotted(listed):
    return [(name.replace("005.", "v1.5_img.") if name.startswith("005.") else name, content) for name, content in listed]


def apart(listed):
    return [*listed[:15], listed[15], *listed[18:], listed[16], listed[17]]


def again(listed):
    return [*listed[:16], listed[15], *listed[16:]]


def to_first_key_of_b(path: Path) -> None:
    """Cut a in the text of its last sample, which has the key of the first of b."""
    rename(path, lambda listed: [(name.replace("019.", "100."), content) for name, content in listed])
    cut(path, spans(path)["100.txt"][1] + 3)


# damage -> (how, kind that the doctor names, key or None, what webdataset does by default: samples delivered or the error)
DAMAGE = {
    "cut inside a picture": (lambda a: cut(a, spans(a)["005.jpg"][1] + 100), "cut", None, "ReadError"),
    "cut inside a header": (lambda a: cut(a, spans(a)["005.jpg"][0] + 200), "cut", None, 25),
    "cut at a border of members": (lambda a: cut(a, spans(a)["005.jpg"][0]), "end blocks", None, 25),
    "cut between picture and text": (lambda a: cut(a, spans(a)["005.txt"][0]), "end blocks", None, 26),
    "end blocks missing": (lambda a: cut(a, -(-sum(spans(a)["019.json"][1:]) // 512) * 512), "end blocks", None, 40),
    "flipped bit in a header": (lambda a: flip(a, spans(a)["005.jpg"][0] + 3), "header", None, 25),
    "flipped bit in a caption": (lambda a: flip(a, spans(a)["005.txt"][1]), "checksum", "005", 40),
    "duplicate member": (lambda a: rename(a, again), "duplicate member", "005", "ValueError"),
    "members not adjacent": (lambda a: rename(a, apart), "not adjacent", "005", 41),
    "dot in a key": (lambda a: rename(a, dotted), "dotted key", "v1", 40),
    "cut, and the next shard begins with the same key": (to_first_key_of_b, "split key", "100", "ReadError"),
}


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two sound shards of 20 samples, indexed."""
    paths = [write_tar(tmp_path / "shards" / "a.tar", members(0, 20)), write_tar(tmp_path / "shards" / "b.tar", members(100, 120))]
    for path in paths:
        open_index(path)
    return paths


def theirs(paths: list[Path]) -> int | str:
    """How many samples webdataset delivers without a handler, or the name of its error."""
    try:
        return sum(1 for _ in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))
    except Exception as error:  # noqa: BLE001  whatever they raise is the answer
        return type(error).__name__


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_kind_of_damage_is_named(pair, damage, own_cache):
    how, kind, key, default = DAMAGE[damage]
    assert check(pair, engine=LOCAL).problems == []
    how(pair[0])
    found = [one for one in check(pair, engine=LOCAL).problems if one.kind == kind]
    assert [(one.shard, one.key) for one in found] == [(pair[1] if kind == "split key" else pair[0], key)], found
    assert theirs(pair) == default
    if damage == "cut between picture and text":
        assert ("005", "incomplete") in {(one.key, one.kind) for one in check(pair, engine=LOCAL).problems}
    if kind == "split key":  # the cut itself too; a tolerant reader makes one sample of two
        assert "cut" in {one.kind for one in check(pair, engine=LOCAL).problems}
        mixed = webdataset.WebDataset(
            [str(path) for path in pair], shardshuffle=False, empty_check=False, handler=webdataset.ignore_and_continue
        )
        (one,) = [one for one in mixed if one["__key__"] == "100"]
        assert one["jpg"] == jpeg(19) and one["txt"] == b"caption 100"


def problems(paths, **options) -> list[tuple[str | None, str, str]]:
    return [(one.key, one.kind, one.reason) for one in check(paths, engine=LOCAL, **options).problems]


def bomb() -> bytes:
    """A PNG of 12000 x 12000 black pixels, built without its pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = (12000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1501 * 12000), 9)) + chunk(b"IEND", b"")


def test_bad_samples_are_named(tmp_path, own_cache):
    deep = b'{"a":' * 40 + b"1" + b"}" * 40
    bad = [
        *sample(0), *sample(1), *sample(2), *sample(3), *sample(4), *sample(5), *sample(6), *sample(7),
        ("half.jpg", jpeg(1)[:900]), ("half.txt", b"half a picture"),
        ("page.jpg", b"<html>"), ("page.txt", b"a web page"),
        ("large.png", bomb()), ("large.txt", b"a bomb"),
        ("deep.png", picture(1)), ("deep.json", deep),
        ("latin.png", picture(2)), ("latin.txt", b"caf\xe9"),
        ("long.png", picture(3)), ("long.txt", b"x" * 70_000),
        ("code.png", picture(4)), ("code.txt", b"fine"), ("code.meta.pkl.gz", b"..."),
        ("alone.txt", b"no picture"),
        ("mute.png", picture(5)),
    ]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", bad)
    found = problems([path])
    assert [(key, kind) for key, kind, _ in found] == [
        ("half", "picture"), ("page", "picture"), ("large", "bomb"), ("deep", "bomb"), ("latin", "text"), ("long", "bomb"),
        ("code", "pickle"), ("alone", "incomplete"), ("mute", "incomplete"),
    ]  # fmt: skip
    assert "144000000" in found[2][2] or "12000" in found[2][2]
    assert ("half", "picture") not in [(key, kind) for key, kind, _ in problems([path], decode=False)]
    assert "incomplete" not in {kind for _, kind, _ in problems([path], ignore=["incomplete"])}


def test_what_a_set_never_has_is_not_missing(tmp_path, own_cache):
    texts = write_tar(tmp_path / "0.tar", [(f"t{n}.txt", b"text alone") for n in range(4)])
    assert problems([texts]) == []
    assert [kind for _, kind, _ in problems([texts], need=["picture"])] == ["incomplete"] * 4


def test_manifest_sums_and_missing_shards(tmp_path, own_cache):
    folder = tmp_path / "set"
    samples = [(f"k{n}", {"txt": caption(n).encode(), "png": picture(n)}) for n in range(4)]
    write_manifest(folder, [write_shard(folder / f"{n}.tar", samples[2 * n : 2 * n + 2]) for n in range(2)], {})
    paths = sorted(folder.glob("*.tar"))
    assert problems(paths) == []
    content = paths[0].read_bytes()
    flip(paths[0], content.index(b"number 1"))
    assert [(key, kind) for key, kind, _ in problems(paths)] == [(None, "checksum")]
    paths[0].write_bytes(content)
    paths[1].unlink()
    assert [(key, kind) for key, kind, _ in problems(paths[:1])] == [(None, "missing shard")]


def test_keys_in_two_shards(tmp_path, own_cache):
    a = write_tar(tmp_path / "a.tar", [*sample(0), *sample(1), *sample(2)])
    b = write_tar(tmp_path / "b.tar", [*sample(7), *sample(1), *sample(0)])
    c = write_tar(tmp_path / "c.tar", [*sample(1), *sample(8)])
    found = [(one.shard.name, one.key, one.kind, one.reason) for one in check([a, b, c], engine=LOCAL).problems]
    assert found == [
        ("b.tar", "k00001", "duplicate key", "also in a.tar"),
        ("b.tar", "k00000", "duplicate key", "also in a.tar"),
        ("c.tar", "k00001", "duplicate key", "also in a.tar"),
    ]


def test_folders_are_sets_of_their_own(tmp_path, capsys, own_cache):
    train, val, books = tmp_path / "train", tmp_path / "val", tmp_path / "books"
    write_tar(train / "0.tar", [*sample(0), *sample(1), *sample(2)])
    write_tar(val / "0.tar", [*sample(0), *sample(1)])
    write_tar(books / "0.tar", [("k0.txt", b"text alone")])
    words = ["data", "check", str(train), str(val), str(books), "--workers", "1", "--quiet"]
    assert data(words) == 0 and "6 samples in 3 shards" in capsys.readouterr().out
    assert [(folder / "quarantine.jsonl").read_text() for folder in (train, val, books)] == ["", "", ""]
    write_tar(val / "1.tar", [*sample(1)])
    assert data(words) == 1 and f"{val}/1.tar" in capsys.readouterr().out
    assert (train / "quarantine.jsonl").read_text() == "" and "0.tar ends with the same key" in (val / "quarantine.jsonl").read_text()


def test_the_command_writes_its_lists_and_answers_by_its_code(tmp_path, capsys, own_cache):
    folder = tmp_path / "shards"
    write_tar(folder / "0.tar", [*sample(0), *sample(1), ("bad.png", picture(2)[:60]), ("bad.txt", b"cut")])
    write_tar(folder / "1.tar", [*sample(3)])
    assert data(["data", "check", str(folder), "--workers", "1", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "bad" in shown and "4 samples in 2 shards" in shown and "neither an index nor a sum" in shown
    assert json.loads((folder / "sizes.json").read_text()) == {"0.tar": 3, "1.tar": 1}
    (row,) = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert (row["shard"], row["key"], row["reason"]) == ("0.tar", "bad", "picture") and "cannot be decoded" in row["detail"]
    assert quarantine.of(ShardReader(sorted(folder.glob("*.tar")))).reasons == {"picture": 1}  # training honours it
    write_tar(folder / "0.tar", sample(0))
    assert data(["data", "check", str(folder), "--workers", "1", "--quiet", "--out", str(tmp_path / "lists")]) == 0
    assert (tmp_path / "lists" / "quarantine.jsonl").read_text() == ""
    assert not list((own_cache / "state").iterdir())


def test_a_quarantine_keeps_what_others_wrote(tmp_path):
    folder, path = tmp_path / "shards", tmp_path / "shards" / "quarantine.jsonl"
    write_tar(folder / "0.tar", [*sample(0), *sample(1), ("bad.png", picture(2)[:60]), ("bad.txt", b"cut")])
    write_tar(folder / "1.tar", [("worse.png", picture(2)[:60]), ("worse.txt", b"cut")])
    by_hand = b'{"key": "k00001",  "shard": "0.tar", "reason": "mine"}\n'
    other = b'{"shard": "0.tar", "key": "k00000", "reason": "near duplicate", "tool": "dedup"}\n'
    path.write_bytes(by_hand + b"{torn\n" + other[:-1])
    for _ in range(2):  # the second time replaces the first
        assert data(["data", "check", str(folder), "--workers", "1", "--quiet"]) == 1
        lines = path.read_bytes().splitlines(keepends=True)
        assert lines[:3] == [by_hand, b"{torn\n", other]
        assert [(row["key"], row["tool"]) for row in map(json.loads, lines[3:])] == [("bad", "check"), ("worse", "check")]
    write_tar(folder / "0.tar", sample(0))
    assert data(["data", "check", str(folder / "0.tar"), "--workers", "1", "--quiet"]) == 0  # says nothing of 1.tar
    quarantine.replace(path, "dedup", [], {"0.tar"})
    assert [json.loads(line)["key"] for line in path.read_bytes().replace(b"{torn\n", b"").splitlines()] == ["k00001", "worse"]


def test_lists_need_a_folder(tmp_path):
    two = Checked({tmp_path / "a" / "0.tar": {"samples": 1}, tmp_path / "b" / "0.tar": {"samples": 1}}, [])
    with pytest.raises(DataError, match="2 folders"):
        write_lists(two, tmp_path / "out")


def test_every_kind_has_a_meaning():
    assert all(KINDS.values()) and {kind for _, kind, _, _ in DAMAGE.values()} < set(KINDS)

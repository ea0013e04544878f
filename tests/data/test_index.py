"""Shards and their index: round trips, and every kind of damage an error that names it."""

from __future__ import annotations

import json
import pickle
import tarfile

import numpy as np
import pytest
from helpers.shards import caption, picture, sample, write_shards, write_tar

from mmpretrain.data import index as indexes
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "a" / "00000.tar", [member for n in range(8) for member in sample(n)])


def layout(path):
    """(header offset, payload offset, size) of each member, by the standard library."""
    with tarfile.open(path) as archive:
        return [(m.offset, m.offset_data, m.size) for m in archive]


def cut(path, at):
    path.write_bytes(path.read_bytes()[:at])


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_samples_are_read_back(tmp_path):
    reader = ShardReader(sorted(write_shards(tmp_path, (5, 1, 3)).glob("*.tar")))
    assert len(reader) == 9
    for number in (8, 0, 5, 3):
        found = reader.read(number)
        assert found.key == f"k{number:05d}" and found.images == (picture(number),)
        assert found.captions == (caption(number), caption(number, 1)) and found.meta["number"] == number
    assert reader.read_at(0, 2, images=False).images == (b"",)
    with pytest.raises(IndexError):
        reader.read(9)


def test_webdataset_reads_our_shards_and_agrees(tmp_path):
    wds = pytest.importorskip("webdataset")
    folder = write_shards(tmp_path, (5, 4))
    reader = ShardReader(sorted(folder.glob("*.tar")))
    theirs = list(wds.WebDataset([str(path) for path in reader.paths], shardshuffle=False))
    assert [(s["__key__"], s["png"], json.loads(s["json"])["captions"]) for s in theirs] == [
        (s.key, s.images[0], list(s.captions)) for s in map(reader.read, range(len(reader)))
    ]


@pytest.mark.fault(8, 18)
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_unicode_and_nested_keys_survive(tmp_path, format):
    keys = ["folder/with.dots/k1", "ключ-é-图", "x" * (90 if format == tarfile.USTAR_FORMAT else 300), "../k", "/abs/k"]
    path = write_tar(tmp_path / "s.tar", [member for n, key in enumerate(keys) for member in sample(n, key)], format)
    reader = ShardReader([path])
    assert [reader.read(n).key for n in range(len(keys))] == keys
    assert {p.name for p in tmp_path.iterdir()} == {"s.tar", "s.tar.idx.npz"}  # no name ever became a path


DAMAGE = {
    "cut in a payload": (lambda p, m: cut(p, m[15][1] + 10), "cut short"),
    "cut in a header": (lambda p, m: cut(p, m[15][0] + 100), "cut inside a header at offset"),
    "cut at a member boundary": (lambda p, m: cut(p, m[15][0]), "no end-of-archive blocks at offset"),
    "cut between the picture and the text": (lambda p, m: cut(p, m[16][0]), "no end-of-archive blocks"),
    "end blocks missing": (lambda p, m: cut(p, -(-(m[-1][1] + m[-1][2]) // 512) * 512), "no end-of-archive blocks"),
    "one end block missing": (lambda p, m: cut(p, -(-(m[-1][1] + m[-1][2]) // 512) * 512 + 512), "end-of-archive blocks at offset"),
    "bit flipped in a header": (lambda p, m: flip(p, m[15][0] + 3), "damaged header at offset"),
    "bit flipped in a size": (lambda p, m: flip(p, m[15][0] + 130), "damaged header at offset"),
    "bit flipped in the first header": (lambda p, m: flip(p, 2), "not a plain tar"),
    "data after the end": (lambda p, m: p.write_bytes(p.read_bytes() + b"x" * 512), "data after the end of the archive"),
    "empty file": (lambda p, m: p.write_bytes(b""), "the file is empty"),
    "a header of zeros in the middle": (
        lambda p, m: p.write_bytes(p.read_bytes()[: m[15][0]] + bytes(512) + p.read_bytes()[m[15][0] + 512 :]),
        "data after the end of the archive",
    ),
}


@pytest.mark.fault(1, 2, 3)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_when_the_shard_is_indexed(shard, kind):
    damage, message = DAMAGE[kind]
    damage(shard, layout(shard))
    with pytest.raises(DataError, match=message) as caught:
        ShardReader([shard])
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("page", [b"<!DOCTYPE HTML>\n<title>shards</title>", b"<HTML>" + b" " * 2000])
def test_a_web_page_in_the_place_of_a_shard_is_told(tmp_path, page):
    (tmp_path / "0.tar").write_bytes(page)
    with pytest.raises(DataError, match=r"0\.tar: a web page, not a tar; .*the address of a folder of shards ends in '/'"):
        ShardReader([tmp_path / "0.tar"])


@pytest.mark.fault(3)
def test_every_flipped_header_byte_is_found_or_harmless(shard):
    good = shard.read_bytes()
    expected = indexes.build(shard)
    at = layout(shard)[4][0]
    for place in range(512):
        shard.write_bytes(good)
        flip(shard, at + place, place % 8)
        try:
            found = indexes.build(shard)
        except DataError as error:
            assert "damaged header" in str(error) or "not UTF-8" in str(error)
        else:  # the separators inside the checksum field carry no information
            assert 148 <= place < 156 and found.digest == expected.digest


def theirs(*paths):
    """The samples that plain webdataset delivers with a handler that goes on, its default being to raise."""
    wds = pytest.importorskip("webdataset")
    return list(wds.WebDataset([str(path) for path in paths], shardshuffle=False, handler=wds.ignore_and_continue))


SILENT = {  # damage -> samples of 8 that webdataset delivers without a word
    "cut in a header": 5,
    "cut at a member boundary": 5,
    "cut between the picture and the text": 6,
    "end blocks missing": 8,
    "bit flipped in a header": 5,
    "a header of zeros in the middle": 5,
}


@pytest.mark.fault(2, 3)
@pytest.mark.parametrize("kind", SILENT)
def test_what_webdataset_makes_of_the_same_damage(shard, kind):
    wds = pytest.importorskip("webdataset")
    DAMAGE[kind][0](shard, layout(shard))
    found = list(wds.WebDataset(str(shard), shardshuffle=False))  # its default handler raises errors: there is none
    assert len(found) == SILENT[kind]


@pytest.mark.fault(1)
def test_webdataset_raises_at_a_cut_payload_or_drops_the_rest(shard):
    cut(shard, layout(shard)[15][1] + 10)
    with pytest.raises(tarfile.ReadError):
        list(pytest.importorskip("webdataset").WebDataset(str(shard), shardshuffle=False))
    assert len(theirs(shard)) == 5


@pytest.mark.fault(5)
def test_webdataset_mixes_a_cut_shard_with_the_next(tmp_path):
    folder = write_shards(tmp_path, (4,))
    second = write_tar(folder / "00001.tar", [member for n in range(10, 14) for member in sample(n, f"k{n - 10 + 3:05d}")])
    cut(folder / "00000.tar", layout(folder / "00000.tar")[10][1] + 3)  # within the text of the last sample, whose key comes again
    mixed = next(found for found in theirs(folder / "00000.tar", second) if found["__key__"] == "k00003")
    assert mixed["png"] == picture(3) and json.loads(mixed["json"])["number"] == 10


@pytest.mark.fault(6)
def test_webdataset_raises_at_duplicates_or_drops_the_group(tmp_path):
    a = sample(0)
    path = write_tar(tmp_path / "1.tar", [a[0], a[1], a[0], *sample(1)])
    with pytest.raises(ValueError, match="duplicate"):
        list(pytest.importorskip("webdataset").WebDataset(str(path), shardshuffle=False))


@pytest.mark.fault(7, 8)
def test_webdataset_splits_samples_and_keys_with_dots_silently(tmp_path):
    a, b = sample(0), sample(1)
    assert len(theirs(write_tar(tmp_path / "2.tar", [a[0], b[0], a[1], b[1]]))) == 4
    (found,) = theirs(write_tar(tmp_path / "3.tar", sample(0, "v1.5_img")))
    assert found["__key__"] == "v1" and "5_img.png" in found and "png" not in found


@pytest.mark.fault(8)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_long_name_that_is_cut_within_a_character_survives(tmp_path, format):
    keys = ["x" * shift + "é" * 120 for shift in range(3)]  # found by fuzzing: the short name beside the long one is no UTF-8
    path = write_tar(tmp_path / "s.tar", [member for n, key in enumerate(keys) for member in sample(n, key)], format)
    reader = ShardReader([path])
    assert [reader.read(n).key for n in range(3)] == keys


@pytest.mark.fault(5)
def test_a_damaged_shard_never_mixes_with_the_next(tmp_path):
    folder = write_shards(tmp_path, (4,))
    second = write_tar(folder / "00001.tar", [member for n in range(10, 14) for member in sample(n, f"k{n - 10:05d}")])  # equal keys
    reader = ShardReader([folder / "00000.tar", second])
    assert reader.read(0).images == (picture(0),) and reader.read(4).captions[0] == caption(10)
    cut(folder / "00000.tar", layout(folder / "00000.tar")[10][0])
    with pytest.raises(DataError, match=r"00000\.tar"):
        ShardReader([folder / "00000.tar", second])


@pytest.mark.fault(6, 7, 8, 10)
def test_duplicates_strays_and_dotted_keys_are_errors(tmp_path):
    a, b = sample(0), sample(1)
    with pytest.raises(DataError, match="key 'k00000' has two members 'png'"):
        ShardReader([write_tar(tmp_path / "1.tar", [a[0], a[1], a[0]])])
    with pytest.raises(DataError, match="members of key 'k00000' are not adjacent"):
        ShardReader([write_tar(tmp_path / "2.tar", [a[0], b[0], a[1], b[1]])])
    with pytest.raises(DataError, match="a key must not hold a dot"):
        ShardReader([write_tar(tmp_path / "3.tar", sample(0, "v1.5_img"))])
    with pytest.raises(DataError, match="no sample in"):
        ShardReader([write_tar(tmp_path / "4.tar", [])])
    with pytest.raises(DataError, match="not a plain tar"):
        (tmp_path / "5.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
        ShardReader([tmp_path / "5.tar"])


@pytest.mark.fault(4)
def test_payload_damage_is_a_bad_sample_that_names_shard_and_key(shard):
    reader = ShardReader([shard])
    members = layout(shard)
    flip(shard, members[4][1] + 2)  # a letter of a caption file, after indexing
    with pytest.raises(BadSample, match=r"key 'k00001': the bytes of txt at offset .* changed since the shard was indexed") as caught:
        reader.read(1)
    assert str(shard) in str(caught.value)
    assert reader.read(2).key == "k00002"


@pytest.mark.fault(9, 19)
def test_incomplete_and_unreadable_samples_are_counted(tmp_path):
    members = [
        *sample(0),
        ("nopic.txt", b"words"),
        ("notext.png", picture(1)),
        ("latin.png", picture(2)),
        ("latin.txt", b"\xff\xfe"),
        ("deep.png", picture(3)),
        ("deep.json", b'{"captions":["x"],"a":' + b"[" * 40 + b"]" * 40 + b"}"),
        ("long.png", picture(4)),
        ("long.txt", b"x" * (64 * 1024 + 1)),
        ("seg.png", picture(5)),
        ("seg.seg.png", b"mask"),
        ("seg.txt", b"words"),
        ("seg.npy", b"numbers"),
        ("README", b"text"),
    ]
    found = indexes.build(write_tar(tmp_path / "s.tar", members))
    rows = {found.key(n): (found.images_S[n], found.captions_S[n]) for n in range(len(found))}
    assert rows["k00000"] == (1, 2) and rows["nopic"] == (0, 1) and rows["notext"] == (1, 0) and rows["seg"] == (1, 1)
    assert rows["latin"] == rows["deep"] == rows["long"] == (0, 0)
    assert found.bad == 3 and "not UTF-8" in found.problems[0] and "deeper" in found.problems[1] and "longer" in found.problems[2]
    assert found.ignored == {"seg.png": 1, "npy": 1, "README": 1}


def test_the_index_is_kept_made_again_when_stale_and_mapped(shard, monkeypatch):
    first = indexes.open_index(shard)
    saved = indexes.index_path(shard)
    assert saved == shard.with_name("00000.tar.idx.npz") and saved.is_file()
    monkeypatch.setattr(indexes, "build", lambda path: pytest.fail("built again"))
    again = indexes.open_index(shard)
    assert again.digest == first.digest and not again.offsets_M.flags.writeable and not again.offsets_M.flags.owndata
    monkeypatch.undo()
    write_tar(shard, [member for n in range(3) for member in sample(n)])
    assert len(indexes.open_index(shard)) == 3
    saved.write_bytes(saved.read_bytes()[:200])
    assert len(indexes.open_index(shard)) == 3
    np.savez(saved, head=np.array([object()], dtype=object))  # pickled inside: refused, made again
    assert len(indexes.open_index(shard)) == 3


def test_a_read_only_folder_keeps_its_index_in_the_cache(shard, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    shard.parent.chmod(0o555)
    try:
        indexes.open_index(shard)
        assert [p.name for p in shard.parent.iterdir()] == ["00000.tar"]
        assert len(list((tmp_path / "cache" / "index").glob("*-00000.tar.idx.npz"))) == 1
    finally:
        shard.parent.chmod(0o755)


def test_the_fingerprint_is_of_contents_not_of_places(tmp_path):
    a = ShardReader(sorted(write_shards(tmp_path / "a", (4, 3)).glob("*.tar")))
    b = ShardReader(sorted(write_shards(tmp_path / "b", (4, 3)).glob("*.tar")))
    c = ShardReader(sorted(write_shards(tmp_path / "c", (4, 3), more={"width": 25}).glob("*.tar")))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert ShardReader(a.paths[::-1]).fingerprint != a.fingerprint


def test_a_reader_pickles_to_its_paths(tmp_path):
    reader = ShardReader(sorted(write_shards(tmp_path, (30, 30)).glob("*.tar")))
    reader.read(3)
    data = pickle.dumps(reader)
    assert len(data) < 600 and pickle.loads(data).read(40).key == "k00040"  # noqa: S301  (our own bytes)


def test_a_shard_that_changes_its_size_is_noticed(shard):
    reader = ShardReader([shard])
    cut(shard, 4096)
    with pytest.raises(DataError, match="its size changed since it was indexed"):
        reader.read(0)

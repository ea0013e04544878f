"""``KEY.regions.npz``: what is written is read back, and every way of being wrong is refused with its reason."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from helpers.regions import arrays, made
from helpers.shards import sample, write_tar

from mmpretrain.data import regions as module
from mmpretrain.data.errors import BadSample
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions, encode_regions, region_counts
from mmpretrain.types import Regions


def saved(compressed: bool = False, **changed) -> bytes:
    """A file as numpy itself writes it; an array that is None is left out."""
    buffer = io.BytesIO()
    found = {name: value for name, value in {**arrays(), **changed}.items() if value is not None}
    (np.savez_compressed if compressed else np.savez)(buffer, **found)
    return buffer.getvalue()


def equal(a: Regions, b: Regions) -> bool:
    return all((x is None) == (y is None) and (x is None or (x.dtype == y.dtype and np.array_equal(x, y))) for x, y in zip(a, b))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_what_is_written_is_read_back(count):
    for given in (made(count), Regions(*made(count)[:3])):
        data = encode_regions(given)
        assert equal(decode_regions(data), given) and region_counts(data) == (count, 5)
        assert encode_regions(decode_regions(data)) == data
        with np.load(io.BytesIO(data), allow_pickle=False) as found:  # numpy reads it too
            assert sorted(found) == sorted(name for name, value in given._asdict().items() if value is not None)


def test_the_bytes_do_not_depend_on_the_day(monkeypatch):
    data = encode_regions(made(3))
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert encode_regions(made(3)) == data
    fixed = Regions(np.arange(10).reshape(2, 5), np.asarray([[0, 1, 2, 3]] * 2), np.asarray([4, 5]))
    assert zlib.crc32(encode_regions(fixed)) == 0xA76F1D16  # nor on the machine


@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_numpy_are_read(compressed):
    assert equal(decode_regions(saved(compressed)), made())


def test_only_what_is_wanted_is_inflated():
    found = decode_regions(encode_regions(made()), wanted=("scores",))
    assert found.scores is not None and found.class_probs is None and found.features.shape == (4, 5)


def test_boxes_are_clipped_by_at_most_a_pixel():
    boxes = np.array([[-0.5, 0, 64.9, 48.9]] * 4, dtype=np.float32)
    assert decode_regions(saved(boxes=boxes)).boxes[0].tolist() == [0, 0, 64, 48]


HALF, SINGLE = np.float16, np.float32
WRONG = {
    "objects": ({"features": np.array([[{}] * 5] * 4, dtype=object)}, r"features has type \|O, not <f2"),
    "type": ({"features": np.zeros((4, 5), SINGLE)}, "features has type <f4, not <f2"),
    "big-endian": ({"boxes": np.zeros((4, 4), ">f4")}, "boxes has type >f4"),
    "Fortran order": ({"features": np.asfortranarray(np.zeros((4, 5), HALF))}, "Fortran order"),
    "features flat": ({"features": np.zeros(20, HALF)}, r"not \(R, F\)"),
    "features empty": ({"features": np.zeros((4, 0), HALF)}, "beyond"),
    "features of three axes": ({"features": np.zeros((4, 5, 1), HALF)}, "shape"),
    "boxes of three numbers": ({"boxes": np.zeros((4, 3), SINGLE)}, r"boxes has shape \(4, 3\), not \(4, 4\)"),
    "other number of scores": ({"scores": np.zeros(3, SINGLE)}, r"scores has shape \(3,\)"),
    "other width of the whole": ({"global_feature": np.zeros(6, HALF)}, "global_feature has shape"),
    "no boxes": ({"boxes": None}, "boxes missing"),
    "unknown array": ({"extra": np.zeros(1), "scores": None}, "unknown array 'extra.npy'"),
    "too many regions": ({"features": np.zeros((4097, 1), HALF)}, "beyond 4096 regions"),
    "NaN box": ({"boxes": np.full((4, 4), np.nan, SINGLE)}, "boxes hold NaN"),
    "infinite feature": ({"features": np.full((4, 5), np.inf, HALF)}, "features hold NaN or infinity"),
    "box outside": ({"boxes": np.array([[0, 0, 66, 10]] * 4, SINGLE)}, "outside the picture of 48 x 64"),
    "box backwards": ({"boxes": np.array([[9, 0, 8, 10]] * 4, SINGLE)}, "ends before it begins"),
    "no picture": ({"image_size": np.array([0, 64], np.int32)}, "no size of a picture"),
    "probability 2": ({"class_probs": np.full((4, 3), 2, HALF)}, "not between 0 and 1"),
    "class 3 of 3": ({"classes": np.full(4, 3, np.int16)}, "outside -1 to 2"),
}


@pytest.mark.fault(20)
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_arrays_are_refused(kind):
    changed, message = WRONG[kind]
    with pytest.raises(BadSample, match=message):
        decode_regions(saved(**changed))


def test_the_writer_refuses_what_the_reader_would():
    for changed in ({"boxes": np.full((4, 4), np.nan)}, {"scores": np.zeros(3)}, {"boxes": np.array([[0, 0, 99, 9]] * 4)}):
        with pytest.raises(BadSample):
            encode_regions(made()._replace(**changed))
    for changed in ({"features": np.full((4, 5), 7e4)}, {"classes": np.full(4, 65536), "class_probs": None}):  # no infinity, no class 0
        with pytest.raises(BadSample, match=r"hold (70000\.0|65536), which (float|int)16 does not"):
            encode_regions(made()._replace(**changed))


def entries(data: bytes) -> list[int]:
    """Offsets of the directory's entries."""
    found, at = [], data.index(b"PK\1\2")
    while at >= 0:
        found.append(at)
        at = data.find(b"PK\1\2", at + 1)
    return found


def patched(data: bytes, at: int, kind: str, value: int) -> bytes:
    packed = struct.pack("<" + kind, value)
    return data[:at] + packed + data[at + len(packed) :]


GOOD = encode_regions(made())
FIRST, SECOND = entries(GOOD)[:2]
BROKEN = {
    "nothing": (b"", "no npz file"),
    "a page": (b"<html>404</html>" * 9, "not a plain npz"),
    "cut": (GOOD[:-1], "not a plain npz"),
    "half": (GOOD[: len(GOOD) // 2], "not a plain npz"),
    "in front": (b"#!" + GOOD, "not a plain npz"),
    "behind": (GOOD + b"x", "not a plain npz"),
    "comment": (GOOD[:-2] + b"\3\0abc", "not a plain npz"),
    "overlap": (patched(GOOD, SECOND + 42, "I", struct.unpack_from("<I", GOOD, FIRST + 42)[0]), "not where the directory says"),
    "outside": (patched(GOOD, FIRST + 42, "I", 1 << 31), "outside the file"),
    "packed beyond": (patched(GOOD, FIRST + 20, "I", 1 << 31), "not where the directory says"),
    "two sizes": (patched(GOOD, FIRST + 24, "I", 1 << 20), "two sizes"),
    "encrypted": (patched(GOOD, FIRST + 8, "H", 1), "with flags 0x1"),
    "patched (found by fuzzing)": (patched(GOOD, FIRST + 8, "H", 32), "with flags 0x20"),
    "unknown method": (patched(GOOD, FIRST + 10, "H", 12), "packed by method 12"),
    "bit in a feature": (GOOD.replace(made().features.tobytes(), bytes(40)), "the bytes of features are damaged"),
    "array header": (GOOD.replace(b"'fortran_order': False", b"'fortran_order': __im_"), "array header of features cannot be read"),
    "no array": (GOOD.replace(b"\x93NUMPY", b"\x92NUMPY"), "no array of numpy"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused(kind):
    data, message = BROKEN[kind]
    with pytest.raises(BadSample, match=message):
        decode_regions(data)


def twice(first: str, second: str) -> bytes:
    """A file whose second array lies inside the first one's bytes."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr(f"{second}.npy", b"\x93NUMPY" + bytes(30))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr(f"{first}.npy", inner.getvalue()[:200])
        archive.writestr(f"{second}.npy", b"\x93NUMPY" + bytes(30))
    data = outer.getvalue()
    return patched(data, entries(data)[-1] + 42, "I", data.index(b"PK\3\4", 1))


def test_overlapping_arrays_are_refused():
    with pytest.raises(BadSample, match="features and boxes overlap"):
        decode_regions(twice("features", "boxes"))


def test_the_same_array_twice_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr("features.npy", b"\x93NUMPY")
    with pytest.raises(BadSample, match="two arrays features"):
        decode_regions(buffer.getvalue())


def test_nothing_is_inflated_before_the_sizes_are_checked(monkeypatch):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", bytes(40 << 20))
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("inflated"))
    with pytest.raises(BadSample, match="arrays of 41943040 bytes are more than 16777216"):
        decode_regions(bomb.getvalue())


def test_an_array_that_holds_more_than_announced_is_cut_off():
    data = saved(compressed=True, features=np.zeros((4, 5), HALF))
    at = entries(data)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    more = packer.compress(zlib.decompress(data[30 + 12 + 20 :][: struct.unpack_from("<I", data, at + 20)[0]], -15) + bytes(1 << 26))
    more += packer.flush()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", zlib.decompress(more, -15))
    bomb = patched(buffer.getvalue(), entries(buffer.getvalue())[0] + 24, "I", struct.unpack_from("<I", data, at + 24)[0])
    one = module._entry(bomb, entries(bomb)[0], len(bomb))[1]
    assert len(module._read(bomb, "features", one, one.size)) == one.size + 1
    with pytest.raises(BadSample, match="the bytes of features are damaged"):
        module._inflate(bomb, "features", one)


def test_a_shard_carries_regions(tmp_path):
    data = encode_regions(made())
    bad = saved(boxes=None)
    members = [*sample(0), ("k00000.regions.npz", data), *sample(1), *sample(2), ("k00002.regions.npz", bad)]
    reader = ShardReader([write_tar(tmp_path / "s.tar", members)])
    assert reader.read(0).regions == data and reader.read(1).regions is None
    assert reader.read_at(0, 0, images=False).regions is None
    assert reader.indexes[0].ignored == {}
    with pytest.raises(BadSample, match="boxes missing"):
        decode_regions(reader.read(2).regions)

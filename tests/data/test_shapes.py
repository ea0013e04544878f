"""The index says how large pictures and texts are, from headers alone."""

from __future__ import annotations

import io

import numpy as np
from helpers.shards import encoded, picture, sample, statement, write_tar
from PIL import Image

from mmpretrain.data import index, shapes
from mmpretrain.data.reader import ShardReader


def test_the_size_of_a_picture_is_read_upright():
    assert shapes.picture(picture(0, 24, 20)) == (20, 24)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert shapes.picture(encoded(Image.new("RGB", (30, 10)), "JPEG", exif=exif)) == (30, 10)
    assert shapes.picture(b"<html>") == (0, 0) and shapes.picture(b"") == (0, 0)
    assert shapes.joined([(20, 30), (40, 10)]) == (40, 40) and shapes.joined([]) == (0, 0)


def test_columns_of_shapes(tmp_path):
    two = [("b.img0.png", picture(1, 10, 8)), ("b.img1.png", picture(2, 6, 12)), ("b.txt", "é".encode())]
    members = [*sample(0), *two, *statement(3, True, "c"), ("d.txt", b"alone"), ("e.png", b"broken"), ("e.txt", b"\xff")]
    path = write_tar(tmp_path / "0.tar", members)
    found = ShardReader([path]).indexes[0]
    assert found.heights_S.tolist() == [20, 12, 20, 0, 0] and found.widths_S.tolist() == [24, 16, 24, 0, 0]
    assert found.captions_S.tolist() == [2, 1, 0, 1, 0] and found.regions_S.tolist() == [0] * 5
    read = [ShardReader([path]).read_at(0, n) for n in range(4)]
    assert found.caption_bytes_C.tolist() == [len(text.encode()) for one in read for text in one.captions]
    assert found.statement_bytes_C.tolist() == [len(read[2].statements[0].text)]


def test_regions_are_counted(tmp_path):
    buffer = io.BytesIO()
    box = np.array([[0, 0, 5, 5], [1, 1, 4, 4]], np.float32)
    np.savez(buffer, features=np.zeros((2, 4), np.float16), boxes=box, image_size=np.array([20, 24], np.int32))
    path = write_tar(
        tmp_path / "0.tar", [*sample(0), ("k00000.regions.npz", buffer.getvalue()), ("k1.txt", b"a"), ("k1.regions.npz", b"x")]
    )
    assert ShardReader([path]).indexes[0].regions_S.tolist() == [2, 0]


def test_an_index_of_an_older_version_is_made_again(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "0.tar", sample(0))
    first = index.open_index(path)
    monkeypatch.setattr(index, "VERSION", index.VERSION + 1)
    assert index.load(path, index.index_path(path)) is None
    assert index.open_index(path).digest == first.digest  # what it means has not changed

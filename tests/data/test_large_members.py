"""Large members: too large a picture is refused by name, and what is never read costs no reading."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers.shards import picture, sample, write_tar

from mmpretrain.data import decode, reader, remote
from mmpretrain.data import index as indexes
from mmpretrain.data.errors import BadSample
from mmpretrain.data.place import Remote
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.retry import DiskFull, RemoteOptions


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Sizes of the preads of samples."""
    found: list[int] = []
    monkeypatch.setattr(reader.os, "pread", lambda *args, real=os.pread: found.append(args[1]) or real(*args))
    return found


def test_a_sample_is_one_read_except_behind_a_large_member_that_is_not_read(tmp_path, reads):
    small = [("a.jpg", picture(0, kind="JPEG")), ("a.mp4", bytes(1000)), ("a.txt", b"small")]
    large = [("b.jpg", picture(1, kind="JPEG")), ("b.mp4", bytes(3 << 20)), ("b.txt", b"large")]
    made = ShardReader([write_tar(tmp_path / "0.tar", [*small, *large])])
    reads.clear()
    assert made.read(0).captions == ("small",) and len(reads) == 1
    reads.clear()
    sample = made.read(1)
    assert (sample.captions, sample.images) == (("large",), (picture(1, kind="JPEG"),)) and len(reads) == 2 and sum(reads) < 10_000


@pytest.mark.fault(14)
def test_a_picture_of_too_many_bytes_is_refused_by_its_name(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "0.tar", [*sample(0), ("big.png", picture(1) + bytes(5000)), ("big.txt", b"words")])
    made = ShardReader([path])
    assert decode.limit("img3.jpg") == 64 << 20 and decode.limit("mp4") is None
    assert made.read(1).captions == ("words",)
    monkeypatch.setattr(decode, "MAX_PICTURE", 4000)
    with pytest.raises(BadSample, match=r"0\.tar key 'big': png of \d+ bytes is longer than 4000"):
        made.read(1)
    again = indexes.build(path)
    assert again.bad == 1 and again.problems[0].startswith("big: png of ") and again.images_S.tolist() == [1, 0]


def test_a_disk_that_is_full_only_when_it_is_synchronised_is_no_bad_sample(tmp_path, monkeypatch):
    (tmp_path / "0.tar").write_bytes(bytes(2048))

    class Files:
        def get_file(self, url: str, target: str, callback: object) -> None:
            Path(target).write_bytes((tmp_path / "0.tar").read_bytes())

    def full(file: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(remote, "backend", lambda url, timeout: remote.Backend(Files(), (OSError,)))
    monkeypatch.setattr(remote.os, "fsync", full)
    with pytest.raises(DiskFull):
        remote.download(Remote("http://h/0.tar", 2048, "x"), tmp_path / "copy", lambda more: None, RemoteOptions(tries=3))

"""Fault 53 of the matrix: shared memory that is full, few file descriptors, ten thousand shards."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.child import child, few_descriptors
from helpers.shards import picture, write_shards, write_tar

from mmpretrain.data import tokenizer_training, working
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.reader import ShardReader, open_reader
from mmpretrain.data.shared import NoRoom, room, share

NOT_ALLOWED = 77
FULL = r"no shared memory for the batches of the workers .* /dev/shm \(\d+ MiB\) is full; give it more room .*data.workers=0 needs none"


def small_shm(size: str) -> None:
    """A /dev/shm of this process and its children alone, of so many bytes; leaves where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace, user, private = 0x00020000, 0x10000000, 0x4000 | 0x40000  # CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE
    if libc.unshare(namespace):  # without rights: as a user of a world of its own, who needs a number there to make files
        own = {"uid_map": f"{os.getuid()} {os.getuid()} 1", "setgroups": "deny", "gid_map": f"{os.getgid()} {os.getgid()} 1"}
        try:
            if libc.unshare(namespace | user):
                raise OSError
            for name, text in own.items():
                Path("/proc/self", name).write_text(text)
        except OSError:
            raise SystemExit(NOT_ALLOWED) from None
    if libc.mount(b"none", b"/", None, private, None) or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()):
        raise SystemExit(NOT_ALLOWED)


@pytest.mark.fault(53)
def test_a_full_shm_is_said_at_once(tmp_path: Path) -> None:
    write_shards(tmp_path, (40,))
    data(tmp_path, batch_size=20, preparers={})  # the index and the tokenizer
    large = ImageTransform("squash", 256)  # 4 MB a batch

    def reads() -> None:
        small_shm("1m")
        made = data(tmp_path, batch_size=20, preparers={}, workers=1, timeout=600, image=large)
        began = time.monotonic()
        with pytest.raises(NoRoom, match=FULL) as caught:
            list(made.train_dataloader())
        assert time.monotonic() - began < 300 and "\n" not in str(caught.value)
        made = data(tmp_path, batch_size=20, preparers={}, workers=0, image=large)
        assert len(list(made.train_dataloader())) == 2  # as the message says

    ended = child(reads)
    if ended.code == NOT_ALLOWED:
        pytest.skip("no mount of its own for a process here")
    assert ended.code == 0, ended.output[-3000:]


class Plain(torch.utils.data.Dataset):
    """What torch does by default."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(4_000_000, dtype=torch.uint8)


@pytest.mark.fault(53)
def test_torch_itself_waits_for_its_timeout() -> None:
    def reads() -> None:
        small_shm("1m")
        loader = torch.utils.data.DataLoader(Plain(), batch_size=None, num_workers=1, timeout=3)
        with pytest.raises(RuntimeError, match="timed out after 3 seconds"):
            list(loader)  # without a timeout, its default: for ever

    ended = child(reads)
    if ended.code == NOT_ALLOWED:
        pytest.skip("no mount of its own for a process here")
    assert ended.code == 0, ended.output[-3000:]


@pytest.mark.fault(53)
def test_a_lack_of_descriptors_has_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)")

    write_shards(tmp_path, (8,))
    made = data(tmp_path, batch_size=4, preparers={}, workers=1, timeout=60)
    loader = made.train_dataloader()
    monkeypatch.setattr(torch.Tensor, "share_memory_", refuses)  # of the workers, which are forked
    with pytest.raises(NoRoom, match=r"no file descriptor left; raise the limit \(ulimit -n 65536\)"):
        list(loader)
    with pytest.raises(NoRoom):
        working.Board(1)
    with pytest.raises(NoRoom, match="is full"), room():
        raise OSError(28, "No space left on device")  # a semaphore
    with pytest.raises(RuntimeError, match="another"), room():
        raise RuntimeError("another")


@pytest.mark.fault(53)
def test_a_lack_of_descriptors_is_no_fault_of_a_sample(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, (1,) * 12)

    def reads() -> None:
        reader = open_reader(str(folder))
        few_descriptors(3)
        assert len({reader.read(number).key for number in range(12)}) == 12  # the files of other shards are given back
        reader.close()
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(DataError, match=r"00003.tar: the process has no file descriptor left .*\(ulimit -n 65536\)") as refused:
            reader.read(3)
        assert not isinstance(refused.value, BadSample)
        os.close(taken.pop())
        assert reader.read(3).key == reader.indexes[3].key(0)

    def raises() -> None:
        reader = open_reader(str(folder))
        most = few_descriptors(3, more=200)
        assert len({reader.read(number).key for number in range(12)}) == 12
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)

    for function in (reads, raises):
        ended = child(function)
        assert ended.code == 0, ended.output[-2000:]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ENOMEM])
def test_a_disk_that_fails_is_no_fault_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    reader, pread, opened = open_reader(str(write_shards(tmp_path, (3,)))), os.pread, []
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fails(times: int) -> None:
        def read(file: int, length: int, start: int) -> bytes:
            opened.append(os.fstat(file).st_size)
            if len(opened) <= times:
                raise OSError(number, os.strerror(number))
            return pread(file, length, start)

        opened.clear()
        monkeypatch.setattr(os, "pread", read)

    fails(2)
    assert reader.read(1).key == reader.indexes[0].key(1) and len(pauses) == 2  # the server was away for a moment
    fails(100)
    with pytest.raises(DataError, match=rf"00000.tar key '.*': {os.strerror(number)}, 4 times: the shard cannot be read") as refused:
        reader.read(1)
    assert not isinstance(refused.value, BadSample) and len(opened) == 4


def test_a_shard_that_is_gone_is_no_damage_of_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    reader = open_reader(str(write_shards(tmp_path, (3, 3))))
    reader.paths[1].unlink()
    corpus = tokenizer_training.texts(reader, 6)
    with pytest.raises(DataError, match=r"00001.tar key .*: No such file or directory"):
        list(corpus)  # nor is a tokenizer made of the rest, and kept


def test_a_run_that_ended_holds_no_shard(tmp_path: Path) -> None:
    def held() -> list[str]:
        found = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return [name for name in found if name.startswith(str(tmp_path))]

    write_shards(tmp_path, (8,))
    made = data(tmp_path, batch_size=4, preparers={})
    assert len(list(made.train_dataloader())) == 2 and len(held()) == 1
    made.teardown("fit")
    assert not held()
    assert len(list(made.train_dataloader())) == 2  # whoever reads on opens it again


def test_every_tensor_is_moved() -> None:
    item = ({"a": [torch.ones(2)]}, torch.zeros(0), torch.arange(6).view(2, 3)[:, 1:], "text", np.ones(2))
    found = share(item)
    assert found is item and found[0]["a"][0].is_shared() and found[2].is_shared() and found[2].tolist() == [[1, 2], [4, 5]]


def many(folder: Path, count: int) -> None:
    """``count`` shards of one sample each: links to one file under as many names, each with the index of its own."""
    folder.mkdir()
    meta = json.dumps({"captions": ["a red circle"]}).encode()
    first = write_tar(folder / "00000.tar", [("k.png", picture(0)), ("k.txt", b"a red circle"), ("k.json", meta)])
    ShardReader([first])
    for number in range(1, count):
        for end in ("", ".idx.npz"):
            os.link(f"{first}{end}", folder / f"{number:05d}.tar{end}")


@pytest.mark.slow
@pytest.mark.fault(53)
def test_ten_thousand_shards_with_256_descriptors(tmp_path: Path) -> None:
    many(tmp_path / "many", 10_000)
    made = {"batch_size": 2500, "preparers": {}, "block": 64, "timeout": 600, "workers": 2, "prefetch": 1}

    def reads() -> None:
        few_descriptors(240)  # of 256
        source = data(tmp_path / "many", **made)
        sizes = [batch.size for (batch,) in source.train_dataloader()]
        assert sizes == [2500] * 4

    ended = child(reads)
    assert ended.code == 0, ended.output[-3000:]

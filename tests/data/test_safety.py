"""Nothing in a shard is executed and no bomb takes memory: each case in a process of its own, with an audit hook, webdataset beside it."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.bombs import BOMBS, MEMBERS, tar_of_zeros
from helpers.pictures import REFUSED
from helpers.shards import picture, sample, write_tar

from mmpretrain.data.reader import ShardReader

WATCHED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "pickle.find_class")


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def poison(path: Path) -> bytes:
    return pickle.dumps(Canary(path))


def torch_file(path: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(Canary(path), buffer)
    return buffer.getvalue()


CANARIES = {  # extension of the member -> its bytes
    "pyd": poison,
    "pickle": poison,
    "pkl": poison,
    "pth": torch_file,
    "pkl.gz": lambda path: gzip.compress(poison(path)),
    "meta.pyd": poison,
    "pipe:": None,  # no member: a command for an address
    "jpg": lambda path: REFUSED["PostScript"],  # EPS, for which Pillow would start Ghostscript
}

HOOK = """
import json, sys, warnings
warnings.simplefilter("ignore")
started = []
sys.addaudithook(lambda event, arguments: started.append(event) if event in WATCHED else None)
"""
OURS = """
from mmpretrain.data.codec import codec
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
for kind, source in json.loads(sys.argv[1]).items():
    started.clear()
    said = "read"
    try:
        reader = ShardReader(expand(source))
        for number in range(len(reader)):
            for data in reader.read(number).images:
                for name in ("pil", "simplejpeg"):
                    codec(name).decode(data)
    except DataError as error:
        said = str(error)
    print(json.dumps([kind, said, started]))
"""
THEIRS = """
import webdataset as wds
for kind, source in json.loads(sys.argv[1]).items():
    try:
        list(wds.WebDataset(source, shardshuffle=False).decode("pil"))
    except Exception as error:
        print(kind, error)
"""


def child(script: str, sources: dict[str, str]) -> list[str]:
    """The lines that a process of its own prints for these sources."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOOK.replace("WATCHED", repr(WATCHED)) + script, json.dumps(sources)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()


def shards(folder: Path) -> dict[str, str]:
    """Canary -> the address of a shard with one sound sample and the poison, which would make the folder ``canaries/NUMBER``."""
    (folder / "canaries").mkdir()
    found = {}
    for number, (kind, make) in enumerate(CANARIES.items()):
        canary = folder / "canaries" / str(number)
        if kind == "pipe:":
            found[kind] = f"pipe:mkdir {canary}"
            continue
        bad = [("k00001.txt", b"words"), *([("k00001.png", picture(1))] if kind != "jpg" else [])]
        found[kind] = str(write_tar(folder / f"{number}.tar", [*sample(0), *bad, (f"k00001.{kind}", make(canary))]))
    return found


@pytest.mark.fault(15, 16, 17)
def test_eight_canaries_stay_untouched(tmp_path):
    said = {kind: (message, started) for kind, message, started in map(json.loads, child(OURS, shards(tmp_path)))}
    assert set(said) == set(CANARIES) and all(started == [] for _, started in said.values()), said
    assert list((tmp_path / "canaries").iterdir()) == []
    assert {kind for kind, (message, _) in said.items() if message != "read"} == {"pipe:", "jpg"}


@pytest.mark.fault(15, 16)
def test_the_canaries_sing_in_webdataset(tmp_path):
    pytest.importorskip("webdataset")
    child(THEIRS, shards(tmp_path))
    dead = {kind for number, kind in enumerate(CANARIES) if not (tmp_path / "canaries" / str(number)).exists()}
    assert dead == {"jpg"}  # Pillow looks for Ghostscript, whose absence is an error


@pytest.mark.fault(15, 20)
def test_arrays_of_objects_are_ignored_and_said(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(tmp_path / "canary")], dtype=object), allow_pickle=True)  # what must not run
    reader = ShardReader([write_tar(tmp_path / "s.tar", [*sample(0), ("k00000.npy", buffer.getvalue())])])
    assert reader.indexes[0].ignored == {"npy": 1} and not (tmp_path / "canary").exists()


MEASURE = """
import json, sys
from pathlib import Path
from mmpretrain.data.codec import codec
from mmpretrain.data.codes import decode_codes
from mmpretrain.data.decode import decode_json, decode_text
from mmpretrain.data.errors import BadSample
from mmpretrain.data.regions import decode_regions
images = [codec("pil").decode, codec("simplejpeg").decode]
reads = {"image": images, "json": [decode_json], "text": [decode_text], "regions": [decode_regions], "codes": [decode_codes]}
def peak():  # getrusage would begin with that of the process which started this one
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
for kind, file in json.loads(sys.argv[1]):
    data = open(file, "rb").read()
    before = peak()
    for read in reads[kind]:
        try:
            read(data)
        except BadSample:
            print((peak() - before) // 1024)
    del data
"""


@pytest.mark.fault(14)
def test_bombs_are_refused_in_little_memory(tmp_path):
    files = []
    for number, (kind, make) in enumerate(BOMBS.values()):  # the larger a file, the later: the peak must not hide what comes after
        (tmp_path / str(number)).write_bytes(make())
        files.append((kind, str(tmp_path / str(number))))
    files.sort(key=lambda entry: Path(entry[1]).stat().st_size)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEASURE, json.dumps(files)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert len(said) == len(BOMBS) + 2 and all(int(mebibytes) < 64 for mebibytes in said), said  # two pictures, two decoders


SERVE = """
import sys, time
from mmpretrain.data.codec import codec
from mmpretrain.data.codes import decode_codes
from mmpretrain.data.errors import BadSample
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
replies, sys.stdout = sys.stdout, sys.stderr

def refused(path):
    reader, bad = ShardReader([path]), 0
    for number in range(len(reader)):
        try:
            sample = reader.read(number)
            for data in sample.images:
                codec("pil").decode(data)
            if sample.regions is not None:
                decode_regions(sample.regions)
            if sample.codes is not None:
                decode_codes(sample.codes)
        except BadSample:
            bad += 1
    return bad

def hold():
    held = b"x" * (100 << 20)
    time.sleep(1)
    return -1

for line in sys.stdin:
    print(hold() if line == "hold\\n" else refused(line[:-1]), file=replies, flush=True)
"""


def anonymous(process: int) -> int:
    """Anonymous memory of a process in MiB: pages of mapped files do not count."""
    return next(int(line.split()[1]) >> 10 for line in Path(f"/proc/{process}/status").read_text().splitlines() if line[:7] == "RssAnon")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.fault(14)
def test_bombs_in_shards_take_little_memory(tmp_path):
    """Growth of anonymous memory, seen from outside, over making the index of a shard and reading all its samples."""
    shards = [write_tar(tmp_path / f"{kind}.tar", [*sample(0), (f"bomb.{MEMBERS[of]}", make())]) for kind, (of, make) in BOMBS.items()]
    shards += [tar_of_zeros(tmp_path / f"{size}.tar", "bomb.txt", size) for size in (50_000_000, 300_000_000)]
    shards.sort(key=lambda path: path.stat().st_size)
    found = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", SERVE], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for asked in (write_tar(tmp_path / "sound.tar", sample(0)), *shards, "hold"):
            before = peak = anonymous(process.pid)
            process.stdin.write(f"{asked}\n".encode())
            process.stdin.flush()
            while not select.select([process.stdout], [], [], 0)[0]:
                peak = max(peak, anonymous(process.pid))
            found[Path(asked).stem] = (int(process.stdout.readline()), peak - before)
        process.stdin.close()
    assert found.pop("sound")[0] == 0 and found.pop("hold")[1] >= 90  # the first imports; the last shows that growth is seen
    assert len(found) == len(BOMBS) + 2 and all(bad == 1 and mebibytes < 64 for bad, mebibytes in found.values()), found
    print(found)


@pytest.mark.fault(18)
def test_names_with_parents_and_roots_make_no_file(tmp_path):
    members = [(f"{folder}k.{name}", data) for folder in ("../../", "/abs/") for name, data in (("png", picture(0)), ("txt", b"words"))]
    reader = ShardReader([write_tar(tmp_path / "set" / "s.tar", members)])
    assert [reader.read(number).key for number in range(2)] == ["../../k", "/abs/k"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s.tar", "s.tar.idx.npz", "set"]


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    "data,text",
    [
        ("\ufeffwith a mark".encode(), "with a mark"),
        ("قطة على سجادة".encode(), "قطة على سجادة"),
        ("\u202eright to left\u202c".encode(), "\u202eright to left\u202c"),
        (b"a\0b", None),
        (b"caf\xe9", None),
        (json.dumps({"captions": ["\ud800"]}).encode(), None),
    ],
)
def test_captions_are_utf8_or_refused(data, text, tmp_path):
    name = "json" if data.startswith(b"{") else "txt"
    reader = ShardReader([write_tar(tmp_path / "s.tar", [*sample(0), ("x.png", picture(1)), (f"x.{name}", data)])])
    if text is None:
        assert reader.indexes[0].bad == 1 and reader.indexes[0].captions_S.tolist() == [2, 0]
    else:
        assert reader.read(1).captions == (text,)

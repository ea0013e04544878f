"""Values in pickle and msgpack: numeric arrays come back exactly, and nothing of a hostile value runs."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from helpers import old_stores

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools import regions
from mmpretrain.data_tools.stores import open_store
from mmpretrain.data_tools.stores_lmdb import decode
from mmpretrain.data_tools.stores_pickle import loads

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.arange(4, dtype=np.float16),
    "big endian": np.arange(4, dtype=">f8"),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), dtype=np.float32),
    "bytes that are no text": np.array([0xFFFE, 0x80C3], dtype=np.uint16),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_and_numeric_arrays(protocol):
    value = {
        **ARRAYS,
        "scalar": np.int64(7),
        "list": [1, 2.5, None, True, "ü", b"\xff", (1,)],
        "big": 1 << 70,
        "d": collections.OrderedDict(a=1),
    }
    found = loads(pickle.dumps(value, protocol=protocol))
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].tolist() == array.tolist() and found[name].shape == array.shape
    assert found["scalar"] == 7 and found["list"][:5] == value["list"][:5] and found["list"][6] == (1,)
    assert found["list"][5] == b"\xff" and found["big"] == 1 << 70 and found["d"] == {"a": 1}


def test_one_array_in_two_places():
    one = np.arange(3)
    found = loads(pickle.dumps([one, one, {"a": one}], protocol=2))
    assert found[0] is found[1] is found[2]["a"]


def test_an_array_of_python_2():
    """numpy 1 under Python 2, protocol 2: bytes are texts."""
    code = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05Rq\x06"
        b"(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02f4q\x09K\x00K\x01\x87q\x0aRq\x0b(K\x03U\x01<q\x0cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x0db"
        b"\x89U\x08" + np.array([1.5, -2.0], dtype="<f4").tobytes() + b"q\x0etq\x0fb."
    )
    assert loads(code).tolist() == [1.5, -2.0]


class Canary:
    def __reduce__(self):
        return os.system, ("touch canary",)


class Instance:
    pass


HOSTILE = {
    "system": pickle.dumps({"features": Canary()}),
    "system, protocol 0": pickle.dumps({"features": Canary()}, protocol=0),
    "eval": b"cbuiltins\neval\n(V__import__('os').system('touch canary')\ntR.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "inst": b"(S'touch canary'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch canary'\no.",
    "numpy's loader": b"cnumpy\nload\n(V/etc/passwd\ntR.",
    "build of a name": b"cnumpy\nndarray\n}b.",
    "call of a text": b"Vabc\n)R.",
    "instance": pickle.dumps(Instance()),
    "objects in an array": pickle.dumps(np.array([Canary()], dtype=object)),
    "persistent id": b"Vx\nQ.",
    "extension": b"\x82\x01.",
    "records": pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
    "wrong size": pickle.dumps(np.arange(4, dtype=np.float32)).replace(b"K\x04\x85", b"K\x7f\x85"),
    "cut": pickle.dumps(ARRAYS)[:-30],
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_run_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadSample):
        loads(HOSTILE[name])
    assert not (tmp_path / "canary").exists()


def test_hostile_msgpack_is_refused(tmp_path, monkeypatch):
    msgpack = pytest.importorskip("msgpack")
    monkeypatch.chdir(tmp_path)
    objects = {b"nd": True, b"type": "O", b"kind": b"O", b"shape": (1,), b"data": pickle.dumps([Canary()])}
    records = {b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"shape": (1,), b"data": b"\0\0\0\0"}
    for value in (objects, records, msgpack.ExtType(5, b"x"), {b"nd": True, b"type": "<f4", b"shape": (1 << 40,), b"data": b""}):
        with pytest.raises(BadSample):
            decode(msgpack.packb({"features": value}, use_bin_type=True))
    for data in (b"", b"\xc1", b"\x00", msgpack.packb([1])):
        with pytest.raises(BadSample):
            decode(data)
    assert not (tmp_path / "canary").exists()


def test_a_store_with_a_hostile_value_stops_with_its_key_and_runs_nothing(tmp_path):
    """In a process of its own under an audit hook: no file is made, nothing is started, the pickle module loads nothing."""
    pytest.importorskip("lmdb")
    from helpers.shards import sample, write_tar

    write_tar(tmp_path / "in" / "0.tar", sample(0, key="k7"))
    entries = {b"k7": pickle.dumps({"img_id": "k7", "features": Canary(), "boxes": Canary()}), b"keys": pickle.dumps([Canary()])}
    old_stores.write_lmdb(tmp_path / "bad.lmdb", entries)
    code = f"""
import sys
events = []
sys.addaudithook(lambda event, args: events.append(event) if event in ("os.system", "subprocess.Popen", "pickle.find_class") else None)
from mmpretrain.data.errors import BadSample
from mmpretrain.data_tools.stores import open_store
from pathlib import Path
store = open_store(Path({str(tmp_path / "bad.lmdb")!r}))
try:
    store.read(store.locations()["k7"])
except BadSample as error:
    print(error, events)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert "system, which is refused" in done.stdout and done.stdout.endswith("[]\n") and not (tmp_path / "canary").exists()
    words = [str(tmp_path / "in"), "--store", str(tmp_path / "bad.lmdb"), "--made-by", "x", "--out", str(tmp_path / "out")]
    with pytest.raises(DataError, match="which is refused"):
        regions.main([*words, "--workers", "1", "--quiet"])


def test_keys_of_running_numbers_are_looked_up_inside(tmp_path):
    pytest.importorskip("lmdb")
    one = old_stores.arrays(1)
    value = {"img_id": "img_0007", "img_h": 20, "img_w": 24, "boxes": one["boxes"], "features": one["features"]}
    old_stores.write_lmdb(tmp_path / "t.lmdb", {b"00000000": pickle.dumps(value), b"__keys__": pickle.dumps([b"00000000"])})
    store = open_store(tmp_path / "t.lmdb")
    assert store.locations() == {"img_0007": "00000000"}
    np.testing.assert_array_equal(store.read("00000000").features, one["features"])

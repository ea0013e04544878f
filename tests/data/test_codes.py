"""Image codes: the file and what is refused of it, its columns of the index, and that codes of two autoencoders never meet."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.codes import INFO, KNOWN, codes_of, write_codes
from helpers.servers import http_server
from helpers.shards import sample, write_shards, write_tar

from mmpretrain.data import codes_info, index
from mmpretrain.data.codes import MAX_CODES, MAX_FILE, code_grid, decode_codes, encode_codes
from mmpretrain.data.codes_info import NAME, read_info, same_tokenizer, write_info
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.rewrite import rewrite


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0), pickled: bool = False) -> bytes:
    """The file that numpy writes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=pickled)
    return buffer.getvalue()


def headed(text: str, body: bytes = b"") -> bytes:
    """A file with any text for a header."""
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode("latin-1") + body


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (32, 32), (1, 4096), (1024, 1024)])
def test_a_file_round_trips_and_numpy_reads_it(grid):
    ids = np.random.default_rng(0).integers(1 << 16, size=grid)
    made = encode_codes(ids)
    assert made == encode_codes(ids.astype(np.uint16)) and code_grid(made) == grid and len(made) <= MAX_FILE
    for data_ in (made, saved(ids.astype("<u2"))):
        found = decode_codes(data_)
        assert found.dtype == np.uint16 and np.array_equal(found, ids) and found.flags.writeable
    assert np.array_equal(np.load(io.BytesIO(made), allow_pickle=False), ids)


OK = np.arange(6, dtype="<u2").reshape(2, 3)
HEAD = "{'descr': '<u2', 'fortran_order': False, 'shape': (%s), }\n"
REFUSED = {
    "nothing": (b"", "version 1.0"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "version 1.0"),
    "version 2": (saved(OK, (2, 0)), "version 1.0"),
    "signed": (saved(OK.astype("<i2")), "type <i2, not <u2"),
    "wide": (saved(OK.astype("<i8")), "type <i8"),
    "big-endian": (saved(OK.astype(">u2")), "type >u2"),
    "Fortran": (saved(np.asfortranarray(OK)), "Fortran order"),
    "one side": (saved(OK.reshape(-1)), r"shape \(6,\), not \(h, w\)"),
    "three sides": (saved(OK[None]), r"shape \(1, 2, 3\)"),
    "empty": (saved(OK[:0]), "0 x 3 is empty"),
    "cut": (encode_codes(OK)[:-1], "11 bytes, but shape"),
    "more": (encode_codes(OK) + b"\0", "13 bytes, but shape"),
    "only a header": (headed(HEAD % "2, 3"), "0 bytes, but shape"),
    "1e9 codes": (headed(HEAD % "50000, 20000"), "50000 x 20000 is more than"),
    "long": (headed(HEAD % "4096, 4096"), f"more than 4096 a side or {MAX_CODES}"),
    "huge numbers": (headed(HEAD % "9999999999, 9999999999"), "is more than"),
    "longer numbers": (headed(HEAD % ("9" * 200 + ", 1")), "header cannot be read"),
    "an expression": (headed("{'descr': '<u2', 'fortran_order': False, 'shape': __import__('os').getcwd()}"), "header cannot be read"),
    "fields": (saved(np.zeros((2, 2), dtype=[("a", "<u2")])), "header cannot be read"),
    "header beyond the file": (b"\x93NUMPY\1\0\xff\xff{}", "header cannot be read"),
    "much": (bytes(MAX_FILE + 1), "more than"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused(kind):
    data_, reason = REFUSED[kind]
    for read in (code_grid, decode_codes):
        with pytest.raises(BadSample, match=reason):
            read(data_)


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    array = np.empty((1, 2), dtype=object)
    array[:] = Canary(tmp_path / "canary")
    for number, data_ in enumerate((saved(array, pickled=True), pickle.dumps(Canary(tmp_path / "canary")))):
        with pytest.raises(BadSample, match="codes: "):
            decode_codes(data_)
        reader = ShardReader([write_tar(tmp_path / f"{number}.tar", [*sample(0), ("k00000.codes.npy", data_)])])
        assert reader.indexes[0].code_rows_S.tolist() == [0] and reader.read(0).codes == data_
    assert not (tmp_path / "canary").exists()


def test_any_damage_is_a_bad_sample_or_other_codes():
    good, rng = encode_codes(OK), np.random.default_rng(3)
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(int(rng.integers(1, 4))):
            bad[int(rng.integers(len(bad)))] = int(rng.integers(256))
        try:
            found = decode_codes(bytes(bad[: int(rng.integers(len(bad) + 1))]) if rng.random() < 0.3 else bytes(bad))
        except BadSample:
            continue
        assert found.size == 6


def test_ids_and_arrays_out_of_range():
    with pytest.raises(BadSample, match="the id 5 is not below 5"):
        decode_codes(encode_codes(OK), 5)
    assert decode_codes(encode_codes(OK), 6).max() == 5
    for wrong in (OK.astype(np.float32), OK[0], np.array([[-1]]), np.array([[1 << 16]]), np.zeros((0, 2), dtype=np.int64)):
        with pytest.raises(BadSample, match="codes: "):
            encode_codes(wrong)


def test_codes_json_round_trips_and_other_files_are_refused(tmp_path):
    assert read_info(tmp_path) is None
    write_info(tmp_path, INFO)
    assert read_info(tmp_path) == INFO
    for text in (
        "",
        "[]",
        '{"version": 2}',
        '{"version": 1}',
        *(json.dumps({**INFO.to_json(), name: value}) for name, value in (("codes", 0), ("codes", 1 << 17), ("grid", [4]), ("source", 1))),
    ):
        (tmp_path / NAME).write_text(text)
        with pytest.raises(DataError, match=NAME):
            read_info(tmp_path)


def test_fingerprints_tell_weights_and_transforms_apart():
    state = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.bfloat16), "n": torch.tensor(3)}
    first = codes_info.digest(state)
    assert first == codes_info.digest(dict(reversed(state.items())))
    for changed in (
        {**state, "b": state["b"] + 1},
        {**state, "b": state["b"].double()},
        {**state, "b": state["b"][None]},
        {"c": state["b"]},
    ):
        assert codes_info.digest(changed) != first
    transform = ImageTransform("dalle", 16, normalize=((0.0,) * 3, (1.0,) * 3))
    same = codes_info.fingerprint(first, ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict()))))
    assert codes_info.fingerprint(first, transform) == same != codes_info.fingerprint(first, ImageTransform("dalle", 24))


SAYS = (
    r"the image codes of \S+/a were made by dvae 1 \(111111111111\) and those of \S+/b by dvae 2 \(3333.*make both .*mmpretrain data tokens"
)


def test_codes_of_two_autoencoders_are_refused(tmp_path):
    other = INFO._replace(fingerprint="3" * 64, source="dvae 2")
    a, b = write_codes(tmp_path / "a"), write_codes(tmp_path / "b", info=other, first=20)
    plain = write_shards(tmp_path / "plain", (4,))
    write_info(plain, INFO._replace(fingerprint="4" * 64))  # a list without codes is of no account
    for train, more in ((f"{a}::{b}", {}), (str(a), {"val": {"v": str(b)}})):
        with pytest.raises(DataError, match=SAYS) as caught:
            data(train, show="codes", batch_size=4, preparers={}, **more)
        assert "\n" not in str(caught.value)
        data(train, batch_size=4, preparers={}, **more)  # where no codes are shown they may differ
    found = data(f"{a}::{plain}", show="codes", batch_size=4, preparers={}, val={"v": str(write_codes(tmp_path / "c"))})
    assert found.vocabulary.codes == KNOWN and found.codes_info == INFO
    assert same_tokenizer([tmp_path / "a", plain.parent]) == INFO
    with pytest.raises(DataError, match=SAYS):
        same_tokenizer([a, b])
    mixture = {"one": TrainSource(str(a), show="codes"), "two": TrainSource(str(b), show="codes")}
    with pytest.raises(DataError, match=SAYS):
        ShardData(mixture, batch_size=4, workers=0).setup("fit")


def test_codes_of_servers_too(tmp_path, own_cache):
    write_codes(tmp_path / "served" / "a")
    write_codes(tmp_path / "served" / "b", info=INFO._replace(fingerprint="3" * 64, source="dvae 2"), first=20)
    with http_server(tmp_path / "served") as http:
        ok = ShardData(http.url("a/00000.tar"), batch_size=4, show="codes", workers=0)
        assert ok.vocabulary.codes == KNOWN
        with pytest.raises(DataError, match=SAYS):
            ShardData([http.url("a/00000.tar"), http.url("b/00000.tar")], batch_size=4, show="codes", workers=0).setup("fit")


def test_codes_need_the_file_beside_them(tmp_path):
    bare = write_codes(tmp_path / "bare", info=None)
    with pytest.raises(DataError, match=r"bare: its shards hold image codes, but there is no codes.json beside them; copy it"):
        data(bare, show="codes", preparers={})
    data(bare, preparers={})
    write_info(bare, INFO._replace(grid=(3, 2)))
    with pytest.raises(DataError, match=r"00000.tar key 'k00000': its codes are 2 x 3, codes.json says 3 x 2; make the shards again"):
        data(bare, show="codes", preparers={})
    write_info(bare, INFO._replace(codes=5))
    loader = data(bare, show="codes", preparers={}, on_bad="stop").train_dataloader()
    with pytest.raises(BadSample, match=r"key 'k\d{5}': codes: the id \d+ is not below 5"):
        list(loader)


def test_rewritten_shards_keep_it(tmp_path):
    inputs = [write_codes(tmp_path / name, (2,), first=20 * n) / "00000.tar" for n, name in enumerate("ab")]
    rows, run = {"": [[0, 0], [1, 1, {"prefix": "x"}]]}, {"workers": 1, "progress": False}
    rewrite(tmp_path / "out", rows, inputs, {"tool": "test"}, 10, run)
    assert read_info(tmp_path / "out") == INFO
    reader = ShardReader([tmp_path / "out" / "00000.tar"])
    assert [decode_codes(reader.read(n).codes).tolist() for n in (0, 1)] == [codes_of(n).tolist() for n in (0, 21)]
    write_info(tmp_path / "b", INFO._replace(fingerprint="3" * 64, source="dvae 2"))
    with pytest.raises(DataError, match=SAYS):
        rewrite(tmp_path / "no", rows, inputs, {"tool": "test"}, 10, run)


def test_the_index_knows_the_grids_and_older_ones_are_made_again(tmp_path, monkeypatch):
    folder = write_codes(tmp_path, (5,), without=(2,))
    shard = folder / "00000.tar"
    monkeypatch.setattr(index, "VERSION", 3)
    index.save(index.build(shard), index.index_path(shard))
    monkeypatch.undo()
    assert index.load(shard, index.index_path(shard)) is None
    made = index.open_index(shard)
    assert made.code_rows_S.tolist() == [2, 2, 0, 2, 2] and made.code_columns_S.tolist() == [3, 3, 0, 3, 3]
    assert index.load(shard, index.index_path(shard)).code_rows_S.tolist() == [2, 2, 0, 2, 2]
    plain = write_shards(tmp_path / "plain", (5,)) / "00000.tar"
    assert not index.open_index(plain).code_rows_S.any()

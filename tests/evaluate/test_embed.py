"""Embedding files: content, resumption and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import evaluation as fakes

from mmpretrain.evaluate.embed import embed


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_vectors_in_order(tmp_path: Path, suffix: str) -> None:
    model, data = fakes.pretrained(), fakes.coloured(rounds=3)
    out = embed(model, data, tmp_path / f"vectors{suffix}", part_size=4)
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(out)
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
        assert b"mmpretrain" in table.schema.metadata
    assert found["key"].tolist() == [sample.key for sample in data.samples]
    assert found["caption"].tolist() == [sample.captions[0] for sample in data.samples]
    expected = model.encode_image([sample.images[0] for sample in data.samples])
    torch.testing.assert_close(torch.tensor(found["image"], dtype=torch.float32), expected)
    torch.testing.assert_close(torch.tensor(found["text"], dtype=torch.float32), model.encode_text(found["caption"].tolist()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "again.npz"
    data = fakes.coloured(rounds=3)
    embed(fakes.pretrained(), data, whole, part_size=2)

    class Broken(list):
        def __getitem__(self, index: int):
            if index == 5:
                raise OSError("the disk went away")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="went away"):
        embed(fakes.pretrained(), data._replace(samples=Broken(data.samples)), out, part_size=2)
    assert not out.exists() and len(list((tmp_path / "again.npz.parts").glob("0*.npz"))) == 2
    fakes.Transform.calls = 0
    embed(fakes.pretrained(), data, out, part_size=2)
    assert fakes.Transform.calls == 5  # samples 4 to 8
    with np.load(whole) as a, np.load(out) as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_parts_of_something_else_are_refused(tmp_path: Path) -> None:
    data, out = fakes.coloured(), tmp_path / "vectors.npz"
    parts = tmp_path / "vectors.npz.parts"
    parts.mkdir()
    (parts / "plan.json").write_text('{"checkpoint": "another"}')
    with pytest.raises(ValueError, match="checkpoint='another', now it is 'fake'"):
        embed(fakes.pretrained(), data, out)
    (parts / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="unreadable"):
        embed(fakes.pretrained(), data, out)
    with pytest.raises(ValueError, match=r"name the file \.parquet or \.npz"):
        embed(fakes.pretrained(), data, tmp_path / "vectors.csv")
    with pytest.raises(ValueError, match="part_size=0 must be at least 1"):
        embed(fakes.pretrained(), data, tmp_path / "new.npz", part_size=0)
    assert not (tmp_path / "new.npz.parts").exists()
    out.write_bytes(b"")
    with pytest.raises(ValueError, match="exists already"):
        embed(fakes.pretrained(), data, out)


def test_missing_captions_are_nan(tmp_path: Path) -> None:
    data = fakes.coloured()
    samples = [sample._replace(captions=()) if i == 1 else sample for i, sample in enumerate(data.samples)]
    out = embed(fakes.pretrained(), data._replace(samples=samples), tmp_path / "x.npz")
    with np.load(out) as arrays:
        assert np.isnan(arrays["text"]).all(axis=1).tolist() == [False, True, False]
        assert not np.isnan(arrays["image"]).any()

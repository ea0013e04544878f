"""What ``mmpretrain predict`` leaves: one row for each sample, whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.shards import write_shards
from pyarrow import parquet
from train.runs import quiet, trainer
from train.systems import build, data

from mmpretrain.nn.misfit import Misfit
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.predictions import Predictions


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", sizes=(9,))


@pytest.mark.parametrize(
    ("system", "columns"), [("vilt", ("itm/score", "itm/pooled")), ("clip", ("main/cosine", "main/image", "main/text"))]
)
def test_a_row_for_each_sample(shards: Path, tmp_path: Path, system: str, columns: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    quiet()
    run = tmp_path / "run"
    fitter = trainer(1, [Checkpoints()], default_root_dir=run, enable_checkpointing=True)
    fitter.fit(build(system), datamodule=data(shards, system))
    writer = Predictions(vectors=True)
    trainer(1, [writer]).predict(build(system), datamodule=data(shards, system), ckpt_path=str(run), return_predictions=False)
    path = run / "predictions" / "step-00000001.parquet"
    assert f"predictions {path} (8 rows)" in capsys.readouterr().out and [p.name for p in path.parent.iterdir()] == [path.name]
    table = parquet.read_table(path)
    assert table.column_names[:2] == ["key", "set"] and set(columns) <= set(table.column_names), table.column_names
    assert len(set(table["key"].to_pylist())) == 8 and set(table["set"].to_pylist()) == {"held_out"}
    scores, *vectors = (torch.tensor(table[column].to_pylist()) for column in columns)
    assert scores.ndim == 1 and all(one.ndim == 2 and torch.isfinite(one).all() for one in vectors)
    if system == "clip":
        torch.testing.assert_close(scores, torch.cosine_similarity(*vectors))


def test_a_model_that_scores_no_pairs_is_told(tmp_path: Path) -> None:
    with pytest.raises(Misfit, match=r"no objective of this checkpoint scores pairs; --predictions\.vectors true"):
        Predictions(out=str(tmp_path / "out.parquet"))._write({"key": ["a", "b"]}, "held_out")


def test_nothing_is_left_of_a_prediction_that_fails(shards: Path, tmp_path: Path) -> None:
    quiet()

    class Breaks(Predictions):
        def on_predict_batch_end(self, *arguments: object, **more: object) -> None:
            super().on_predict_batch_end(*arguments, **more)
            raise RuntimeError("broken")

    writer = Breaks(out=str(tmp_path / "out.parquet"))
    with pytest.raises(RuntimeError, match="broken"):
        trainer(1, [writer]).predict(build("vilt"), datamodule=data(shards, "vilt"))
    assert not list(tmp_path.glob("*out.parquet*"))
    with pytest.raises(ValueError, match=r"name the file \.parquet"):
        Predictions(out="out.npz")

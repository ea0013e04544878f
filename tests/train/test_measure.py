"""Measurements of the live model: alone, averaged, and sharded over two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from train import measured_run, spawn

import mmpretrain
from mmpretrain.data_tools import scenes
from mmpretrain.evaluate.suite import Limits, evaluate, show, table
from mmpretrain.train.measure import Measure, live, measure


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(scenes.write(tmp_path_factory.mktemp("scenes") / "train", n=24, seed=0, split="train", progress=False))


@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_live_numbers_equal_those_of_the_checkpoint(system: str, shards: str, tmp_path: Path) -> None:
    run, data, logged = measured_run.fit(shards, system)
    run.trainer.save_checkpoint(tmp_path / "a.ckpt")
    limits = Limits(captions=1).at_most(16)._replace(retrieval=8)
    loaded = mmpretrain.load(tmp_path / "a.ckpt")
    results = evaluate(loaded, data, limits=limits)
    assert loaded.weights == "ema" and {result.stamp.weights for result in results} == {"ema"}
    assert "val/retrieval/scenes/i2t_R@1" in logged and "val/matching/scenes/edits/preferred" in logged
    assert ("val/mlm/scenes/accuracy" in logged) == (system == "vilt")
    for result in results:
        assert logged[f"val/{result.name}"] == pytest.approx(result.value, abs=1e-6), result.name
    raw = measure(run.trainer, run, limits=limits, weights="raw")
    assert [r.value for r in raw] == [r.value for r in evaluate(mmpretrain.load(tmp_path / "a.ckpt", weights="raw"), data, limits=limits)]
    assert run.training is False or all(m.training for m in run.root.model.modules())
    assert torch.isfinite(live(run.trainer, run).encode_text(["a red cube"])).all()
    assert table(results).row_count == len(results)
    show(results)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_two_sharded_processes_measure_the_same(system: str, shards: str, tmp_path: Path) -> None:
    alone = measured_run.fit(shards, system)[2]
    script = Path(measured_run.__file__)
    for strategy in ("ddp", "fsdp2"):
        out = tmp_path / f"{strategy}.json"
        for process in spawn.ranks(script, str(out), shards, system, strategy, "2"):
            assert process.returncode == 0, process.stdout[-3000:]
        found = json.loads(out.read_text())
        assert {name for name in alone if name.startswith("val/retrieval")} <= set(found)
        for name, value in alone.items():
            if name.startswith(("val/retrieval", "val/matching", "val/mlm")):
                assert found[name] == pytest.approx(value, abs=1e-6), (strategy, name)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="only='speed'"):
        Measure(only=("speed",))
    with pytest.raises(ValueError, match="every=0"):
        Measure(every=0)

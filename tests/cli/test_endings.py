"""How ``fit`` ends where it does not end well: another system's checkpoint, Ctrl-C, a full disk, nothing left to do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from train.fakes import FakeModel
from train.runs import build

from mmpretrain.cli import summary
from mmpretrain.cli.main import main
from mmpretrain.data.module import ShardData
from mmpretrain.train import checkpoint, run_dir
from mmpretrain.train.payload import CheckpointError

pytestmark = pytest.mark.usefixtures("alone")
TINY = [
    "--config",
    "debug.yaml",
    "--data.batch_size",
    "4",
    "--data.workers",
    "0",
    "--data.text.vocab_size",
    "120",
    "--trainer.max_steps",
    "1",
]
QUICK = ["--loggers", "[]", "--measure.only", "[]", "--trainer.enable_progress_bar", "false", "--final.samples", "2"]


def fit(eight: Path, *more: str, recipe: str = "vilt.yaml") -> int:
    os.environ.pop(run_dir.VARIABLE, None)
    sources = ["--data.train", str(eight), "--data.val", json.dumps({"few": str(eight)})]
    return main(["fit", "--config", recipe, *TINY, *QUICK, *sources, *more])


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def test_a_checkpoint_of_another_system_and_one_that_is_done(eight: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit(eight, "--final.measure", "false") == 0
    (run,) = Path("runs").iterdir()
    written = (run / "config.yaml").read_text()
    capfd.readouterr()
    assert fit(eight, "--ckpt_path", str(run), recipe="clip.yaml") == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "a checkpoint of ViLT, but the configuration is of CLIP" in line
    assert (run / "config.yaml").read_text() == written and [one.name for one in Path("runs").iterdir()] == [run.name]
    capfd.readouterr()
    assert fit(eight, "--ckpt_path", str(run), "--final.measure", "false") == 0
    assert "the checkpoint is at step 1, trainer.max_steps is 1: nothing was left to train" in capfd.readouterr().err


def test_weights_of_another_model_are_one_line() -> None:
    module = build()
    state = module.state_dict()
    state["other.weight"] = state.pop("root.model.pooler.weight")
    with pytest.raises(
        CheckpointError, match=r"^the checkpoint is of another model than the configuration builds: Missing key.*pooler.* \(and 1 more\)$"
    ):
        module.load_state_dict(state)
    assert isinstance(module.root.model, FakeModel)


def test_ctrl_c_in_the_last_evaluation_leaves_a_whole_run(
    eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "measure", interrupted)
    assert fit(eight) == 130
    (run,) = Path("runs").iterdir()
    shown = capfd.readouterr()
    assert f"mmpretrain evaluate {run}" in shown.err.replace(str(run.resolve()), str(run)) and "Traceback" not in shown.err
    assert {"result.json", "report.html"} <= {one.name for one in run.iterdir()} and (run / "checkpoints" / "last.ckpt").exists()


def test_ctrl_c_in_the_set_up(eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ShardData, "setup", interrupted)
    assert fit(eight) == 130
    assert capfd.readouterr().err.strip().splitlines()[-1] == "mmpretrain: interrupted" and not list(Path("runs").iterdir())


def test_a_full_disk_ends_in_one_line(eight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(checkpoint, "no_room", lambda folder: f"{folder}: 0.0 MiB are free")
    assert fit(eight, "--checkpoints.max_failures", "1") == 1
    shown = capfd.readouterr().err
    assert "Traceback" not in shown and "0.0 MiB are free; make room there, or choose another place by --checkpoints.directory" in shown

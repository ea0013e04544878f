"""``model.transforms``: from YAML by name, once, before sharding, alike on every rank, and not again over a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import tiny
from safetensors.torch import save_file
from train.fakes import FakeData
from train.runs import build, trainer
from train.spawn import ranks
from train.transformed import Change, Fill

from mmpretrain.cli.main import main
from mmpretrain.cli.train import prepare
from mmpretrain.data_tools import scenes
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints

FLAGS = ["--config", "vilt.yaml", "--config", "debug.yaml", "--data.batch_size", "8", "--data.workers", "0"]
FLAGS += ["--data.text.vocab_size", "120"]
QUICK = ["--loggers", "[csv]", "--final.measure", "false", "--measure.only", "[]", "--trainer.enable_progress_bar", "false"]


def test_applied_once_with_heads_bound_and_before_training() -> None:
    transform = Fill()
    module = build(transforms=[transform])
    module.vocabulary = FakeData().vocabulary
    module.configure_model()
    module.configure_model()
    assert transform.calls == 1 and all(bool((p == 0.5).all()) for p in module.root.model.parameters())
    assert module.root.objectives["mlm"].decoder.weight is module.root.model.words.weight


def fitted(folder: Path, steps: int, transform: Fill) -> dict[str, torch.Tensor]:
    module = build(dropout=0.1, transforms=[transform])
    callbacks, flags = [Metrics(), Checkpoints(every_n_steps=2)], {"enable_checkpointing": True, "log_every_n_steps": 1}
    fitter = trainer(steps, callbacks, default_root_dir=folder, **flags)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path="last")
    return {name: value.clone() for name, value in module.root.state_dict().items()}


def test_a_run_that_goes_on_is_not_initialised_again(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole", 5, Fill(0.1))
    first, second, third = Fill(0.1), Fill(0.1), Change(0.1)
    fitted(tmp_path / "parts", 3, first)
    parts = fitted(tmp_path / "parts", 5, second)
    assert (first.calls, second.calls) == (1, 0)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fitted(tmp_path / "parts", 6, third)
    assert third.calls == 1  # what changes the model itself is wanted before its checkpoint can be loaded


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks(strategy: str) -> None:
    script = Path(__file__).with_name("transformed.py")
    one, two = (done.stdout for done in ranks(script, "fill", strategy))
    assert "values [0.5, 0.5]" in one and "values [0.5, 0.5]" in two
    drawn = [line for done in ranks(script, "draws", strategy) for line in done.stdout.splitlines() if line.startswith("values")]
    assert len(drawn) == 2 and drawn[0] == drawn[1]
    for done in ranks(script, "rank", strategy):
        assert "refused: RuntimeError: ranks disagree on the parameters that model.transforms left" in done.stdout
    one, two = (done.stdout for done in ranks(script, "fails", strategy))
    assert "refused: RuntimeError: model.transforms failed on rank 1: no such file of weights" in one
    assert "refused: FileNotFoundError: no such file of weights" in two


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


def vit(path: Path) -> dict[str, torch.Tensor]:
    """timm's ViT in the size of ViLT's tiny recipe."""
    import timm

    made = timm.models.VisionTransformer(img_size=64, patch_size=8, embed_dim=96, depth=3, num_heads=4, num_classes=0)
    state = tiny.shake(made).state_dict()
    save_file(state, path)
    return state


def starting(folder: Path) -> tuple[list[str], dict[str, torch.Tensor]]:
    """The words of a command whose recipe starts from a ViT, and what that holds."""
    shards = scenes.write(folder / "shards", 8, 0, "train", shard_size=8, progress=False)
    recipe, path = folder / "start.yaml", folder / "vit.safetensors"
    transform = f"{{class_path: mmpretrain.weights.vit.FromViT, init_args: {{file: {path}}}}}"
    recipe.write_text(f"model: {{transforms: [{transform}]}}\n")
    return [*FLAGS, "--data.train", str(shards), *QUICK, "--config", str(recipe)], vit(path)


def test_named_in_yaml(tmp_path: Path, alone: None) -> None:
    words, state = starting(tmp_path)
    module = prepare("fit", words).model
    module.vocabulary = FakeData().vocabulary
    module.configure_model()
    assert torch.equal(module.root.model.transformer.blocks[0].mlp.up.weight, state["blocks.0.mlp.fc1.weight"])


def test_layouts_are_named_from_a_list(alone: None, capfd: pytest.CaptureFixture[str]) -> None:
    named = "[{class_path: mmpretrain.weights.published.FromPublished, init_args: {path: model.pth, layout: LAYOUT}}]"
    (transform,) = prepare("fit", [*FLAGS, "--model.transforms", named.replace("LAYOUT", "ernie-vil")]).model.transforms
    assert (transform.path, transform.layout) == ("model.pth", "ernie-vil")
    assert main(["fit", *FLAGS, "--model.transforms", named.replace("LAYOUT", "bert")]) == 2
    told = capfd.readouterr().err.splitlines()
    error = [line for line in told if not line.startswith("INFO: ")]  # another test may have raised a logger
    assert len(error) == 1 and "layout" in error[0]


@pytest.mark.slow
def test_runs_of_the_command_line(tmp_path: Path, alone: None, capfd: pytest.CaptureFixture[str]) -> None:
    words, _ = starting(tmp_path)
    assert main(["fit", *words, "--trainer.max_steps", "2"]) == 0
    (tmp_path / "vit.safetensors").unlink()  # a run that goes on does not need it
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert main(["fit", *words, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    capfd.readouterr()
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert main(["fit", *words]) == 2
    error = capfd.readouterr().err
    assert "vit.safetensors: there is no such file of weights" in error and "Traceback" not in error


@pytest.mark.parametrize("wrong", ["torch.nn.Identity", "mmpretrain.models.vilt.ViLT", "builtins.list", "mmpretrain.weights.vit.resized"])
def test_only_transforms_can_be_named(wrong: str, alone: None, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *FLAGS, "--model.transforms", f"[{{class_path: {wrong}}}]"]) == 2
    error = capfd.readouterr().err
    assert "transforms" in error and error.strip().count("\n") == 0

"""From scenes to pictures through folders of runs alone: an autoencoder, its codes, a transformer, a CLIP, ``generate``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from mmpretrain.cli.main import main
from mmpretrain.data.codes_info import read_info
from mmpretrain.data_tools import scenes, tokens_shard

FEW = ["--checkpoints.every_n_steps", "2", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--final.measure", "false"]
SMALL = ["--trainer.accelerator", "cpu", "--data.batch_size", "4", "--data.val_batch_size", "4", "--data.workers", "0", "--loggers", "[]"]
SCHEDULE = ["--model.schedule", "{class_path: mmpretrain.train.schedule.WarmupCosine, init_args: {warmup: 1}}"]
SIDE = 16


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)
    tokens_shard._loaded.cache_clear()
    yield
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


def fit(recipe: str, train: str, val: str, *words: str) -> str:
    """Train a few steps; the folder of the run."""
    before = set(Path("runs").glob("*"))
    sets = ["--data.train", train, "--data.val", json.dumps({"few": val})]
    assert main(["fit", "--config", recipe, *sets, *SMALL, *FEW, *SCHEDULE, *words]) == 0
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    (run,) = set(Path("runs").glob("*")) - before
    return str(run)


def test_from_scenes_to_pictures(tmp_path):
    for split, n in (("train", 12), ("val", 6)):
        scenes.write(tmp_path / split, n, 0, split, workers=1, progress=False)
    args = "--model.system.init_args."
    system = [f"{args}widths", "[8, 8, 8]", f"{args}codes", "32", f"{args}code_width", "8", f"{args}image_size", str(SIDE)]
    sizes = ["--data.image.size", str(SIDE), "--model.phases", "[]"]
    dvae = fit("dvae.yaml", json.dumps({"few": {"sources": "train", "reads": "images"}}), "val", *system, *sizes)
    best, last = (Path(dvae) / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    wanted = last.resolve().with_name("step-00000002.ckpt")
    best.unlink()
    best.symlink_to(wanted.name)  # whatever the few steps did: the best one is not the last one
    assert wanted.is_file() and best.resolve() != last.resolve()

    for split in ("train", "val"):
        words = ["--ckpt", dvae, "--out", f"tokens/{split}", "--device", "cpu", "--workers", "1", "--quiet"]
        assert main(["data", "tokens", split, *words]) == 0
    assert read_info(Path("tokens/train")).source.startswith("step-00000002.ckpt@2-")
    system = [f"{args}width", "32", f"{args}depth", "2", f"{args}heads", "2", f"{args}codes", "32", f"{args}grid", "[4, 4]"]
    words = ["--data.text.vocab_size", "300", "--panels.dvae", dvae, "--panels.drawn", "1"]
    dalle = fit("dalle.yaml", "tokens/train", "tokens/val", *system, *words)
    assert list(Path(dalle).glob("panels/*/generated.json"))
    system = [f"{args}embed_dim", "32", f"{args}image.init_args.depth", "1", f"{args}text.init_args.depth", "1"]
    clip = fit("clip.yaml", "train", "val", *system, "--data.text.vocab_size", "200")

    files = ["--out", "sheet.png", "--json", "all.json", "--save-images", "pictures"]
    prompts = ["--prompt", "a red circle", "--prompt", "a blue square", "--guidance", "2", "--device", "cpu"]
    assert main(["generate", "--ckpt", dalle, "--dvae", dvae, "--rerank", clip, *prompts, "--n", "3", *files]) == 0
    told = json.loads(Path("all.json").read_text())
    assert told["codes"] == read_info(Path("tokens/val")).fingerprint and told["dvae"].startswith("step-00000002.ckpt@2-")
    assert [len(row["scores"]) for row in told["prompts"]] == [3, 3] and told["weights"] == "ema"
    assert Image.open("sheet.png").size[0] > 3 * 96 and len(list(Path("pictures").glob("*.png"))) == 6
    assert Image.open("pictures/001-002.png").size == (SIDE, SIDE)

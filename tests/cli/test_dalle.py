"""A run over codes from the recipe to what is left of it: validation, the table, loading, evaluation, sampling from the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import scene_regions

import mmpretrain
from mmpretrain.cli.main import main
from mmpretrain.data.reader import ShardReader
from mmpretrain.models.dalle import no_text

SMALL = ["--data.batch_size", "8", "--data.workers", "0", "--data.val_batch_size", "8", "--data.text.vocab_size", "300", "--loggers", "[]"]
FEW = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu"]
LOOKS = "{class_path: mmpretrain.train.plateau.Plateau, init_args: {warmup: 100, window: 50, patience: 4, threshold: 0.003, reads: val}}"
PLATEAU = ["--model.schedule", LOOKS, "--model.ema_every", "2"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)
    yield
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


def test_a_run_over_codes_and_what_it_left(tmp_path, capfd):
    for split, n in (("train", 16), ("val", 8)):
        scene_regions.write(tmp_path / split, n, split)
    sources = scene_regions.sources("dalle.yaml", tmp_path / "train", tmp_path / "val")
    assert main(["fit", "--config", "dalle.yaml", *sources, *SMALL, *FEW, *PLATEAU, "--final.samples", "4"]) == 0
    shown = capfd.readouterr()
    assert "likelihood/few/code/loss" in shown.out and "nats" in shown.out and "could not be made" not in shown.err
    (run,) = Path("runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {name: value for line in lines for name, value in line.items()}
    loss = found["val/loss"]
    assert loss == pytest.approx(found["val/text/loss"] / 8 + 7 * found["val/code/loss"] / 8, rel=1e-5) and 4 < loss < 7
    for split in ("train", "val"):
        assert found[f"{split}/code/perplexity"] == pytest.approx(torch.tensor(found[f"{split}/code/loss"]).exp().item(), rel=0.05)
        assert 0 <= found[f"{split}/text/accuracy"] <= 1
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["schedule"]["best"] == pytest.approx(loss, rel=1e-6)  # saved behind the validation it read

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert main(["evaluate", str(run), "--only", "mlm", "--limit", "4"]) == 2
    assert "nothing was measured: of mlm, none fits both the checkpoint and the data" in capfd.readouterr().err
    assert main(["evaluate", str(run), "--only", "likelihood", "--limit", "4", "--weights", "raw", "--out", "found.json"]) == 0
    names = {row["name"] for row in json.loads(Path("found.json").read_text())["rows"]}
    assert {"likelihood/few/text/perplexity", "likelihood/few/code/loss_other_text", "likelihood/few/code/loss_without_text"} <= names
    assert main(["embed", str(run), "--data", str(tmp_path / "val" / "codes"), "--out", "vectors.npz"]) == 2
    assert "DALLE gives causal states" in capfd.readouterr().err

    pretrained = mmpretrain.load(run)
    reader = ShardReader(sorted(map(str, (tmp_path / "val" / "codes").glob("*.tar"))))
    sample = reader.read(0)
    tokens = pretrained.tokenize(sample.captions[0])
    assert not set(tokens.ids) & set(pretrained.vocabulary.special)  # no start, no end
    assert pretrained.tokenizer.decode(tokens.ids) == sample.captions[0].lower()
    cache, state_BD = pretrained.model.prefill(pretrained.text([tokens]))
    cache = cache.expand(3)
    codes_B = pretrained.objectives["code"].logits_of(state_BD).argmax(-1).expand(3)
    assert pretrained.objectives["code"].logits_of(pretrained.model.advance(cache, codes_B)).shape == (3, 512)
    assert pretrained.model.prefill(no_text(2))[1].shape == (2, 128)

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    again = ["--ckpt_path", str(run), "--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--final.measure", "false"]
    assert main(["fit", *again]) == 0


def test_what_does_not_fit_is_refused_before_the_first_step(tmp_path, capfd):
    for split, n in (("train", 16), ("val", 8)):
        scene_regions.write(tmp_path / split, n, split)
    words = ["fit", "--config", "dalle.yaml", *scene_regions.sources("dalle.yaml", tmp_path / "train", tmp_path / "val"), *SMALL, *FEW]
    assert main([*words, "--data.max_tokens", "65"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("mmpretrain: error: data.max_tokens=65 is above text_positions=64 of model.system; set data.max_tokens to 64")
    assert main([*words, "--data.show", "image"]) == 2
    assert "objective 'code' predicts codes of pictures, data.train shows image; set data.show=codes (" in capfd.readouterr().err

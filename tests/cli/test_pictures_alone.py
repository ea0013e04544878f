"""A discrete autoencoder on shards of pictures without any text: fit, resume, evaluate, report, export, load; nothing needs a tokenizer."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import write_tar
from PIL import Image

import mmpretrain
from mmpretrain.cli.main import main

TINY = ["--data.batch_size", "4", "--data.workers", "0", "--data.val_batch_size", "3", "--loggers", "[csv]", "--trainer.accelerator", "cpu"]
SMALL = ["--model.system.init_args.widths", "[8,16,32]", "--model.system.init_args.codes", "12", "--model.system.init_args.code_width", "6"]
STEPS = ["--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--panels.samples", "3", "--model.ema_decay", "0.5"]


def picture(seed: int) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((40 + seed % 7, 40), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for split, seeds in (("train", range(8)), ("val", range(20, 25))):
        write_tar(folder / split / "000.tar", [(f"p{seed}.png", picture(seed)) for seed in seeds])
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)
    yield
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


def sources(pictures: Path) -> list[str]:
    train = {"pictures": {"sources": str(pictures / "train"), "reads": "images"}}
    return ["--data.train", json.dumps(train), "--data.val", json.dumps({"few": str(pictures / "val")})]


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_from_pictures_to_a_model_of_codes(pictures, capfd):
    words = ["fit", "--config", "dvae.yaml", *sources(pictures), *TINY, *SMALL, *STEPS]
    assert main([*words, "--trainer.max_steps", "2"]) == 0
    (run,) = Path("runs").iterdir()
    shown = capfd.readouterr()
    for text in ("reconstruction/few/psnr", " dB", "reconstruction/few/usage", "reconstruction/few/perplexity"):
        assert text in shown.out
    assert "Traceback" not in shown.err and not list(Path("cache").glob("tokenizers/*"))

    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["mmpretrain"]["tokenizer"] is None and saved["mmpretrain"]["vocabulary"]["size"] == 0
    training = [row for row in rows_of(run) if "train/loss" in row]
    assert [row["train/value/model.temperature"] for row in training] == [1.0, pytest.approx(1.0, abs=1e-4)]
    names = ("loss", "reconstruction", "kl", "mse", "psnr", "perplexity", "usage")
    assert all(f"train/elbo/{name}" in row for row in training for name in names)
    (validated,) = [row for row in rows_of(run) if "val/loss" in row]
    assert {f"val/elbo/{name}" for name in names} | {"val/reconstruction/few/psnr"} <= set(validated)
    used = 12 * validated["val/elbo/usage"]
    assert 1 <= validated["val/elbo/perplexity"] <= 12 and used == pytest.approx(round(used))

    panel = json.loads((run / "panels" / "2" / "reconstruction.json").read_text())
    assert panel["kind"] == "reconstruction" and len(panel["body"]["examples"]) == 3
    for example in panel["body"]["examples"]:
        assert all((run / "panels" / "2" / example[part]).exists() for part in ("image", "codes", "rebuilt"))
    assert (run / "panels" / "2" / "reconstruction.png").exists()
    page = (run / "report.html").read_text()
    assert "Reconstructions" in page and "different codes in 3 pictures" in page

    os.environ.pop("MMPRETRAIN_RUN_DIR", None)
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_steps", "3"]) == 0
    capfd.readouterr()
    assert main(["evaluate", str(run), "--out", "found.json"]) == 0
    told = {row["name"]: row for row in json.loads(Path("found.json").read_text())["rows"]}
    assert set(told) == {f"reconstruction/few/{name}" for name in ("psnr", "mse", "usage", "dead", "perplexity")}
    stamp = told["reconstruction/few/psnr"]["stamp"]
    assert stamp["weights"] == "ema" and stamp["count"] == 5 and "8 x 8 most probable of 12 codes" in stamp["protocol"]
    assert told["reconstruction/few/dead"]["value"] == 12 - 12 * told["reconstruction/few/usage"]["value"]

    opened = mmpretrain.load(run)
    x = torch.rand(2, 3, 32, 32)
    ids = opened.model.encode(x)
    assert opened.tokenizer is None and ids.shape == (2, 8, 8) and opened.model.decode(ids).shape == x.shape
    assert main(["export", str(run), "--to", "openai", "--out", "exported"]) == 0
    assert json.loads(Path("exported/export_report.json").read_text())["samples"]["images"] == 5
    capfd.readouterr()
    assert main(["embed", str(run), "--data", str(pictures / "val"), "--out", "vectors.npz"]) == 2
    assert "DVAE gives coded states: it has no vector" in capfd.readouterr().err


def test_nearest_vectors_train_too(pictures):
    words = ["fit", "--config", "dvae.yaml", *sources(pictures), *TINY, *SMALL, "--model.system.init_args.sample", "nearest"]
    commitment = {"class_path": "mmpretrain.objectives.commitment.Commitment"}
    elbo = {"class_path": "mmpretrain.objectives.elbo.ELBO", "init_args": {"likelihood": "mse"}}
    words += ["--model.objectives", json.dumps({"elbo": elbo, "commitment": commitment}), "--model.phases", "[]"]
    assert main([*words, "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--final.measure", "false"]) == 0
    (run,) = Path("runs").iterdir()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state["root.model.codebook.count_K"].max() != 1 and mmpretrain.load(run).model.codebook.vectors_KD.shape == (12, 6)

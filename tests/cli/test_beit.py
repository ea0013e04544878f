"""BEiT from a recipe: trained, measured, embedded, exported; ViLT with masked patches beside its own objectives."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import scene_codes, scene_regions
from PIL import Image
from safetensors.torch import save_file

import mmpretrain
from mmpretrain.cli.main import main
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.models.dvae import DVAE
from mmpretrain.weights import dvae

FEW = ["--data.workers", "0", "--data.batch_size", "8", "--data.val_batch_size", "8", "--loggers", "[]", "--trainer.max_steps", "2"]
FEW += ["--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1", "--measure.samples", "4", "--final.samples", "8"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for split, n in (("train", 24), ("val", 8)):
        scene_regions.write(folder / split, n, split)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


def rows(path: str) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads(Path(path).read_text())["rows"]}


def test_beit_is_trained_measured_embedded_and_exported(shards: Path, capfd: pytest.CaptureFixture) -> None:
    assert main(["fit", "--config", "beit.yaml", *scene_regions.sources("beit.yaml", shards / "train", shards / "val"), *FEW]) == 0
    assert "mim/few/accuracy" in capfd.readouterr().out
    val = str(shards / "val" / "codes")
    assert main(["evaluate", "run", "--data", f"few={val}", "--out", "found.json"]) == 0
    found = rows("found.json")
    assert set(found) == {"mim/few/accuracy"}  # no text, no pairs
    (row,) = found.values()
    assert (
        row["stamp"]["count"] == 8 * 25 and 0.1 < row["chance"] <= 1 and "patches chosen by the recipe's masks" in row["stamp"]["protocol"]
    )
    assert main(["embed", "run", "--data", str(shards / "val" / "plain"), "--out", "vectors.npz"]) == 0  # pictures are enough
    with np.load("vectors.npz") as arrays:
        image, text = arrays["image"], arrays["text"]
    pretrained = mmpretrain.load("run")
    assert pretrained.tokenizer is None and image.shape == (8, 96) and np.isfinite(image).all() and np.isnan(text).all()
    samples = [ShardReader(expand(val)).read(i) for i in range(8)]
    torch.testing.assert_close(pretrained.encode_image(samples), torch.from_numpy(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(pretrained.encode_image([s.images[0] for s in samples]), torch.from_numpy(image), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="reads pictures alone"):
        pretrained.encode_tokens([])

    for to in ("transformers", "safetensors"):
        assert main(["export", "run", "--to", to, "--out", to]) == 0
        report = json.loads(Path(to, "export_report.json").read_text())
        names = {output["name"] for output in report["outputs"]}
        logits = "logits of codes" if to == "transformers" else "logits of mim"
        assert report["largest_difference"] < 1e-5 and logits in names and report["tokenizer_equal"] is None
        assert json.loads(Path(to, "provenance.json").read_text())["codes"] == json.loads((shards / "val/codes/codes.json").read_text())
    assert json.loads(Path("safetensors", "mmpretrain.json").read_text())["about"]["codes"]["fingerprint"] == scene_codes.INFO.fingerprint
    assert report["samples"]["images"] == 8
    assert (1 > json.loads(Path("transformers", "export_report.json").read_text())["preprocessing_mean_difference_of_255"]) is True
    again = mmpretrain.load("safetensors")
    picture = [Image.open(Path(__file__).parents[2] / "docs" / "images" / "report.png").convert("RGB")]
    torch.testing.assert_close(again.encode_image(picture), pretrained.encode_image(picture), atol=0, rtol=0)


def test_other_codes_are_refused(shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    words = ["fit", "--config", "beit.yaml", *scene_regions.sources("beit.yaml", shards / "train", shards / "val"), *FEW]
    assert main([*words, "--model.objectives.mim.init_args.codes", "100"]) == 2
    assert "the codebook of the data has 512 codes, the head 100: set codes: 512, or null" in capfd.readouterr().err
    assert main([*words, "--data.image.size", "32"]) == 2
    said = "pictures of 32 pixels are 4 x 4 patches of 8 pixels, the shards hold 8 x 8 codes of each; set data.image.size to 64"
    assert said in capfd.readouterr().err
    for show in ("image", "codes"):
        assert main([*words, "--data.show", show]) == 2
        said = f"objective 'mim' predicts codes of pictures, the source 'scenes' shows {show}; set data.show=image+codes"
        assert said in capfd.readouterr().err


def test_vilt_with_masked_patches(shards: Path) -> None:
    """What the text tells of a masked patch is measured: with the own text, another one and none."""
    words = ["--config", "vilt-mim.yaml", *scene_regions.sources("vilt-mim.yaml", shards / "train", shards / "val"), *FEW]
    assert main(["fit", *words, "--data.text.vocab_size", "200"]) == 0
    names = {row["name"] for row in json.loads(Path("run", "result.json").read_text())["rows"]}
    assert {"mim/few/accuracy", "mim/few/accuracy_other_text", "mim/few/accuracy_without_text", "mlm/few/accuracy"} <= names
    lines = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    losses = {name: line[name] for line in lines for name in line if re.fullmatch(r"train/\w+/loss", name)}
    assert set(losses) == {f"train/{name}/loss" for name in ("mlm", "itm", "wpa", "mim")} and all(np.isfinite(list(losses.values())))


def test_the_papers_recipe_by_its_header(shards: Path, tmp_path: Path) -> None:
    """Codes of a dVAE in OpenAI's layout, of pictures of half the size, and one block of the paper's model."""
    source, parts = DVAE((4, 4, 4, 4), 1, 8192, 4, 16), {}
    for name, state in dvae.to_openai(source)._asdict().items():
        parts[name] = tmp_path / f"{name}.safetensors"
        save_file(state, str(parts[name]))
    dvae.import_folder(**parts, out=tmp_path / "dvae")
    words = ["--ckpt", str(tmp_path / "dvae"), "--size", "112", "--keep-images", "--workers", "1", "--device", "cpu", "--quiet"]
    assert main(["data", "tokens", str(shards / "val" / "plain"), "--out", "codes", *words]) == 0
    held = ["--data.train", "{pictures: {sources: codes, reads: images}}", "--data.val.held_out", "codes"]
    small = ["--model.system.init_args.blocks.init_args.depth", "1", "--trainer.precision", "32-true", "--final.measure", "false"]
    assert main(["fit", "--config", "paper/beit.yaml", *held, *FEW, *small, "--data.batch_size", "4", "--data.val_batch_size", "4"]) == 0
    rows = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert sum("train/mim/loss" in row for row in rows) == 2

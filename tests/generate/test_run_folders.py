"""Folders of runs whose best checkpoint is not their last: the commands of the chain open the same one, and an autoencoder is the
checkpoint that made the codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import run_folder, tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import dalle, info
from helpers.shards import write_shards

import mmpretrain
from mmpretrain.cli.main import main
from mmpretrain.data.codes_info import digest, read_info
from mmpretrain.generate import checks
from mmpretrain.generate.generator import Generator


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    dvae = run_folder.make(folder / "dvae", lambda file, seed: tiny_dvae.make(file, seed=seed))
    tiny_dvae.make(folder / "other.ckpt", seed=7)
    for name in ("best", "last"):
        made_of = dvae / "checkpoints" / f"{name}.ckpt"
        run_folder.make(folder / f"dalle-{name}", lambda file, seed, made_of=made_of: dalle(file, made_of, seed=seed))
    run_folder.make(folder / "dalle-other", lambda file, seed: dalle(file, folder / "other.ckpt", seed=seed))
    run_folder.make(folder / "clip", lambda file, seed: checkpoint(file, "clip", seed=seed))
    return folder


def weights(path: Path) -> str:
    return digest(mmpretrain.load(path).model.state_dict())


def test_tokens_and_pictures_are_of_one_checkpoint(place, tmp_path):
    words = [str(write_shards(tmp_path / "in", (2,))), "--ckpt", str(place / "dvae"), "--out", str(tmp_path / "out")]
    assert main(["data", "tokens", *words, "--device", "cpu", "--workers", "1", "--quiet"]) == 0
    assert read_info(tmp_path / "out").weights == weights(place / "dvae" / "checkpoints" / "best.ckpt")
    words = ["--dvae", str(place / "dvae"), "--rerank", str(place / "clip"), "--device", "cpu", "--prompt", "x", "--n", "2"]
    files = ["--out", str(tmp_path / "grid.png"), "--json", str(tmp_path / "all.json")]
    assert main(["generate", "--ckpt", str(place / "dalle-best"), *words, *files]) == 0
    told = json.loads((tmp_path / "all.json").read_text())
    found = Generator.load(place / "dalle-best", place / "dvae", place / "clip")
    names = (found.dalle.source, found.dvae.source, found.scorer.pretrained.source)
    assert (told["transformer"], told["dvae"], told["rerank"]) == names and all("step-00000001" in name for name in names)
    assert told["dvae_weights"] == read_info(tmp_path / "out").weights


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_autoencoder_is_the_checkpoint_that_made_the_codes(place, which):
    wanted = weights(place / "dvae" / "checkpoints" / f"{which}.ckpt")
    found = Generator.load(place / f"dalle-{which}", place / "dvae")
    assert digest(found.dvae.model.state_dict()) == wanted
    made_of = info(place / "dvae" / "checkpoints" / f"{which}.ckpt")
    assert digest(checks.maker(place / "dvae", made_of).model.state_dict()) == wanted


def test_of_the_panels_of_training_too(place):
    from mmpretrain.evaluate.loading import load
    from mmpretrain.train.panel_generated import open_dvae
    from mmpretrain.train.pretraining import Pretraining

    model = load(place / "dalle-last")
    root = Pretraining(model.model, dict(model.objectives))
    file = place / "dvae" / "checkpoints" / "last.ckpt"
    assert digest(open_dvae(place / "dvae", root, info(file)).model.state_dict()) == weights(file)


def test_another_autoencoder_is_refused_as_ever(place):
    with pytest.raises(ValueError, match=r"dvae did not make the codes that .*dalle-other was trained on"):
        Generator.load(place / "dalle-other", place / "dvae")
    with pytest.raises(ValueError, match=r"checkpoints.best\.ckpt did not make the codes"):  # a file is that file
        Generator.load(place / "dalle-last", place / "dvae" / "checkpoints" / "best.ckpt")


def test_weights_are_those_of_the_transformer(tmp_path):
    """Averages of the autoencoder made the codes, and the CLIP has none: neither hangs on --weights."""
    made = tiny_dvae.make(tmp_path / "dvae.ckpt")
    content = torch.load(made, weights_only=True)
    torch.save({**content, "ema": {name: 1.5 * value for name, value in content["state_dict"].items()}}, made)
    told = dalle(tmp_path / "dalle.ckpt", made)
    content = torch.load(told, weights_only=True)
    torch.save({**content, "ema": {name: 0.5 * value for name, value in content["state_dict"].items()}}, told)
    clip = checkpoint(tmp_path / "clip.ckpt", "clip")
    for kind, used in (("raw", "raw"), ("ema", "ema"), ("auto", "ema")):
        found = Generator.load(told, made, clip, kind)
        assert (found.dalle.weights, found.dvae.weights, found.scorer.pretrained.weights) == (used, "ema", "raw")
        words = ["--ckpt", str(told), "--dvae", str(made), "--weights", kind, "--device", "cpu", "--prompt", "x", "--n", "1"]
        assert main(["generate", *words, "--out", str(tmp_path / "g.png"), "--json", str(tmp_path / "g.json")]) == 0
        facts = json.loads((tmp_path / "g.json").read_text())
        assert facts["weights"] == used and facts["codes"] == info(made).fingerprint and facts["dvae_weights"] == info(made).weights

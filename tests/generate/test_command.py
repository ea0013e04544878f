"""``mmpretrain generate`` from the command line to its files, with tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import dalle
from PIL import Image

from mmpretrain.cli.main import main


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    tiny_dvae.make(folder / "dvae.ckpt")
    tiny_dvae.make(folder / "other.ckpt", seed=1)
    dalle(folder / "dalle.ckpt", folder / "dvae.ckpt")
    checkpoint(folder / "clip.ckpt", "clip")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / "start.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "prompts.txt").write_text("two blue balls\n\n a small yellow cone \n")
    return folder


def command(place: Path, *words: str) -> list[str]:
    return ["generate", "--ckpt", str(place / "dalle.ckpt"), "--dvae", str(place / "dvae.ckpt"), "--device", "cpu", *words]


def test_from_prompts_to_files(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = ["--prompt", "a red cube", "--prompts", str(place / "prompts.txt"), "--n", "3", "--rerank", str(place / "clip.ckpt")]
    files = ["--out", str(tmp_path / "grid.png"), "--json", str(tmp_path / "all.json"), "--save-images", str(tmp_path / "images")]
    assert main(command(place, *words, *files, "--seed", "4", "--top-k", "9", "--guidance", "1.5", "--batch", "2")) == 0
    told = json.loads((tmp_path / "all.json").read_text())
    assert [row["prompt"] for row in told["prompts"]] == ["a red cube", "two blue balls", "a small yellow cone"]
    assert told["sampling"] == {"temperature": 1.0, "top_k": 9, "top_p": None, "guidance": 1.5, "seed": 4}
    for row in told["prompts"]:
        assert row["order"] == np.argsort(-np.array(row["scores"]), kind="stable").tolist() and np.array(row["codes"]).shape == (3, 4, 4)
    sheet = Image.open(tmp_path / "grid.png")
    facts = json.loads(sheet.text["mmpretrain"])
    assert facts["prompts"][0]["scores"] == told["prompts"][0]["scores"] and "codes" not in facts["prompts"][0]
    alone = Image.open(tmp_path / "images" / "001-002.png")
    assert json.loads(alone.text["mmpretrain"])["score"] == told["prompts"][1]["scores"][2] and alone.size == (16, 16)
    assert len(list((tmp_path / "images").iterdir())) == 9
    shown = capsys.readouterr().out
    assert "two blue balls" in shown and f"{max(told['prompts'][1]['scores']):.3f}" in shown and "9 pictures in" in shown
    assert not list(tmp_path.glob(".*"))  # no temporary file is left


def test_the_same_command_gives_the_same_bytes(place, tmp_path):
    for name, batch in (("a", "1"), ("b", "8")):
        out = ["--out", str(tmp_path / f"{name}.png"), "--json", str(tmp_path / f"{name}.json"), "--batch", batch]
        assert main(command(place, "--prompt", "a red cube", "--n", "4", *out)) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_completion_keeps_rows(place, tmp_path):
    words = ["--prompt", "a red cube", "--n", "3", "--image", str(place / "start.png"), "--keep-rows", "3"]
    assert main(command(place, *words, "--out", str(tmp_path / "g.png"), "--json", str(tmp_path / "g.json"))) == 0
    codes = torch.tensor(json.loads((tmp_path / "g.json").read_text())["prompts"][0]["codes"])
    assert torch.equal(codes[:, :3], codes[:1, :3].expand(3, 3, 4)) and not torch.equal(codes[0, 3], codes[1, 3])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "there is no prompt"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "a red cube " * 30], "shorten it"),
        (["--prompt", "x", "--out", "grid.jpg"], "name it grid.png"),
        (["--prompt", "x", "--keep-rows", "2"], "name the picture with --image"),
        (["--prompt", "x", "--image", "{place}/none.png"], "none.png: no such image file"),
        (["--prompt", "x", "--image", "{place}/broken.png"], "broken.png: the picture to begin with cannot be read"),
        (["--prompt", "x", "--image", "{place}/start.png", "--keep-rows", "4"], "keep_rows=4 must be between 1 and 3"),
        (["--prompt", "x", "--dvae", "{place}/other.ckpt"], "did not make the codes"),
        (["--prompt", "x", "--dvae", "{place}/clip.ckpt"], "no discrete autoencoder"),
        (["--prompt", "x", "--rerank", "{place}/dvae.ckpt"], "takes a dual encoder"),
        (["--prompt", "x", "--ckpt", "{place}/clip.ckpt"], "left-to-right model"),
        (["--prompt", "x", "--ckpt", "{place}/nothing"], "nothing"),
        (["--prompt", "x", "--temperature", "-1"], "temperature=-1"),
        (["--prompt", "x", "--top-k", "999"], "top_k=999 must be between 1 and 24"),
        (["--prompt", "x", "--top-p", "2"], "top_p=2"),
        (["--prompt", "x", "--n", "0"], "n=0"),
        (["--prompt", "x", "--batch", "0"], "batch=0"),
        (["--prompt", "x", "--device", "nowhere"], "--device nowhere cannot be used"),
        (["--prompts", "{place}/none.txt"], "none.txt"),
        (["--prompt", "x", "--measure", "scenes:val"], "takes its prompts from the captions"),
        (["--measure", "scenes:val", "--features", "f.npz"], "--inception"),
    ],
)
def test_refusals_are_one_line(place, words, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command(place, *(word.format(place=place) for word in words))) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and told.err.startswith("mmpretrain: error: ") and named in told.err, told.err
    assert list(tmp_path.iterdir()) == []


def test_measures_of_a_set(place, tmp_path, capsys, monkeypatch):
    from mmpretrain.data_tools import scenes
    from mmpretrain.evaluate import probe_training
    from mmpretrain.evaluate.probe import Options

    quick = Options(side=32, samples=24, steps=4, batch=8, threshold=0.0)
    trained = probe_training.trained
    monkeypatch.setattr(probe_training, "trained", lambda data: trained(data, quick))
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("mmpretrain.generate.checks.counter", lambda model: (lambda text: 0, 24))  # their tokens are letters
    scenes.write(tmp_path / "few", n=24, seed=3, split="val", workers=1, progress=False)
    few = str(tmp_path / "few")
    words = ["--measure", f"val={few}", "--probe", few, "--real", few, "--n", "2", "--limit", "5", "--rerank", str(place / "clip.ckpt")]
    assert main(command(place, *words, "--judge", str(place / "clip.ckpt"), "--json", str(tmp_path / "out.json"))) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    names = {row["name"] for row in told["rows"]}
    assert {f"generation/val/{kind}/recall" for kind in ("generated", "reranked", "reconstructed", "real")} <= names
    assert "generation/val/real/frechet_clip" in names and told["n"] == 2 and told["sampling"]["seed"] == 0
    assert "which re-ranks too" not in told["rows"][0]["stamp"]["protocol"]  # another judge was named
    shown = capsys.readouterr().out
    assert "generation/val/reranked/clip_score" in shown and "5 captions, 2 pictures of each" in shown

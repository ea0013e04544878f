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
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")
    (folder / "prompts.txt").write_text("\ufefftwo blue balls\n\n a small yellow cone \n", encoding="utf-8")
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
        (["--prompt", "a \udcff"], r"a text that is not UTF-8: 'a \udcff'"),
        (["--prompt", "x", "--image", "{place}/broken.png"], "broken.png: picture cannot be decoded"),
        (["--prompt", "x", "--image", "{place}/start.png", "--keep-rows", "4"], "keep_rows=4 must be between 1 and 3"),
        (["--prompt", "x", "--dvae", "{place}/other.ckpt"], "did not make the codes"),
        (["--prompt", "x", "--dvae", "{place}/clip.ckpt"], " {place}/clip.ckpt: no discrete autoencoder"),
        (["--prompt", "x", "--rerank", "{place}/dvae.ckpt"], "takes a dual encoder"),
        (["--prompt", "x", "--ckpt", "{place}/clip.ckpt"], " {place}/clip.ckpt: pictures are drawn by a left-to-right model"),
        (["--prompt", "x", "--ckpt", "{place}/nothing"], "nothing"),
        (["--prompt", "x", "--temperature", "-1"], "temperature=-1"),
        (["--prompt", "x", "--top-k", "999"], "top_k=999 must be between 1 and 24"),
        (["--prompt", "x", "--top-p", "2"], "top_p=2"),
        (["--prompt", "x", "--n", "0"], "argument --n: at least 1, not 0"),
        (["--prompt", "x", "--batch", "0"], "argument --batch: at least 1, not 0"),
        (["--prompt", "x", "--device", "nowhere"], "--device nowhere cannot be used"),
        (["--prompts", "{place}/none.txt"], "none.txt"),
        (["--prompt", "x", "--device", "nowhere"], "there is no such device; take cpu, cuda or cuda:1"),
        (["--prompts", "{place}/latin.txt"], "latin.txt: not a text in UTF-8 (byte 4 is 0xe9)"),
        (["--prompt", "x", "--columns", "0"], "argument --columns: at least 1, not 0"),
        (["--prompt", "x", "--n", "1600", "--columns", "8"], "8 columns, is more than 16384 a side; ask for other columns"),
        (["--prompt", "x", "--n", "99999"], "more than 16384 a side"),
        (["--prompt", "x", "--json", "{place}"], "there is a folder of that name; name a file"),
        (["--prompt", "x", "--json", "grid.png"], "the sheet has that name"),
        (["--prompt", "x", "--out", "{place}/prompts.txt/g.png"], "prompts.txt is a file"),
        (["--prompt", "x", "--out", "{place}/prompts.txt/a/g.png"], "prompts.txt is a file"),
        (["--prompt", "x", "--out", "g" * 250 + ".png"], "File name too long"),
        (["--prompt", "x", "--save-images", "{place}/prompts.txt"], "prompts.txt is a file"),
        (["--prompt", "x", "--save-images", "/proc/pictures"], "nothing can be written into /proc"),
        (["--prompt", "x", "--judge", "{place}/clip.ckpt", "--limit", "3"], "--limit, --judge can only be used with --measure"),
        (["--prompt", "x", "--probe", "none"], "--probe can only be used with --measure"),
        (["--prompt", "x", "--inception", "i.pth"], "--inception can only"),
        (["--prompt", "x", "--real", "scenes:val"], "--real can only"),
        (["--prompt", "x", "--features", "f.npz"], "--features can only"),
        (["--measure", "scenes:val", "--columns", "4"], "leave out --columns"),
        (["--measure", "scenes:val", "--json", "{place}"], "there is a folder of that name; name a file"),
        (["--prompt", "x", "--measure", "scenes:val"], "takes its prompts from the captions"),
        (["--measure", "scenes:val", "--features", "f.npz"], "--inception"),
    ],
)
def test_refusals_are_one_line(place, words, named, capsys, tmp_path, monkeypatch):
    """Before anything is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmpretrain.generate.sampling.choose", None)
    try:
        code = main(command(place, *(word.format(place=place) for word in words)))
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr()
    assert code == 2 and told.err.count("\n") == 1 and told.err.startswith("mmpretrain: error: "), told.err
    assert named.format(place=place) in told.err, told.err
    assert list(tmp_path.iterdir()) == []


def test_more_columns_where_a_sheet_would_be_too_high(place, tmp_path):
    words = ["--prompt", "a red cube", "--n", "1300", "--top-k", "1", "--batch", "1300"]
    assert main(command(place, *words, "--out", str(tmp_path / "g.png"))) == 0
    sheet = Image.open(tmp_path / "g.png")
    assert max(sheet.size) <= 16384 and sheet.width > 8 * 102  # eight columns would be 17 thousand pixels high


def test_names_and_prompts_are_no_markup(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    prompts = ["a [/foo] b", "a [red] b", "a :dog: b [", "\\[x"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    files = ["--out", "o[/b] [red].png", "--json", "[/j].json", "--save-images", "[/s]"]
    assert main(command(place, *words, "--n", "1", *files, "--rerank", str(place / "clip.ckpt"))) == 0
    shown = capsys.readouterr().out
    assert all(prompt in shown for prompt in prompts) and "4 pictures in" in shown and "o[/b] [red].png" in shown
    assert main(command(place, "--prompt", "x", "--n", "1", "--out", "one.png")) == 0
    assert "1 picture in" in capsys.readouterr().out


def test_what_is_doubtful_is_said_in_a_line(place, tmp_path, caplog):
    out = ["--n", "1", "--out", str(tmp_path / "g.png"), "--json", str(tmp_path / "g.json")]
    assert main(command(place, "--prompt", "x", *out)) == 0 and not caplog.records
    assert main(command(place, "--prompt", "x", "--guidance", "2", *out)) == 0
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == ["guidance=2"] and "never saw an empty caption" in caplog.text
    caplog.clear()
    dalle(tmp_path / "untold.ckpt", dropout=0.1)
    assert main(command(place, "--prompt", "x", "--guidance", "2", "--ckpt", str(tmp_path / "untold.ckpt"), *out)) == 0
    assert len(caplog.records) == 1 and "does not say whose codes it was trained on" in caplog.text
    told = json.loads((tmp_path / "g.json").read_text())
    assert told["codes"] is None and told["weights"] == "raw" and len(told["dvae_weights"]) == 64


def test_measures_of_a_set(place, tmp_path, capsys, monkeypatch):
    from mmpretrain.data_tools import scenes
    from mmpretrain.evaluate import probe_training
    from mmpretrain.evaluate.probe import Options

    quick = Options(side=32, samples=24, steps=4, batch=8, threshold=0.0)
    trained = probe_training.trained
    monkeypatch.setattr(probe_training, "trained", lambda data, report: trained(data, quick, report))
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

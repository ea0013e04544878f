"""``mmpretrain demo``: the tabs of each kind of model and what they compute, without gradio; the page itself where gradio is installed."""

from __future__ import annotations

import io
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import region_checkpoints, tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import dalle
from PIL import Image

import mmpretrain
from mmpretrain.cli import demo, demo_tabs
from mmpretrain.cli.demo_tabs import open_demo
from mmpretrain.cli.main import main
from mmpretrain.generate.choosing import Sampling
from mmpretrain.types import Batch

CAPTIONS = ["two blue balls", "a red cube", "a small yellow cone", "a red cube"]
TABS = {"clip": ["Match"], "vilt": ["Match", "Masked words"], "dvae": ["Reconstruct"], "dalle": ["Generate"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    checkpoint(folder / "clip.ckpt", "clip")
    checkpoint(folder / "vilt.ckpt", "vilt")
    tiny_dvae.make(folder / "dvae.ckpt")
    tiny_dvae.make(folder / "other.ckpt", seed=1)
    dalle(folder / "dalle.ckpt", folder / "dvae.ckpt")
    region_checkpoints.checkpoint(folder / "uniter.ckpt", "uniter")
    return folder


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def opened(place: Path, name: str) -> demo_tabs.Demo:
    more = {"dvae": place / "dvae.ckpt", "rerank": place / "clip.ckpt"} if name == "dalle" else {}
    return open_demo(place / f"{name}.ckpt", **more)


@pytest.mark.parametrize("name", TABS)
def test_tabs_are_those_of_the_kind_of_model(place, name):
    found = opened(place, name)
    assert list(found.tabs) == TABS[name] and found.source.startswith(f"{name}.ckpt@")


@pytest.mark.parametrize(("name", "output", "unit"), [("clip", "score", "cosine"), ("vilt", "probability", "probability")])
def test_match_sorts_the_scores_of_the_model(place, picture, name, output, unit):
    found = opened(place, name)
    ranked = found.tabs["Match"](picture, "\n".join(["", *CAPTIONS[:2], "  ", *CAPTIONS[2:]]) + "\n")
    scores = mmpretrain.load(place / f"{name}.ckpt").score([picture], CAPTIONS, mode="matrix", output=output)[0]
    order = torch.argsort(-scores, stable=True).tolist()
    assert ranked == [(CAPTIONS[i], scores[i].item()) for i in order] and found.unit == unit


def test_match_takes_transparent_pictures_as_shards_do(place, picture):
    picture.putalpha(100)
    file = io.BytesIO()
    picture.save(file, format="PNG")
    match = opened(place, "clip").tabs["Match"]
    assert match(picture, "two blue balls") == match(file.getvalue(), "two blue balls") != match(picture.convert("RGB"), "two blue balls")


def test_masked_words_hides_one_word_at_a_time(place, picture):
    """Against the model run on each masked text alone; all pieces of a word are hidden together."""
    pretrained, text = mmpretrain.load(place / "vilt.ckpt"), "the green cubes fly"
    told = pretrained.tokenize(text)
    found = opened(place, "vilt").tabs["Masked words"](picture, f" {text} ")
    inner = [slot for slot, word in enumerate(told.words) if word >= 0]
    assert [token for token, _ in found] == [pretrained.tokenizer.token(told.ids[slot]) for slot in inner]
    assert len({told.words[slot] for slot in inner}) < len(inner)  # some word has several pieces
    mlm = pretrained.objectives["mlm"]
    for slot, (_, guesses) in zip(inner, found, strict=True):
        ids = [pretrained.vocabulary.mask if word == told.words[slot] else i for i, word in zip(told.ids, told.words, strict=True)]
        masked = pretrained.text([told._replace(ids=tuple(ids))])
        given = Batch(("",), torch.zeros(1, dtype=torch.int64), masked, **pretrained.visuals([pretrained.see(picture)]))
        chances = pretrained.forward(given, lambda hidden, _, slot=slot: mlm.head(hidden.text.x_ND[slot : slot + 1]))[0].softmax(-1)
        best = chances.topk(demo_tabs.GUESSES)
        assert [token for token, _ in guesses] == [pretrained.tokenizer.token(i) for i in best.indices.tolist()]
        torch.testing.assert_close(torch.tensor([chance for _, chance in guesses]), best.values, atol=1e-5, rtol=1e-4)


def test_generate_gives_the_pictures_of_the_generator(place):
    found = opened(place, "dalle")
    drawn = found.tabs["Generate"]("a red cube", 3, 1.5, 4)
    generator = mmpretrain.Generator.load(place / "dalle.ckpt", place / "dvae.ckpt", place / "clip.ckpt")
    (wanted,) = generator("a red cube", 3, Sampling(guidance=1.5, seed=4))
    assert [np.array(image).tolist() for image, _ in drawn] == [np.array(image).tolist() for image in wanted.images]
    assert [score for _, score in drawn] == sorted(wanted.ranking.scores_N.tolist(), reverse=True) and found.unit == "cosine"
    with pytest.raises(ValueError, match="the seed must be a whole number"):
        found.tabs["Generate"]("a red cube", 3, 1.5, None)  # its field was emptied
    alone = open_demo(place / "dalle.ckpt", place / "dvae.ckpt")
    assert [score for _, score in alone.tabs["Generate"]("a red cube", 2, 1, 0)] == [None, None] and alone.unit == ""


def test_reconstruct_says_how_far_the_picture_is_off(place, picture):
    before, after, decibels = opened(place, "dvae").tabs["Reconstruct"](picture)
    assert before.size == after.size == (16, 16)
    mse = np.mean((np.array(before, float) / 255 - np.array(after, float) / 255) ** 2)
    assert decibels == pytest.approx(-10 * np.log10(mse), abs=0.05)  # the pictures are rounded to bytes


@pytest.mark.parametrize(
    ("name", "tab", "given", "said"),
    [
        ("clip", "Match", (None, "a red cube"), "choose a picture first"),
        ("clip", "Match", ("picture", " \n"), "one caption a line, at least one"),
        ("clip", "Match", ("picture", "x\n" * 257), "at most 256"),
        ("vilt", "Masked words", ("picture", " "), "write a sentence"),
        ("vilt", "Masked words", (None, "a red cube"), "choose a picture first"),
        ("dvae", "Reconstruct", (None,), "choose a picture first"),
        ("dalle", "Generate", (" ", 1, 1, 0), "the prompt is empty"),
        ("dalle", "Generate", ("a red cube", 65, 1, 0), "from 1 to 64"),
        ("dalle", "Generate", ("a red cube", 1, -1, 0), "guidance=-1"),
    ],
)
def test_what_a_tab_refuses(place, picture, name, tab, given, said):
    with pytest.raises(ValueError, match=said) as caught:
        opened(place, name).tabs[tab](*(picture if one == "picture" else one for one in given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dalle.ckpt"], "name the run of that with --dvae"),
        (["dalle.ckpt", "--dvae", "{place}/other.ckpt"], "did not make the codes"),
        (["clip.ckpt", "--dvae", "{place}/dvae.ckpt", "--rerank", "{place}/clip.ckpt"], "no use for --dvae, --rerank"),
        (["uniter.ckpt"], "reads regions, which a plain picture has none of"),
        (["nothing.ckpt"], "no such checkpoint or run"),
        (["clip.ckpt", "--device", "nowhere"], "--device nowhere cannot be used"),
        (["clip.ckpt", "--port", "0"], "--port 0 must be from 1 to 65535"),
        (["clip.ckpt", "--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860 cannot be used: "),
    ],
)
def test_refusals_are_one_line(place, words, said, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_gradio", lambda: None)
    if "--port" not in words and "--host" not in words:
        monkeypatch.setattr(demo, "_check", lambda host, port: None)  # whatever else listens on this machine
    assert main(["demo", str(place / words[0]), *(word.format(place=place) for word in words[1:])]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mmpretrain: error: ") and said in error


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "nothing.ckpt", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"--host 127.0.0.1 --port {port} cannot be used: Address already in use; choose another" in error


def test_without_gradio_there_is_one_line_with_the_remedy(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in demo.QUIET:
        monkeypatch.setenv(name, "")  # put back afterwards
    monkeypatch.setattr(demo, "_check", lambda host, port: None)
    assert main(["demo", "nothing.ckpt"]) == 2
    error = capsys.readouterr().err
    assert error == "mmpretrain: error: demo: the page is made by gradio; pip install 'mmpretrain-vl[demo]'\n"


@pytest.fixture
def gradio(monkeypatch):
    """The module, where it is installed; what the command sets in the environment is put back afterwards."""
    for name in demo.QUIET:
        monkeypatch.setenv(name, "")
    return pytest.importorskip("gradio")


@pytest.mark.parametrize("name", TABS)
def test_the_page_has_the_tabs(place, picture, gradio, name):
    """And each button gives what its table or gallery takes, or says in one line what it refuses."""
    shown = demo.page(opened(place, name))
    assert [block.label for block in shown.blocks.values() if isinstance(block, gradio.Tab)] == TABS[name]
    assert not shown.analytics_enabled
    given = {
        "Score": [picture, "a red cube\ntwo blue balls"],
        "Guess": [picture, "a red cube"],
        "Draw": ["a red cube", 2, 1.0, 0],
        "Reconstruct": [picture],
    }
    buttons = {block._id: block.value for block in shown.blocks.values() if isinstance(block, gradio.Button)}
    for function in shown.fns.values():
        text = buttons[function.targets[0][0]]
        found = function.fn(*given[text])
        for block, value in zip(function.outputs, found if len(function.outputs) > 1 else [found], strict=True):
            assert block.postprocess(value) is not None
        with pytest.raises(gradio.Error):
            function.fn(*([None] if text == "Reconstruct" else [" ", 1, 1, 0] if text == "Draw" else [None, "<b>"]))
    assert len(shown.fns) == len(TABS[name])


def test_the_page_is_served_to_this_machine_alone(place, gradio, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shown = demo.page(opened(place, "clip"))
    try:
        demo.serve(shown, "127.0.0.1", port)
        assert capsys.readouterr().out == f"the page is at http://127.0.0.1:{port}/ (Ctrl-C stops it)\n"
        assert shown.share_url is None and not shown.share
        html = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20).read().decode()
        assert "clip.ckpt@" in html and "googleapis" not in html
        with pytest.raises(OSError, match=str(port)):  # taken
            demo.serve(demo.page(opened(place, "clip")), "127.0.0.1", port)
    finally:
        shown.close()

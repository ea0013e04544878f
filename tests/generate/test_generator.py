"""Captions to pictures by tiny real checkpoints: what changes a picture and what does not, kept rows, and everything that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import GRID, POSITIONS, dalle, info
from PIL import Image

import mmpretrain
from mmpretrain.evaluate.loading import load
from mmpretrain.generate.choosing import Sampling
from mmpretrain.generate.generator import Generator, Start, and_empty
from mmpretrain.models.dalle import no_text
from mmpretrain.types import Text
from mmpretrain.weights.export import export

COMPARED = (("states of the", "text"), ("states of the", "image"), ("logits of", "text"), ("logits of", "code"))
PROMPTS = ["a red cube above a green ball", "two blue balls"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("generation")
    tiny_dvae.make(folder / "dvae.ckpt")
    tiny_dvae.make(folder / "other.ckpt", seed=1)
    dalle(folder / "dalle.ckpt", folder / "dvae.ckpt")
    dalle(folder / "untold.ckpt")
    checkpoint(folder / "clip.ckpt", "clip")
    return folder


@pytest.fixture(scope="module")
def generator(place) -> Generator:
    return mmpretrain.Generator.load(place / "dalle.ckpt", place / "dvae.ckpt", place / "clip.ckpt")


def test_pictures_are_of_their_codes(generator):
    first, second = generator(PROMPTS, n=3)
    assert first.prompt == PROMPTS[0] and first.codes_Nhw.shape == (3, *GRID) and first.pixels_N3HW.shape == (3, 3, 16, 16)
    assert first.pixels_N3HW.dtype == torch.uint8 and len(first.images) == 3
    wanted = generator.dvae.model.decode(second.codes_Nhw)
    assert torch.equal(second.pixels_N3HW, (wanted.clamp(0, 1) * 255).round().to(torch.uint8))
    assert first.order == first.ranking.scores_N.argsort(descending=True, stable=True).tolist()
    assert np.array_equal(np.asarray(first.images[0]), first.pixels_N3HW[first.order[0]].permute(1, 2, 0).numpy())
    torch.testing.assert_close(
        first.ranking.scores_N, generator.scorer.pretrained.score(list(first.pixels_N3HW), [PROMPTS[0]], "matrix")[:, 0]
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_batch_and_company_change_nothing(generator, guidance):
    how = Sampling(top_p=0.95, guidance=guidance, seed=5)
    wanted = generator(PROMPTS, 3, how, batch=32)
    for batch in (1, 2, 4):
        found = generator(PROMPTS, 3, how, batch=batch)
        assert all(torch.equal(a.codes_Nhw, b.codes_Nhw) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(generator(PROMPTS[1], 2, how)[0].codes_Nhw, wanted[1].codes_Nhw[:2])


def test_seed_prompt_and_repetition_change_everything(generator):
    first, again, other = generator([PROMPTS[0], PROMPTS[0], PROMPTS[1]], 2)
    assert not torch.equal(first.codes_Nhw, again.codes_Nhw) and not torch.equal(first.codes_Nhw, other.codes_Nhw)
    assert torch.equal(generator(PROMPTS[0], 2)[0].codes_Nhw, first.codes_Nhw)
    assert not torch.equal(generator(PROMPTS[0], 2, Sampling(seed=1))[0].codes_Nhw, first.codes_Nhw)
    assert not torch.equal(first.codes_Nhw[0], first.codes_Nhw[1])
    greedy = generator(PROMPTS[0], 2, Sampling(temperature=0))[0].codes_Nhw
    assert torch.equal(greedy[0], greedy[1])


def test_guidance_one_is_none(generator):
    plain = generator(PROMPTS[0], 2)[0].codes_Nhw
    nearly = generator(PROMPTS[0], 2, Sampling(guidance=1 + 1e-12))[0].codes_Nhw  # runs the second batch
    assert torch.equal(plain, nearly)
    assert not torch.equal(generator(PROMPTS[0], 2, Sampling(guidance=8.0))[0].codes_Nhw, plain)


def test_empty_captions_are_those_of_the_model(generator):
    text = and_empty(Text(torch.tensor([[3, 4, 5]]), (3,)), 2)
    assert text.lengths == (3, 0, 0)
    model = generator.dalle.model
    _, states = model.prefill(text)
    _, empty = model.prefill(no_text(1))
    torch.testing.assert_close(states[1:], empty.expand(2, -1))
    assert not torch.allclose(states[0], empty[0])


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_a_picture_is_completed(generator, rows, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    kept = 2 if rows is None else rows
    codes = generator.encode([picture])[0]
    found = generator(PROMPTS[0], 4, start=Start(tmp_path / "a.png", rows))[0].codes_Nhw
    assert torch.equal(found[:, :kept], codes[:kept].expand(4, kept, -1))
    assert len({tuple(row) for row in found[:, kept:].flatten(1).tolist()}) == 4


@pytest.mark.parametrize("rows", [0, 4, -1])
def test_rows_out_of_range(generator, rows):
    with pytest.raises(ValueError, match=f"keep_rows={rows} must be between 1 and 3"):
        generator(PROMPTS[0], start=Start(Image.new("RGB", (16, 16)), rows))


def test_pictures_are_read_by_the_transform_of_the_codes(place, tmp_path):
    """The codes of the shards were made with another size than the autoencoder's run had: prompts of pictures are read so, too."""
    told = info(place / "dvae.ckpt")
    content = torch.load(place / "dalle.ckpt", weights_only=True)
    content["mmpretrain"]["codes"] = told._replace(transform={**told.transform, "size": 20}).to_json()
    torch.save(content, tmp_path / "dalle.ckpt")
    found = Generator.load(tmp_path / "dalle.ckpt", place / "dvae.ckpt")
    with pytest.raises(ValueError, match=r"makes a grid of 5 x 5 codes of a picture, .* reads 4 x 4"):
        found.encode([Image.new("RGB", (40, 40))])


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("  ", "the prompt is empty"),
        ("a red cube " * 20, rf"has \d+ tokens, the transformer reads {POSITIONS}: shorten it"),
        (["a red cube", ""], "prompt 2 is empty"),
        ([], "there is no prompt"),
    ],
)
def test_bad_prompts(generator, prompt, named):
    with pytest.raises(ValueError, match=named) as caught:
        generator(prompt)
    assert "\n" not in str(caught.value)


def test_prompts_that_the_clip_would_cut(place):
    found = Generator.load(place / "dalle.ckpt", place / "dvae.ckpt", place / "clip.ckpt")
    judge = found.scorer.pretrained
    judge.tokenizer = judge.tokenizer.with_max_tokens(6)
    with pytest.raises(ValueError, match="the CLIP that re-ranks reads 6"):
        found(PROMPTS[0])


def test_prompts_of_unknown_words(place):
    found = Generator.load(place / "untold.ckpt", place / "dvae.ckpt")
    found.dalle.tokenizer = load(place / "clip.ckpt").tokenizer  # word pieces: other letters are unknown
    with pytest.raises(ValueError, match="has no word that the tokenizer"):
        found("пёс")


def test_other_codes_are_refused(place):
    with pytest.raises(
        ValueError, match=r"other\.ckpt.*did not make the codes that .*dalle\.ckpt was trained on: those are of .*dvae\.ckpt"
    ):
        Generator.load(place / "dalle.ckpt", place / "other.ckpt")
    assert Generator.load(place / "untold.ckpt", place / "other.ckpt").info is None  # a checkpoint that does not say cannot be checked


def test_another_number_of_codes(place, tmp_path):
    with pytest.raises(ValueError, match=r"has 8 codes, .* draws from 24"):
        Generator.load(place / "untold.ckpt", tiny_dvae.make(tmp_path / "few.ckpt", codes=8))


def test_checkpoints_of_other_kinds(place):
    with pytest.raises(ValueError, match=r"dvae\.ckpt.*left-to-right model .*gives coded states"):
        Generator.load(place / "dvae.ckpt", place / "dvae.ckpt")
    with pytest.raises(ValueError, match=r"clip\.ckpt.*no discrete autoencoder .*gives paired states"):
        Generator.load(place / "dalle.ckpt", place / "clip.ckpt")
    with pytest.raises(ValueError, match="takes a dual encoder"):
        Generator.load(place / "dalle.ckpt", place / "dvae.ckpt", place / "dvae.ckpt")


def test_a_tokenizer_of_another_model(place):
    parts = load(place / "dalle.ckpt"), load(place / "dvae.ckpt")
    parts[0].tokenizer = load(place / "clip.ckpt").tokenizer
    with pytest.raises(ValueError, match=r"its tokenizer has \d+ tokens, the model was trained with \d+ .*do not belong together"):
        Generator(*parts)
    parts[0].tokenizer = None
    with pytest.raises(ValueError, match="it has no tokenizer"):
        Generator(*parts)
    longer = load(place / "dalle.ckpt")
    longer.tokenizer = longer.tokenizer.with_max_tokens(POSITIONS + 1)
    with pytest.raises(ValueError, match=f"cuts texts at {POSITIONS + 1} tokens, the model has {POSITIONS} positions"):
        Generator(longer, parts[1])


def test_options_are_checked_before_anything_is_drawn(generator):
    with pytest.raises(ValueError, match="top_k=25 must be between 1 and 24"):
        generator(PROMPTS[0], sampling=Sampling(top_k=25))
    with pytest.raises(ValueError, match="n=0"):
        generator(PROMPTS[0], n=0)


def test_an_exported_folder_draws_the_same(place, generator, tmp_path):
    report = json.loads(export(generator.dalle, "safetensors", tmp_path / "out").read_text())
    assert report["largest_difference"] == 0
    assert {one["name"] for one in report["outputs"]} == {f"{what} {name}" for what, name in COMPARED}
    (again,) = mmpretrain.Generator.load(tmp_path / "out", place / "dvae.ckpt")(PROMPTS[0], n=2)
    assert torch.equal(again.codes_Nhw, generator(PROMPTS[0], n=2)[0].codes_Nhw)

"""Weights of the dVAE: equal to the release (golden states) and to transformers' encoder, both ways, exported, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import released_dvae
from helpers.plain_dvae import batch, shaken, small
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

import mmpretrain
from mmpretrain.models.dvae import DVAE
from mmpretrain.nn.dvae import map_pixels, unit_pixels
from mmpretrain.weights import dvae
from mmpretrain.weights.files import WeightsError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dvae_states.npz"


def four(seed: int = 0) -> DVAE:
    """Four groups, as transformers builds them."""
    return shaken(DVAE((8, 16, 32, 64), 2, 11, 6, 16), seed).eval()


def flava() -> FlavaImageCodebook:
    return FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=2, vocab_size=11)).eval()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_released_code_returns_the_same():
    golden = np.load(GOLDEN)
    assert golden["counts"].tolist() == [53_786_240, 43_829_766]
    width = released_dvae.WIDTH
    model = DVAE((width, 2 * width, 4 * width, 8 * width), released_dvae.BLOCKS, released_dvae.CODES, released_dvae.CODE_WIDTH).eval()
    for name, half in (("encoder", model.encoder), ("decoder", model.decoder)):
        half.load_state_dict(dvae.from_theirs(released_dvae.weights(name, getattr(dvae.to_openai(model), name))))
    x = released_dvae.pixels()
    with torch.no_grad():
        logits, ids = model.encoder(map_pixels(x)), model.encode(x)
        output = model.decoder.body(model.decoder.vectors(ids))
    assert np.array_equal(ids.numpy(), golden["ids"])
    np.testing.assert_allclose(logits[:, ::4], golden["logits"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(output, golden["output"], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(model.decode(ids), golden["rebuilt"], atol=1e-6)


def test_the_encoder_equals_that_of_transformers_both_ways():
    x = map_pixels(torch.rand(2, 3, 16, 24))
    model, theirs = four(), flava()
    theirs.load_state_dict(dvae.to_flava(model))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(x), theirs(x), atol=1e-6, rtol=1e-6)
        assert torch.equal(model.encoder(x).argmax(1), theirs.get_codebook_indices(x))
    back = shaken(flava(), seed=3)
    model.encoder.load_state_dict(dvae.from_theirs({f"image_codebook.{name}": t for name, t in back.state_dict().items()}))
    with torch.no_grad():
        torch.testing.assert_close(model.encoder(x), back(x), atol=1e-6, rtol=1e-6)
    assert same(dvae.to_flava(model), dict(back.state_dict()))


@pytest.mark.parametrize("model", [four(), small(), small(widths=(8, 8), blocks=3)])
def test_round_trips_are_exact(model):
    parts = dvae.to_openai(model)
    assert {"blocks.input.w", "blocks.group_1.block_1.res_path.conv_4.b", "blocks.output.conv.b"} <= set(parts.encoder)
    state = {f"encoder.{name}": t for name, t in dvae.from_theirs(parts.encoder).items()}
    state |= {f"decoder.{name}": t for name, t in dvae.from_theirs(parts.decoder).items()}
    assert same(state, dict(model.state_dict()))
    told = dvae.sizes(dvae.from_theirs(parts.encoder))
    assert told == {"widths": list(model.widths), "blocks": model.block_count, "codes": model.codes}


def write(model: DVAE, folder: Path) -> tuple[Path, Path]:
    parts, files = dvae.to_openai(model), (folder / "encoder.safetensors", folder / "decoder.pt")
    save_file(parts.encoder, str(files[0]))
    torch.save(parts.decoder, files[1])
    return files


def test_a_run_starts_as_published_weights_and_a_folder_is_made_of_them(tmp_path):
    source, other = four(), four(seed=1)
    encoder, decoder = write(source, tmp_path)
    transform = dvae.FromOpenAI(str(encoder), str(decoder))
    assert not same(dict(other.state_dict()), dict(source.state_dict()))
    assert same(dict(transform(other).state_dict()), dict(source.state_dict())) and str(decoder) in transform.said

    dvae.import_folder(encoder, decoder, tmp_path / "folder", image_size=16)
    opened = mmpretrain.load(tmp_path / "folder")
    x = unit_pixels(batch(size=16).image)
    assert opened.tokenizer is None and torch.equal(opened.model.encode(x), source.encode(x))
    with pytest.raises(WeightsError, match="exists already"):
        dvae.import_folder(encoder, decoder, tmp_path / "folder")


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "encoder.pkl"
    torch.save(nn.Sequential(nn.ReLU()), path)  # as OpenAI's files are
    with pytest.raises(WeightsError, match=r"encoder\.pkl: holds more than tensors.*torch\.save\(module\.state_dict\(\), NEW\)"):
        dvae.load(four(), encoder=path)


def test_what_does_not_fit_is_named(tmp_path):
    encoder, decoder = write(four(), tmp_path)
    with pytest.raises(WeightsError, match=r"is \(8, 3, 7, 7\), the encoder has \(12, 3, 7, 7\); build the model in the sizes"):
        dvae.load(DVAE((12, 16, 32, 64), 2, 11, 6, 16), encoder)
    with pytest.raises(WeightsError, match="has nothing for groups"):
        dvae.load(DVAE((8, 16, 32, 64), 3, 11, 6, 16), encoder)
    with pytest.raises(WeightsError, match="is no state dict of a dVAE"):
        dvae.from_theirs({"w": torch.zeros(1)})
    lacking = dict(dvae.to_openai(four()).encoder)
    del lacking["blocks.input.b"]
    with pytest.raises(WeightsError, match=r"nothing is called blocks\.input\.b"):
        dvae.from_theirs(lacking)
    with pytest.raises(WeightsError, match="no place here for more"):
        dvae.from_theirs({**dvae.to_openai(four()).encoder, "more": torch.zeros(1)})
    with pytest.raises(WeightsError, match="has no place for a codebook of vectors"):
        dvae.to_openai(small("nearest"))
    with pytest.raises(WeightsError, match="without a codebook of vectors"):
        dvae.load(small("nearest"), encoder, decoder)
    with pytest.raises(WeightsError, match="name the file"):
        dvae.load(four())


FILES = {"openai": {"encoder.safetensors", "decoder.safetensors", "config.json"}, "safetensors": {"mmpretrain.json"}}


@pytest.mark.parametrize(("to", "files"), FILES.items())
def test_export_is_proved_without_texts(tmp_path, to, files):
    from mmpretrain.weights.export import ExportError, export

    model = four()
    parts = write(model, tmp_path)
    dvae.import_folder(*parts, tmp_path / "folder", image_size=16)
    report = json.loads(export(mmpretrain.load(tmp_path / "folder"), to, tmp_path / "out").read_text())
    assert files <= {path.name for path in (tmp_path / "out").iterdir()} and report["largest_difference"] < 1e-5
    names = {one["name"] for one in report["outputs"]}
    if to == "safetensors":
        assert names == {"logits of the codes", "output of the decoder"}
        return
    assert names == {"logits", "codes", "pictures", "logits of transformers' FlavaImageCodebook"}
    assert same(load_file(str(tmp_path / "out" / "encoder.safetensors")), dvae.to_openai(model).encoder)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    sizes = {"group_count": 4, "n_blk_per_group": 2, "vocab_size": 11, "widths": [8, 16, 32, 64]}
    assert told["decoder"] == {**sizes, "n_init": 6, "output_channels": 3}
    with pytest.raises(ExportError, match="open_clip has no DVAE; export it to openai or safetensors"):
        export(mmpretrain.load(tmp_path / "folder"), "open_clip", tmp_path / "more")

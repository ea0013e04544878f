"""``mmpretrain.load``: what comes back equals what was saved, and nothing but classes of the suite is ever touched."""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import checkpoint
from PIL import Image
from torch import nn

import mmpretrain
from mmpretrain.evaluate.inputs import picture_of
from mmpretrain.evaluate.loading import find
from mmpretrain.evaluate.rebuild import RefusedCheckpoint, build, resolve


def pictures(n: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (50 + 20 * i, 70, 3), dtype=np.uint8)) for i in range(n)]


def test_top_level_names() -> None:
    from mmpretrain.evaluate import loading, pretrained

    assert mmpretrain.load is loading.load and mmpretrain.Pretrained is pretrained.Pretrained


def test_clip_scores(tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "clip"))
    images, texts = pictures(), ["a red cube", "two balls", "a red cube"]
    image_nE, text_nE = model.encode_image(images), model.encode_text(texts)
    torch.testing.assert_close(image_nE.norm(dim=1), torch.ones(3))
    assert torch.equal(text_nE[0], text_nE[2])
    torch.testing.assert_close(model.score(images, texts), (image_nE * text_nE).sum(1))
    matrix = model.score(images, texts[:2], mode="matrix")
    torch.testing.assert_close(matrix, image_nE @ text_nE[:2].T)
    scale = model.logit_scale()[0]
    torch.testing.assert_close(model.score(images, texts[:2], mode="matrix", output="logit"), matrix * scale)
    with pytest.raises(ValueError, match="no probability"):
        model.score(images, texts, output="probability")
    with pytest.raises(ValueError, match="mode='matrix'"):
        model.score(images, texts[:2])


def test_vilt_scores(tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt"))
    images, texts = pictures(), ["a red cube", "two blue balls above a cube"]
    matrix = model.score(images, texts, mode="matrix")
    one_by_one = torch.stack([torch.cat([model.score([image], [text]) for text in texts]) for image in images])
    torch.testing.assert_close(matrix, one_by_one, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.score(images, texts, mode="matrix", output="probability"), matrix.sigmoid())
    assert model.encode_image(images).shape == (3, 64) and model.encode_text(texts).shape == (2, 64)


@pytest.mark.parametrize("system", ["clip", "vilt"])
def test_images_in_any_form(tmp_path: Path, system: str) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", system))
    image = pictures(1)[0]
    image.save(tmp_path / "image.png")
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    forms = [image, tmp_path / "image.png", str(tmp_path / "image.png"), (tmp_path / "image.png").read_bytes(), tensor, tensor / 255]
    assert all(torch.equal(model.transform(form), model.transform(image)) for form in forms)
    vectors = model.encode_image(forms)
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors), atol=1e-6, rtol=0)  # threads cut the rows of a product differently
    # what transform gives may be given again
    torch.testing.assert_close(model.encode_image([model.transform(image)]), vectors[:1])
    with pytest.raises(ValueError, match="no such image"):
        model.encode_image([tmp_path / "none.png"])
    with pytest.raises(ValueError, match="an image is"):
        model.encode_image([7])


def test_a_picture_that_pillow_opened_is_that_of_its_file(tmp_path: Path) -> None:
    """Orientation, inks, transparency and palettes; the user's picture stays as it is."""
    image, turned = pictures(1)[0], Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.convert("CMYK").save(tmp_path / "inks.jpg")
    for mode in ("P", "LA", "RGBA", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.png", transparency=3 if mode == "P" else None)
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as given:
            size, mode = given.size, given.mode
            assert np.array_equal(np.asarray(picture_of(given)), np.asarray(picture_of(path))), path
            assert (given.size, given.mode) == (size, mode)
    with pytest.raises(ValueError, match="an image of mode F does not say"):
        picture_of(image.convert("F"))


def test_tensors_that_are_no_pictures() -> None:
    for tensor, said in (
        (torch.zeros(1, 8, 8), r"is \(3, H, W\), not \(1, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"is \(3, H, W\)"),
        (torch.full((3, 8, 8), 200.0), "values from 0 to 1, not from 200 to 200"),
        (torch.full((3, 8, 8), torch.nan), "values from 0 to 1"),
        (torch.full((3, 8, 8), 200), "not of int64"),
    ):
        with pytest.raises(ValueError, match=said):
            picture_of(tensor)


def test_one_image_and_one_text_are_no_lists(tmp_path: Path) -> None:
    model, image = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "clip")), pictures(1)[0]
    image.save(tmp_path / "image.png")
    for one in (image, tmp_path / "image.png", str(tmp_path / "image.png"), model.transform(image)):
        assert torch.equal(model.encode_image(one), model.encode_image([one]))
    assert torch.equal(model.encode_text("a red cube"), model.encode_text(["a red cube"]))
    assert torch.equal(model.score([image, image], "a red cube", mode="matrix"), model.score([image, image], ["a red cube"], "matrix"))
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 32) and model.score([], []).shape == (0,)
    for wrong in (None, 3, "a \udcff cube"):
        with pytest.raises(ValueError, match="a text"):
            model.encode_text([wrong])


def test_raw_or_averaged_weights(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", "vilt", ema=True)
    raw, averaged = mmpretrain.load(path, weights="raw"), mmpretrain.load(path)
    assert (raw.weights, averaged.weights) == ("raw", "ema")
    for a, b in zip(raw.model.parameters(), averaged.model.parameters(), strict=True):
        torch.testing.assert_close(a * 2, b)
    with pytest.raises(ValueError, match="no averaged weights"):
        mmpretrain.load(checkpoint(tmp_path / "b.ckpt", "vilt"), weights="ema")


def test_tied_decoder_stays_tied(tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt", ema=True))
    assert model.objectives["mlm"].head.weight is model.model.text.words.weight


def test_a_run_folder_gives_best_then_last(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    first, second = checkpoint(folder / "step-00000001.ckpt", "clip"), checkpoint(folder / "step-00000002.ckpt", "clip", seed=1)
    assert find(tmp_path / "run") == second
    (folder / "last.ckpt").symlink_to(second.name)
    (folder / "best.ckpt").symlink_to(first.name)
    assert find(tmp_path / "run") == first and find(tmp_path / "run", "last") == second and find(folder) == first
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such checkpoint or run"):
        find(tmp_path / "nothing")


def test_a_torn_file_is_found_by_its_manifest(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", "clip")
    path.with_name("a.ckpt.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="torn or altered"):
        mmpretrain.load(path)
    path.with_name("a.ckpt.json").unlink()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.ckpt: ") as caught:
        mmpretrain.load(path)
    assert "\n" not in str(caught.value)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch canary",)


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "mmpretrain": {"config": Bomb()}}, tmp_path / "bomb.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.ckpt", "plain.ckpt"):
        with pytest.raises(RefusedCheckpoint, match="could run code") as caught:
            mmpretrain.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"caption,image\na,1.png\n", b"PK\x03\x04 torn", b""])
def test_another_kind_of_file_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"pairs\.csv: not a readable checkpoint \(it is no whole file of torch\.save\)$") as caught:
        mmpretrain.load(tmp_path / "pairs.csv")
    assert not isinstance(caught.value, RefusedCheckpoint)


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "evil.Model",
        "torch.nn.Linear",
        "mmpretrain.models.clip.CLIP.__init__",
        "mmpretrain.models..clip.CLIP",
        "mmpretrain.cli.main.main",
        "mmpretrain.models.clip.torch",
        "mmpretrain.data.reader.ShardReader",
        "mmpretrain.models.none.Nothing",
        "mmpretrain.models.clip.Nothing",
        None,
        7,
    ],
)
def test_a_checkpoint_names_only_our_classes(path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    file = checkpoint(tmp_path / "a.ckpt", "clip")
    content = torch.load(file, weights_only=True)
    content["mmpretrain"]["config"]["model"]["system"]["init_args"]["image"]["class_path"] = path
    torch.save(content, file)
    before = set(sys.modules)
    with pytest.raises(RefusedCheckpoint, match=r"a\.ckpt: model\.system") as caught:
        mmpretrain.load(file)
    assert "\n" not in str(caught.value)
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("evil", "subprocess")}


def test_arguments_and_tensors_must_fit(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "a.ckpt", "clip")

    def changed(change) -> Path:
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "b.ckpt")
        return tmp_path / "b.ckpt"

    def image(content) -> dict:
        return content["mmpretrain"]["config"]["model"]["system"]["init_args"]["image"]["init_args"]

    with pytest.raises(RefusedCheckpoint, match="no argument 'colour'"):
        mmpretrain.load(changed(lambda c: image(c).update(colour=1)))
    with pytest.raises(ValueError, match="has shape"):
        mmpretrain.load(changed(lambda c: image(c).update(patch_size=8)))
    with pytest.raises(ValueError, match="lacks 1 tensors"):
        mmpretrain.load(changed(lambda c: c["state_dict"].pop("root.model.logit_scale")))
    with pytest.raises(ValueError, match="no place for"):
        mmpretrain.load(changed(lambda c: c["state_dict"].update({"root.model.extra": torch.zeros(1)})))
    with pytest.raises(ValueError, match="no entry 'mmpretrain'"):
        mmpretrain.load(changed(lambda c: c.pop("mmpretrain")))
    with pytest.raises(ValueError, match="tokenizer"):
        mmpretrain.load(changed(lambda c: c["mmpretrain"].update(tokenizer="{")))


def test_nested_values_keep_their_kind() -> None:
    made = build({"class_path": "mmpretrain.objectives.mlm.MLM", "init_args": {"sources": ["a", "b"]}}, nn.Module, "x")
    assert made.sources == ("a", "b")
    with pytest.raises(RefusedCheckpoint, match="expected a class_path"):
        build("mmpretrain.objectives.mlm.MLM", nn.Module, "x")
    with pytest.raises(RefusedCheckpoint, match="not a Objective"):
        from mmpretrain.objectives.base import Objective

        resolve("mmpretrain.models.clip.CLIP", Objective, "x")


def test_evaluation_mode_is_put_back(tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt"))
    model.model.train()
    model.model.transformer.blocks[0].eval()
    model.encode_text(["a cube"])
    assert model.model.training and not model.model.transformer.blocks[0].training
    buffer = io.BytesIO()
    pictures(1)[0].convert("RGBA").save(buffer, format="PNG")
    assert model.transform(buffer.getvalue()).dtype == torch.uint8

"""Image codes in the data path: what a batch holds, what is read, counted and said, what a model and a checkpoint know of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.codes import GRID, INFO, KNOWN, codes_of, write_codes
from helpers.shards import write_shards

from mmpretrain.data import codes_info
from mmpretrain.data.buckets import Buckets, Ruler
from mmpretrain.data.codes_info import CodesInfo, write_info
from mmpretrain.data.draws import keys
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import open_reader
from mmpretrain.data.text import TextOptions
from mmpretrain.data.units import Units
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.seeing import Seeing
from mmpretrain.train.meter import token_count
from mmpretrain.train.payload import check_data
from mmpretrain.types import Spec

SQUASH = ImageTransform("squash", 16, 8)


class Others(NamedTuple):
    """Keeps what two other samples show."""

    def prepare(self, example, draw) -> Any:
        return [draw.other_visual(k) for k in range(2)], example.visual.codes

    def collate(self, values, collate) -> Any:
        return [others for others, _ in values], collate.codes([codes for _, codes in values])


def test_batches_of_codes(tmp_path, monkeypatch):
    folder = write_codes(tmp_path, image=False)
    monkeypatch.setattr(ImageTransform, "read", lambda *_: pytest.fail("a picture is decoded"))
    loaded = data(folder, show="codes", preparers={"others": Others()})
    for (batch,) in loaded.train_dataloader():
        assert batch.image is None and batch.regions is None and batch.text is not None
        assert batch.codes.grids == (GRID,) * batch.size and batch.codes.ids_N.dtype == torch.int64
        for key, found in zip(batch.keys, batch.codes.dense(), strict=True):
            assert torch.equal(found, torch.from_numpy(codes_of(int(key[1:]))))
        others, own = batch.targets["others"]
        assert torch.equal(own.ids_N, batch.codes.ids_N)
        for key, visual in (pair for row in others for pair in row):
            assert visual.image is None and torch.equal(visual.codes, torch.from_numpy(codes_of(int(key[1:]))))


def test_pictures_beside_codes_are_those_of_evaluation(tmp_path):
    folder = write_codes(tmp_path)
    found = {}
    for show in ("image", "codes", "image+codes"):
        loader = data(folder, show=show, image=SQUASH, preparers={}, batch_size=4).train_dataloader()
        found[show] = [item[0] for item in loader]
    for image, codes, both in zip(*found.values(), strict=True):
        assert image.keys == codes.keys == both.keys and image.codes is None and codes.image is None
        assert torch.equal(image.image.pixels_BCHW, both.image.pixels_BCHW) and torch.equal(codes.codes.ids_N, both.codes.ids_N)
    middle = ImageTransform("clip", 16, crop_scale=(1, 1))
    write_info(folder, INFO._replace(transform={"mode": "dalle"}))
    (batch,) = next(iter(data(folder, show="image+codes", image=middle, preparers={}, batch_size=4).train_dataloader()))
    reader = open_reader(str(folder))
    for key, pixels in zip(batch.keys, batch.image.pixels_BCHW, strict=True):
        own = next(reader.read(n) for n in range(len(reader)) if reader.read(n).key == key)
        assert torch.equal(pixels, middle.read(own.images))  # not cropped at random


@pytest.mark.parametrize(
    "image,message",
    [
        (ImageTransform("clip", 16), r"mode=clip moves pictures away from their codes.* crop_scale=\[1, 1\]"),
        (ImageTransform("dalle", 16), "mode=dalle moves pictures away from their codes"),
        (ImageTransform("squash", 16, flip=True), "flip moves"),
        (ImageTransform("vilt", 16, 8, randaugment=(2, 9)), "randaugment moves"),
        (ImageTransform("clip", 16, crop_scale=(1, 1)), r"the whole of every picture \(mode=squash\), data.image.mode=clip differs"),
    ],
)
def test_pictures_that_move_away_from_their_codes(tmp_path, image, message):
    folder = write_codes(tmp_path)
    with pytest.raises(DataError, match=r"data.show=image\+codes: .*" + message):
        data(folder, show="image+codes", image=image, preparers={})
    data(folder, show="codes", image=image, preparers={})


def test_what_is_missing_is_said(tmp_path):
    bare, some = write_shards(tmp_path / "bare", (12,)), write_codes(tmp_path / "some", (12,), without=(2, 7))
    with pytest.raises(DataError, match=r"bare has image codes and captions; none of them has KEY.codes.npy: mmpretrain data tokens makes"):
        data(bare, show="codes")
    found = data(some, show="codes", batch_size=5, preparers={})
    assert "2 samples lack image codes or captions and are left out" in found.set.tell(found.feed)
    assert {key for (b,) in found.train_dataloader() for key in b.keys}.isdisjoint({"k00002", "k00007"})
    with pytest.raises(DataError, match="has a picture, image codes and captions"):
        data(write_codes(tmp_path / "texts", (12,), image=False), show="image+codes", image=SQUASH)


def of_mixture(train: dict[str, TrainSource], **options: Any) -> ShardData:
    made = ShardData(train, batch_size=4, text=TextOptions(vocab_size=300), image=SQUASH, max_tokens=12, workers=0, seed=5, **options)
    made.setup("fit")
    return made


def test_codes_texts_and_pictures_in_one_run(tmp_path):
    pairs, alone = write_codes(tmp_path / "pairs", (12,)), write_codes(tmp_path / "alone", (12,), image=False, text=False, first=30)
    books = write_shards(tmp_path / "books", (12,))
    train = {
        "pairs": TrainSource(str(pairs), show="codes"),
        "alone": TrainSource(str(alone), reads="images", show="codes"),
        "books": TrainSource(str(books), reads="texts"),
        "photos": TrainSource(str(books)),
    }
    with pytest.raises(DataError, match=r"pairs with codes of 'pairs' and images with codes of 'alone'.*data\.mix=batch"):
        of_mixture(train)
    made = of_mixture(train, mix="batch")
    seen = {(b.source, b.text is None, b.image is None, b.codes is None) for (b,) in made.train_dataloader()}
    assert seen == {
        ("pairs", False, True, False),
        ("alone", True, True, False),
        ("books", False, True, True),
        ("photos", False, False, True),
    }
    assert made.set.facts(made.feed.parts)["pairs"]["as"] == "pairs/captions/sample/codes" and made.vocabulary.codes == KNOWN
    assert of_mixture({"books": train["books"]}).vocabulary.codes == 0


def test_a_position_knows_what_was_shown(tmp_path):
    folder = write_codes(tmp_path, (12,))
    plain, codes = data(folder, batch_size=2, preparers={}), data(folder, batch_size=2, show="codes", preparers={})
    assert codes.identity()["show"] == "codes"
    with pytest.raises(DataError, match=r"data\.show=image, not codes"):
        codes.load_state_dict(plain.state_dict())


def test_what_a_model_knows():
    codes_info.check_model(Spec(8, ("causal",), 9, codes=KNOWN, code_grid=GRID), INFO)
    codes_info.check_model(Spec(8, ("fused",), 9), INFO)
    with pytest.raises(DataError, match="hold codes of dvae 1, which has 16, but the model knows 17"):
        codes_info.check_model(Spec(8, ("causal",), 9, codes=17), INFO)
    with pytest.raises(DataError, match="in a grid of 2 x 3, but the model takes 4 x 4"):
        codes_info.check_model(Spec(8, ("causal",), 9, codes=KNOWN, code_grid=(4, 4)), INFO)


def test_a_checkpoint_knows_its_codes(tmp_path):
    class Data(NamedTuple):
        codes_info: CodesInfo | None

    saved_ = {"codes": INFO.to_json()}
    check_data(saved_, Data(INFO)), check_data(saved_, Data(None)), check_data({}, Data(INFO))
    with pytest.raises(ValueError, match=r"trained on image codes by dvae 1 \(1111.*those of the shards are by dvae 2"):
        check_data(saved_, Data(INFO._replace(fingerprint="3" * 64, source="dvae 2")))


def test_tokens_are_counted(tmp_path):
    folder = write_codes(tmp_path, (12,))
    zero = np.zeros(12, dtype=np.int64)

    def cost(show: str, by: tuple[str, ...] = Buckets().by) -> tuple[np.ndarray, Ruler]:
        ruler = Ruler(Buckets(by=by), SQUASH, 40, [Units(open_reader(str(folder)), shown=Shown(show))])
        return ruler.measure(zero, zero, np.arange(12), keys(0, 0, np.arange(12)))[0].cost_P, ruler

    text = cost("codes", ("text",))[0]
    assert (cost("codes")[0] == text + 6).all() and (cost("image+codes")[0] == text + 4 + 6).all() and (cost("image")[0] == text + 4).all()
    assert cost("codes")[1].longest == 40 + 6
    assert "codes" in cost("codes")[1].identity and "codes" not in cost("image")[1].identity
    (batch,) = next(iter(data(folder, show="codes", batch_size=4, preparers={}).train_dataloader()))
    words = sum(batch.text.lengths)
    assert token_count(batch, None, codes=True) == words + 24 and token_count(batch, 8) == words


def test_evaluation_sees_codes(tmp_path):
    reader = open_reader(str(write_codes(tmp_path, (3,))))
    one, wanted = reader.read(0), torch.from_numpy(codes_of(0))
    codes = Seeing(None, Shown("codes"), codes=KNOWN)
    assert (
        torch.equal(codes(one).codes, wanted)
        and codes(one).image is None
        and codes.shows(one)
        and not codes.shows(one._replace(codes=None))
    )
    (tmp_path / "k.codes.npy").write_bytes(one.codes)
    assert torch.equal(codes(tmp_path / "k.codes.npy").codes, wanted)
    with pytest.raises(ValueError, match="reads image codes, no pictures: give a KEY"):
        codes(one._replace(codes=None))
    with pytest.raises(BadSample, match="not below 3"):
        Seeing(None, Shown("codes"), codes=3)(one)
    both = Seeing(SQUASH, Shown("image+codes"))
    assert both(one).image is not None and torch.equal(both(one).codes, wanted)
    assert both(one._replace(codes=None)).codes is None and both.shows(one._replace(codes=None))  # codes are targets of training
    assert Seeing(SQUASH, Shown())(one).codes is None

"""Data of pictures alone: no tokenizer, validation sets read alike; one source with texts, and there is a tokenizer again."""

from __future__ import annotations

import pytest
from helpers.shards import picture, write_tar

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.reading import NO_WORDS
from mmpretrain.data.text import TextOptions

IMAGE = ImageTransform("dalle", 8, normalize="unit")
SMALL = {"batch_size": 4, "image": IMAGE, "workers": 0, "text": TextOptions(vocab_size=200)}


@pytest.fixture
def alone(tmp_path):
    """Eight pictures without any text."""
    write_tar(tmp_path / "alone" / "0.tar", [(f"p{i}.png", picture(i)) for i in range(8)])
    return str(tmp_path / "alone")


def test_pictures_need_no_tokenizer(alone, own_cache):
    data = ShardData({"p": TrainSource(alone, reads="images")}, {"other": alone, "p": alone}, **SMALL)
    data.prepare_data()
    data.setup("fit")
    assert data.tokenizer is None and data.vocabulary == NO_WORDS and not list(own_cache.glob("tokenizers/*"))
    (batch,) = next(iter(data.train_dataloader()))
    assert batch.text is None and batch.image.pixels_BCHW.shape == (4, 3, 8, 8) and batch.source == "p"
    for loader in data.val_dataloader():
        assert sum(batch.size for batch in loader) == 8


def test_texts_of_any_source_bring_one(alone, tiny_shards):
    both = {"p": TrainSource(alone, reads="images"), "t": TrainSource(str(tiny_shards))}
    data = ShardData(both, {"other": str(tiny_shards)}, mix="batch", **SMALL)
    data.setup("fit")
    assert data.tokenizer is not None and data.vocabulary.size > 10
    (loader,) = data.val_dataloader()
    assert next(iter(loader)).text is not None


def test_pictures_without_texts_as_pairs_are_refused_as_before(alone):
    with pytest.raises(DataError, match=r"no sample of .* has a picture and captions"):
        ShardData(alone, **SMALL).setup("fit")

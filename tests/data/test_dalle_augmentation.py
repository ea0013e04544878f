"""DALL-E's augmentation: means over areas, sizes of the crops, nothing drawn in evaluation, both codecs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmpretrain.data import image as module
from mmpretrain.data.codec import PILLOW, TENSORS
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform, area


def ramp(height: int, width: int) -> Image.Image:
    """Red says the column, green the row: where a crop was taken can be read from it."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], 2).astype(np.uint8))


def shares(n: int, m: int) -> np.ndarray:
    """(m, n): the part of each of n pixels that lies in each of m equal stretches, as rows that sum to 1."""
    found = np.zeros((m, n))
    for i in range(m):
        for j in range(n):
            found[i, j] = max(0.0, min((i + 1) * n / m, j + 1) - max(i * n / m, j)) * m / n
    return found


@pytest.mark.parametrize("codec", [PILLOW, TENSORS])
@pytest.mark.parametrize(("side", "to"), [(48, 36), (33, 32), (50, 25), (41, 40), (9, 1), (64, 37)])
def test_smaller_pictures_are_means_over_areas(codec, side, to):
    x = np.random.default_rng(side).integers(0, 256, (3, side, side), dtype=np.uint8)
    found = codec.tensor(area(codec, codec.take(torch.from_numpy(x)), to))
    wanted = np.einsum("mi,cij,nj->cmn", shares(side, to), x, shares(side, to))
    assert found.shape == (3, to, to) and np.abs(found.numpy() - wanted).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("decoder", ["pil", "simplejpeg"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [(200, 100), (100, 230), (40, 40), (33, 34), (20, 60), (32, 32)])
def test_squares_of_any_picture(decoder, stage, size):
    transform = ImageTransform("dalle", 32, stage=stage, decoder=decoder)
    for seed in range(5):
        out = transform(ramp(*size), np.random.default_rng(seed))
        assert out.shape == (3, 32, 32) and out.dtype == torch.uint8 and out.is_contiguous()
    assert torch.equal(transform(ramp(*size), np.random.default_rng(3)), transform(ramp(*size), np.random.default_rng(3)))


def seen(stage: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], np.ndarray]:
    """What is drawn of 400 pictures of a size: the sides of the resized squares, and (left, top) of the first squares."""
    sides, places = [], []
    plain, cut = module.area, PILLOW.crop

    def note(made, picture, side):
        sides.append(side)
        return plain(made, picture, side)

    def crop(picture, box):
        places.append(box)
        return cut(picture, box)

    monkeypatch.setattr(module, "area", note)
    monkeypatch.setattr(PILLOW, "crop", crop, raising=False)
    transform = ImageTransform("dalle", 32, stage=stage, decoder="pil")
    for seed in range(400):
        transform(ramp(*size), np.random.default_rng(seed))
    return sides, np.array(places[::2])


def test_the_first_stage_takes_squares_anywhere_at_9_to_12_eighths(monkeypatch):
    sides, boxes = seen(1, (80, 120), monkeypatch)
    assert set(sides) == set(range(36, 49))
    assert (boxes[:, 2] - boxes[:, 0] == 80).all() and (boxes[:, 1] == 0).all()
    assert boxes[:, 0].min() == 0 and boxes[:, 0].max() == 40


def test_the_second_stage_stays_near_the_middle_at_8_to_9_eighths(monkeypatch):
    sides, boxes = seen(2, (120, 80), monkeypatch)
    assert set(sides) == set(range(32, 37))
    assert (boxes[:, 0] == 0).all() and boxes[:, 1].min() == 15 and boxes[:, 1].max() == 24  # 3/8 and below 5/8 of 40


def test_small_pictures_keep_their_size_or_grow_to_what_is_asked_for(monkeypatch):
    sides, _ = seen(1, (40, 60), monkeypatch)
    assert set(sides) == {36, 37, 38, 39}  # 40 is the picture itself
    assert ImageTransform("dalle", 32, decoder="pil")(ramp(10, 10), np.random.default_rng(0)).shape == (3, 32, 32)


def test_half_are_mirrored_where_that_is_asked_for_and_evaluation_draws_nothing():
    plain, mirrored = (ImageTransform("dalle", 32, flip=flip, decoder="pil") for flip in (False, True))
    falls = [int(t[0, 16, 0]) > int(t[0, 16, 31]) for t in (mirrored(ramp(32, 32), np.random.default_rng(seed)) for seed in range(200))]
    assert 70 < sum(falls) < 130
    middle = plain(ramp(64, 128))
    assert torch.equal(middle, mirrored(ramp(64, 128))) and torch.equal(middle, ImageTransform("clip", 32, decoder="pil")(ramp(64, 128)))


def test_options_are_kept_in_checkpoints_and_refused():
    transform = ImageTransform("dalle", 32, stage=2, normalize="unit")
    assert ImageTransform.from_dict(transform.to_dict()) == transform and transform.mean == (0, 0, 0) and transform.std == (1, 1, 1)
    with pytest.raises(DataError, match=r"data\.image\.mode='dalle', stage=3; take vilt, clip, squash or dalle, and stage 1 or 2"):
        ImageTransform("dalle", 32, stage=3)

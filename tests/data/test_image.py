"""Transforms: ViLT's table of sizes, equality with open_clip and torchvision, draws that depend on their generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform, _random_box, vilt_size
from mmpretrain.data.randaugment import OPERATIONS, randaugment


def photo(width=97, height=61, seed=0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, size=(7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def rng(seed=0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "given,expected",
    [
        ((300, 500), (352, 608)),  # 384 x 640 is capped at 639 and floored: never the 640 of the paper
        ((480, 640), (384, 512)),
        ((640, 480), (512, 384)),
        ((384, 384), (384, 384)),
        ((100, 500), (128, 608)),
        ((500, 100), (608, 128)),
        ((1, 1), (384, 384)),
        ((1, 20000), (32, 608)),
        ((20000, 1), (608, 32)),
    ],
)
def test_vilt_sizes(given, expected):
    assert vilt_size(*given) == expected


def test_vilt_sizes_equal_those_of_transformers():
    found = pytest.importorskip("transformers.models.vilt.image_processing_pil_vilt", reason="transformers has moved its ViLT processor")
    for height in range(60, 900, 83):
        for width in range(60, 900, 71):
            theirs = found.get_resize_output_image_size(np.zeros((3, height, width), dtype=np.uint8), 384, 639, 32, "channels_first")
            assert vilt_size(height, width) == tuple(theirs)


def test_vilt_picture():
    out = ImageTransform("vilt", 64, 16)(photo(200, 100))
    assert out.shape == (3, 48, 96) and out.dtype == torch.uint8 and out.is_contiguous()


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (50, 50), (33, 200), (224, 224), (32, 32)])
def test_clip_evaluation_equals_open_clip(size):
    open_clip_transform = pytest.importorskip("open_clip.transform")
    theirs = open_clip_transform.image_transform(32, is_train=False)
    transform = ImageTransform("clip", 32, normalize="clip", decoder="pil")
    ours = (transform(photo(*size)).float() / 255 - torch.tensor(transform.mean).view(3, 1, 1)) / torch.tensor(transform.std).view(3, 1, 1)
    torch.testing.assert_close(ours, theirs(photo(*size)), rtol=0, atol=1e-5)


def test_random_crop_has_the_areas_and_ratios_of_torchvision():
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(torch.zeros(3, 300, 400), (0.4, 0.9), (3 / 4, 4 / 3))[2:] for _ in range(2000)]
    )
    generator = rng()
    boxes = np.array([_random_box(300, 400, (0.4, 0.9), generator) for _ in range(2000)])
    height, width = boxes[:, 3] - boxes[:, 1], boxes[:, 2] - boxes[:, 0]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 400).all() and (boxes[:, 3] <= 300).all()
    for ours, other in ((height, theirs[:, 0]), (width, theirs[:, 1])):
        assert abs(ours.mean() - other.mean()) < 4 * np.hypot(ours.std(), other.std()) / np.sqrt(2000)
    assert _random_box(1, 20000, (0.9, 1.0), rng())[3] == 1


@pytest.mark.parametrize("transform", [ImageTransform("clip", 32), ImageTransform("vilt", 64, 16, randaugment=(2, 9), flip=True)])
def test_draws_come_from_the_generator_alone(transform):
    image = photo(80, 70)  # a picture much wider than 4:3 has only one crop of 90 % and more
    assert torch.equal(transform(image, rng(1)), transform(image, rng(1)))
    assert not torch.equal(transform(image, rng(1)), transform(image, rng(2)))
    assert torch.equal(transform(image), transform(image))


def test_squash_and_extreme_pictures():
    assert ImageTransform("squash", 16)(photo()).shape == (3, 16, 16)
    for mode in ("clip", "squash"):
        for generator in (None, rng()):
            assert ImageTransform(mode, 16)(photo(1, 20000), generator).shape == (3, 16, 16)


def test_flip_mirrors_about_half():
    transform, plain = ImageTransform("squash", 16, flip=True), ImageTransform("squash", 16)
    flipped = [torch.equal(transform(photo(), rng(seed)), plain(photo()).flip(-1)) for seed in range(60)]
    assert 15 < sum(flipped) < 45


def test_the_operations_are_vilts():
    assert len(OPERATIONS) == 14 and not {"invert", "cutout"} & set(OPERATIONS)
    ranges = {name: (low, high) for name, (_, low, high) in OPERATIONS.items()}
    assert (
        ranges["rotate"] == (0, 30) and ranges["posterize"] == (0, 4) and ranges["solarize"] == (0, 256) and ranges["shear_x"] == (0, 0.3)
    )
    assert ranges["solarize_add"] == (0, 110) and ranges["color"] == (0.1, 1.9) and ranges["translate_y"] == (0, 100)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_keeps_size_and_mode(name):
    operation, low, high = OPERATIONS[name]
    for magnitude in (0, 9, 30):
        out = operation(photo(), magnitude / 30 * (high - low) + low, rng())
        assert (out.size, out.mode) == ((97, 61), "RGB")


def test_randaugment_draws_with_replacement():
    assert randaugment(photo(), 0, 9, rng()).tobytes() == photo().tobytes()
    assert len({randaugment(photo(), 2, 9, rng(seed)).tobytes() for seed in range(30)}) > 20


def test_options_out_of_range_are_refused():
    wrong = ({"mode": "x"}, {"size": 8}, {"normalize": "x"}, {"crop_scale": (0.9, 0.1)}, {"randaugment": (2, 31)})
    for options in wrong:
        with pytest.raises(DataError, match=r"data\.image\."):
            ImageTransform(**options)
    transform = ImageTransform("clip", 32, randaugment=(2, 9))
    assert ImageTransform.from_dict(transform.to_dict()) == transform


def test_statistics_by_name_or_by_value():
    own = ImageTransform(size=64, normalize=[[0.7, 0.72, 0.7], [0.22, 0.19, 0.22]])
    assert own.mean == (0.7, 0.72, 0.7) and own.std == (0.22, 0.19, 0.22) and hash(own)
    assert ImageTransform(size=64, normalize="scenes").mean == (0.884, 0.88, 0.883)
    for wrong in ("none", [[0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5], [0.5, 0.5, 0.0]], [[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5, "x"], [1, 1, 1]], 3):
        with pytest.raises(DataError, match="normalize"):
            ImageTransform(size=64, normalize=wrong)

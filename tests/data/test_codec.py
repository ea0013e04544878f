"""Both decoders: the specified result for every odd picture, the same refusals, pixels that differ little and depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.pictures import REFUSED, SPECIFIED, UPRIGHT, flat, rotated
from helpers.shards import encoded, picture, sample, write_tar
from PIL import Image

from mmpretrain.data import codec as module
from mmpretrain.data.codec import PILLOW, TENSORS, codec, difference, resolve
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData

BOTH = pytest.mark.parametrize("name", ["pil", "simplejpeg"])


def pixels(name: str, data: bytes) -> np.ndarray:
    """(H, W, 3) as ``name`` decodes it."""
    made = codec(name)
    return made.tensor(made.decode(data)).permute(1, 2, 0).numpy()


def photo(width: int = 150, height: int = 100, **options) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, size=(9, 13, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return encoded(image, "JPEG", **{"quality": 85, **options})


@pytest.mark.fault(13)
@BOTH
@pytest.mark.parametrize("kind", SPECIFIED)
def test_every_kind_of_picture_has_its_result(name, kind):
    data, size, first, last = SPECIFIED[kind]
    found = pixels(name, data)
    assert found.shape == (size[1], size[0], 3) and found.dtype == np.uint8
    assert tuple(found[0, 0]) == first and tuple(found[-1, -1]) == last


@pytest.mark.fault(13)
@BOTH
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_made_upright(name, orientation, kind):
    size, corners = UPRIGHT[orientation]
    found = pixels(name, rotated(orientation, kind)).astype(int)
    assert found.shape == (size[1], size[0], 3)
    for place, colour in zip(((0, 0), (0, -1), (-1, 0), (-1, -1)), corners, strict=True):
        assert np.abs(found[place] - colour).max() <= (0 if kind == "PNG" else 12)


@pytest.mark.fault(13)
@BOTH
@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused(name, kind):
    with pytest.raises(BadSample, match="cannot be decoded"):
        codec(name).decode(REFUSED[kind])


@BOTH
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused_or_complete(name, progressive):
    data = photo(40, 30, progressive=progressive)
    whole = pixels("pil", data)
    for length in range(0, len(data), 7):
        try:
            found = pixels(name, data[:length])
        except BadSample:
            continue
        assert length >= len(data) - 8 and np.array_equal(found, whole)  # only the end mark was missing


@BOTH
def test_the_limit_of_pixels_is_checked_on_the_header(name):
    data = bytearray(photo(40, 30))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = (8000).to_bytes(2, "big") * 2
    with pytest.raises(BadSample, match="8000 x 8000 has more than 50000000 pixels"):
        codec(name).decode(bytes(data))


def test_jpegs_are_decoded_alike():
    for options in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}, {"exif": Image.Exif()}, {"icc_profile": b"x" * 99}):
        data = photo(**options)
        assert np.array_equal(pixels("pil", data), pixels("simplejpeg", data)), options


def test_the_fast_path_is_taken_by_plain_jpegs_alone(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "_jpeg", lambda data: taken.append(data))  # it refuses: Pillow decides
    exif = Image.Exif()
    exif[0x0112] = 1
    fast = [photo(), photo(progressive=True), photo(exif=exif), encoded(flat("L", 9), "JPEG"), SPECIFIED["two pictures (MPO)"][0]]
    for data in fast:
        assert np.array_equal(pixels("simplejpeg", data), pixels("pil", data))
    assert len(taken) == len(fast)
    for data in (rotated(6), encoded(flat("CMYK", 0), "JPEG"), picture(0), picture(0, kind="WEBP")):
        assert np.array_equal(pixels("simplejpeg", data), pixels("pil", data))
    assert len(taken) == len(fast)


@pytest.mark.parametrize("size", [(224, 224), (40, 300), (90, 31)])
def test_resizing_differs_by_little(size):
    data = photo(400, 300)
    one, other = (made.tensor(made.resize(made.decode(data), *size)).int() for made in (PILLOW, TENSORS))
    assert one.shape == other.shape == (3, *size)
    assert (one - other).abs().max() <= 8 and (one - other).abs().float().mean() < 0.6


def test_the_difference_can_be_recorded():
    assert difference("pil")["difference_to_pil"] == {"max": 0, "mean": 0.0, "size": 224}
    found = difference("simplejpeg")
    assert (
        found["library"].startswith("simplejpeg ") and found["difference_to_pil"]["max"] <= 8 and found["difference_to_pil"]["mean"] < 0.6
    )


TRANSFORMS = [
    {"mode": "clip", "crop_scale": (0.3, 0.9)},
    {"mode": "vilt", "multiple": 16, "randaugment": (2, 9), "flip": True},
    {"mode": "squash"},
]


@pytest.mark.parametrize("options", TRANSFORMS, ids=lambda options: options["mode"])
@pytest.mark.parametrize("training", [False, True])
def test_a_transform_draws_the_same_in_both_forms(options, training):
    made = [ImageTransform(size=48, decoder=name, **options) for name in ("pil", "simplejpeg")]
    for files in ([photo()], [photo(), picture(1)], [photo(1, 900)]):
        generators = [np.random.default_rng(5) if training else None for _ in made]
        one, other = (transform.read(files, rng).int() for transform, rng in zip(made, generators, strict=True))
        assert one.shape == other.shape and (one - other).abs().float().mean() < 1
        for transform in made:
            out = transform.read(files, np.random.default_rng(5))
            assert out.dtype == torch.uint8 and out.is_contiguous()
            assert torch.equal(out, transform.read(files, np.random.default_rng(5)))


def test_forms_are_changed_into_each_other_without_loss():
    image = PILLOW.decode(photo())
    assert np.array_equal(np.asarray(PILLOW.take(TENSORS.take(image))), np.asarray(image))
    assert TENSORS.join([TENSORS.take(flat("RGB", 1)), TENSORS.take(flat("RGB", 2, (3, 9)))]).shape == (3, 9, 11)
    one, other = (made.tensor(made.join([made.decode(photo()), made.decode(picture(3))])) for made in (PILLOW, TENSORS))
    assert torch.equal(one, other)


@BOTH
def test_pixels_do_not_depend_on_the_worker(name, tmp_path):
    members = [member for i in range(8) for member in [(f"k{i:05d}.jpg", photo(60 + i, 50)), *sample(i)[1:]]]
    write_tar(tmp_path / "00000.tar", members)
    found = []
    for workers in (0, 2):
        image = ImageTransform("clip", 16, crop_scale=(0.3, 0.9), decoder=name)
        data = ShardData(str(tmp_path), batch_size=4, image=image, workers=workers, seed=3)
        data.setup("fit")
        found.append([(batch.keys, batch.image.pixels_BCHW) for step in data.train_dataloader() for batch in step])
    assert [keys for keys, _ in found[0]] == [keys for keys, _ in found[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*found, strict=True))


def test_the_name_that_is_kept_is_never_auto(monkeypatch):
    assert ImageTransform().decoder == resolve("auto") == "simplejpeg" and ImageTransform(decoder="pil").to_dict()["decoder"] == "pil"
    with pytest.raises(DataError, match=r"data\.image\.decoder='cv2'; take one of auto, pil, simplejpeg"):
        ImageTransform(decoder="cv2")
    monkeypatch.setattr(module, "_broken", lambda: "ImportError: no simplejpeg")
    assert ImageTransform().decoder == "pil"
    with pytest.raises(DataError, match=r"cannot decode here .*take pil"):
        ImageTransform(decoder="simplejpeg")


@pytest.mark.fault(13)
def test_an_orientation_behind_the_frame_header_counts_in_both_forms():
    data, turned = photo(), rotated(6)
    exif = turned[turned.index(b"\xff\xe1") :]
    exif = exif[: 2 + int.from_bytes(exif[2:4], "big")]
    scan = data.index(b"\xff\xda")
    found = [pixels(name, data[:scan] + exif + data[scan:]) for name in ("pil", "simplejpeg")]
    assert found[0].shape == found[1].shape == (150, 100, 3) and np.array_equal(*found)
    assert module._jpeg_size(data) == (100, 150) and module._jpeg_size(data[:scan]) is None

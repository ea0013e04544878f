"""Decoding by allow-list: every mode of picture has a specified result; bombs are refused before memory is spent; nothing runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import encoded, picture, sample, write_tar
from PIL import Image

from mmpretrain.data.decode import assemble, decode_image, decode_json, decode_text, join
from mmpretrain.data.errors import BadSample
from mmpretrain.data.reader import ShardReader


def flat(mode: str, value, size=(8, 6)) -> Image.Image:
    return Image.new(mode, size, value)


def exif_rotated() -> bytes:
    image = flat("RGB", (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 8, 1))  # the first row is red
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    return encoded(image, "PNG", exif=exif)


def palette_with_alpha() -> bytes:
    image = flat("P", 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    return encoded(image, "PNG", transparency=bytes([0, 255]))


MODES = {  # name -> (file, size, colour of the first pixel, colour of the last pixel)
    "RGB": (encoded(flat("RGB", (1, 2, 3))), (8, 6), (1, 2, 3), (1, 2, 3)),
    "grey": (encoded(flat("L", 77)), (8, 6), (77,) * 3, (77,) * 3),
    "bilevel": (encoded(flat("1", 1)), (8, 6), (255,) * 3, (255,) * 3),
    "16 bit": (encoded(Image.fromarray(np.full((6, 8), 0x8001, dtype=np.uint16))), (8, 6), (128,) * 3, (128,) * 3),
    "transparent is white": (encoded(flat("RGBA", (9, 9, 9, 0))), (8, 6), (255,) * 3, (255,) * 3),
    "half transparent": (encoded(flat("RGBA", (0, 0, 0, 128))), (8, 6), (127,) * 3, (127,) * 3),
    "grey with alpha": (encoded(flat("LA", (0, 0))), (8, 6), (255,) * 3, (255,) * 3),
    "palette with alpha": (palette_with_alpha(), (8, 6), (200, 100, 50), (255,) * 3),
    "EXIF": (exif_rotated(), (6, 8), (0, 0, 255), (255, 0, 0)),
    "one pixel": (encoded(flat("RGB", (5, 6, 7), (1, 1))), (1, 1), (5, 6, 7), (5, 6, 7)),
    "very long": (encoded(flat("RGB", (5, 6, 7), (1, 20000))), (1, 20000), (5, 6, 7), (5, 6, 7)),
    "WebP": (encoded(flat("RGB", (200, 0, 0)), "WEBP", lossless=True), (8, 6), (200, 0, 0), (200, 0, 0)),
    "animated WebP": (
        encoded(flat("RGB", (0, 99, 0)), "WEBP", save_all=True, append_images=[flat("RGB", (99, 0, 0))], lossless=True),
        (8, 6),
        (0, 99, 0),
        (0, 99, 0),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    data, size, first, last = MODES[mode]
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", size)
    assert image.getpixel((0, 0)) == first and image.getpixel((size[0] - 1, size[1] - 1)) == last


def test_rotated_picture_is_upright():
    assert decode_image(exif_rotated()).getpixel((5, 0)) == (255, 0, 0)  # the red row is now the right column


def test_cmyk_jpeg_has_the_right_colours():
    data = encoded(flat("RGB", (200, 40, 40)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode_image(data)).astype(int) - [200, 40, 40]).max() < 12


BAD = {
    "no bytes": b"",
    "a page": b"<html><body>404</body></html>",
    "half a JPEG": picture(1, 200, 200, "JPEG")[:4000],
    "half a PNG": picture(1, 200, 200)[:4000],
    "a GIF": encoded(flat("P", 0), "GIF"),
    "a TIFF": encoded(flat("RGB", 0), "TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_bytes_are_refused(kind):
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode_image(BAD[kind])


def bomb_png(side: int) -> bytes:
    """A PNG of side x side grey pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_limit_of_pixels_is_checked_on_the_header():
    with pytest.raises(BadSample, match="8000 x 8000 has more than 50000000 pixels"):
        decode_image(bomb_png(8000)[:100])  # there are no pixels behind the header: it was never asked for them
    assert decode_image(encoded(flat("L", 1, (50, 40))), max_pixels=2000).size == (50, 40)


BOMBS = """
import resource, sys
from mmpretrain.data.decode import decode_image, decode_json, decode_text
from mmpretrain.data.errors import BadSample
reads = {"image": decode_image, "json": decode_json, "text": decode_text}
kind, file = sys.argv[1:]
data = open(file, "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    reads[kind](data)
except BadSample:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    "kind,data",
    [
        ("image", lambda: bomb_png(12000)),
        ("image", lambda: gzip.compress(bytes(300_000_000), 1)),
        ("json", lambda: b'{"a":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"),
        ("text", lambda: b"x" * 50_000_000),
    ],
    ids=["png", "gz", "json", "text"],
)
def test_bombs_are_refused_in_little_memory(kind, data, tmp_path):
    (tmp_path / "bomb").write_bytes(data())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, kind, str(tmp_path / "bomb")], capture_output=True, text=True, env=environment, check=True
    )
    assert int(done.stdout) < 64, done.stdout  # MiB beyond the file itself


def test_text_rules():
    assert decode_text("\ufeff مرحبا é \n".encode()) == "مرحبا é"
    for data, message in [(b"\xff", "not UTF-8"), (b"a\0b", "NUL"), (b"x" * 65537, "longer than 65536")]:
        with pytest.raises(BadSample, match=message):
            decode_text(data)


def test_json_rules():
    assert decode_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    for data, message in [(b"[1]", "not an object"), (b'{"a": NaN}', "NaN is not JSON"), (b"{", "cannot be read")]:
        with pytest.raises(BadSample, match=message):
            decode_json(data)


def meta(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_a_statement_is_never_a_caption():
    assert assemble("k", {"txt": b"a cat"}).captions == ("a cat",)
    assert assemble("k", {"txt": b"a cat", "json": meta(captions=["x", "y"])}).captions == ("x", "y")
    false = assemble("k", {"txt": b"a cat", "json": meta(statement="a cat", label=False)})
    assert false.captions == () and false.statements == (("a cat", False),)
    both = assemble("k", {"json": meta(captions=["x"], statements=[{"text": "s", "label": True}], objects=[1])})
    assert both.captions == ("x",) and both.statements == (("s", True),) and both.meta == {"objects": [1]}
    assert assemble("k", {"txt": b"s", "json": meta(statements=[{"text": "s", "label": False}])}).captions == ()
    for bad in ({"statement": "s"}, {"statement": "s", "label": "maybe"}, {"captions": [1]}, {"captions": {"a": "b"}}):
        with pytest.raises(BadSample):
            assemble("k", {"json": meta(**bad)})


def test_several_pictures_come_in_order_and_side_by_side():
    found = assemble("k", {"img10.png": b"c", "img0.png": b"a", "img1.jpg": b"b", "txt": b"t"})
    assert found.images == (b"a", b"b", b"c")
    joined = join([flat("RGB", (1, 1, 1), (4, 2)), flat("RGB", (2, 2, 2), (3, 5))])
    assert joined.size == (7, 5) and joined.getpixel((3, 4)) == (255, 255, 255) and joined.getpixel((4, 4)) == (2, 2, 2)
    with pytest.raises(BadSample, match="two pictures"):
        assemble("k", {"png": b"a", "jpg": b"b"})


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_in_a_shard_is_ever_executed(tmp_path):
    canary = tmp_path / "canary"
    poison = pickle.dumps(Canary(str(canary)))
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary(str(canary))], dtype=object), allow_pickle=True)
    kinds = {"pyd": poison, "pickle": poison, "pkl": poison, "pth": poison, "pkl.gz": gzip.compress(poison), "meta.pyd": poison}
    kinds |= {"npy": buffer.getvalue()}
    started: list[str] = []
    listening = True

    def hook(event: str, arguments: tuple) -> None:
        if listening and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class"):
            started.append(event)

    sys.addaudithook(hook)  # cannot be removed, so it is told to stop listening
    members = [*sample(0), *((f"k00000.{kind}", data) for kind, data in kinds.items())]
    members += [*sample(1, "poison")[1:], ("poison.jpg", poison), *sample(2, "script")[1:], ("script.jpg", BAD["PostScript"])]
    try:
        reader = ShardReader([write_tar(tmp_path / "s.tar", members)])
        assert decode_image(reader.read(0).images[0]).size == (24, 20)
        for number in (1, 2):
            with pytest.raises(BadSample):
                decode_image(reader.read(number).images[0])
    finally:
        listening = False
    assert not canary.exists() and started == []
    assert reader.indexes[0].ignored == dict.fromkeys(kinds, 1)

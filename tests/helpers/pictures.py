"""Pictures of every kind that has a rule, files that are none, and a bomb."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any

import numpy as np
from helpers.shards import encoded, picture
from PIL import Image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def flat(mode: str, value: Any, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new(mode, size, value)


def red_row(width: int = 32, height: int = 16) -> Image.Image:
    """Blue, its first 8 rows red: JPEG keeps whole blocks."""
    image = flat("RGB", BLUE, (width, height))
    image.paste(RED, (0, 0, width, 8))
    return image


def rotated(orientation: int, kind: str = "JPEG") -> bytes:
    """:func:`red_row` in a file whose EXIF says ``orientation``."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(red_row(), kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


def palette(alpha: bool) -> bytes:
    image = flat("P", 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    return encoded(image, "PNG", **({"transparency": bytes([0, 255])} if alpha else {}))


def animated(kind: str) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(flat("RGB", (0, 99, 0)), kind, save_all=True, append_images=[flat("RGB", (99, 0, 0))], **options)


def deep_rgb() -> bytes:
    """A PNG of 16 bits a channel, (0x8001, 0x4002, 0xFF03), which Pillow cannot write."""
    row = b"\0" + struct.pack(">3H", 0x8001, 0x4002, 0xFF03) * 8
    return png(8, 6, row * 6, depth=16, colour=2)


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file of these unfiltered rows."""
    return _png(width, height, zlib.compress(rows), depth, colour)


def _png(width: int, height: int, packed: bytes, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def bomb_png(side: int) -> bytes:
    """A PNG of side x side grey pixels in few bytes."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1)) for _ in range(side)) + packer.flush()
    return _png(side, side, rows, 8, 0)


SPECIFIED = {  # name -> (file, size, colour of the first pixel, colour of the last pixel)
    "RGB": (encoded(flat("RGB", (1, 2, 3))), (8, 6), (1, 2, 3), (1, 2, 3)),
    "RGB JPEG": (encoded(flat("RGB", (77, 77, 77)), "JPEG", quality=100), (8, 6), (77,) * 3, (77,) * 3),
    "grey": (encoded(flat("L", 77)), (8, 6), (77,) * 3, (77,) * 3),
    "grey JPEG": (encoded(flat("L", 77), "JPEG", quality=100), (8, 6), (77,) * 3, (77,) * 3),
    "progressive JPEG": (encoded(flat("L", 77), "JPEG", quality=100, progressive=True), (8, 6), (77,) * 3, (77,) * 3),
    "CMYK JPEG": (encoded(flat("CMYK", (0, 0, 0, 178)), "JPEG", quality=100), (8, 6), (77,) * 3, (77,) * 3),
    "bilevel": (encoded(flat("1", 1)), (8, 6), WHITE, WHITE),
    "16 bit grey": (encoded(Image.fromarray(np.full((6, 8), 0x8001, dtype=np.uint16))), (8, 6), (128,) * 3, (128,) * 3),
    "16 bit RGB": (deep_rgb(), (8, 6), (128, 64, 255), (128, 64, 255)),
    "transparent": (encoded(flat("RGBA", (9, 9, 9, 0))), (8, 6), WHITE, WHITE),
    "half transparent": (encoded(flat("RGBA", (0, 0, 0, 128))), (8, 6), (127,) * 3, (127,) * 3),
    "grey with alpha": (encoded(flat("LA", (0, 0))), (8, 6), WHITE, WHITE),
    "palette": (palette(alpha=False), (8, 6), (200, 100, 50), (10, 20, 30)),
    "palette with alpha": (palette(alpha=True), (8, 6), (200, 100, 50), WHITE),
    "one pixel": (encoded(flat("RGB", (5, 6, 7), (1, 1))), (1, 1), (5, 6, 7), (5, 6, 7)),
    "one pixel JPEG": (encoded(flat("L", 77, (1, 1)), "JPEG", quality=100), (1, 1), (77,) * 3, (77,) * 3),
    "very long": (encoded(flat("RGB", (5, 6, 7), (1, 20000))), (1, 20000), (5, 6, 7), (5, 6, 7)),
    "very wide JPEG": (encoded(flat("L", 77, (20000, 1)), "JPEG", quality=100), (20000, 1), (77,) * 3, (77,) * 3),
    "WebP": (encoded(flat("RGB", (200, 0, 0)), "WEBP", lossless=True), (8, 6), (200, 0, 0), (200, 0, 0)),
    "WebP with alpha": (encoded(flat("RGBA", (9, 9, 9, 0)), "WEBP", lossless=True), (8, 6), WHITE, WHITE),
    "animated WebP": (animated("WEBP"), (8, 6), (0, 99, 0), (0, 99, 0)),
    "animated PNG": (animated("PNG"), (8, 6), (0, 99, 0), (0, 99, 0)),
    "two pictures (MPO)": (
        encoded(flat("L", 77), "MPO", save_all=True, append_images=[flat("L", 9)], quality=100),
        (8, 6),
        (77,) * 3,
        (77,) * 3,
    ),
}
UPRIGHT = {  # EXIF orientation -> (size of red_row(32, 16) upright, its corners: top left, top right, bottom left, bottom right)
    1: ((32, 16), (RED, RED, BLUE, BLUE)),
    2: ((32, 16), (RED, RED, BLUE, BLUE)),
    3: ((32, 16), (BLUE, BLUE, RED, RED)),
    4: ((32, 16), (BLUE, BLUE, RED, RED)),
    5: ((16, 32), (RED, BLUE, RED, BLUE)),
    6: ((16, 32), (BLUE, RED, BLUE, RED)),
    7: ((16, 32), (BLUE, RED, BLUE, RED)),
    8: ((16, 32), (RED, BLUE, RED, BLUE)),
}
REFUSED = {
    "no bytes": b"",
    "a page": b"<html><body>404</body></html>",
    "half a JPEG": picture(1, 200, 200, "JPEG")[:4000],
    "half a progressive JPEG": encoded(Image.effect_noise((200, 200), 80), "JPEG", progressive=True)[:6000],
    "half a PNG": picture(1, 200, 200)[:4000],
    "half a WebP": picture(1, 200, 200, "WEBP")[:2000],
    "a GIF": encoded(flat("P", 0), "GIF"),
    "an animated GIF": animated("GIF"),
    "a TIFF": encoded(flat("RGB", 0), "TIFF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "a pickle": pickle.dumps({"a": 1}),
    "a JPEG without its end mark": encoded(flat("L", 77), "JPEG", quality=100)[:-2],
    "only the start of a JPEG": b"\xff\xd8\xff",
    "a JPEG header and no more": picture(1, 200, 200, "JPEG")[:200],
}

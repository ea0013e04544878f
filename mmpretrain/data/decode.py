"""Bytes of a shard -> text, JSON, pictures; by allow-list, with limits checked before memory is spent.

Nothing is unpickled and no outside program runs: Pillow is told the three formats it may try, so that bytes of another kind named ``.jpg``
are refused. Limits: 64 KiB of text, 4 MiB of JSON nested at most 32 deep, 64 MiB and 50 million pixels (read from the header before
decoding) of a picture. Those of ``KEY.regions.npz`` are in :mod:`mmpretrain.data.regions`, of ``KEY.codes.npy`` in
:mod:`mmpretrain.data.codes`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mmpretrain.data import codes, regions
from mmpretrain.data.errors import BadSample
from mmpretrain.types import Sample, Statement

MAX_TEXT = 64 * 1024
MAX_JSON = 4 * 1024 * 1024
MAX_JSON_DEPTH = 32
MAX_PICTURE = 64 * 1024 * 1024
MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP")
IMAGE = re.compile(r"(?:img(\d{1,3})\.)?(?:jpg|jpeg|png|webp)")
_ORIENTATION = 0x0112
REGIONS = "regions.npz"
CODES = "codes.npy"
TEXTS = ("txt", "json")
_LABELS = {"true": True, "false": False, "True": True, "False": False}


def allowed(extension: str) -> bool:
    """Whether a member with this (lower-case) extension is read: txt, json, regions.npz, codes.npy, jpg, png, webp, ``imgN.png``, ..."""
    return extension in (*TEXTS, REGIONS, CODES) or IMAGE.fullmatch(extension) is not None


def limit(extension: str) -> int | None:
    """Most bytes that a member may have; None where it is not read. Of pictures the pixels are limited, too."""
    known = {"txt": MAX_TEXT, "json": MAX_JSON, REGIONS: regions.MAX_FILE, CODES: codes.MAX_FILE}.get(extension)
    return MAX_PICTURE if known is None and IMAGE.fullmatch(extension) else known


def decode_text(data: bytes) -> str:
    """Strict UTF-8 without a byte order mark, NUL or outer white space.

    Raises:
        BadSample: too long, not UTF-8, or holding NUL.
    """
    if len(data) > MAX_TEXT:
        raise BadSample(f"text of {len(data)} bytes is longer than {MAX_TEXT}")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff").strip()
    except UnicodeDecodeError as error:
        raise BadSample(f"text is not UTF-8 (byte {error.start})") from None
    if "\0" in text:
        raise BadSample("text holds a NUL character")
    return text


def decode_json(data: bytes) -> dict[str, Any]:
    """A JSON object; no NaN, no repeated key, no nesting beyond 32.

    Raises:
        BadSample: too long, too deep, not JSON, not an object, or an object in it has a key twice.
    """
    if len(data) > MAX_JSON:
        raise BadSample(f"JSON of {len(data)} bytes is longer than {MAX_JSON}")
    try:
        found = _JSON.decode(data.decode("utf-8-sig"))
    except BadSample:
        raise
    except RecursionError:
        raise BadSample(f"JSON is nested deeper than {MAX_JSON_DEPTH}") from None
    except ValueError as error:
        raise BadSample(f"JSON cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise BadSample("JSON is not an object")
    level: list[Any] = [found]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node) if isinstance(child, _NESTED)]
        if not level:
            return found
    raise BadSample(f"JSON is nested deeper than {MAX_JSON_DEPTH}")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise BadSample(f"JSON has a key twice ({name[:40]!r})")
    return found


_NESTED = (dict, list)
_JSON = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_no_constant)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as 8-bit RGB, upright by its EXIF orientation, transparency composited on white, the first frame of an animation.

    Raises:
        BadSample: not JPEG, PNG or WebP, damaged, cut short, or more than ``max_pixels``.
    """
    with refusals(data, max_pixels):
        return finished(opened(data, max_pixels))


@contextlib.contextmanager
def refusals(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Whatever Pillow says of ``data`` inside is a BadSample; its warnings of large pictures and odd metadata are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError:
        raise BadSample(f"picture has more than {max_pixels} pixels") from None
    except BadSample:
        raise
    except UnidentifiedImageError:
        said = f"not readable as {', '.join(FORMATS)}" if data else "0 bytes"
        raise BadSample(f"picture cannot be decoded ({said})") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError, OverflowError) as error:
        found = "0 bytes" if not data else f"{type(error).__name__}: {error}"
        raise BadSample(f"picture cannot be decoded ({found})") from None


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of which only the header was read, within the limit of pixels. Call it inside :func:`refusals`."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise BadSample(f"picture of {image.width} x {image.height} has more than {max_pixels} pixels")
    return image


def upright(image: Image.Image) -> bool:
    """Whether EXIF asks for no rotation or reflection."""
    return image.getexif().get(_ORIENTATION, 1) not in range(2, 9)


def finished(image: Image.Image) -> Image.Image:
    """An opened picture decoded to upright 8-bit RGB. Call it inside :func:`refusals`."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel: keep the upper 8
        deep = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I"):
            deep = np.floor(deep / 256)
        image = Image.fromarray(np.clip(deep, 0, 255).astype(np.uint8), "L")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def join(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures of one sample side by side, tops aligned, on white; one picture is returned as it is."""
    if len(images) == 1:
        return images[0]
    canvas = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), (255, 255, 255))
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def assemble(key: str, members: Mapping[str, bytes | None]) -> Sample:
    """The sample of its members.

    Captions are ``json.captions`` (a list), else ``KEY.txt`` unless the JSON has a ``statement``: a sentence whose truth the label says is
    never taken for a description. Statements are ``json.statement`` with ``json.label``, and the list ``json.statements``.

    Args:
        key: of the sample.
        members: extension -> bytes, only allowed ones; None for a picture, regions or codes whose bytes are not wanted.

    Raises:
        BadSample: text or JSON that breaks the rules.
    """
    meta = decode_json(members["json"]) if members.get("json") is not None else {}
    captions = _captions(meta, members.get("txt"))
    statements = _statements(meta)
    names = sorted((int(IMAGE.fullmatch(name)[1] or 0), name) for name in members if IMAGE.fullmatch(name))
    if len({number for number, _ in names}) < len(names):
        raise BadSample(f"two pictures claim one place: {', '.join(name for _, name in names)}")
    images = tuple(members[name] or b"" for _, name in names)
    rest = {name: value for name, value in meta.items() if name not in ("captions", "statement", "label", "statements")}
    if "edits" in rest:
        rest["edits"] = _edits(rest["edits"])
    return Sample(key, captions, images, statements, rest, members.get(REGIONS), members.get(CODES))


def _captions(meta: Mapping[str, Any], text: bytes | None) -> tuple[str, ...]:
    if "captions" in meta:
        found = meta["captions"]
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(caption, str) for caption in found):
            raise BadSample("json.captions is not a list of strings")
        cleaned = [decode_text(caption.encode("utf-8", "surrogatepass")) for caption in found]
        if "edits" in meta and not all(cleaned):
            raise BadSample("json.captions holds an empty one, so that json.edits cannot be matched to them")
        return tuple(caption for caption in cleaned if caption)
    if text is None or "statement" in meta or "statements" in meta:
        return ()
    caption = decode_text(text)
    return (caption,) if caption else ()


def _statements(meta: Mapping[str, Any]) -> tuple[Statement, ...]:
    listed = meta.get("statements") or []
    if not isinstance(listed, list):
        raise BadSample("json.statements is not a list")
    found = list(listed)
    if "statement" in meta:
        found.insert(0, {"text": meta["statement"], "label": meta.get("label")})
    made = []
    for one in found:
        text, label = (one.get("text"), one.get("label")) if isinstance(one, dict) else (None, None)
        label = _LABELS.get(label, label) if isinstance(label, str) else label
        if not isinstance(text, str) or not isinstance(label, bool):
            raise BadSample("a statement needs a text and a label that is true or false")
        if cleaned := decode_text(text.encode("utf-8", "surrogatepass")):
            made.append(Statement(cleaned, label))
    return tuple(made)


def _edits(found: Any) -> list[list[dict[str, Any]]]:
    """Of each caption those entries of ``json.edits`` that have a text and a kind; whatever else stands there is passed over."""
    good = lambda one: isinstance(one, dict) and isinstance(one.get("kind"), str) and isinstance(one.get("text"), str)
    listed = found if isinstance(found, list) else []
    return [[one for one in edits if good(one)] if isinstance(edits, list) else [] for edits in listed]


def questions(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of ``json.questions`` that ask something, their ``question`` cleaned as texts are; whatever else stands there is passed
    over."""
    found, made = meta.get("questions"), []
    for one in found if isinstance(found, list) else ():
        asked = one.get("question") if isinstance(one, dict) else None
        with contextlib.suppress(BadSample):
            if isinstance(asked, str) and (asked := decode_text(asked.encode("utf-8", "surrogatepass"))):
                made.append({**one, "question": asked})
    return made

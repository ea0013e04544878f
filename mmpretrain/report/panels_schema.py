"""The panels people look at, as they lie in ``panels/<step>/<name>.json`` of a run directory.

Written by ``train/panels.py`` and read by ``report/page.py``; neither imports torch for it. Paths of pictures are relative to the
folder of the JSON file (``../images/<digest>.png`` for a sample shown at several steps) and must stay inside ``panels/``.
"""

from __future__ import annotations

import json
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

VERSION = 1


class Hit(NamedTuple):
    """One candidate of a retrieval query, best first."""

    right: bool  # it belongs to the query
    score: float  # what candidates are sorted by: cosine, or log-odds of a match
    text: str | None = None
    image: str | None = None


class Query(NamedTuple):
    """One retrieval query and its best candidates."""

    hits: tuple[Hit, ...]
    rank: int  # of the best right candidate, 1 = found first
    text: str | None = None
    image: str | None = None


class RetrievalPanel(NamedTuple):
    """Both directions, over a small pool: a picture of what the model does, not the measured R@k."""

    text_to_image: tuple[Query, ...]
    image_to_text: tuple[Query, ...]
    images: int  # size of the pool
    texts: int
    scorer: str  # "cosine" or "itm"


class Guess(NamedTuple):
    """One prediction for a masked token."""

    text: str
    probability: float


class Word(NamedTuple):
    """One token of a text; ``guesses`` (best first) only where it was masked."""

    text: str
    guesses: tuple[Guess, ...] = ()
    glued: bool = False  # continues the previous token without a space


class MaskedExample(NamedTuple):
    words: tuple[Word, ...]
    image: str | None = None


class MaskedPanel(NamedTuple):
    """Masked words with the predicted ones."""

    examples: tuple[MaskedExample, ...]


class WordMap(NamedTuple):
    """Where one word lands in the image."""

    word: str
    weights: tuple[tuple[float, ...], ...]  # (rows, columns) of the patch grid, divided by the largest
    share: float  # of the word's mass that its strongest patch takes, in [0, 1]


class AlignmentExample(NamedTuple):
    image: str
    text: str
    words: tuple[WordMap, ...]
    strip: str | None = None  # all maps painted over the image, one after another


class AlignmentPanel(NamedTuple):
    """Word-patch transport plans."""

    examples: tuple[AlignmentExample, ...]


class HiddenRegion(NamedTuple):
    """A region whose content was hidden, with the guesses of its class, best first."""

    box: tuple[float, ...]  # x1, y1, x2, y2, in shares of the width and the height of the picture
    text: str  # its class; "" where it has none
    guesses: tuple[Guess, ...]


class RegionsExample(NamedTuple):
    image: str
    regions: tuple[HiddenRegion, ...]
    text: str | None = None


class RegionsPanel(NamedTuple):
    """Masked regions with the predicted classes."""

    examples: tuple[RegionsExample, ...]


class RebuiltExample(NamedTuple):
    """A picture that went through a discrete autoencoder."""

    image: str
    codes: str  # its grid of codes, painted
    rebuilt: str  # what the decoder makes of them
    psnr: float  # dB


class ReconstructionPanel(NamedTuple):
    """Pictures, their codes, and the pictures from the codes."""

    examples: tuple[RebuiltExample, ...]
    used: int  # different codes in these pictures


class GeneratedExample(NamedTuple):
    """A caption, and pictures that were drawn for it."""

    text: str
    images: tuple[str, ...]
    own: str | None = None  # what the autoencoder makes of the codes of its own picture


class GeneratedPanel(NamedTuple):
    """Captions with pictures drawn for them."""

    examples: tuple[GeneratedExample, ...]
    how: str  # temperature and the like


Body = RetrievalPanel | MaskedPanel | AlignmentPanel | RegionsPanel | ReconstructionPanel | GeneratedPanel
KINDS: dict[str, type[Any]] = {
    "retrieval": RetrievalPanel,
    "masked": MaskedPanel,
    "alignment": AlignmentPanel,
    "regions": RegionsPanel,
    "reconstruction": ReconstructionPanel,
    "generated": GeneratedPanel,
}


class Panel(NamedTuple):
    """One panel of one validation."""

    kind: str  # a key of KINDS
    step: int
    body: Body


def dumps(panel: Panel) -> str:
    """The JSON text of a panel."""
    if not isinstance(panel.body, KINDS[panel.kind]):
        raise TypeError(f"a panel of kind {panel.kind} cannot hold a {type(panel.body).__name__}")
    return json.dumps({"version": VERSION, "kind": panel.kind, "step": panel.step, "body": _plain(panel.body)}, ensure_ascii=False)


def loads(text: str) -> Panel:
    """The panel in a JSON text.

    Raises:
        ValueError: not JSON, an unknown kind or version, a missing or wrongly typed field (named in the message).
    """
    record = json.loads(text)
    if not isinstance(record, dict) or record.get("version") != VERSION or record.get("kind") not in KINDS:
        raise ValueError(f"no panel of version {VERSION}")
    if not isinstance(record.get("step"), int):
        raise ValueError("step: expected an integer")
    return Panel(record["kind"], record["step"], _decode(KINDS[record["kind"]], record.get("body"), "body"))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` (JSON types) as ``kind``: a NamedTuple, ``tuple[X, ...]``, ``X | None`` or a scalar."""
    if get_origin(kind) in (UnionType, Union):
        if value is None:
            return None
        return _decode(next(item for item in get_args(kind) if item is not NoneType), value, where)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list")
        return tuple(_decode(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hasattr(kind, "_fields"):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected an object")
        hints, missing = get_type_hints(kind), [f for f in kind._fields if f not in value and f not in kind._field_defaults]
        if missing:
            raise ValueError(f"{where}: missing {', '.join(missing)}")
        return kind(**{field: _decode(hints[field], value[field], f"{where}.{field}") for field in kind._fields if field in value})
    good = isinstance(value, (int, float)) and not isinstance(value, bool) if kind is float else isinstance(value, kind)
    if not good or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}")
    return float(value) if kind is float else value

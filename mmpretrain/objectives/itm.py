"""Image-text matching: does this text belong to this image? (UNITER, arXiv 1909.11740; ViLT, arXiv 2102.03334 section 3.2.)

Exactly half of the samples keep their pair; for the others the worker draws another image, another text or a minimal edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Collate, Draw, Example, Pixels, Score, Spec, Text, Tokens, Vocabulary

KINDS = ("matched", "label", "image", "text", "edit")  # codes of Swaps.kinds_B; the first is the only positive
_TRIES = 64


class Swap(NamedTuple):
    """What the preparer decided for one sample."""

    kind: int  # index into KINDS
    image: Tensor | None = None  # the image that replaces the true one
    text: Tokens | None = None  # the text that replaces the true one


class Swaps(NamedTuple):
    """The replaced rows of a batch; everything else stays where it is."""

    kinds_B: Tensor  # int64, index into KINDS
    image_rows: tuple[int, ...] = ()
    images: Pixels | None = None
    text_rows: tuple[int, ...] = ()
    texts: Text | None = None


class ITMPreparer(NamedTuple):
    """The worker's half of ITM.

    Positions 2i and 2i + 1 share one coin, so that exactly one of them keeps its pair: any stretch of the order that starts
    at an even position and has an even length is split exactly in halves.
    """

    kinds: tuple[str, ...]
    weights: tuple[float, ...]
    both: bool = False  # every sample draws a negative beside itself, no coin

    @property
    def shared_by(self) -> int:
        """Neighbouring positions that share a draw; the data module warns of micro-batches that part them."""
        return 2 if self.kinds and not self.both else 1

    def prepare(self, example: Example, draw: Draw) -> Swap:
        """Draw what replaces a part of this example. A sample that is known to be false stays as it is and is a negative; a statement
        labelled true stays too, because it may well hold of another picture ("there is a yellow square")."""
        if not example.matched:
            return Swap(KINDS.index("label"))
        if "statement_index" in example.meta:
            return Swap(0)
        if not self.kinds or (not self.both and draw.generator("itm", shared_by=2).integers(2) == draw.position % 2):
            return Swap(0)
        generator = draw.generator("itm/negative")
        kind = self.kinds[int(generator.choice(len(self.kinds), p=self.weights))]
        if kind == "edit":
            edited = _edit(example, draw, generator.permutation)
            if edited is not None:
                return Swap(KINDS.index("edit"), text=edited)
            kind = "text"
        if kind == "image":
            return Swap(KINDS.index("image"), image=_other_image(example, draw))
        return Swap(KINDS.index("text"), text=_other_text(example, draw))

    def collate(self, values: Sequence[Swap], collate: Collate) -> Swaps:
        """Stack the replaced rows only."""
        image_rows = tuple(row for row, swap in enumerate(values) if swap.image is not None)
        text_rows = tuple(row for row, swap in enumerate(values) if swap.text is not None)
        return Swaps(
            torch.tensor([swap.kind for swap in values], dtype=torch.int64),
            image_rows,
            collate.pixels([values[row].image for row in image_rows]) if image_rows else None,
            text_rows,
            collate.text([values[row].text for row in text_rows]) if text_rows else None,
        )


def _edit(example: Example, draw: Draw, permutation: Any) -> Tokens | None:
    """A minimal edit of the caption that was drawn, or None where the data has none that survives tokenisation."""
    per_caption, index = example.meta.get("edits"), example.meta.get("caption_index")
    if example.text is None or not per_caption or index is None or index >= len(per_caption):
        return None
    edits = per_caption[index]
    for i in permutation(len(edits)):
        tokens = draw.tokenize(edits[int(i)]["text"])
        if tokens.ids != example.text.ids:
            return tokens
    return None


def _other_image(example: Example, draw: Draw) -> Tensor:
    if example.image is None:
        raise ValueError(f"ITM: sample {example.key!r} has no image to replace; name the sources with images in `sources`")
    for k in range(_TRIES):
        key, other = draw.other_visual(k)
        image = other.image
        if key != example.key and not torch.equal(image, example.image):
            return image
    raise ValueError(f"ITM: {_TRIES} draws gave no image that differs from that of {example.key!r}; the data need more images")


def _other_text(example: Example, draw: Draw) -> Tokens:
    if example.text is None:
        raise ValueError(f"ITM: sample {example.key!r} has no text to replace; name the sources with text in `sources`")
    for k in range(_TRIES):
        key, tokens = draw.other_text(k)
        if key != example.key and tokens.ids != example.text.ids:
            return tokens
    raise ValueError(f"ITM: {_TRIES} draws gave no text that differs from that of {example.key!r}; the data need more texts")


class MatchHead(nn.Linear):
    """Width -> two logits (0: no match, 1: match). Weights from N(0, 0.02), bias 0, as in ViLT's code."""

    def __init__(self, width: int, std: float = 0.02) -> None:
        self.std = std
        super().__init__(width, 2)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)


class ITM(Objective):
    """Binary cross-entropy over two logits of the pooled state; index 1 means match.

    Args:
        negatives: kind -> weight of the draw. ``image``: another image, uniform over the whole set (ViLT); ``text``: another caption;
            ``edit``: a minimal edit of the caption (``meta["edits"]``), or another caption where there is none.
            Empty: only the labels of the data. None: ``{"image": 1.0}``.
        head_std: of the head's normal initialisation; as for ViLT's pooler, a narrow model wants about 1 / sqrt(width).
        both: every sample takes part twice, as it is and with its negative (ALBEF, arXiv 2107.07651, pairs each sample with negatives too):
            twice the forward, and true and false differ in the replaced part alone. Wants a view of its own, WPA aside.
        weight, view, after, sources: see ``Objective``. The view is its own by default, so that masked text is not matched.

    A sample whose text is known to be false (``matched=False``) is always a negative, unchanged, and labelled statements are never given
    another picture or text, whatever ``negatives`` says. Negatives always differ from the true part (other key and other content);
    ViLT's released code does not look.
    """

    kind: ClassVar[str] = "fused"

    def __init__(
        self,
        negatives: dict[str, float] | None = None,
        head_std: float = 0.02,
        both: bool = False,
        *,
        weight: float = 1.0,
        view: str = "itm",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        negatives = {"image": 1.0} if negatives is None else dict(negatives)
        unknown = sorted(set(negatives) - set(KINDS[2:]))
        if unknown:
            raise ValueError(f"ITM: unknown kind of negatives {', '.join(unknown)}; known are {', '.join(KINDS[2:])}")
        if any(value < 0 for value in negatives.values()) or (negatives and sum(negatives.values()) <= 0):
            raise ValueError(f"ITM: the weights of negatives must not be negative and not all zero, got {negatives}")
        total = sum(negatives.values())
        self.negatives = {kind: value / total for kind, value in negatives.items() if value > 0}
        self.head_std, self.both = head_std, both
        self.head: MatchHead | None = None
        self.pad = 0

    def preparer(self) -> ITMPreparer:
        return ITMPreparer(tuple(self.negatives), tuple(self.negatives.values()), self.both)

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if vocabulary is not None:
            self.pad = vocabulary.pad
        if self.head is None:
            self.head = MatchHead(spec.width, self.head_std)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """Put the drawn images and texts into the batch, or into copies of their samples behind it (``both``), and set ``matched_B``."""
        swaps = batch.targets.get(self.name)
        if not isinstance(swaps, Swaps):
            raise ValueError(f"{self.name}: the batch has no negatives; its preparer must run in the loader under the name {self.name!r}")
        if self.both:
            batch, swaps = _beside(batch, swaps)
            batch = batch._replace(targets={**batch.targets, self.name: swaps})
        text, image = batch.text, batch.image
        if swaps.texts is not None:
            text = replace_texts(text, swaps.text_rows, swaps.texts, self.pad)
        if swaps.images is not None:
            image = replace_images(image, swaps.image_rows, swaps.images)
        return batch._replace(text=text, image=image, matched_B=swaps.kinds_B == 0)

    def count(self, batch: Batch) -> Tensor:
        """Number of samples."""
        return scalar(batch.size, batch.draw_keys_B.device)

    def logits(self, hidden: Fused, batch: Batch | None = None) -> Tensor:
        """(B, 2); index 1 means match."""
        if hidden.pooled_BD is None:
            raise ValueError(f"{self.name}: the model gave no pooled state")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(hidden.pooled_BD)

    def score(self, hidden: Fused) -> Tensor:
        """Log-odds that text and image match, (B,), fp32."""
        logits_B2 = wide(self.logits(hidden))
        return logits_B2[:, 1] - logits_B2[:, 0]

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over samples. Stats: ``accuracy`` and ``accuracy_<kind>`` for the positives and each kind of negative."""
        if batch.matched_B is None:
            raise ValueError(f"{self.name}: the batch has no matched_B; call corrupt(batch, outputs) first")
        logits_B2, count = self.logits(hidden, batch), self.count(batch)
        with full_precision(logits_B2.device):
            total = F.cross_entropy(wide(logits_B2), batch.matched_B.long(), reduction="sum")
        right_B = (logits_B2.detach().argmax(-1) == batch.matched_B.long()).float()
        stats = {"accuracy": (right_B.sum(), count)}
        swaps = batch.targets.get(self.name)
        if isinstance(swaps, Swaps):
            for code, kind in enumerate(KINDS):
                if kind in ("matched", "label") or kind in self.negatives or (kind == "text" and "edit" in self.negatives):
                    of_kind_B = (swaps.kinds_B == code).float()
                    stats[f"accuracy_{kind}"] = ((right_B * of_kind_B).sum(), of_kind_B.sum())
        return Score(total, count, stats)


def _beside(batch: Batch, swaps: Swaps) -> tuple[Batch, Swaps]:
    """Copies of the samples that have a negative, behind the batch, and the swaps moved to the copies."""
    replaced = sorted({*swaps.image_rows, *swaps.text_rows})
    place = {row: batch.size + i for i, row in enumerate(replaced)}
    order = (*range(batch.size), *replaced)
    index_R = _rows(order, batch.draw_keys_B.device)
    text, image = batch.text, batch.image
    if text is not None:
        fields = (None if x is None else x.index_select(0, index_R) for x in (text.ids_BT, text.words_BT, text.segments_BT))
        ids_RT, words_RT, segments_RT = fields
        assert ids_RT is not None
        text = Text(ids_RT, tuple(text.lengths[row] for row in order), words_RT, segments_RT)
    if image is not None:
        sizes = tuple(image.sizes[row] for row in order)
        image = image._replace(pixels_BCHW=image.pixels_BCHW.index_select(0, index_R), sizes=sizes)
    kinds_B = swaps.kinds_B.index_select(0, index_R)
    kinds_B[_rows(tuple(replaced), kinds_B.device)] = 0  # the samples themselves match
    doubled = batch._replace(
        keys=tuple(batch.keys[row] for row in order), draw_keys_B=batch.draw_keys_B.index_select(0, index_R), text=text, image=image
    )
    rows = (tuple(place[row] for row in of) for of in (swaps.image_rows, swaps.text_rows))
    return doubled, swaps._replace(kinds_B=kinds_B, image_rows=next(rows), text_rows=next(rows))


def _rows(rows: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def replace_texts(base: Text, rows: tuple[int, ...], new: Text, pad: int) -> Text:
    """``base`` with the texts ``rows`` replaced, padded to the longest one that is left."""
    lengths = list(base.lengths)
    for row, length in zip(rows, new.lengths, strict=True):
        lengths[row] = length
    width, index_R = max(lengths), _rows(rows, base.ids_BT.device)

    def put(base_BT: Tensor | None, new_RT: Tensor | None, value: int) -> Tensor | None:
        if base_BT is None or new_RT is None:
            return None
        fitted = (F.pad(x[:, :width], (0, max(0, width - x.shape[1])), value=value) for x in (base_BT, new_RT))
        return next(fitted).index_copy(0, index_R, next(fitted))

    return Text(
        put(base.ids_BT, new.ids_BT, pad), tuple(lengths), put(base.words_BT, new.words_BT, -1), put(base.segments_BT, new.segments_BT, 0)
    )


def replace_images(base: Pixels, rows: tuple[int, ...], new: Pixels) -> Pixels:
    """``base`` with the images ``rows`` replaced, padded to the largest height and width that are left."""
    sizes = list(base.sizes)
    for row, size in zip(rows, new.sizes, strict=True):
        sizes[row] = size
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)

    def fit(x: Tensor) -> Tensor:
        x = x[:, :, :height, :width]
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

    index_R = _rows(rows, base.pixels_BCHW.device)
    return base._replace(pixels_BCHW=fit(base.pixels_BCHW).index_copy(0, index_R, fit(new.pixels_BCHW)), sizes=tuple(sizes))

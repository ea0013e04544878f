"""Rows of a batch exchanged or repeated: what image-text matching puts in the place of a sample's picture, regions, codes or text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.nn.misfit import Misfit
from mmpretrain.types import Batch, CodeBatch, Collate, Pixels, RegionBatch, Regions, Text, Tokens

_PER_SAMPLE = ("global_BF",)  # of a RegionBatch; every other tensor has one row for each region


class Swap(NamedTuple):
    """What a preparer decided for one sample. Picture, regions and codes that replace the true ones are of one other sample."""

    kind: int  # what was replaced, by the codes of the objective; 0: nothing
    image: Tensor | None = None  # the picture that replaces the true one
    text: Tokens | None = None  # the text that replaces the true one
    regions: Regions | None = None  # the regions that replace the true ones
    similar: Literal["", "image", "text"] = ""  # what another sample of the batch is to give, chosen on the device
    codes: Tensor | None = None  # the codes of the picture that replaces the true one

    @property
    def replaces(self) -> bool:
        """Whether anything is to be replaced."""
        return bool(self.similar) or any(x is not None for x in (self.image, self.text, self.regions))


class Swaps(NamedTuple):
    """The replaced rows of a batch; everything else stays where it is. Rows are those of the batch and, behind them, of ``copies``."""

    kinds_B: Tensor  # int64
    image_rows: tuple[int, ...] = ()  # samples with another picture, other regions, or both, and other codes
    images: Pixels | None = None
    text_rows: tuple[int, ...] = ()
    texts: Text | None = None
    regions: RegionBatch | None = None
    copies: tuple[int, ...] = ()  # samples that are repeated behind the batch
    similar_images: tuple[int, ...] = ()  # rows whose picture, and whose text, another sample of the batch is to give
    similar_texts: tuple[int, ...] = ()
    codes: CodeBatch | None = None


def collated_beside(values: Sequence[Sequence[Swap]], collate: Collate) -> Swaps:
    """Every sample as it is and, behind the batch, a copy of it for each thing that is replaced.

    Args:
        values: of each sample what its copies have in the place of the true part; where nothing is replaced, a ``Swap`` with its kind.
    """
    own = [Swap(0) if any(swap.replaces for swap in found) else found[0] for found in values]
    copies = [(row, swap) for row, found in enumerate(values) for swap in found if swap.replaces]
    return collated([*own, *(swap for _, swap in copies)], collate)._replace(copies=tuple(row for row, _ in copies))


def collated(values: Sequence[Swap], collate: Collate) -> Swaps:
    """The replaced rows of a batch, stacked."""
    image_rows = tuple(row for row, swap in enumerate(values) if swap.image is not None or swap.regions is not None)
    text_rows = tuple(row for row, swap in enumerate(values) if swap.text is not None)
    images = [values[row].image for row in image_rows]
    regions = [values[row].regions for row in image_rows]
    codes = [values[row].codes for row in image_rows]
    return Swaps(
        torch.tensor([swap.kind for swap in values], dtype=torch.int64),
        image_rows,
        collate.pixels(images) if images and images[0] is not None else None,
        text_rows,
        collate.text([values[row].text for row in text_rows]) if text_rows else None,
        collate.regions(regions) if regions and regions[0] is not None else None,
        (),
        tuple(row for row, swap in enumerate(values) if swap.similar == "image"),
        tuple(row for row, swap in enumerate(values) if swap.similar == "text"),
        collate.codes(codes) if codes and codes[0] is not None else None,
    )


def swapped(batch: Batch, swaps: Swaps, pad: int) -> Batch:
    """``batch`` with the replaced rows in their places; its own tensors are left alone. ``pad``: id of text padding."""
    text, image, regions, codes = batch.text, batch.image, batch.regions, batch.codes
    if swaps.texts is not None:
        text = replace_texts(text, swaps.text_rows, swaps.texts, pad)
    if swaps.images is not None:
        image = replace_images(image, swaps.image_rows, swaps.images)
    if swaps.regions is not None:
        regions = replace_regions(regions, swaps.image_rows, swaps.regions)
    if swaps.codes is not None and codes is not None:
        codes = replace_codes(codes, swaps.image_rows, swaps.codes)
    return batch._replace(text=text, image=image, regions=regions, codes=codes)


def repeated(batch: Batch, copies: tuple[int, ...]) -> Batch:
    """The batch with copies of some of its samples behind it."""
    order = (*range(batch.size), *copies)
    return batch._replace(
        keys=tuple(batch.keys[row] for row in order),
        draw_keys_B=batch.draw_keys_B.index_select(0, _rows(order, batch.draw_keys_B.device)),
        text=None if batch.text is None else select_texts(batch.text, order),
        image=None if batch.image is None else select_images(batch.image, order),
        regions=None if batch.regions is None else select_rows(batch.regions, order),
        codes=None if batch.codes is None else select_codes(batch.codes, order),
    )


def select_texts(base: Text, rows: tuple[int, ...]) -> Text:
    """Some of the texts, in the given order, repeats allowed."""
    index_R = _rows(rows, base.ids_BT.device)
    words_RT, segments_RT = (None if x is None else x.index_select(0, index_R) for x in (base.words_BT, base.segments_BT))
    return Text(base.ids_BT.index_select(0, index_R), tuple(base.lengths[row] for row in rows), words_RT, segments_RT)


def select_images(base: Pixels, rows: tuple[int, ...]) -> Pixels:
    """Some of the pictures, in the given order, repeats allowed.

    Raises:
        ValueError: their patches are masked already.
    """
    _unmasked(base)
    pixels_RCHW = base.pixels_BCHW.index_select(0, _rows(rows, base.pixels_BCHW.device))
    return base._replace(pixels_BCHW=pixels_RCHW, sizes=tuple(base.sizes[row] for row in rows))


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

    ids_BT = put(base.ids_BT, new.ids_BT, pad)
    assert ids_BT is not None
    old_BT, new_RT = base.segments_BT, new.segments_BT
    if old_BT is not None or new_RT is not None:  # texts that have none are all 0
        old_BT, new_RT = (torch.zeros_like(x.ids_BT) if x.segments_BT is None else x.segments_BT for x in (base, new))
    return Text(ids_BT, tuple(lengths), put(base.words_BT, new.words_BT, -1), put(old_BT, new_RT, 0))


def replace_images(base: Pixels, rows: tuple[int, ...], new: Pixels) -> Pixels:
    """``base`` with the images ``rows`` replaced, padded to the largest height and width that are left.

    Raises:
        ValueError: their patches are masked already.
    """
    _unmasked(base)
    sizes = list(base.sizes)
    for row, size in zip(rows, new.sizes, strict=True):
        sizes[row] = size
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)

    def fit(x: Tensor) -> Tensor:
        x = x[:, :, :height, :width]
        return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))

    index_R = _rows(rows, base.pixels_BCHW.device)
    return base._replace(pixels_BCHW=fit(base.pixels_BCHW).index_copy(0, index_R, fit(new.pixels_BCHW)), sizes=tuple(sizes))


def _unmasked(base: Pixels) -> None:
    if base.masked_N is not None:
        raise Misfit("patches are masked before pictures are replaced: put ITM before the masking objective, or give it its own view")


def select_codes(base: CodeBatch, rows: tuple[int, ...]) -> CodeBatch:
    """The codes of some pictures, in the given order, repeats allowed."""
    index_N = _rows(tuple(_packed([height * width for height, width in base.grids], rows).tolist()), base.ids_N.device)
    return CodeBatch(base.ids_N.index_select(0, index_N), tuple(base.grids[row] for row in rows))


def replace_codes(base: CodeBatch, rows: tuple[int, ...], new: CodeBatch) -> CodeBatch:
    """``base`` with the codes of the pictures ``rows`` replaced."""
    order = list(range(len(base.grids)))
    for place, row in enumerate(rows, len(base.grids)):
        order[row] = place
    return select_codes(CodeBatch(torch.cat((base.ids_N, new.ids_N)), base.grids + new.grids), tuple(order))


def _packed(lengths: Sequence[int], rows: Sequence[int]) -> np.ndarray:
    """Packed places of all that belongs to some samples, in the given order."""
    ends = np.cumsum(lengths)
    return np.concatenate([np.arange(ends[row] - lengths[row], ends[row]) for row in rows])


def select_rows(base: RegionBatch, rows: Sequence[int]) -> RegionBatch:
    """The regions of some samples, in the given order, repeats allowed."""
    packed = _packed(base.lengths, rows)
    index_N, index_B = (torch.tensor(list(x), dtype=torch.int64).to(base.features_NF.device, non_blocking=True) for x in (packed, rows))
    tensors = {
        name: x.index_select(0, index_B if name in _PER_SAMPLE else index_N) for name, x in base._asdict().items() if isinstance(x, Tensor)
    }
    lengths, sizes = tuple(base.lengths[row] for row in rows), tuple(base.sizes[row] for row in rows)
    return base._replace(**tensors, lengths=lengths, sizes=sizes)


def replace_regions(base: RegionBatch, rows: tuple[int, ...], new: RegionBatch) -> RegionBatch:
    """``base`` with the regions of the samples ``rows`` replaced. An array that one of the two lacks is left out.

    Raises:
        ValueError: regions of ``base`` are masked already, or its features are of another width.
    """
    if base.chosen_N is not None or base.removed_N is not None or base.delta_NF is not None:
        raise Misfit("regions are masked before they are replaced: put ITM before the masking objective, or give it its own view")
    if base.features_NF.shape[1] != new.features_NF.shape[1]:
        raise Misfit(f"regions of {new.features_NF.shape[1]} values cannot replace those of {base.features_NF.shape[1]}")
    order = list(range(len(base.lengths)))
    for place, row in enumerate(rows, len(base.lengths)):
        order[row] = place
    tensors: dict[str, Any] = {
        name: torch.cat((mine, theirs)) if isinstance(mine, Tensor) and isinstance(theirs, Tensor) else None
        for name, mine, theirs in zip(base._fields, base, new, strict=True)
    }
    both = RegionBatch(**{**tensors, "lengths": base.lengths + new.lengths, "sizes": base.sizes + new.sizes})
    return select_rows(both, order)

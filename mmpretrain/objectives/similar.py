"""Negatives that look alike: the picture or the text of another sample of the micro-batch, drawn by the similarity that a dual encoder sees
(ALBEF, arXiv 2107.07651 section 3.1).

The states are those of an earlier view, of the kind ``paired``. With s = exp(logit_scale), sample i gets the text of sample j with
probability softmax_j(s x_i.t_j), and its picture with probability softmax_j(s x_j.t_i), over all j that are not itself, have another key
and another text: a picture whose caption reads the same is no negative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmpretrain import random
from mmpretrain.nn.hidden import Paired
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.objectives.swaps import Swaps, select_codes, select_images, select_rows, select_texts
from mmpretrain.types import Batch


def check(name: str, objectives: Any, view: str | None) -> None:
    """That the view which is read gives paired states.

    Raises:
        ValueError: naming the objective and the option.
    """
    known = {one.view: one.kind for one in objectives.values()}
    if view in known and known[view] != "paired":
        pairing = [other for other, kind in known.items() if kind == "paired"]
        remedy = f"set it to {pairing[0]!r}" if pairing else "name the view of a contrastive objective"
        raise ValueError(f"{name}: after={view!r} gives {known[view]!r} states, similar negatives read 'paired' ones; {remedy}")


def filled(name: str, batch: Batch, swaps: Swaps, paired: Any) -> Swaps:
    """What the rows get that ask for something similar: the rows of ``similar_images`` and ``similar_texts`` with their new parts.

    A row for which the batch has no other sample that may serve stays as it is: its kind becomes 0. Every draw is a function of (key of the
    sample, name, the samples of the micro-batch). Two device synchronisations.

    Args:
        name: of the objective; makes the streams of the draws.
        batch: as it was, without copies, nothing replaced.
        paired: the states of its samples.

    Raises:
        ValueError: no such states, or the texts are pairs.
    """
    _check(name, batch, paired)
    with torch.no_grad(), full_precision(batch.draw_keys_B.device):
        logits_BB = wide(paired.logit_scale).exp() * wide(paired.image_BE) @ wide(paired.text_BE).T
    fits_BB = _others(batch)
    owner_B = torch.tensor((*range(batch.size), *swaps.copies), dtype=torch.int64).to(fits_BB.device, non_blocking=True)
    found: dict[str, list[tuple[int, int]]] = {}
    alone: list[int] = []
    for kind, rows in (("image", swaps.similar_images), ("text", swaps.similar_texts)):
        owner_R = owner_B[torch.tensor(rows, dtype=torch.int64, device=fits_BB.device)]
        keys_R = batch.draw_keys_B.index_select(0, owner_R)
        seen_BB = logits_BB.T if kind == "image" else logits_BB
        chosen = drawn(seen_BB[owner_R], fits_BB[owner_R], keys_R, f"{name}/similar_{kind}").tolist()
        found[kind] = [(row, other) for row, other in zip(rows, chosen, strict=True) if other >= 0]
        alone += [row for row, other in zip(rows, chosen, strict=True) if other < 0]
    (image_rows, images), (text_rows, texts) = (tuple(zip(*found[kind], strict=True)) or ((), ()) for kind in ("image", "text"))
    kinds_B = swaps.kinds_B
    if alone:
        kinds_B = kinds_B.index_fill(0, torch.tensor(alone, dtype=torch.int64, device=kinds_B.device), 0)
    return Swaps(
        kinds_B,
        image_rows,
        select_images(batch.image, images) if images and batch.image is not None else None,
        text_rows,
        select_texts(batch.text, texts) if texts and batch.text is not None else None,
        select_rows(batch.regions, images) if images and batch.regions is not None else None,
        codes=select_codes(batch.codes, images) if images and batch.codes is not None else None,
    )


def drawn(logits_RB: Tensor, fits_RB: Tensor, keys_R: Tensor, stream: str) -> Tensor:
    """For each row one column, with probability softmax(logits) over the columns that fit: int64 (R,), -1 where none does."""
    uniform_RB = random.uniform(keys_R, random.stream(stream), logits_RB.shape[1]) + 2.0**-25  # inside of 0 to 1
    noisy_RB = (logits_RB - uniform_RB.log().neg().log()).masked_fill(~fits_RB, -torch.inf)  # the largest is drawn by the softmax (Gumbel)
    return torch.where(fits_RB.any(1), noisy_RB.argmax(1), -1)


def _others(batch: Batch) -> Tensor:
    """Whether sample j may give a negative to sample i: bool (B, B)."""
    device, numbers = batch.draw_keys_B.device, {key: number for number, key in enumerate(dict.fromkeys(batch.keys))}
    keys_B = torch.tensor([numbers[key] for key in batch.keys], dtype=torch.int64).to(device, non_blocking=True)
    assert batch.text is not None
    texts_B = torch.unique(batch.text.ids_BT, dim=0, return_inverse=True)[1]
    return (keys_B[:, None] != keys_B[None]) & (texts_B[:, None] != texts_B[None])


def _check(name: str, batch: Batch, paired: Any) -> None:
    if not isinstance(paired, Paired) or paired.image_BE is None or paired.text_BE is None:
        raise ValueError(f"{name}: similar negatives need paired states of pictures and texts from the view that `after` names")
    if len(paired.image_BE) != batch.size or len(paired.text_BE) != batch.size:
        raise ValueError(f"{name}: the view that `after` names has {len(paired.image_BE)} samples, the batch {batch.size}")
    if batch.text is None or (batch.image is None and batch.regions is None):
        raise Misfit(f"{name}: similar negatives need samples with a text and a picture; name the sources that have both in `sources`")
    if batch.text.segments_BT is not None:
        raise Misfit(f"{name}: texts told with tags cannot be exchanged inside of a batch; set data.tags: null")

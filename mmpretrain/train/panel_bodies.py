"""From a batch and a model to the bodies of panels. Nothing here knows of files, loggers or ranks.

``forward(batch, kind, read)`` gives ``read(hidden states of that kind)`` where the parameters are whole; every rank calls these functions
alike, so that a sharded model is entered by all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpretrain.objectives.swaps import select_codes, select_rows
from mmpretrain.report.panels_schema import (
    AlignmentExample,
    AlignmentPanel,
    Guess,
    HiddenRegion,
    Hit,
    MaskedExample,
    MaskedPanel,
    Query,
    RegionsExample,
    RegionsPanel,
    RetrievalPanel,
    Word,
    WordMap,
)
from mmpretrain.types import Batch, Text

Forward = Callable[[Batch, str, Callable[[Any], Any]], Any]  # (batch, kind of hidden states, what to make of them)
PAIRS = 64  # pairs of one forward of a fusion model
TOP = 5
WORDS = 14  # heat maps of one picture
HIDDEN = 8  # masked regions of one picture
CELLS = 16  # of a heat map of regions, along the longer side of the picture


class Shown(NamedTuple):
    """What people see of the samples of a batch."""

    pictures: tuple[str, ...]  # a path for each sample, as it will stand in the JSON
    tokens: tuple[tuple[tuple[str, bool], ...], ...]  # (text, glued to the previous) of every token; "" for special ones


def select(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch, in the given order, repeats allowed, padded to their own maximum; targets are left out."""
    device = batch.draw_keys_B.device
    index = torch.tensor(list(rows), dtype=torch.int64, device=device)
    text, image = batch.text, batch.image
    if text is not None:
        lengths = tuple(text.lengths[i] for i in rows)
        cut = lambda x: None if x is None else x.index_select(0, index)[:, : max(lengths)]
        text = text._replace(ids_BT=cut(text.ids_BT), lengths=lengths, words_BT=cut(text.words_BT), segments_BT=cut(text.segments_BT))
    if image is not None:
        sizes = tuple(image.sizes[i] for i in rows)
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        image = image._replace(pixels_BCHW=image.pixels_BCHW.index_select(0, index)[:, :, :height, :width], sizes=sizes)
    matched = None if batch.matched_B is None else batch.matched_B.index_select(0, index)
    keys = tuple(batch.keys[i] for i in rows)
    regions = None if batch.regions is None else select_rows(batch.regions, rows)
    codes = None if batch.codes is None else select_codes(batch.codes, tuple(rows))
    return Batch(keys, batch.draw_keys_B.index_select(0, index), text, image, matched, regions=regions, codes=codes)


def tokens(batch: Batch, piece: Callable[[int], str], special: Sequence[int]) -> tuple[tuple[tuple[str, bool], ...], ...]:
    """Every token of every text as (text, glued); tokens of one word (``Text.words_BT``) are glued together. ``piece`` spells an id."""
    ids, lengths = batch.text.ids_BT.tolist(), batch.text.lengths
    words = ids if batch.text.words_BT is None else batch.text.words_BT.tolist()
    glue = batch.text.words_BT is not None
    made = []
    for row, word, length in zip(ids, words, lengths, strict=True):
        spelt = []
        for t in range(length):
            glued = glue and t > 0 and word[t] >= 0 and word[t] == word[t - 1]
            spelt.append(("" if row[t] in special else piece(row[t]), glued))
        made.append(tuple(spelt))
    return tuple(made)


def sentence(spelt: Sequence[tuple[str, bool]]) -> str:
    """A text from its tokens."""
    return "".join(text if glued or closes(text) else f" {text}" for text, glued in spelt if text).strip()


def closes(text: str) -> bool:
    """Whether a token is punctuation that follows a word without a space."""
    return bool(text) and all(letter in ".,;:!?)]%" for letter in text)


def told(text: Text, texts: Sequence[int], images: Sequence[int]) -> Text:
    """The first texts of samples ``texts``, each with the second one, the tags, of the sample at the same place of ``images``. Tags lose
    their end where they would make a text longer than all of ``text``."""
    if text.segments_BT is None:
        lengths = tuple(text.lengths[t] for t in texts)
        return Text(text.ids_BT[list(texts), : max(lengths)], lengths)
    firsts = [int((text.segments_BT[row, :length] == 0).sum()) for row, length in enumerate(text.lengths)]
    made: list[tuple[Tensor, int]] = []
    for t, i in zip(texts, images, strict=True):
        first_T, second_T = text.ids_BT[t, : firsts[t]], text.ids_BT[i, firsts[i] : text.lengths[i]]
        over = len(first_T) + len(second_T) - max(text.lengths)
        if over > 0:
            second_T = torch.cat((second_T[: max(len(second_T) - 1 - over, 0)], second_T[-1:]))
        made.append((torch.cat((first_T, second_T)), firsts[t]))
    lengths = tuple(len(ids_T) for ids_T, _ in made)
    ids_BT = text.ids_BT.new_zeros((len(made), max(lengths)))
    segments_BT = torch.zeros_like(ids_BT)
    for row, (ids_T, first) in enumerate(made):
        ids_BT[row, : len(ids_T)] = ids_T
        segments_BT[row, first : len(ids_T)] = 1
    return Text(ids_BT, lengths, None, segments_BT)


def captions(batch: Batch, shown: Shown) -> list[str]:
    """The texts as sentences, without the tags that are told with them."""
    segments = None if batch.text.segments_BT is None else batch.text.segments_BT.tolist()
    # not strict: segments are padded to the longest text of the batch
    own = lambda row, spelt: spelt if segments is None else [piece for piece, part in zip(spelt, segments[row], strict=False) if not part]
    return [sentence(own(row, spelt)) for row, spelt in enumerate(shown.tokens)]


def retrieval(batch: Batch, shown: Shown, score: Callable[[Any], Tensor] | None, forward: Forward, queries: int) -> RetrievalPanel:
    """All texts against all images of the batch, each with the tags of the image that it is tried on, where texts are told with tags.

    Args:
        batch: with text and image, pairs that match.
        score: log-odds of a match from fused states; None: the cosines of paired states.
        queries: how many are kept each way.

    Raises:
        ValueError: a score is not finite.
    """
    n = batch.size
    if score is None:
        scores_nn = forward(batch, "paired", lambda hidden: hidden.image_BE.float() @ hidden.text_BE.float().T).cpu()
    else:
        parts = []
        for start in range(0, n * n, PAIRS):
            rows, columns = zip(*(divmod(p, n) for p in range(start, min(start + PAIRS, n * n))), strict=True)
            pairs = select(batch, rows)._replace(text=told(batch.text, columns, rows))
            parts.append(forward(pairs, "fused", score).float().cpu())
        scores_nn = torch.cat(parts).view(n, n)
    if not bool(torch.isfinite(scores_nn).all()):
        raise ValueError("the scores of the retrieval gallery are not finite")
    texts = captions(batch, shown)  # equal ones are equally right
    right_nn = torch.tensor([[i == t or texts[i] == texts[t] for t in range(n)] for i in range(n)])
    found = [_query(scores_nn[:, t], right_nn[:, t], None, shown.pictures)._replace(text=texts[t]) for t in range(min(n, queries))]
    named = [_query(scores_nn[i], right_nn[i], texts, None)._replace(image=shown.pictures[i]) for i in range(min(n, queries))]
    return RetrievalPanel(tuple(found), tuple(named), n, n, "cosine" if score is None else "itm")


def _query(scores_n: Tensor, right_n: Tensor, texts: Sequence[str] | None, pictures: Sequence[str] | None) -> Query:
    order = scores_n.argsort(descending=True, stable=True).tolist()
    rank = next(place for place, i in enumerate(order, 1) if right_n[i])
    hits = [
        Hit(bool(right_n[i]), round(float(scores_n[i]), 4), None if texts is None else texts[i], None if pictures is None else pictures[i])
        for i in order[:TOP]
    ]
    return Query(tuple(hits), rank)


def masked(batch: Batch, shown: Shown, objective: Any, piece: Callable[[int], str], forward: Forward) -> MaskedPanel:
    """Masked words of every text in which one was hidden, with the best guesses of ``objective`` (an ``MLM``)."""
    corrupted = objective.corrupt(batch, {})
    guesses = forward(corrupted, "fused", lambda hidden: objective.predict(hidden, corrupted, k=TOP))
    examples = []
    for i, (found, spelt) in enumerate(zip(guesses, shown.tokens, strict=True)):
        by_slot = {
            guess.slot: tuple(Guess(piece(t), round(p, 4)) for t, p in zip(guess.ids, guess.probabilities, strict=True)) for guess in found
        }
        words = [Word(text, by_slot.get(slot, ()), glued or closes(text)) for slot, (text, glued) in enumerate(spelt) if text]
        if any(word.guesses for word in words):
            examples.append(MaskedExample(tuple(words), shown.pictures[i] if shown.pictures else None))
    return MaskedPanel(tuple(examples))


def alignment(batch: Batch, shown: Shown, objective: Any, patch_size: int | None, forward: Forward) -> AlignmentPanel:
    """Where each word lands, by the transport plan of ``objective`` (a ``WPA``). The pieces of one word are added up.

    ``patch_size``: of a model that reads patches; None: it reads regions, and what lands on one is painted over its box.
    """
    plans = forward(batch, "fused", objective.plan)
    examples = []
    for i, plan_TV in enumerate(plans):
        cover_VC, rows, columns = _boxes(batch, i) if patch_size is None else _patches(batch.image.sizes[i], patch_size)
        if len(cover_VC) != plan_TV.shape[1]:
            raise ValueError(f"{plan_TV.shape[1]} visual tokens cannot be laid out on a picture of {len(cover_VC)} patches or regions")
        maps = _word_maps(plan_TV.float().cpu(), shown.tokens[i][1 : 1 + plan_TV.shape[0]], cover_VC, rows, columns)
        examples.append(AlignmentExample(shown.pictures[i], sentence(shown.tokens[i]), maps))
    return AlignmentPanel(tuple(examples))


def _patches(size: tuple[int, int], patch_size: int) -> tuple[Tensor, int, int]:
    """Which cells of a heat map each patch covers, bool (V, C), and the rows and columns of that map: one cell for each."""
    rows, columns = size[0] // patch_size, size[1] // patch_size
    return torch.eye(rows * columns, dtype=torch.bool), rows, columns


def _boxes(batch: Batch, i: int) -> tuple[Tensor, int, int]:
    """As ``_patches``, for the regions of sample ``i``: the cells whose middle is in a box, at least one."""
    height, width = batch.regions.sizes[i]
    rows, columns = (max(1, round(CELLS * side / max(height, width))) for side in (height, width))
    start = sum(batch.regions.lengths[:i])
    boxes_V4 = batch.regions.boxes_N4[start : start + batch.regions.lengths[i]].float().cpu()
    middle_y, middle_x = (torch.arange(n, dtype=torch.float32) + 0.5 for n in (rows, columns))  # whatever the default dtype is: bf16-true
    y, x = torch.meshgrid(middle_y * height / rows, middle_x * width / columns, indexing="ij")
    middle_C2 = torch.stack((x, y), -1).view(-1, 2)
    cover_VC = ((middle_C2 >= boxes_V4[:, None, :2]) & (middle_C2 <= boxes_V4[:, None, 2:])).all(-1)
    nearest_V = torch.cdist((boxes_V4[:, :2] + boxes_V4[:, 2:]) / 2, middle_C2).argmin(1)
    return cover_VC.index_put((torch.arange(len(boxes_V4)), nearest_V), torch.tensor(True)), rows, columns


def _word_maps(plan_TV: Tensor, spelt: Sequence[tuple[str, bool]], cover_VC: Tensor, rows: int, columns: int) -> tuple[WordMap, ...]:
    words: list[tuple[str, Tensor]] = []
    for (text, glued), mass_V in zip(spelt, plan_TV, strict=True):
        if glued and words:
            words[-1] = (words[-1][0] + text, words[-1][1] + mass_V)
        elif text:
            words.append((text, mass_V))
    maps = []
    for text, mass_V in words[:WORDS]:
        peak, total = float(mass_V.max()), float(mass_V.sum())
        mass_C = mass_V @ cover_VC.float()  # boxes may overlap
        grid = (mass_C / mass_C.max() if peak > 0 else mass_C).view(rows, columns)
        weights = tuple(tuple(round(float(v), 3) for v in line) for line in grid)
        maps.append(WordMap(text, weights, round(peak / total, 4) if total > 0 else 0.0))
    return tuple(maps)


def regions(batch: Batch, shown: Shown, objective: Any, name: Callable[[int], str], forward: Forward) -> RegionsPanel | None:
    """Masked regions with the most probable classes by ``objective`` (``MRC``, or another that has ``guess``); None where none was masked.
    ``name`` spells a class."""
    corrupted = objective.corrupt(batch, {})
    guesses = forward(corrupted, "fused", lambda hidden: objective.guess(hidden, corrupted, k=TOP))
    texts = [None] * batch.size if batch.text is None else captions(batch, shown)
    examples, start = [], 0
    for i, found in enumerate(guesses):
        height, width = batch.regions.sizes[i]
        boxes_R4 = batch.regions.boxes_N4[start : start + batch.regions.lengths[i]].float().cpu() / torch.tensor([width, height] * 2)
        start += batch.regions.lengths[i]
        hidden = []
        for guess in found[:HIDDEN]:
            best = tuple(Guess(name(c), round(p, 4)) for c, p in zip(guess.classes, guess.probabilities, strict=True))
            box = tuple(round(side, 4) for side in boxes_R4[guess.region].clamp(0, 1).tolist())
            hidden.append(HiddenRegion(box, name(guess.label), best))
        if hidden:
            examples.append(RegionsExample(shown.pictures[i], tuple(hidden), texts[i]))
    return RegionsPanel(tuple(examples)) if examples else None

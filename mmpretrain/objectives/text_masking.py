"""Which tokens of a text are masked, and what is put in their place: pure functions of draw keys, alike on every device and layout.

Units: pieces (BERT, arXiv 1810.04805), whole words, spans that grow from anchor words (InterBERT, arXiv 2003.13198 section 3.2), spans of
geometric length (SpanBERT, arXiv 1907.10529; UNIMO, arXiv 2012.15409), one span of pieces (InterBERT's code), nodes of a scene graph
(ERNIE-ViL, arXiv 2006.16934). B: samples, T: slots of the padded text, W: words of a text (as many columns as slots, so that no size is
asked of the device).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.ragged import Layout
from mmpretrain.types import Text, Vocabulary

UNITS = ("piece", "word", "span", "geometric", "single_span")
SHORT = 3  # InterBERT's code masks nothing in texts of so many pieces or fewer


@dataclass(frozen=True)
class Spans:
    """Shapes of spans, in words.

    Args:
        further: of the unit ``span``: an anchor takes so many of the words behind it, drawn uniformly from these numbers.
        success: of the unit ``geometric``: a span of n words has the weight ``(1 - success) ** (n - 1)``.
        longest: of the unit ``geometric``: words of the longest span.

    Raises:
        ValueError: an option out of its range.
    """

    further: tuple[int, ...] = (0, 1, 2)
    success: float = 0.2
    longest: int = 10

    def __post_init__(self) -> None:
        if not self.further or min(self.further) < 0:
            raise ValueError(f"spans.further={list(self.further)} must name at least one number of words, none below 0")
        if not 0 < self.success < 1 or self.longest < 1:
            raise ValueError(f"spans.success={self.success} must be in (0, 1) and spans.longest={self.longest} at least 1")

    @property
    def lengths(self) -> tuple[float, ...]:
        """Chance of a span of at most 1, 2, ..., ``longest`` words of geometric length."""
        weights = [(1 - self.success) ** n for n in range(self.longest)]
        return tuple(total / sum(weights) for total in itertools.accumulate(weights))


def maskable(text: Text, vocabulary: Vocabulary, segment: int | None = None) -> Tensor:
    """Tokens that are no padding and no special token, bool (B, T); only those of one text of a pair where ``segment`` is given."""
    ids_BT, layout = text.ids_BT, Layout(text.lengths)
    found_BT = F.pad(layout.mask_BL(ids_BT.device), (0, ids_BT.shape[1] - layout.max_len))
    for token in vocabulary.special:  # a handful, and comparing with a Python number copies nothing to the device
        found_BT = found_BT & (ids_BT != token)
    if segment is None:
        return found_BT
    if text.segments_BT is None:  # one text alone: all of it is segment 0
        return found_BT if segment == 0 else torch.zeros_like(found_BT)
    return found_BT & (text.segments_BT == segment)


def replaced(
    ids_BT: Tensor,
    chosen_BT: Tensor,
    keys_B: Tensor,
    vocabulary: Vocabulary,
    mask: float,
    share: float,
    name: str,
    words_BT: Tensor | None = None,
    least: int = 0,
    always_BT: Tensor | None = None,
) -> Tensor:
    """The ids with ``mask`` of the chosen tokens masked and ``share`` of them drawn from the ordinary vocabulary.

    Args:
        words_BT: the word of each token, where the tokens of a word share what becomes of them; None: each token by itself. Which token is
            drawn is up to each in either case.
        least: the lowest id that is drawn.
        always_BT: chosen tokens that are masked whatever the draw says.
    """
    columns = ids_BT.shape[1]
    action_BT = random.uniform(keys_B, random.stream(f"{name}/action"), columns)
    if words_BT is not None:
        action_BT = _by_word(action_BT, words_BT)
    if always_BT is not None:
        action_BT = action_BT.masked_fill(always_BT, 0.0)
    special = sorted({token for token in vocabulary.special if least <= token < vocabulary.size})
    drawn_BT = random.integers(keys_B, random.stream(f"{name}/token"), columns, vocabulary.size - least - len(special)) + least
    for token in special:  # the k-th ordinary token: step over the special ones in ascending order
        drawn_BT = drawn_BT + (drawn_BT >= token)
    ids_BT = torch.where(chosen_BT & (action_BT >= mask) & (action_BT < mask + share), drawn_BT, ids_BT)
    if mask > 0:
        ids_BT = ids_BT.masked_fill(chosen_BT & (action_BT < mask), vocabulary.mask)
    return ids_BT


class Words(NamedTuple):
    """The words of a batch of texts."""

    of_BT: Tensor  # int64, the word of each token; 0 also for tokens without one, which are never maskable
    maskable_BW: Tensor  # bool, whether any token of the word can be masked
    segment_BW: Tensor  # int64


def words_of(text: Text, maskable_BT: Tensor, name: str) -> Words:
    """The words of texts.

    Raises:
        ValueError: the text has no word indices.
    """
    words_BT = word_indices(text, name)
    of_BT, inside_BT = words_BT.clamp(min=0), words_BT >= 0
    segments_BT = torch.zeros_like(of_BT) if text.segments_BT is None else text.segments_BT * inside_BT
    any_BW = torch.zeros_like(of_BT).scatter_reduce(1, of_BT, (maskable_BT & inside_BT).long(), "amax")
    segment_BW = torch.zeros_like(of_BT).scatter_reduce(1, of_BT, segments_BT, "amax")
    return Words(of_BT, any_BW > 0, segment_BW)


def _by_word(draw_BT: Tensor, words_BT: Tensor) -> Tensor:
    """One draw for each run of equal word indices."""
    new_word_BT = F.pad(words_BT[:, 1:] != words_BT[:, :-1], (1, 0))
    return draw_BT.gather(1, new_word_BT.long().cumsum(1))


def word_indices(text: Text, name: str) -> Tensor:
    """
    Raises:
        ValueError: the text has no word indices.
    """
    if text.words_BT is None:
        raise ValueError(f"{name}: masking words or spans needs word indices (Text.words_BT); the data module did not give them")
    return text.words_BT


def choose(
    text: Text,
    maskable_BT: Tensor,
    keys_B: Tensor,
    prob: float,
    unit: str,
    spans: Spans,
    name: str,
    at_least_one: bool = False,
) -> Tensor:
    """The chosen tokens, bool (B, T).

    Args:
        prob: chance of a piece or a word; of a word to be the anchor of a span; share of the words that spans of geometric length cover.
            ``single_span`` does not read it.
        unit: one of ``UNITS``.
        name: of the objective, for its streams and errors.
        at_least_one: choose one piece or word in a text in which none was chosen.
    """
    draw_BT = random.uniform(keys_B, random.stream(f"{name}/choose"), maskable_BT.shape[1])
    if unit in ("piece", "word"):
        if unit == "word":
            draw_BT = _by_word(draw_BT, word_indices(text, name))
        chosen_BT = maskable_BT & (draw_BT < prob)
    elif unit == "single_span":
        chosen_BT = single_span(maskable_BT, text.segments_BT, keys_B, name)
    else:
        words = words_of(text, maskable_BT, name)
        make = anchored_spans if unit == "span" else geometric_spans
        chosen_BT = maskable_BT & make(words, draw_BT, keys_B, prob, spans, name).gather(1, words.of_BT)
        draw_BT = draw_BT.gather(1, words.of_BT)
    if at_least_one:
        draw_BT = draw_BT.masked_fill(~maskable_BT, 2.0)
        lowest_BT = maskable_BT & (draw_BT == draw_BT.amin(1, keepdim=True))
        chosen_BT = chosen_BT | (lowest_BT & ~chosen_BT.any(1, keepdim=True))
    return chosen_BT


def single_span(maskable_BT: Tensor, segments_BT: Tensor | None, keys_B: Tensor, name: str) -> Tensor:
    """One span of each text (of each of a pair), over its n maskable tokens, bool (B, T): it starts at one of 0, ..., n, where n is none,
    and has 1, ..., n tokens, both uniform; the end of the text cuts it. None where n <= ``SHORT``, else (2 n + 1) / (6 n) of the tokens
    are expected.
    """
    chosen_BT = torch.zeros_like(maskable_BT)
    for segment in (0,) if segments_BT is None else (0, 1):
        own_BT = maskable_BT if segments_BT is None else maskable_BT & (segments_BT == segment)
        number_B1, place_BT = own_BT.sum(1, keepdim=True), own_BT.cumsum(1) - 1
        draw_B2 = random.uniform(keys_B, random.stream(f"{name}/span{segment}"), 2)
        start_B1 = (draw_B2[:, :1] * (number_B1 + 1)).floor()
        end_B1 = start_B1 + 1 + (draw_B2[:, 1:] * number_B1).floor()
        chosen_BT = chosen_BT | (own_BT & (place_BT >= start_B1) & (place_BT < end_B1) & (number_B1 > SHORT))
    return chosen_BT


def first_if_none(chosen_BT: Tensor, maskable_BT: Tensor) -> Tensor:
    """The first maskable token of each text in which none was chosen, bool (B, T)."""
    return maskable_BT & (maskable_BT.cumsum(1) == 1) & ~chosen_BT.any(1, keepdim=True)


def anchored_spans(words: Words, draw_BW: Tensor, keys_B: Tensor, prob: float, spans: Spans, name: str) -> Tensor:
    """Each word is an anchor with chance ``prob``; it and a drawn number of words behind it in its text are chosen, bool (B, W)."""
    anchor_BW = words.maskable_BW & (draw_BW < prob)
    number_BW = random.integers(keys_B, random.stream(f"{name}/further"), draw_BW.shape[1], len(spans.further))
    chosen_BW = anchor_BW
    for step in range(1, max(spans.further) + 1):
        reaches_BW = torch.zeros_like(anchor_BW)
        for number, further in enumerate(spans.further):
            if further >= step:
                reaches_BW = reaches_BW | (number_BW == number)
        chosen_BW = chosen_BW | (_behind(anchor_BW & reaches_BW, step, False) & _together(words, step))
    return chosen_BW


def geometric_spans(words: Words, draw_BW: Tensor, keys_B: Tensor, prob: float, spans: Spans, name: str) -> Tensor:
    """Spans of geometric length from words in random order, until they cover a share ``prob`` of the words, bool (B, W).

    Of n words, ``prob * n`` are covered, rounded up or down by a draw so that the expectation is exact. The last span is cut where the
    share is full. Spans may overlap (SpanBERT's code draws again instead), and stay within one text of a pair.
    """
    columns = draw_BW.shape[1]
    length_BW = torch.ones_like(words.of_BT)
    share_BW = random.uniform(keys_B, random.stream(f"{name}/length"), columns)
    for upto in spans.lengths[:-1]:
        length_BW = length_BW + (share_BW >= upto)
    never = columns
    turn_BW = _ranks(draw_BW.masked_fill(~words.maskable_BW, 2.0))
    turn_BW = turn_BW.masked_fill(~words.maskable_BW, never)
    first_BW = turn_BW  # the turn in which a span first covers the word
    for step in range(1, spans.longest):
        reached_BW = _behind(turn_BW.masked_fill(length_BW <= step, never), step, never)
        first_BW = torch.minimum(first_BW, reached_BW.masked_fill(~_together(words, step), never))
    place_BW = torch.arange(columns, device=draw_BW.device)
    order_BW = (first_BW * columns + place_BW).masked_fill(~words.maskable_BW, columns * (never + 1))
    rank_BW = _ranks(order_BW)
    rounding_B1 = random.uniform(keys_B, random.stream(f"{name}/share"), 1)
    budget_B1 = (prob * words.maskable_BW.sum(1, keepdim=True) + rounding_B1).floor()
    return words.maskable_BW & (rank_BW < budget_B1)


def _ranks(x_BW: Tensor) -> Tensor:
    """The place of each value among those of its row in ascending order, int64; equal ones in the order of their columns."""
    return torch.argsort(torch.argsort(x_BW, dim=1, stable=True), dim=1)


def _behind(x_BW: Tensor, step: int, fill: float | bool) -> Tensor:
    """Each word's value at the word ``step`` places behind it."""
    return F.pad(x_BW, (step, 0), value=fill)[:, : x_BW.shape[1]]


def _together(words: Words, step: int) -> Tensor:
    """Whether a word and that ``step`` places before it belong to the same text, bool (B, W)."""
    return words.segment_BW == _behind(words.segment_BW, step, -1)


def choose_nodes(nodes_BT: Tensor, keys_B: Tensor, prob: float, name: str) -> Tensor:
    """All tokens of k nodes of each text, drawn without replacement, bool (B, T).

    Args:
        nodes_BT: int64, the node of each token, numbered from 0 in each text; -1 for tokens of none.
        prob: share of the n nodes of a text: k = max(1, round(prob * n)), halves to even; 0 where there is none.
    """
    columns = nodes_BT.shape[1]
    number_B1 = nodes_BT.amax(1, keepdim=True) + 1
    count_B1 = torch.where(number_B1 > 0, (prob * number_B1.double()).round().clamp(min=1), 0)
    draw_BT = random.uniform(keys_B, random.stream(f"{name}/nodes"), columns)
    absent_BT = torch.arange(columns, device=nodes_BT.device) >= number_B1
    rank_BT = _ranks(draw_BT.masked_fill(absent_BT, 2.0))
    return (nodes_BT >= 0) & (rank_BT < count_B1).gather(1, nodes_BT.clamp(min=0))

"""Maskers of text: rates at 100,000 words, what spans look like, brute force, independence of the layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.objectives import CLS, MASK, PAD, SEP, keys, vocabulary

from mmpretrain import random
from mmpretrain.objectives.text_masking import UNITS, Spans, choose, choose_nodes, geometric_spans, maskable, words_of
from mmpretrain.types import Text

N, WORDS = 500, 200


def texts(n: int = N, words: int = WORDS, pieces: int = 1, pair: int | None = None) -> Text:
    """[CLS] words [SEP], each of ``pieces`` tokens; the words behind ``pair`` belong to a second text: [CLS] first [SEP] second [SEP]."""
    of = [word for word in range(words) for _ in range(pieces)]
    ids, segments = [CLS, *[7] * len(of), SEP], [0] * (len(of) + 2)
    index = [-1, *of, -1]
    if pair is not None:
        place = 1 + pair * pieces
        ids.insert(place, SEP)
        index.insert(place, -1)
        segments = [int(slot > place) for slot in range(len(ids))]
    rows = lambda x: torch.tensor([x]).repeat(n, 1)
    return Text(rows(ids), (len(ids),) * n, rows(index), rows(segments) if pair is not None else None)


def chosen_words(text: Text, unit: str, prob: float, spans: Spans | None = None) -> np.ndarray:
    """Which words are chosen, bool (N, W); every token of a word alike."""
    free_BT = maskable(text, vocabulary())
    chosen_BT = choose(text, free_BT, keys(len(text.lengths)), prob, unit, spans or Spans(), "mlm")
    assert not (chosen_BT & ~free_BT).any()
    inside = text.words_BT[0] >= 0  # the rows are alike but for what is chosen
    found = torch.zeros(len(chosen_BT), int(text.words_BT.max()) + 1).index_add(1, text.words_BT[0][inside], chosen_BT[:, inside].float())
    shares = found.numpy() / np.bincount(text.words_BT[0][inside].numpy())
    assert np.isin(shares, (0, 1)).all()
    return shares > 0


def sigma(p: float, n: int) -> float:
    return 4 * (p * (1 - p) / n) ** 0.5


def test_share_of_anchored_spans_is_that_of_interbert():
    """1 - 0.9 x (1 - 0.1 x 2/3) x (1 - 0.1 x 1/3) = 18.8 % of the words with two before them. Neighbours hang together, hence words three
    apart, which share no anchor."""
    chosen = chosen_words(texts(1500), "span", 0.1)
    apart = chosen[:, 2::3]
    expected = 1 - 0.9 * (1 - 0.2 / 3) * (1 - 0.1 / 3)
    assert expected == pytest.approx(0.188, abs=5e-4) and apart.size >= 99_000
    assert abs(apart.mean() - expected) < sigma(expected, apart.size)
    assert abs(chosen[:, 0].mean() - 0.1) < sigma(0.1, len(chosen))
    second = 1 - 0.9 * (1 - 0.2 / 3)
    assert abs(chosen[:, 1].mean() - second) < sigma(second, len(chosen))


@pytest.mark.parametrize("further", [(0, 1, 2), (2,), (0,), (1, 1, 3)])
def test_anchored_spans_against_a_loop(further):
    text, prob, spans = texts(40, 30, pieces=2, pair=11), 0.15, Spans(further=further)
    chosen, columns = chosen_words(text, "span", prob, spans), text.ids_BT.shape[1]
    anchor = random.uniform(keys(40), random.stream("mlm/choose"), columns) < prob
    number = random.integers(keys(40), random.stream("mlm/further"), columns, len(further))
    for row in range(40):
        expected = np.zeros(30, dtype=bool)
        for word in range(30):
            if anchor[row, word]:
                last = 11 if word < 11 else 30  # a span ends with its text
                expected[word : min(word + 1 + further[int(number[row, word])], last)] = True
        assert (chosen[row] == expected).all()


@pytest.mark.parametrize("pieces", [1, 3])
def test_geometric_spans_cover_their_share(pieces):
    chosen = chosen_words(texts(pieces=pieces), "geometric", 0.15)
    counts = chosen.sum(1)
    assert set(counts.tolist()) == {30}  # 0.15 x 200, a whole number
    odd = chosen_words(texts(2000, 51, pieces=pieces), "geometric", 0.15).sum(1)  # 7.65: 7 or 8
    assert set(odd.tolist()) == {7, 8} and abs((odd == 8).mean() - 0.65) < sigma(0.65, 2000)
    runs = [len(list(group)) for row in chosen for value, group in itertools.groupby(row.tolist()) if value]
    assert 2.5 < np.mean(runs) < 5.5 and max(runs) > 4


def test_lengths_are_geometric_up_to_ten():
    """The first span of a text, as long as the budget allows it: lengths follow 0.2 x 0.8^(n-1), normalised over 1 to 10 words."""
    text = texts(20_000, 40, pair=20)
    free_BT, key_B = maskable(text, vocabulary()), keys(20_000)
    draw_BW = random.uniform(key_B, random.stream("x"), 40 + 3)
    draw_BW[:, 5] = -1.0  # the first turn is that of word 5
    words = words_of(text, free_BT, "mlm")
    found = geometric_spans(words, draw_BW, key_B, 0.25, Spans(), "mlm")
    assert set(found.sum(1).tolist()) == {10}
    length = 1 + (random.uniform(key_B, random.stream("mlm/length"), 43)[:, 5:6] >= torch.tensor(Spans().lengths[:-1])).sum(1)
    for n in range(1, 11):
        rows = found[length == n]
        assert rows[:, 5 : 5 + n].all()  # the whole span, before all others
    weights = 0.8 ** np.arange(10)
    expected = weights / weights.sum() * 20_000
    counts = np.bincount(length.numpy(), minlength=11)[1:]
    assert ((counts - expected) ** 2 / expected).sum() < 9 + 4 * 18**0.5
    assert np.mean(length.numpy()) == pytest.approx(3.8, abs=0.06)  # as SpanBERT says of its spans


def test_geometric_spans_against_a_loop():
    text, spans = texts(60, 30, pieces=2, pair=11), Spans(success=0.3, longest=5)
    chosen, columns = chosen_words(text, "geometric", 0.4, spans), text.ids_BT.shape[1]
    draws = random.uniform(keys(60), random.stream("mlm/choose"), columns).numpy()
    shares = random.uniform(keys(60), random.stream("mlm/length"), columns).numpy()
    for row in range(60):
        expected = np.zeros(30, dtype=bool)
        for word in np.argsort(draws[row, :30], kind="stable"):
            length = 1 + sum(shares[row, word] >= upto for upto in spans.lengths[:-1])
            for covered in range(word, min(word + length, 11 if word < 11 else 30)):
                if expected.sum() < 12:
                    expected[covered] = True
        assert (chosen[row] == expected).all()


@pytest.mark.parametrize("unit", UNITS)
def test_padding_and_order_change_nothing(unit):
    text = texts(12, 20, pieces=2, pair=8)
    wide = Text(*(torch.nn.functional.pad(x, (0, 9), value=v) for x, v in ((text.ids_BT, PAD),)), text.lengths)
    words_BT, segments_BT = (torch.nn.functional.pad(x, (0, 9), value=v) for x, v in ((text.words_BT, -1), (text.segments_BT, 0)))
    wide = wide._replace(words_BT=words_BT, segments_BT=segments_BT)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = Text(wide.ids_BT[order], wide.lengths, words_BT[order], segments_BT[order])
    pick = lambda x, k: choose(x, maskable(x, vocabulary()), k, 0.2, unit, Spans(), "mlm", True)
    whole, padded, permuted = pick(text, keys(12)), pick(wide, keys(12)), pick(mixed, keys(12)[order])
    width = whole.shape[1]
    assert torch.equal(whole, padded[:, :width]) and not padded[:, width:].any()
    assert torch.equal(padded[order], permuted) and whole.any(1).all()


@pytest.mark.parametrize("n", [8, 10, 12, 16, 20])
def test_share_of_the_single_span_is_that_of_interberts_code(n):
    """(2 n + 1) / (6 n): between 34 and 36 % for captions of usual length."""
    text = texts(20_000, n)
    shares = choose(text, maskable(text, vocabulary()), keys(20_000), 0.1, "single_span", Spans(), "mlm").sum(1).double().numpy() / n
    every = [(max(min(start + length, n) - start, 0)) / n for start in range(n + 1) for length in range(1, n + 1)]
    expected = (2 * n + 1) / (6 * n)
    assert expected == pytest.approx(np.mean(every)) and 0.34 < expected < 0.36
    assert abs(shares.mean() - expected) < 4 * np.std(every) / 20_000**0.5


@pytest.mark.parametrize("n", range(1, 8))
def test_single_spans_against_a_count(n):
    """Every start and every length as often as the others; captions of three pieces or fewer are never masked."""
    text = texts(40_000, n)
    chosen = choose(text, maskable(text, vocabulary()), keys(40_000), 0.1, "single_span", Spans(), "mlm").numpy()[:, 1 : n + 1]
    if n <= 3:
        assert not chosen.any()
        return
    expected: dict[tuple[int, int], float] = {}
    for start in range(n + 1):
        for length in range(1, n + 1):
            span = (start, min(start + length, n)) if start < n else (0, 0)
            expected[span] = expected.get(span, 0.0) + 40_000 / (n * (n + 1))
    first, number = np.where(chosen.any(1), chosen.argmax(1), 0), chosen.sum(1)
    place = np.arange(n)
    assert (chosen == ((place >= first[:, None]) & (place < (first + number)[:, None]))).all()  # no holes
    found = {span: int(((first == span[0]) & (first + number == span[1])).sum()) for span in expected}
    assert sum(found.values()) == 40_000
    chi = sum((found[span] - count) ** 2 / count for span, count in expected.items())
    assert chi < len(expected) - 1 + 4 * (2 * (len(expected) - 1)) ** 0.5


def test_each_text_of_a_pair_has_a_span_of_its_own():
    text = texts(4000, 22, pair=10)
    chosen = choose(text, maskable(text, vocabulary()), keys(4000), 0.1, "single_span", Spans(), "mlm").numpy()
    for slots, n in ((chosen[:, 1:11], 10), (chosen[:, 12:24], 12)):
        assert abs(slots.mean() - (2 * n + 1) / (6 * n)) < 4 * 0.3 / 4000**0.5
        assert (np.diff(slots.astype(int), axis=1, prepend=0) == 1).sum(1).max() == 1


def test_one_text_of_a_pair():
    text = texts(300, 30, pair=10)
    for segment, slots in ((0, range(1, 11)), (1, range(12, 32))):
        free = maskable(text, vocabulary(), segment)
        assert free.any(0).nonzero().squeeze(1).tolist() == list(slots)
    single = texts(2, 5)
    assert torch.equal(maskable(single, vocabulary(), 0), maskable(single, vocabulary())) and not maskable(single, vocabulary(), 1).any()


@pytest.mark.parametrize("n", range(1, 12))
def test_numbers_of_nodes(n):
    """k = max(1, round(0.3 n)) nodes, each as often as the others, whole."""
    nodes = torch.full((3000, 2 * n + 4), -1)
    nodes[:, 1 : n + 1] = torch.arange(n)
    nodes[:, n + 2 : 2 * n + 2] = torch.arange(n)  # a second piece of each, elsewhere
    chosen = choose_nodes(nodes, keys(3000), 0.3, "sg")
    assert torch.equal(chosen[:, 1 : n + 1], chosen[:, n + 2 : 2 * n + 2])
    k = max(1, round(0.3 * n))
    assert (chosen[:, 1 : n + 1].sum(1) == k).all() and chosen.sum() == 2 * k * 3000
    counts = chosen[:, 1 : n + 1].sum(0).numpy()
    assert ((counts - 3000 * k / n) ** 2 / (3000 * k / n)).sum() < n + 4 * (2 * n) ** 0.5


def test_no_nodes_none_chosen():
    nodes = torch.full((4, 6), -1)
    nodes[1, 2] = 0
    assert choose_nodes(nodes, keys(4), 0.3, "sg").nonzero().tolist() == [[1, 2]]


def test_clear_errors():
    with pytest.raises(ValueError, match="further"):
        Spans(further=())
    with pytest.raises(ValueError, match="success"):
        Spans(success=1.0)
    text = texts(2, 5)._replace(words_BT=None)
    for unit in ("word", "span", "geometric"):
        with pytest.raises(ValueError, match="words_BT"):
            choose(text, maskable(text, vocabulary()), keys(2), 0.5, unit, Spans(), "mlm")
    assert MASK not in text.ids_BT

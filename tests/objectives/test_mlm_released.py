"""What UNITER's code does otherwise in masking words: the first token where none was drawn, random tokens from an id on."""

import numpy as np
import pytest
import torch
from helpers.objectives import MASK, Stack, keys, spec, tokens, vocabulary

from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.mlm import MLM
from mmpretrain.types import Batch

SIZE = 40


def bound(extra: tuple[int, ...] = (), **options) -> MLM:
    objective = MLM(**options)
    objective.bind(spec(vocab=SIZE), vocabulary(SIZE, extra))
    return objective


def texts(n: int, longest: int, vary: int) -> Batch:
    text = Stack().text([tokens(longest - i % vary, seed=i, size=SIZE) for i in range(n)])
    return Batch(tuple(f"k{i}" for i in range(n)), keys(n), text)


@pytest.mark.parametrize("unit", ["piece", "word", "single_span"])
def test_the_first_token_is_masked_where_none_was_chosen(unit):
    """Always by the mask token; where one was chosen, nothing else is."""
    batch = texts(600, 7, vary=6)  # two tokens: [CLS] and [SEP] alone
    options = {"prob": 0.3, "mask": 0.2, "random": 0.4, "unit": unit}
    free, forced = (bound(at_least_one=flag, **options).corrupt(batch, {}) for flag in (False, "first"))
    starts, lengths = Layout(batch.text.lengths).starts, batch.text.lengths
    expected, added = set(free.targets["mlm"].rows_R.tolist()), 0
    for i, length in enumerate(lengths):
        first = int(starts[i]) + 1
        if length == 2 or expected & set(range(first, first + length - 2)):
            assert torch.equal(forced.text.ids_BT[i], free.text.ids_BT[i])
        else:
            expected, added = expected | {first}, added + 1
            assert forced.text.ids_BT[i, 1] == MASK and torch.equal(forced.text.ids_BT[i, 2:], batch.text.ids_BT[i, 2:])
    assert added > 50 and sorted(expected) == forced.targets["mlm"].rows_R.tolist()
    assert min(lengths) == 2


def test_random_tokens_from_an_id_on():
    extra, batch = (23, 39), texts(1000, 34, vary=1)
    out = bound(extra, prob=1.0, mask=0.0, random=1.0, random_from=20).corrupt(batch, {})
    drawn = np.bincount(out.text.ids_BT.reshape(-1)[out.targets["mlm"].rows_R].numpy(), minlength=SIZE)
    assert not drawn[:20].any() and not drawn[list(extra)].any()
    ordinary = np.delete(drawn, [*range(20), *extra])
    expected = ordinary.sum() / len(ordinary)
    assert len(ordinary) == 18 and ((ordinary - expected) ** 2 / expected).sum() < 17 + 4 * (2 * 17) ** 0.5
    assert out.targets["mlm"].rows_R.numel() > 25_000


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="random_from=39 leaves none of the tokenizer's 40 tokens"):
        bound((23, 39), random_from=39)
    for options in ({"at_least_one": "last"}, {"random_from": -1}):
        with pytest.raises(ValueError, match="must be false, true or first, random_from="):
            MLM(**options)

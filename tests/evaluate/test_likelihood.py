"""Likelihood of texts and codes: against sums over single samples; under another text and none; without a trace in what is logged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import dense_dalle
from helpers.dense_dalle import CODES, GRID, POSITIONS, VOCAB

from mmpretrain.data.codes import encode_codes
from mmpretrain.data.collate import Collator
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.likelihood import likelihood
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.samples import EvalSet
from mmpretrain.evaluate.suite import evaluate, table
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, CodeBatch, Sample, Text, Tokens, Vocabulary

CAPTIONS = ("6 7 8", "9 10 11 12 13", "14", "15 16 17 18 19 20", "21 22")


class Words:
    """Numbers are their own ids."""

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        ids = tuple(int(word) for word in text.split())
        return Tokens(ids, tuple(range(len(ids))), text)


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    root = Pretraining(dense_dalle.model(), {"text": NextText(), "code": NextCode()})
    root.bind(Vocabulary(VOCAB, 0, None, None, None, (0,), codes=CODES))
    torch.manual_seed(2)
    for objective in root.objectives.values():
        torch.nn.init.normal_(objective.head.out.weight, std=0.5)
    shown, known = Shown("codes"), Vocabulary(VOCAB, 0, None, None, None, (0,), codes=CODES)
    collate = Collator(0, (0.0,) * 3, (1.0,) * 3)
    return Pretrained(root.model, root.objectives, Words(), None, known, collate=collate, shown=shown)


def data(captions: tuple[str, ...] = CAPTIONS) -> EvalSet:
    codes = lambda i: encode_codes(np.random.default_rng(i).integers(CODES, size=GRID))
    samples = [Sample(f"k{i}", (caption,), (), codes=codes(i)) for i, caption in enumerate(captions)]
    return EvalSet("few", [*samples, Sample("no codes", ("6 6",), ()), Sample("no text", (), (), codes=codes(9))], "f00")


def alone(pretrained: Pretrained, caption: str, i: int) -> dict[str, tuple[float, float]]:
    """Objective -> (loss, count) of one picture under one caption."""
    ids = [int(word) for word in caption.split()]
    codes = torch.from_numpy(np.random.default_rng(i).integers(CODES, size=GRID)).flatten()
    text = Text(torch.tensor([ids], dtype=torch.int64), (len(ids),))
    batch = Batch(("x",), torch.zeros(1, dtype=torch.int64), text, codes=CodeBatch(codes, (GRID,)))
    with torch.no_grad():
        hidden = pretrained.model(batch)
        found = {name: objective.surprisal(hidden, batch) for name, objective in pretrained.objectives.items()}
    return {name: (one.loss.item(), one.count.item()) for name, one in found.items()}


@pytest.mark.parametrize("batch_size", [2, 32])
def test_means_are_over_all_tokens_of_the_set(pretrained: Pretrained, batch_size: int) -> None:
    found = {result.name: result for result in likelihood(pretrained, data(), batch_size=batch_size)}
    singles = [alone(pretrained, caption, i) for i, caption in enumerate(CAPTIONS)]
    for name in ("text", "code"):
        loss, count = (sum(one[name][k] for one in singles) for k in (0, 1))
        result = found[f"likelihood/few/{name}/loss"]
        assert result.value == pytest.approx(loss / count, rel=1e-5) and result.stamp.count == count
        assert found[f"likelihood/few/{name}/perplexity"].value == pytest.approx(math.exp(loss / count), rel=1e-4)
        assert 0 <= found[f"likelihood/few/{name}/accuracy"].value <= 1
    codes = np.concatenate([np.random.default_rng(i).integers(CODES, size=GRID).flatten() for i in range(len(CAPTIONS))])
    words = np.array(" ".join(CAPTIONS).split(), dtype=int)
    for name, tokens in (("code", codes), ("text", words)):
        assert found[f"likelihood/few/{name}/accuracy"].chance == np.bincount(tokens).max() / len(tokens)
    assert found["likelihood/few/code/loss"].chance is None
    assert found["likelihood/few/code/loss"].stamp.protocol == "5 first true texts, count is tokens; images are codes"
    untold = sum(alone(pretrained, "", i)["code"][0] for i in range(len(CAPTIONS))) / (len(CAPTIONS) * GRID[0] * GRID[1])
    assert found["likelihood/few/code/loss_without_text"].value == pytest.approx(untold, rel=1e-5)
    if batch_size == 32:  # the text half a batch further on
        other = CAPTIONS[2:] + CAPTIONS[:2]
        told = sum(alone(pretrained, caption, i)["code"][0] for i, caption in enumerate(other)) / (len(CAPTIONS) * GRID[0] * GRID[1])
        assert found["likelihood/few/code/loss_other_text"].value == pytest.approx(told, rel=1e-5)
    assert not [name for name in found if "text/loss_" in name]


def test_no_trace_in_the_statistics_of_training(pretrained: Pretrained) -> None:
    likelihood(pretrained, data())
    assert all(objective.pooled() == {} for objective in pretrained.objectives.values())


def test_it_is_measured_with_the_rest_and_shown(pretrained: Pretrained) -> None:
    results = evaluate(pretrained, [data()])
    assert {result.name.split("/")[0] for result in results} == {"likelihood"} and len(results) == 8
    shown = table(results)
    cells = dict(zip(map(str, shown.columns[0].cells), shown.columns[1].cells, strict=True))
    assert cells["likelihood/few/code/loss"].endswith("nats") and cells["likelihood/few/code/accuracy"].endswith("%")
    assert likelihood(pretrained, data(()), 5) == []


def test_a_single_sample_has_no_other_text(pretrained: Pretrained) -> None:
    names = {result.name for result in likelihood(pretrained, data(CAPTIONS[:1]))}
    assert "likelihood/few/code/loss_other_text" not in names and len(names) == 7


def test_there_are_no_vectors_of_texts_or_pictures(pretrained: Pretrained) -> None:
    assert POSITIONS == pretrained.model.text_positions
    with pytest.raises(ValueError, match="DALLE gives causal states"):
        pretrained.encode_text(["6 7"])
    with pytest.raises(ValueError, match="matching head"):
        pretrained.match([], [], np.zeros(0, int), np.zeros(0, int))

"""The loop over codes: the size of the batch changes nothing, a prompt is prefilled once, cached equals uncached, given rows are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.generation import GRID, Stub, dalle
from helpers.tiny_dvae import CODES
from torch import Tensor

from mmpretrain.evaluate.loading import load
from mmpretrain.generate.choosing import Sampling, choose, guided, sample_key
from mmpretrain.generate.generator import and_empty
from mmpretrain.generate.sampling import Piece, Request, plan, sample
from mmpretrain.types import Batch, CodeBatch, Text


def texts(prompts: Sequence[Sequence[int]]):
    def make(numbers: Sequence[int], with_empty: bool) -> Text:
        chosen = [prompts[number] for number in numbers]
        width = max(map(len, chosen))
        ids = torch.tensor([[*one, *[0] * (width - len(one))] for one in chosen])
        return and_empty(Text(ids, tuple(map(len, chosen))), len(numbers) if with_empty else 0)

    return make


def request(prompts: Sequence[Sequence[int]], n: int, length: int, given: Tensor | None = None) -> Request:
    return Request(texts(prompts), lambda p, j: sample_key(0, str(prompts[p]), 0, j), len(prompts), n, length, given)


PROMPTS = [[3, 4], [5], [7, 8, 9]]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 64])
def test_the_batch_changes_nothing(batch, guidance):
    how = Sampling(temperature=0.9, top_k=9, top_p=0.97, guidance=guidance)
    wanted = sample(Stub(), Stub().head, request(PROMPTS, 4, 6), how, 5)
    assert wanted.shape == (3, 4, 6) and len({tuple(row) for row in wanted.view(-1, 6).tolist()}) > 6
    assert torch.equal(sample(Stub(), Stub().head, request(PROMPTS, 4, 6), how, batch), wanted)
    alone = sample(Stub(), Stub().head, request(PROMPTS[1:2], 4, 6), how, batch)
    assert torch.equal(alone[0], wanted[1])  # nor do the other prompts
    fewer = sample(Stub(), Stub().head, request(PROMPTS, 2, 6), how, batch)
    assert torch.equal(fewer, wanted[:, :2])  # nor how many more are drawn


def test_what_is_drawn_is_written_out():
    """The loop against a plain one over every picture, with guidance."""
    stub, how = Stub(), Sampling(guidance=1.7)
    found = sample(Stub(), stub.head, request(PROMPTS, 2, 6), how, 3)
    for p, prompt in enumerate(PROMPTS):
        for j in range(2):
            key, last, row = torch.tensor([sample_key(0, str(prompt), 0, j)]), -1, []
            for place in range(6):
                cond, empty = (stub.table[(told * 31 + last * 7 + place * 13) % 97][None] for told in (sum(prompt), 0))
                last = int(choose(guided(cond, empty, 1.7), key, place, how))
                row.append(last)
            assert found[p, j].tolist() == row


def test_a_prompt_is_prefilled_once():
    stub = Stub()
    sample(stub, stub.head, request(PROMPTS, 10, 6), Sampling(), 4)
    assert Counter(name for name, *_ in stub.log)["prefill"] == 3
    assert [rows for name, rows, _ in stub.log if name == "prefill"] == [1, 1, 1]
    assert [rows for name, rows, place in stub.log if place == 1 and name == "advance"] == [4, 4, 2] * 3
    stub = Stub()
    sample(stub, stub.head, request(PROMPTS, 2, 6), Sampling(guidance=3.0), 4)
    assert [rows for name, rows, _ in stub.log if name == "prefill"] == [4, 2]  # two prompts at a time, with their empty captions


def test_plans():
    assert list(plan(2, 5, 2)) == [Piece((p,), first, count) for p in (0, 1) for first, count in ((0, 2), (2, 2), (4, 1))]
    assert list(plan(5, 2, 4)) == [Piece((0, 1), 0, 2), Piece((2, 3), 0, 2), Piece((4,), 0, 2)]
    for wrong in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            list(plan(*wrong))


def test_progress_counts_codes():
    told: list[tuple[int, int]] = []
    sample(Stub(), Stub().head, request(PROMPTS, 2, 6, torch.tensor([1, 2])), Sampling(), 4, progress=lambda *x: told.append(x))
    assert told[-1] == (24, 24) and [done for done, _ in told] == sorted(done for done, _ in told)


def test_given_codes_are_kept():
    given = torch.tensor([4, 0, 9])
    found = sample(Stub(), Stub().head, request(PROMPTS, 3, 6, given), Sampling(), 2)
    assert torch.equal(found[..., :3], given.expand(3, 3, 3)) and len({tuple(row) for row in found.view(-1, 6).tolist()}) > 3
    with pytest.raises(ValueError, match="6 of 6 codes are given"):
        sample(Stub(), Stub().head, request(PROMPTS, 1, 6, torch.arange(6)), Sampling(), 2)


def test_logits_that_are_not_finite_are_refused():
    for wrong in (torch.nan, torch.inf):
        stub = Stub()
        stub.table[:, 3] = wrong
        with pytest.raises(ValueError, match="not finite"):
            sample(stub, stub.head, request(PROMPTS, 1, 6), Sampling(), 2)


def uncached(model, head, text: Text, keys: Tensor, given: Tensor | None, how: Sampling) -> Tensor:
    """A forward over all codes so far for each position, in fp64, with empty captions apart."""
    length = GRID[0] * GRID[1]
    codes = torch.zeros(len(keys), length, dtype=torch.int64)
    kept = 0 if given is None else len(given)
    codes[:, :kept] = given if given is not None else codes[:, :0]

    def logits(text: Text, place: int) -> Tensor:
        batch = CodeBatch(codes.flatten(), (GRID,) * len(keys))
        states = model(Batch(("",) * len(keys), keys, text, codes=batch), "causal").image.x_ND
        return head(states.view(len(keys), length, -1)[:, place]).double()

    for place in range(kept, length):
        found = logits(text, place)
        if how.guided:
            found = guided(found, logits(Text(text.ids_BT[:, :0], (0,) * len(keys)), place), how.guidance)
        codes[:, place] = choose(found, keys, place, how)
    return codes


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kept", [0, 8])
def test_cached_is_uncached(tmp_path: Path, guidance, kept):
    """The tiny real model in fp64: a forward over everything draws the same codes."""
    found = load(dalle(tmp_path / "dalle.ckpt"))
    found.model.double(), found.objectives["code"].double()
    prompts = [list(found.tokenize(text).ids) for text in ("a red cube", "two blue balls above a green cone")]
    given = torch.arange(kept) % CODES if kept else None
    how, n = Sampling(guidance=guidance), 2
    asked = request(prompts, n, GRID[0] * GRID[1], given)

    def both(model, objectives):
        head = objectives["code"].logits_of
        cached = sample(model, head, asked, how, 3)
        text = texts(prompts)([p for p in range(2) for _ in range(n)], False)
        keys = torch.tensor([asked.keys(p, j) for p in range(2) for j in range(n)])
        return cached, uncached(model, head, text, keys, given, how)

    cached, plain = found.run(both)
    assert torch.equal(cached.view(-1, 16), plain) and len({tuple(row) for row in plain.tolist()}) == 4

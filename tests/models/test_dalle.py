"""DALL-E's transformer: a plain dense twin of all 64 layers, causality, paddings, the cache, sizes, recomputation."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import dense_dalle
from helpers.dense_dalle import CODES, GRID, LENGTHS, POSITIONS, VOCAB, batch

from mmpretrain.models.dalle import DALLE, no_text
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.train.parallel import recompute
from mmpretrain.train.pretraining import Pretraining, materialise
from mmpretrain.types import Batch, CodeBatch, Text

ATTENTIONS = ("sparse", "full")
N = GRID[0] * GRID[1]


def closed_form(width: int, depth: int, vocab: int, positions: int, codes: int, rows: int, columns: int) -> int:
    """As in docs/dalle.md, without heads."""
    return width * (1 + vocab + 2 * positions + codes + rows + columns) + depth * (12 * width**2 + 13 * width)


def heads(width: int, vocab: int, codes: int) -> int:
    return 4 * width + width * (vocab + codes)


@pytest.mark.parametrize(
    ("width", "billions", "total", "whole"),
    [(1920, 2.8, 2_881_046_400, 2_928_240_000), (2688, 5.6, 5_618_911_872, 5_684_982_912), (3968, 12.0, 12_195_286_912, 12_292_820_352)],
)
def test_the_sizes_of_the_paper(width: int, billions: float, total: int, whole: int) -> None:
    """Table 1 gives width and parameters, rounded; the matrices of the blocks alone are that many."""
    with torch.device("meta"):
        model = DALLE(width, 64, width // 64, 16384, 8192)
        root = Pretraining(model, {"text": NextText(), "code": NextCode()})
        root.bind(None)
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(model) == total == closed_form(width, 64, 16384, 256, 8192, 32, 32)
    assert count(root) == whole == total + heads(width, 16384, 8192)
    assert 64 * 12 * width**2 / 1e9 == pytest.approx(billions, rel=0.012)


@pytest.mark.parametrize(("depth", "attention"), [(64, "sparse"), (6, "sparse"), (2, "sparse"), (1, "sparse"), (3, "full")])
def test_states_are_those_of_a_dense_twin(depth: int, attention: str) -> None:
    model, given = dense_dalle.model(depth, attention).double(), batch()
    with torch.no_grad():
        found = model(given)
        for i, (n, codes) in enumerate(zip(LENGTHS, given.codes.dense().flatten(1).tolist(), strict=True)):
            expected = dense_dalle.states(model, given.text.ids_BT[i, :n].tolist(), codes[:-1])
            scale = expected.abs().max()
            both = torch.cat([found.text.x_ND.view(len(LENGTHS), POSITIONS, -1)[i], found.image.x_ND.view(len(LENGTHS), N, -1)[i]])
            assert (both - expected).abs().max() < 1e-10 * scale


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_state_hears_of_earlier_tokens_alone(attention: str) -> None:
    """Every token in turn is another one: states up to the one that predicts it stay, the one behind it changes."""
    model, given = dense_dalle.model(6, attention).double(), batch((POSITIONS,))
    joined = lambda one: torch.cat([model(one).text.x_ND, model(one).image.x_ND])
    with torch.no_grad():
        before = joined(given)
        for place in range(POSITIONS + N - 1):
            ids_BT, codes_N = given.text.ids_BT.clone(), given.codes.ids_N.clone()
            if place < POSITIONS:
                ids_BT[0, place] = 4
            else:
                codes_N[place - POSITIONS] = (codes_N[place - POSITIONS] + 1) % CODES
            changed = joined(given._replace(text=Text(ids_BT, (POSITIONS,)), codes=CodeBatch(codes_N, (GRID,))))
            moved = (changed - before).abs().amax(1) > 1e-9
            assert not moved[: place + 1].any() and moved[place + 1]
            if place < POSITIONS:
                assert moved[POSITIONS + 1 :].all()  # every code looks at all of the text
        last = given.codes.ids_N.clone()
        last[-1] = (last[-1] + 1) % CODES
        assert torch.equal(joined(given._replace(codes=CodeBatch(last, (GRID,)))), before)  # the last code is only predicted


def test_company_order_and_what_lies_behind_a_text_do_not_matter() -> None:
    model, given = dense_dalle.model(), batch()
    dense = given.codes.dense()
    with torch.no_grad():
        whole = model(given)
        for order, grow in (([2, 0, 1], 0), ([1], 3), ([0, 2], 2)):
            ids_BT = torch.nn.functional.pad(given.text.ids_BT[order], (0, grow), value=17)
            text = Text(ids_BT, tuple(LENGTHS[i] for i in order))
            codes = CodeBatch(dense[order].flatten(), (GRID,) * len(order))
            part = model(Batch(tuple("abc"[: len(order)]), given.draw_keys_B[order], text, codes=codes))
            for a, b, count in ((part.text, whole.text, POSITIONS), (part.image, whole.image, N)):
                rows = b.x_ND.view(len(LENGTHS), count, -1)[order].flatten(0, 1)
                torch.testing.assert_close(a.x_ND, rows, atol=1e-5, rtol=1e-5)


def test_every_position_has_a_padding_of_its_own() -> None:
    """A changed padding changes what follows it where the text is shorter, and nothing else."""
    model, given = dense_dalle.model().double(), batch()
    with torch.no_grad():
        before = model(given).image.x_ND.view(3, N, -1).clone()
        for position in range(POSITIONS):
            other = copy.deepcopy(model)
            other.words.weight[VOCAB + position] += 1
            moved = (other(given).image.x_ND.view(3, N, -1) - before).abs().amax((1, 2)) > 1e-9
            assert moved.tolist() == [position >= n for n in LENGTHS]


def test_one_modality_alone_and_batches_that_do_not_fit() -> None:
    model, given = dense_dalle.model(), batch()
    with torch.no_grad():
        whole, told = model(given), model(given._replace(codes=None))
        assert told.image is None and told.text.layout.lengths == (6, 6, 6)
        shorter = model(given._replace(codes=None, text=Text(given.text.ids_BT, (2, 0, 3))))
        assert shorter.text.layout.lengths == (3, 3, 3)  # no paddings behind the longest
        torch.testing.assert_close(told.text.x_ND, whole.text.x_ND, atol=1e-5, rtol=1e-5)
        assert model(given._replace(codes=None, text=no_text(3))).text.layout.lengths == (0, 0, 0)
        untold = model(given._replace(text=None))
        torch.testing.assert_close(untold.image.x_ND, model(given._replace(text=no_text(3))).image.x_ND)
        assert (untold.image.x_ND.view(3, N, -1)[1] - whole.image.x_ND.view(3, N, -1)[1]).abs().max() < 1e-5  # its text is empty
    for wrong, message in (
        (given._replace(text=None, codes=None), "text, codes or both"),
        (batch((POSITIONS + 1,)), "6 text positions"),
        (given._replace(codes=CodeBatch(given.codes.ids_N, ((5, 4),) * 3)), r"grid of \(4, 5\)"),
        (given._replace(codes=CodeBatch(given.codes.ids_N, ((4, 5), (5, 4), (4, 5)))), "one size"),
    ):
        with pytest.raises(ValueError, match=message):
            model(wrong)
    with pytest.raises(ValueError, match="causal"):
        model(given, "fused")
    for sizes in ({"text_positions": 0}, {"kernel": 4}, {"grid": (0, 3)}, {"depth": 0}, {"heads": 3}):
        with pytest.raises(ValueError):
            DALLE(**{"width": 16, "depth": 2, "heads": 2, "vocab_size": 9, "codes": 5, "text_positions": 3, "grid": (2, 2), **sizes})


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("given", [0, 3, N - 1])
def test_cached_states_are_those_of_the_full_forward(attention: str, given: int) -> None:
    """Prompts once, their copies apart from each other: two samples of each text with codes of their own."""
    model, copies = dense_dalle.model(7, attention), 2
    one = batch()
    codes_BN = one.codes.dense().flatten(1)
    other_BN = torch.cat([codes_BN[:, :given], (codes_BN[:, given:] * 3 + 1) % CODES], 1)
    both_BN = torch.stack([codes_BN, other_BN], 1).flatten(0, 1)
    text = Text(one.text.ids_BT.repeat_interleave(copies, 0), tuple(n for n in LENGTHS for _ in range(copies)))
    whole = Batch(tuple("abcdef"), torch.arange(6), text, codes=CodeBatch(both_BN.flatten(), (GRID,) * 6))
    with torch.no_grad():
        expected = model(whole).image.x_ND.view(6, N, -1)
    base, first_BD = model.prefill(one.text, codes_BN[:, :given] if given else None)
    torch.testing.assert_close(first_BD, expected[::2, given], atol=1e-5, rtol=1e-5)
    for _ in range(2):  # the base can be expanded again
        cache = base.expand(copies)
        for place in range(given, N - 1):
            state_BD = model.advance(cache, both_BN[:, place])
            torch.testing.assert_close(state_BD, expected[:, place + 1], atol=1e-5, rtol=1e-5)
    assert base.codes == given and cache.layers[0].text is base.layers[0].text
    with pytest.raises(ValueError, match="behind the last"):
        model.advance(cache, both_BN[:, 0])
    with pytest.raises(ValueError, match="20 codes are given"):
        model.prefill(one.text, codes_BN)
    with pytest.raises(ValueError, match="n=0"):
        base.expand(0)


def test_spec_and_blocks() -> None:
    model = dense_dalle.model()
    spec = model.spec
    assert (spec.width, spec.kinds, spec.vocab_size, spec.codes, spec.code_grid, spec.text_pads) == (16, ("causal",), 30, 20, (4, 5), 6)
    assert len(model.blocks()) == 6 and all(p.dim() > 0 for p in model.parameters())


def loss(root: Pretraining, given: Batch) -> torch.Tensor:
    return sum(root.objectives[name].weight * score.sum / score.count for name, score in root(given).items())


def test_born_on_meta_everything_is_filled_and_trained() -> None:
    with torch.device("meta"):
        model = DALLE(16, 3, 2, VOCAB, CODES, POSITIONS, GRID, kernel=3, gain=1.0)
        root = Pretraining(model, {"text": NextText(), "code": NextCode()})
    root.bind(None)
    materialise(root)
    assert [type(p).__name__ for p in root.parameters() if p.is_meta] == []
    for objective in root.objectives.values():  # they start at zero, and hold back the gradient of the first step
        torch.nn.init.normal_(objective.head.out.weight)
    loss(root, batch()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in root.parameters())
    assert root.model.layers[0].mlp.down.weight.std().item() == pytest.approx((6 * 64) ** -0.5, rel=0.1)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    gradients = []
    for recomputed in (False, True):
        model = dense_dalle.model(5, dropout=0.2).train()
        root = Pretraining(model, {"text": NextText(), "code": NextCode()})
        root.bind(None)
        torch.manual_seed(3)
        for objective in root.objectives.values():
            torch.nn.init.normal_(objective.head.out.weight)
        for block in root.blocks() if recomputed else ():
            recompute(block)
        torch.manual_seed(4)
        loss(root, batch()).backward()
        gradients.append({name: p.grad for name, p in root.named_parameters()})
        model.eval()
        cache, _ = model.prefill(batch().text)  # sampling goes through the same blocks
        model.advance(cache, torch.zeros(3, dtype=torch.int64))
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())

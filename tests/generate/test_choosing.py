"""How one code is drawn: filters against NumPy, guidance, noise that belongs to the sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpretrain.generate.choosing import Sampling, choose, guided, gumbel, sample_key, top_k, top_p


def numpy_kept(logits: np.ndarray, k: int | None, p: float | None) -> np.ndarray:
    """Which codes of one row stay, written out."""
    order = np.argsort(-logits, kind="stable")
    keep = np.zeros(len(logits), dtype=bool)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    mass = 0.0
    for place, code in enumerate(order):
        if (k is not None and place >= k) or (p is not None and place > 0 and mass >= p):
            break
        keep[code] = True
        mass += share[code]
    return keep


@pytest.mark.parametrize("k", [1, 3, 17, 40])
def test_top_k_is_numpys(k):
    logits = torch.randn(7, 40, generator=torch.Generator().manual_seed(k)).double()
    kept = top_k(logits, k).isfinite().numpy()
    assert np.array_equal(kept, np.stack([numpy_kept(row, k, None) for row in logits.numpy()]))


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.9, 0.999999])
def test_top_p_is_numpys(p):
    logits = 3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(1)).double()
    kept = top_p(logits, p).isfinite().numpy()
    assert np.array_equal(kept, np.stack([numpy_kept(row, None, p) for row in logits.numpy()]))


def test_equal_logits_keep_the_first_codes():
    assert top_k(torch.zeros(1, 5), 2).isfinite().tolist() == [[True, True, False, False, False]]
    assert top_p(torch.zeros(1, 5).double(), 0.4).isfinite().tolist() == [[True, True, False, False, False]]


def test_top_p_sees_what_top_k_left():
    """Of probabilities 0.5, 0.3, 0.2 two are left, 0.625 and 0.375: with p = 0.6 the first alone reaches it."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().double()
    assert top_p(top_k(logits, 2), 0.6).isfinite().tolist() == [[True, False, False]]
    assert top_p(logits, 0.6).isfinite().tolist() == [[True, True, False]]


def test_guidance_is_the_formula():
    cond, empty = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double().split(1)
    for scale in (0.0, 1.0, 3.0):
        torch.testing.assert_close(guided(cond, empty, scale), (1 - scale) * empty + scale * cond)


def test_draws_follow_the_softmax():
    """A chi-square test over 40,000 keys: 11 degrees of freedom, and 31.3 is passed once in a thousand seeds. This one is fixed."""
    logits = torch.linspace(-2, 2, 12).double()
    keys = torch.tensor([sample_key(3, "a red circle", 0, j) for j in range(40_000)])
    for temperature in (1.0, 0.5):
        found = choose(logits.expand(len(keys), -1), keys, 7, Sampling(temperature=temperature))
        wanted = (logits / temperature).softmax(0) * len(keys)
        assert float(((torch.bincount(found, minlength=12) - wanted) ** 2 / wanted).sum()) < 31.3


def test_filters_and_temperature_hold_in_draws():
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)).double().expand(4000, -1)
    keys = torch.arange(4000) * 7919
    drawn = set(choose(logits, keys, 0, Sampling(temperature=4.0, top_k=5)).tolist())
    assert drawn == set(logits[0].argsort(descending=True)[:5].tolist())
    nucleus = set(np.flatnonzero(numpy_kept(logits[0].numpy() / 4, None, 0.5)).tolist())
    assert set(choose(logits, keys, 0, Sampling(temperature=4.0, top_p=0.5)).tolist()) == nucleus
    assert set(choose(logits, keys, 0, Sampling(temperature=0)).tolist()) == {int(logits[0].argmax())}


def test_noise_is_of_key_and_position():
    keys = torch.tensor([5, -9, 5])
    noise = gumbel(keys, 3, 64)
    assert torch.equal(noise[0], noise[2]) and not torch.equal(noise[0], noise[1])
    assert torch.equal(gumbel(keys[1:2], 3, 64)[0], noise[1]) and not torch.equal(gumbel(keys, 4, 64), noise)
    assert noise.dtype == torch.float64 and bool(noise.isfinite().all())
    many = gumbel(torch.arange(500), 0, 400)
    assert abs(float(many.mean()) - 0.5772) < 0.01 and abs(float(many.var()) - np.pi**2 / 6) < 0.02


def test_keys_tell_seed_prompt_occurrence_and_sample_apart():
    base = sample_key(0, "a", 0, 0)
    assert len({base, sample_key(1, "a", 0, 0), sample_key(0, "b", 0, 0), sample_key(0, "a", 1, 0), sample_key(0, "a", 0, 1)}) == 5
    assert base == sample_key(0, "a", 0, 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": -1.0}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 17}, "between 1 and 16"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"guidance": -0.5}, "guidance=-0.5"),
    ],
)
def test_options_out_of_range(options, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**options).check(16)

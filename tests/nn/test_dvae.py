"""Parts of the dVAE: pixel map, initial weights, Gumbel noise by the keys of samples, the codebook of moving averages against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mmpretrain.nn import dvae
from mmpretrain.nn.dvae import Codebook, Conv2d, Decoder, Encoder, gumbel, map_pixels, one_hot, relaxed, unit_pixels, unmap_pixels
from mmpretrain.types import Pixels

KEYS = torch.arange(40, dtype=torch.int64) * 104729 - 7


def test_the_pixel_map_is_that_of_equation_3_and_back():
    x = torch.linspace(0, 1, 11)
    torch.testing.assert_close(map_pixels(x), 0.1 + 0.8 * x)
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)
    assert unmap_pixels(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


def test_pictures_are_in_0_to_1_however_they_are_normalised():
    raw = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    sizes, mean, std = ((4, 4),) * 2, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    wanted = raw.float() / 255
    for image in (Pixels(raw, sizes, mean, std), Pixels(Pixels(raw, sizes, mean, std).floats(), sizes, mean, std), Pixels(wanted, sizes)):
        torch.testing.assert_close(unit_pixels(image), wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"image 1 of the batch is 4 x 2 pixels.*data\.image\.mode"):
        unit_pixels(Pixels(raw, ((4, 4), (4, 2)), mean, std))


def test_initial_weights_have_the_spread_of_their_fan_in_and_no_bias():
    torch.manual_seed(0)
    for net in (Encoder((64, 128), 2, 512), Decoder((64, 128), 2, 512, 64)):
        for module in net.modules():
            if isinstance(module, Conv2d):
                wanted = module.weight[0].numel() ** -0.5
                assert module.weight.std().item() == pytest.approx(wanted, rel=6 / math.sqrt(2 * module.weight.numel()))
                assert not module.bias.any()


def test_gumbel_noise_has_its_moments_and_hangs_on_the_key_alone(monkeypatch):
    whole = gumbel(KEYS, (64, 5, 5))
    assert whole.mean().item() == pytest.approx(0.5772, abs=0.02) and whole.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert torch.isfinite(whole).all()
    below = (whole < 1.0).float().mean().item()
    assert below == pytest.approx(math.exp(-math.exp(-1.0)), abs=0.01)
    assert torch.equal(gumbel(KEYS[[7]], (64, 5, 5))[0], whole[7])
    monkeypatch.setattr(dvae, "DRAWS", 3 * 64 * 25)  # three samples at a time
    assert torch.equal(gumbel(KEYS, (64, 5, 5)), whole)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    gumbel(KEYS, (3, 1, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_extremes_of_the_draws_are_finite(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr(dvae.random, "bits", lambda keys, stream, n, bits=bits: torch.full((len(keys), n), bits))
        assert torch.isfinite(gumbel(KEYS[:2], (3, 1, 1))).all()


def test_relaxed_samples_follow_the_logits_and_sharpen():
    logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(4000, 3, 1, 1)
    keys = torch.arange(4000) * 31 + 5
    soft = relaxed(logits, keys, 1.0)
    torch.testing.assert_close(soft.sum(1), torch.ones(4000, 1, 1))
    chosen = one_hot(soft.argmax(1), 3).mean((0, 2, 3))
    torch.testing.assert_close(chosen, logits[0, :, 0, 0].softmax(0), atol=0.03, rtol=0)
    assert relaxed(logits, keys, 0.01).amax(1).mean() > 0.99 > soft.amax(1).mean()


def test_straight_through_is_one_hot_with_the_gradient_of_the_relaxed_sample():
    logits = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(4, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    soft, hard = relaxed(logits, KEYS[:4], 0.7), relaxed(logits, KEYS[:4], 0.7, straight_through=True)
    torch.testing.assert_close(hard, one_hot(soft.argmax(1), 6), atol=1e-6, rtol=0)
    (wanted,) = torch.autograd.grad((soft * weight).sum(), logits)
    (found,) = torch.autograd.grad((hard * weight).sum(), logits)
    torch.testing.assert_close(found, wanted)


def test_nearest_vectors():
    book, z = Codebook(7, 4), torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    distance = ((z[:, None] - book.vectors_KD[None, :, :, None, None]) ** 2).sum(2)
    torch.testing.assert_close(book.logits(z), -distance, atol=1e-5, rtol=0)
    ids = book.logits(z).argmax(1)
    assert torch.equal(ids, distance.argmin(1))
    torch.testing.assert_close(book.vectors(ids)[1, :, 2, 0], book.vectors_KD[ids[1, 2, 0]])


def test_moving_averages_are_those_of_numpy():
    rng, book = np.random.default_rng(0), Codebook(5, 3, decay=0.9)
    count, total, vectors = np.zeros(5), np.zeros((5, 3)), book.vectors_KD.numpy().copy()
    for step in range(6):
        n = rng.integers(0, 4, 5) * (np.arange(5) != step % 5)
        sums = rng.standard_normal((5, 3)) * n[:, None]
        book.update(torch.tensor(n, dtype=torch.float32), torch.tensor(sums, dtype=torch.float32))
        count, total = 0.9 * count + 0.1 * n, 0.9 * total + 0.1 * sums
        taken = count > 0
        vectors[taken] = total[taken] / count[taken, None]
    np.testing.assert_allclose(book.vectors_KD, vectors, rtol=1e-5)
    np.testing.assert_allclose(book.count_K, count, rtol=1e-5)


def test_vectors_that_nothing_takes_stay_and_numbers_that_are_not_finite_change_nothing():
    book = Codebook(3, 2, decay=0.5)
    before = book.vectors_KD.clone()
    for _ in range(200):  # long after float32 has lost the average
        book.update(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([[2.0, 3.0], [0.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(book.vectors_KD[0], torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(book.vectors_KD[1:], before[1:])
    held = {name: t.clone() for name, t in book.state_dict().items()}
    book.update(torch.tensor([1.0, float("nan"), 0.0]), torch.zeros(3, 2))
    book.update(torch.ones(3), torch.full((3, 2), float("inf")))
    assert all(torch.equal(t, held[name]) for name, t in book.state_dict().items())


def test_restarts_move_the_dead_alone():
    book = Codebook(3, 2)
    book.count_K.copy_(torch.tensor([5.0, 0.01, 0.02]))
    before = book.vectors_KD.clone()
    book.restart(torch.tensor([[9.0, 9.0], [1.0, 2.0], [float("nan"), 0.0]]), below=0.1)
    assert torch.equal(book.vectors_KD[[0, 2]], before[[0, 2]]) and book.vectors_KD[1].tolist() == [1.0, 2.0]
    assert book.count_K.tolist() == pytest.approx([5.0, 0.1, 0.02]) and book.total_KD[1].tolist() == pytest.approx([0.1, 0.2])

"""Patches, interpolated positions, patch sampling and words."""

import pytest
import torch
import torch.nn.functional as F

from mmpretrain import random
from mmpretrain.nn.embed import PATCHES, PatchEmbedder, TextEmbedder, bilinear, sampled
from mmpretrain.types import Pixels, Text

SIZES = ((32, 24), (8, 40), (16, 16))


def pixels(sizes=SIZES, dtype=torch.uint8) -> Pixels:
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    values = torch.randint(0, 256, (len(sizes), 3, height, width), dtype=torch.uint8)
    if dtype == torch.uint8:
        return Pixels(values, tuple(sizes), (0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    return Pixels(values.to(dtype) / 100, tuple(sizes))


def reference(embedder: PatchEmbedder, image: Pixels, i: int) -> torch.Tensor:
    """One image alone, by convolution and torch's own interpolation."""
    h, w = image.sizes[i]
    x = F.conv2d(image.floats()[i : i + 1, :, :h, :w], embedder.projection.weight, embedder.projection.bias, stride=embedder.patch_size)
    table = embedder.positions.t().view(1, -1, embedder.grid, embedder.grid)
    position = F.interpolate(table, size=x.shape[2:], mode="bilinear", align_corners=True)
    rows = (x + position)[0].flatten(1).t()
    return torch.cat([embedder.class_token + embedder.class_position, rows])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("sizes", [SIZES, ((32, 32), (32, 32)), ((16, 24), (16, 24)), ((32, 32), (16, 8))])
def test_patches_equal_convolution_and_interpolation(dtype: torch.dtype, sizes: tuple) -> None:
    embedder = PatchEmbedder(12, 8, 4)
    torch.nn.init.normal_(embedder.positions)
    image = pixels(sizes, dtype)
    out = embedder(image)
    starts = out.layout.starts
    for i in range(len(sizes)):
        torch.testing.assert_close(out.x_ND[starts[i] : starts[i + 1]], reference(embedder, image, i), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [1, 4, 12])
@pytest.mark.parametrize("size", [(1, 1), (12, 19), (3, 12), (19, 1), (12, 12), (4, 7)])
def test_bilinear_equals_torch(grid: int, size: tuple[int, int]) -> None:
    rows, weights = bilinear(*size, grid)
    table = torch.randn(grid * grid, 5)
    expected = F.interpolate(table.t().view(1, 5, grid, grid), size=size, mode="bilinear", align_corners=True)[0].flatten(1).t()
    got = (table[torch.from_numpy(rows)] * torch.from_numpy(weights)[..., None]).sum(1)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


def test_padding_content_and_grey_pixels_do_not_matter() -> None:
    embedder = PatchEmbedder(12, 8, 4)
    image = pixels()
    other = image.pixels_BCHW.clone()
    for i, (h, w) in enumerate(image.sizes):
        other[i, :, h:], other[i, :, :, w:] = 7, 99
    assert torch.equal(embedder(image).x_ND, embedder(image._replace(pixels_BCHW=other)).x_ND)
    grey = image._replace(pixels_BCHW=torch.full_like(image.pixels_BCHW, 128))  # an all-grey image has as many patches as any other
    assert embedder(grey).layout.lengths == (13, 6, 5)


def test_sampling_draws_without_replacement_by_key() -> None:
    embedder = PatchEmbedder(12, 8, 4, patch_limit=5).train()
    torch.nn.init.normal_(embedder.positions)
    image, keys = pixels(), torch.tensor([11, 12, 13])
    full = embedder.eval()(image)
    out = embedder.train()(image, keys)
    assert out.layout.lengths == (6, 6, 5)  # 12, 5 and 4 patches
    starts = full.layout.starts
    chosen = []
    for i in range(3):
        rows = full.x_ND[starts[i] : starts[i + 1]]
        got = out.x_ND[out.layout.starts[i] : out.layout.starts[i + 1]]
        near = torch.cdist(got, rows).min(1)
        assert near.values.max() < 1e-4
        assert (near.indices.diff() > 0).all()  # raster order, no repetition
        chosen.append(near.indices)
    assert torch.equal(chosen[1], torch.arange(6))
    assert torch.equal(chosen[2], torch.arange(5))
    # the same sample in another batch, at another place, keeps its patches
    swapped = Pixels(image.pixels_BCHW[[2, 0]], (image.sizes[2], image.sizes[0]), image.mean, image.std)
    again = embedder(swapped, keys[[2, 0]])
    torch.testing.assert_close(again.x_ND[5:], out.x_ND[:6], atol=1e-6, rtol=0)
    assert not torch.allclose(embedder(image, keys + 100).x_ND[:6], out.x_ND[:6])


def test_sampling_is_uniform() -> None:
    embedder = PatchEmbedder(4, 8, 4, patch_limit=3).train()
    n = 4000
    image = Pixels(torch.zeros(n, 3, 16, 24, dtype=torch.uint8), ((16, 24),) * n, (0.0,) * 3, (1.0,) * 3)
    kept = sampled(_layout(n, 6), 3, random.bits(torch.tensor([5]), 9, n)[0], PATCHES)
    counts = torch.bincount(kept % 6, minlength=6).float() / n
    assert embedder(image, torch.arange(n)).layout.lengths == (4,) * n
    assert (counts - 0.5).abs().max() < 0.04


def _layout(n: int, length: int):
    from mmpretrain.nn.ragged import Layout

    return Layout((length,) * n)


def test_sizes_must_be_multiples() -> None:
    with pytest.raises(ValueError, match="image 1 of the batch is 20 x 16"):
        PatchEmbedder(12, 8, 4)(pixels(((16, 16), (20, 16))))


@pytest.mark.parametrize(("segments", "norm_eps"), [(2, 1e-12), (0, None)])
def test_words_equal_padded(segments: int, norm_eps: float | None) -> None:
    embedder = TextEmbedder(50, 12, 10, segments=segments, norm_eps=norm_eps)
    ids = torch.randint(0, 50, (3, 7))
    segment_ids = torch.randint(0, 2, (3, 7))
    text = Text(ids, (7, 1, 4), segments_BT=segment_ids if segments else None)
    x = embedder.words(ids) + embedder.positions(torch.arange(7))
    if segments:
        x = x + embedder.segments(segment_ids)
    x = embedder.norm(x)
    expected = torch.cat([x[i, :n] for i, n in enumerate(text.lengths)])
    torch.testing.assert_close(embedder(text).x_ND, expected, atol=1e-6, rtol=0)


def test_text_too_long_or_empty_is_named() -> None:
    embedder = TextEmbedder(50, 12, 4)
    with pytest.raises(ValueError, match="5 tokens does not fit 4 positions"):
        embedder(Text(torch.zeros(1, 5, dtype=torch.int64), (5,)))
    with pytest.raises(ValueError, match="at least one token"):
        embedder(Text(torch.zeros(2, 3, dtype=torch.int64), (3, 0)))


def test_positions_may_start_as_sines_and_cosines() -> None:
    embedder = PatchEmbedder(32, 8, 4, std=0.3, position_init="sincos")
    table = embedder.positions.detach()
    assert table.shape == (16, 32) and table.square().mean().sqrt().item() == pytest.approx(0.3, rel=1e-5)
    alike = (table @ table.T).view(4, 4, 4, 4)
    assert alike[0, 0, 0, 0] > alike[0, 0, 0, 1] > alike[0, 0, 0, 2] and alike[0, 0, 0, 1] == pytest.approx(alike[0, 0, 1, 0].item())
    assert embedder.positions.requires_grad
    for width, kind in ((30, "sincos"), (32, "sinus")):
        with pytest.raises(ValueError, match="position_init"):
            PatchEmbedder(width, 8, 4, position_init=kind)


def test_deltas_are_added_to_the_word_embeddings() -> None:
    """Before positions, segments and the norm, on the valid tokens; zeros change nothing, and padding has none."""
    embedder = TextEmbedder(20, 8, 6, segments=2)
    text = Text(torch.randint(0, 20, (3, 5)), (5, 2, 4), segments_BT=torch.randint(0, 2, (3, 5)))
    plain = embedder(text).x_ND
    zero = torch.zeros(11, 8, requires_grad=True)
    assert torch.equal(embedder(text._replace(delta_ND=zero)).x_ND, plain)
    delta = torch.randn(11, 8)
    got = embedder(text._replace(delta_ND=delta))
    rows = embedder.words.weight[got.layout.pack(text.ids_BT)] + delta
    others = embedder.positions.weight[got.layout.slot_N(delta.device)] + embedder.segments.weight[got.layout.pack(text.segments_BT)]
    torch.testing.assert_close(got.x_ND, F.layer_norm(rows + others, (8,), eps=1e-12), atol=1e-5, rtol=0)
    (grad,) = torch.autograd.grad(embedder(text._replace(delta_ND=zero)).x_ND.square().mul(torch.arange(8.0)).sum(), zero)
    assert (grad.abs().amax(1) > 0).all()
    with pytest.raises(ValueError, match=r"delta_ND must be \(11, 8\)"):
        embedder(text._replace(delta_ND=torch.zeros(15, 8)))


@pytest.mark.parametrize("frozen", [False, True])
def test_first_rows_that_learn_nothing(frozen: bool) -> None:
    embedder = TextEmbedder(20, 8, 6, segments=2, norm_eps=None, frozen_first=frozen)
    text = Text(torch.randint(0, 20, (3, 5)), (5, 2, 4), segments_BT=torch.randint(0, 2, (3, 5)))
    embedder(text).x_ND.sum().backward()
    assert embedder.positions.weight[0].abs().max() > 0  # not zeroed, as the release of LXMERT draws them all
    for table in (embedder.positions, embedder.segments):
        assert (table.weight.grad[0].abs().max() == 0) == frozen
        assert table.weight.grad[1].abs().max() > 0
    assert embedder.words.weight.grad.abs().max() > 0

"""Masks of patches: how many, of what shape, by which draws, independent of the layout."""

import math

import numpy as np
import pytest
import torch
from helpers.objectives import keys

from mmpretrain import random
from mmpretrain.objectives.patch_masking import TRIES, PatchMasker, on_host, patch_grids

BEIT = PatchMasker(share=0.383)  # 75 of 196, as released
SQUARE = ((14, 14),)


def plain(masker: PatchMasker, key: torch.Tensor, grid: tuple[int, int], name: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One mask by the words of the paper and the code, and its rectangles, one after another."""
    rows, columns = grid
    wanted, mask, found = max(1, int(masker.share * rows * columns + 1e-9)), np.zeros(grid, dtype=bool), []
    stream = (
        u for chunk in range(1000) for u in random.uniform(key[None], random.stream(f"{name}/patches/block/{chunk}"), 128)[0].tolist()
    )
    tries = 0
    while mask.sum() < wanted and tries < TRIES:
        tries += 1
        left = int(wanted - mask.sum())
        most = left if masker.largest is None else min(left, masker.largest)
        least = min(masker.smallest, wanted)
        u = [next(stream) for _ in range(4)]
        area = least + (most - least) * u[0]
        aspect = math.exp(math.log(masker.aspect) + u[1] * (math.log(1 / masker.aspect) - math.log(masker.aspect)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top, left_ = int((rows - height + 1) * u[2]), int((columns - width + 1) * u[3])
        new = height * width - int(mask[top : top + height, left_ : left_ + width].sum())
        if 0 < new <= most:
            mask[top : top + height, left_ : left_ + width] = True
            found.append((height, width))
            tries = 0
    return mask, found


def test_blocks_are_those_of_a_plain_loop() -> None:
    grids = ((14, 14), (8, 8), (12, 19), (5, 9), (14, 14), (2, 2), (3, 14))
    for masker in (BEIT, PatchMasker(smallest=4), PatchMasker(share=0.75, smallest=6, largest=20, aspect=0.5)):
        k = keys(len(grids) * 8)
        got = masker.mask(k, grids * 8, "mim")
        expected = [plain(masker, key, grid, "mim") for key, grid in zip(k, grids * 8, strict=True)]
        assert np.array_equal(got, np.concatenate([mask.ravel() for mask, _ in expected]))
        for (_, found), (rows, columns) in zip(expected, grids * 8, strict=True):
            for height, width in found:
                assert height < rows and width < columns
                assert masker.aspect * (width - 0.5) - 0.5 <= height <= (width + 0.5) / masker.aspect + 0.5


def test_rates_of_blocks_are_those_of_the_released_generator() -> None:
    """20,480 masks of the released code: 74.47 patches of 75 on average, standard deviation 0.99, two thirds reach 75."""
    n = 4096
    masks = BEIT.mask(keys(n), SQUARE * n, "mim").reshape(n, 196)
    counts = masks.sum(1)
    assert counts.max() == 75 and counts.min() > 50
    assert abs(counts.mean() - 74.47) < 0.06 and abs(counts.std() - 0.99) < 0.1
    assert abs((counts == 75).mean() - 0.666) < 0.03
    beside = masks.reshape(n, 14, 14)
    assert abs((beside[:, :, 1:] & beside[:, :, :-1]).mean() - 0.344) < 0.005  # scattered ones would give 0.145
    assert 0.03 < masks.mean(0).min() < 0.05 and 0.69 < masks.mean(0).max() < 0.75  # a corner, the middle


def test_uniform_masks_have_exactly_their_share() -> None:
    masker, n = PatchMasker(kind="uniform", share=0.6), 4000
    masks = masker.mask(keys(n), ((3, 4),) * n, "mim").reshape(n, 12)
    assert (masks.sum(1) == 7).all()
    assert np.abs(masks.mean(0) - 7 / 12).max() < 4 * (7 / 12 * 5 / 12 / n) ** 0.5


def test_small_pictures() -> None:
    grids = ((1, 1), (1, 6), (2, 2), (3, 3))
    for kind in ("block", "uniform"):
        masks = PatchMasker(kind=kind).mask(keys(4), grids, "mim")
        counts = [int(part.sum()) for part in np.split(masks, np.cumsum([h * w for h, w in grids])[:-1])]
        assert counts[2] == 1 and counts[3] in (2, 3)
        assert counts[:2] == ([0, 0] if kind == "block" else [1, 2])  # a rectangle is smaller than the picture both ways


@pytest.mark.parametrize("kind", ["block", "uniform"])
def test_same_masks_whole_in_parts_and_permuted(kind: str) -> None:
    masker = PatchMasker(kind=kind, smallest=4)
    grids = tuple((3 + i % 6, 4 + i % 5) for i in range(24))
    k = keys(24)
    whole = masker.mask(k, grids, "mim")
    own = np.split(whole, np.cumsum([h * w for h, w in grids])[:-1])
    for order in ([5], list(range(12, 24)), list(np.random.default_rng(0).permutation(24))):
        got = masker.mask(k[order], tuple(grids[i] for i in order), "mim")
        assert np.array_equal(got, np.concatenate([own[i] for i in order]))
    assert not np.array_equal(masker.mask(k, grids, "other"), whole)
    assert not np.array_equal(masker.mask(k + 1, grids, "mim"), whole)


def test_mistakes() -> None:
    for options, match in (
        ({"kind": "blocks"}, "choose block or uniform"),
        ({"share": 0.0}, "share=0.0"),
        ({"aspect": 1.5}, "aspect=1.5"),
        ({"smallest": 0}, "at least 1"),
        ({"largest": 8}, "largest=8 no less"),
    ):
        with pytest.raises(ValueError, match=match):
            PatchMasker(**options)


def test_what_is_read_from_the_device() -> None:
    k, matched = keys(3), torch.tensor([True, False, True])
    for given in (None, matched):
        host, found = on_host(k, given)
        assert torch.equal(host, k) and (found is None if given is None else found.tolist() == [True, False, True])
    assert patch_grids(((32, 48), (16, 8)), 8) == ((4, 6), (2, 1))

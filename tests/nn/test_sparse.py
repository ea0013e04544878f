"""DALL-E's attention: against a table of pairs written out by the rules, causality by perturbation, one code at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpretrain.nn.layers import Init
from mmpretrain.nn.sparse import KINDS, Memory, SparseAttention, attend, distances, layer_kinds, pattern, seen

# text states, rows, columns, kernel: figure 11's, as wide as the kernel, narrower, wider (twice), narrower again, one row, one column
SHAPES = [(7, 4, 4, 3), (3, 8, 5, 5), (2, 5, 3, 11), (4, 3, 20, 5), (1, 4, 40, 3), (6, 6, 6, 11), (3, 1, 9, 3), (3, 9, 1, 3)]


def table(kind: str, text: int, n: int, columns: int, kernel: int) -> Tensor:
    """Whether query i may look at key j, pair by pair: bool (L, L)."""
    made = torch.zeros(text + n, text + n, dtype=torch.bool)
    for i in range(text + n):
        for j in range(text + n):
            made[i, j] = j <= i if j < text or i < text else _image(kind, i - text, j - text, columns, kernel)
    return made


def _image(kind: str, i: int, j: int, columns: int, kernel: int) -> bool:
    if j > i:
        return False
    if kind == "row":  # the last one stands above the query
        return j >= i - columns
    if kind == "column":
        return j % columns == i % columns
    if kind == "full":
        return True
    half = kernel // 2
    square = [(up, side) for up in range(half + 1) for side in range(-half, half + 1)]
    return any(j == i - up * columns + side for up, side in square)  # sides run on into the rows beside, as raster order does


def qkv(length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, length, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def counts(rows: int, columns: int) -> list[int]:
    """Numbers of codes: none, one, ends of rows and within them, all but the last, all."""
    n = rows * columns
    return sorted({0, 1, columns, min(columns + 1, n), max(n - columns - 1, 0), n - 1, n})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sparse_is_dense_with_the_table_of_pairs(kind: str, shape: tuple[int, int, int, int]) -> None:
    text, rows, columns, kernel = shape
    for n in counts(rows, columns):
        mask = table(kind, text, n, columns, kernel)
        q, k, v = (x.requires_grad_() for x in qkv(text + n))
        found = attend(q, k, v, pattern(kind, text, n, columns, kernel))
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
        weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        ours, theirs = (torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (found, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_figure_of_the_paper() -> None:
    """Figure 11: 4 x 4 codes, 5 in a row's extent, a 3 x 3 kernel with wrap-around."""
    assert distances("row", 4) == (0, 1, 2, 3, 4)
    assert distances("conv", 4, 3) == (0, 1, 3, 4, 5)
    assert len(distances("conv", 32, 11)) == 61 and max(distances("row", 32)) == 32
    with pytest.raises(ValueError, match="odd"):
        distances("conv", 4, 4)
    with pytest.raises(ValueError, match="column"):
        distances("column", 4)
    with pytest.raises(ValueError, match="diagonal"):
        pattern("diagonal", 1, 1, 4)


def test_how_many_keys_a_block_meets() -> None:
    """One window for each block, and its scores are all that is computed."""
    for kind, keys, allowed in (("row", 64, 33), ("conv", 197, 61)):
        made = pattern(kind, 257, 1024, 32, 11)
        assert made.bias is not None and made.bias.shape == (32, 32, keys) and made.reach + made.block == keys
        assert (made.bias[-1] == 0).sum(-1).eq(allowed).all()


def test_the_kinds_of_the_64_layers() -> None:
    kinds = layer_kinds(64)
    assert kinds[:4] == ("row", "column", "row", "row") and kinds[-1] == "conv" and len(kinds) == 64
    assert [i for i, kind in enumerate(kinds, 1) if kind == "column"] == [i for i in range(1, 64) if (i - 2) % 4 == 0]
    assert set(kinds[:-1]) == {"row", "column"} and layer_kinds(1) == ("conv",) and set(layer_kinds(5, "full")) == {"full"}
    for wrong in ((0, "sparse"), (3, "dense")):
        with pytest.raises(ValueError):
            layer_kinds(*wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_hears_of_a_later_one(kind: str) -> None:
    text, rows, columns = 4, 5, 6
    n = rows * columns
    q, k, v = qkv(text + n)
    own = pattern(kind, text, n, columns, 5)
    before = attend(q, k, v, own)
    mask = table(kind, text, n, columns, 5)
    for place in range(text + n):
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[:, :, place] += 1
        changed_v[:, :, place] -= 2
        moved = (attend(q, changed_k, changed_v, own) - before).abs().amax((0, 1, 3)) > 1e-9
        assert torch.equal(moved, mask[:, place])  # those that look at it, all of them, and no others


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_code_sees_is_its_row_of_the_table(kind: str) -> None:
    for text, rows, columns, kernel in SHAPES:
        mask = table(kind, text, rows * columns, columns, kernel)[text:, text:]
        for place in range(rows * columns):
            places = torch.arange(rows * columns)[seen(kind, place, columns, kernel)]
            assert torch.equal(places, mask[place].nonzero()[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_one_code_at_a_time_is_all_at_once(kind: str) -> None:
    """Through the module, with three copies of each sample on one text."""
    torch.manual_seed(0)
    text, rows, columns, copies = 5, 4, 5, 3
    n = rows * columns
    attention = SparseAttention(24, 3, kind, 3, Init("normal", 0.3), Init("normal", 0.3)).eval()
    told_BLD, codes_BLD = torch.randn(2, text, 24), torch.randn(2 * copies, n, 24)
    whole = attention(torch.cat([told_BLD.repeat_interleave(copies, 0), codes_BLD], 1), pattern(kind, text, n, columns, 3))
    with torch.no_grad():
        given = Memory(n)
        attention(told_BLD, pattern(kind, text, 0, columns, 3), given)
        memory = given.expand(copies, 0)
        for place in range(n):
            one = attention(codes_BLD[:, place : place + 1], pattern(kind, text, 0, columns, 3), memory, place)
            torch.testing.assert_close(one[:, 0], whole[:, text + place], atol=1e-5, rtol=0)
        assert memory.text is given.text  # not copied


def test_the_sparse_path_makes_no_table_of_all_pairs() -> None:
    """Numbers that autograd keeps: with four times the codes in as wide rows four times as many, and not sixteen times."""

    def kept(kind: str, rows: int) -> int:
        sizes: list[int] = []
        q, k, v = (torch.randn(1, 1, 4 + rows * 16, 4, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            attend(q, k, v, pattern(kind, 4, rows * 16, 16, 5))
        return max(sizes)

    for kind in ("row", "conv"):
        assert kept(kind, 64) < 5 * kept(kind, 16)
    assert kept("column", 16) < 16 * 16 * 16 + 4 * 256 + 1  # columns x rows x rows, and the text

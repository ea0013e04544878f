"""Pixel-BERT: size, a padded reference, sampling, strides, sizes of pictures, gradients from text to the first convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny
from helpers.bert_block import encoder
from torch import Tensor, nn

from mmpretrain.cli.layering import layer
from mmpretrain.evaluate.rebuild import build
from mmpretrain.models.pixelbert import PixelBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.pixels import PixelEmbedder
from mmpretrain.train.pretraining import materialise
from mmpretrain.types import Batch, Pixels, Text

SIZES = ((128, 192), (192, 128), (64, 64), (128, 192))
CELLS = (6, 6, 1, 6)
WIDTH, HEADS = 48, 4


def model(limit: int = -1, projection: str = "linear", attention: str = "eager") -> PixelBERT:
    torch.manual_seed(3)
    image = PixelEmbedder(ResNet("tiny"), WIDTH, limit=limit, projection=projection)  # type: ignore[arg-type]
    blocks = Transformer(WIDTH, 2, HEADS, norm="post", final_norm=False, eps=1e-12, attention=attention, init="normal")
    return tiny.shake(PixelBERT(TextEmbedder(60, WIDTH, 16, segments=2), image, blocks))


def batch(sizes: tuple[tuple[int, int], ...] = SIZES) -> Batch:
    return tiny.batch(sizes, tiny.LENGTHS[: len(sizes)])


def rows(x, i: int) -> Tensor:
    return x.x_ND[x.layout.starts[i] : x.layout.starts[i + 1]]


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        text, blocks = TextEmbedder(30522, 768, 512, segments=2), Transformer(768, 12, 12, norm="post", final_norm=False)
        made = PixelBERT(text, PixelEmbedder(ResNet("resnet50"), 768), blocks)
    cnn = sum(p.numel() for p in made.image.cnn.parameters())
    assert cnn == 23_508_032
    assert sum(p.numel() for p in made.parameters()) - cnn == 111_055_872


def reference(m: PixelBERT, inputs: Batch) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Text padded to the longest, pixels after it, one picture at a time through the network: states and pooled state."""
    text, image, p = inputs.text, inputs.image, dict(m.named_parameters())
    longest, most = max(text.lengths), max(CELLS)
    x = torch.zeros(inputs.size, longest + most, WIDTH)
    mask = torch.zeros(inputs.size, longest + most, dtype=torch.bool)
    words = F.embedding(text.ids_BT[:, :longest], p["text.words.weight"]) + p["text.positions.weight"][:longest]
    words = words + p["text.segments.weight"][0]
    x[:, :longest] = F.layer_norm(words, (WIDTH,), p["text.norm.weight"], p["text.norm.bias"], 1e-12)
    for i, ((h, w), n) in enumerate(zip(image.sizes, CELLS, strict=True)):
        grid = F.max_pool2d(m.image.cnn(image.pixels_BCHW[i : i + 1, :, :h, :w]), 2)[0]
        for y in range(grid.shape[1]):
            for z in range(grid.shape[2]):
                cell = p["image.projection.weight"] @ grid[:, y, z] + p["image.semantic"][0]
                x[i, longest + y * grid.shape[2] + z] = cell
        mask[i, : text.lengths[i]] = mask[i, longest : longest + n] = True
    x = encoder(m, x, mask, HEADS)
    pooled = torch.tanh(F.linear(x[:, 0], p["pooler.dense.weight"], p["pooler.dense.bias"]))
    return [x[i, :n] for i, n in enumerate(text.lengths)], [x[i, longest : longest + n] for i, n in enumerate(CELLS)], pooled


@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-4)])
@torch.no_grad()
def test_states_are_those_of_a_padded_reference(attention: str, tolerance: float) -> None:
    m, inputs = model(attention=attention), batch()
    out = m(inputs)
    words, pixels, pooled = reference(m, inputs)
    assert out.image_prefix == 0 and out.image.layout.lengths == CELLS
    for i in range(4):
        torch.testing.assert_close(rows(out.text, i), words[i], atol=tolerance, rtol=0)
        torch.testing.assert_close(rows(out.image, i), pixels[i], atol=tolerance, rtol=0)
    torch.testing.assert_close(out.pooled_BD, pooled, atol=tolerance, rtol=0)
    torch.testing.assert_close(m(inputs, "pooled").pooled_BD, pooled, atol=tolerance, rtol=0)


@pytest.mark.parametrize("projection", ["linear", "conv3x3"])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_company_order_padding_and_sizes_beside_do_not_matter(projection: str, training: bool) -> None:
    m, inputs = model(4, projection).train(training), batch()
    whole = m(inputs)
    for order, grow in (([2, 0, 3, 1], 0), ([1], 64), ([3, 2], 32)):
        padded = F.pad(inputs.image.pixels_BCHW[order], (0, grow, 0, grow), value=9.0)
        lengths = tuple(inputs.text.lengths[i] for i in order)
        image = Pixels(padded, tuple(SIZES[i] for i in order))
        part = m(Batch(tuple(inputs.keys[i] for i in order), inputs.draw_keys_B[order], Text(inputs.text.ids_BT[order], lengths), image))
        for place, i in enumerate(order):
            torch.testing.assert_close(rows(part.text, place), rows(whole.text, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows(part.image, place), rows(whole.image, i), atol=1e-5, rtol=0)


@torch.no_grad()
def test_pixels_are_a_set() -> None:
    """Any order of the cells leaves text and pooled state as they are, and takes the cells' states along."""
    m, inputs = model(), batch(((128, 192),))
    out, cells = m(inputs), m.image._cells
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    m.image._cells = lambda image, layout: cells(image, layout)[order]
    turned = m(inputs)
    torch.testing.assert_close(turned.text.x_ND, out.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.pooled_BD, out.pooled_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.image.x_ND, out.image.x_ND[order], atol=1e-5, rtol=0)
    assert not torch.allclose(out.image.x_ND[0], out.image.x_ND[4], atol=1e-3)


@torch.no_grad()
def test_training_draws_distinct_pixels_in_raster_order() -> None:
    """The default limit on a grid of 11 x 10 cells: 100 of 110, other ones for another key; on smaller grids all; in evaluation all."""
    torch.manual_seed(0)
    embedder = PixelEmbedder(ResNet("tiny"), WIDTH).train()
    image = Pixels(torch.randn(2, 3, 704, 640), ((704, 640), (64, 192)))
    every = embedder.eval()(image)
    assert every.layout.lengths == (110, 3)
    drawn = embedder.train()(image, torch.tensor([5, 6]))
    assert drawn.layout.lengths == (100, 3)
    matches = (drawn.x_ND[:100, None] - every.x_ND[None, :110]).abs().amax(-1) < 1e-5
    assert bool((matches.sum(1) == 1).all())
    places = matches.int().argmax(1)
    assert bool((places[1:] > places[:-1]).all())
    assert torch.equal(drawn.x_ND[100:], every.x_ND[110:])
    other = embedder(image, torch.tensor([7, 6]))
    assert not torch.equal(other.x_ND[:100], drawn.x_ND[:100])
    with pytest.raises(ValueError, match="draw keys"):
        embedder(image)


@torch.no_grad()
def test_the_small_recipe_draws_half_of_the_cells_in_training_and_reads_all_in_evaluation() -> None:
    config = layer(["pixelbert.yaml"]).config
    embedder = build(config["model"]["system"]["init_args"]["image"], PixelEmbedder, "image")
    side = config["data"]["image"]["size"]
    image = Pixels(torch.randn(3, 3, side, side), ((side, side),) * 3)
    assert embedder.train()(image, torch.tensor([5, 6, 7])).layout.lengths == (2, 2, 2)
    assert embedder.eval()(image).layout.lengths == (4, 4, 4)


@pytest.mark.parametrize(("rows_", "columns"), [(1, 1), (2, 5), (3, 1)])
@torch.no_grad()
def test_stride_is_64(rows_: int, columns: int) -> None:
    embedder = PixelEmbedder(ResNet("tiny"), WIDTH).eval()
    image = Pixels(torch.randn(1, 3, 64 * rows_, 64 * columns), ((64 * rows_, 64 * columns),))
    assert embedder.grids(image) == ((rows_, columns),)
    assert embedder(image).layout.lengths == (rows_ * columns,)


def test_a_loss_on_text_alone_reaches_the_first_convolution() -> None:
    m, inputs = model(4).train(), batch()
    m(inputs).text.x_ND.square().sum().backward()
    assert m.image.cnn.conv1.weight.grad.abs().max() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in m.named_parameters() if not name.startswith("pooler"))
    m.zero_grad()
    m(inputs).pooled_BD.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())


@torch.no_grad()
def test_one_modality_alone_and_the_words_keep_their_positions() -> None:
    m, inputs = model(), batch()
    assert m(inputs._replace(text=None)).image.layout.lengths == CELLS
    alone = m(inputs._replace(image=None))
    assert alone.image is None and alone.text.layout.lengths == tiny.LENGTHS
    ids = inputs.text.ids_BT.clone()
    ids[0, [1, 2]] = ids[0, [2, 1]]
    swapped = m(inputs._replace(text=inputs.text._replace(ids_BT=ids)))
    assert not torch.allclose(swapped.pooled_BD[0], m(inputs).pooled_BD[0], atol=1e-3)


def test_spec_birth_on_meta_and_mistakes() -> None:
    m = model()
    assert (m.spec.patch_size, m.spec.width, m.spec.token_table is m.text.words) == (64, WIDTH, True)
    assert len(m.blocks()) == 2
    for part in m.modules():
        assert not list(part.parameters(recurse=False)) or hasattr(part, "reset_parameters"), type(part)
    with torch.device("meta"):
        born = PixelBERT(TextEmbedder(9, 8, 4), PixelEmbedder(ResNet("tiny"), 8), Transformer(8, 1, 2))
    materialise(born)
    assert all(p.isfinite().all() and p.dim() > 0 for p in born.parameters())
    with pytest.raises(ValueError, match=r"data\.image\.multiple"):
        m(batch(((128, 100),)))
    with pytest.raises(ValueError, match="text, pixels or both"):
        m(batch()._replace(text=None, image=None))
    with pytest.raises(ValueError, match="one width"):
        PixelBERT(TextEmbedder(9, 16, 8), PixelEmbedder(ResNet("tiny"), 32), Transformer(32, 1, 4))
    with pytest.raises(ValueError, match="conv3x3"):
        PixelEmbedder(ResNet("tiny"), 8, projection="mlp")  # type: ignore[arg-type]
    assert isinstance(m.image.projection, nn.Linear) and m.image.projection.bias is None

"""ViLT: size, invariances, single modalities, patch sampling."""

import pytest
import torch
from helpers import tiny

from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.ragged import Ragged
from mmpretrain.types import Batch, Pixels, Text


def rows(ragged: Ragged, i: int) -> torch.Tensor:
    return ragged.x_ND[ragged.layout.starts[i] : ragged.layout.starts[i + 1]]


def chosen(batch: Batch, order: list[int], grow: int = 0) -> Batch:
    """The samples ``order`` of a batch, with more padding of other content."""
    text, image = batch.text, batch.image
    ids = torch.nn.functional.pad(text.ids_BT[order], (0, grow), value=17)
    pixels = torch.nn.functional.pad(image.pixels_BCHW[order], (0, 8 * grow, 0, 8 * grow), value=3.0)
    return Batch(
        tuple(batch.keys[i] for i in order),
        batch.draw_keys_B[order],
        Text(ids, tuple(text.lengths[i] for i in order)),
        Pixels(pixels, tuple(image.sizes[i] for i in order)),
    )


def test_parameter_counts_of_the_paper() -> None:
    with torch.device("meta"):
        model = ViLT(TextEmbedder(30522, 768, 40, segments=2), PatchEmbedder(768, 32, 12), Transformer(768, 12, 12))
        head = VocabularyHead(768, 30522, model.text.words)
    count = sum(p.numel() for p in model.parameters())
    assert count == 111_595_008
    assert count + sum(p.numel() for p in head.parameters()) == 112_217_658


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
def test_company_order_and_padding_do_not_matter(attention: str, training: bool) -> None:
    """With patch sampling too: its draws are keyed by the sample."""
    model, batch = tiny.vilt(attention, patch_limit=9).train(training), tiny.batch()
    whole = model(batch)
    for order, grow in (([2, 0, 3, 1], 0), ([1], 2), ([3, 2], 1)):
        part = model(chosen(batch, order, grow))
        for place, i in enumerate(order):
            torch.testing.assert_close(rows(part.text, place), rows(whole.text, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows(part.image, place), rows(whole.image, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(part.pooled_BD[place], whole.pooled_BD[i], atol=1e-5, rtol=0)


def test_patch_limit_is_for_training_only() -> None:
    model, batch = tiny.vilt(patch_limit=9), tiny.batch()
    assert model(batch).image.layout.lengths == (16, 9, 5, 16)
    assert model.train()(batch).image.layout.lengths == (10, 9, 5, 10)


def test_text_and_image_meet() -> None:
    model, batch = tiny.vilt(), tiny.batch()
    pixels = batch.image.pixels_BCHW.clone().requires_grad_()
    out = model(batch._replace(image=batch.image._replace(pixels_BCHW=pixels)))
    (grad,) = torch.autograd.grad(out.pooled_BD[0].sum(), pixels)
    assert grad[0].abs().max() > 0
    assert grad[1:].abs().max() == 0


def test_one_modality_alone() -> None:
    model, batch = tiny.vilt(), tiny.batch()
    text = model(batch._replace(image=None))
    assert text.image is None
    assert text.text.layout.lengths == tiny.LENGTHS
    image = model(batch._replace(text=None))
    assert image.text is None
    assert image.image_prefix == 1
    assert image.pooled_BD.shape == (4, 32)
    with pytest.raises(ValueError, match="text, images or both"):
        model(batch._replace(text=None, image=None))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lacking", [None, "text", "image"])
def test_the_pooled_state_alone_is_the_same(attention: str, lacking: str | None) -> None:
    model, batch = tiny.vilt(attention), tiny.batch()
    batch = batch if lacking is None else batch._replace(**{lacking: None})
    alone = model(batch, "pooled")
    assert alone.text is None and alone.image is None
    torch.testing.assert_close(alone.pooled_BD, model(batch).pooled_BD, atol=1e-6, rtol=0)


def test_spec_blocks_and_mistakes() -> None:
    model = tiny.vilt()
    assert model.spec.token_table is model.text.words
    assert (model.spec.width, model.spec.vocab_size, model.spec.patch_size, model.spec.kinds) == (32, 60, 8, ("fused", "pooled"))
    assert len(model.blocks()) == 3
    with pytest.raises(ValueError, match="fused"):
        model(tiny.batch(), "paired")
    with pytest.raises(ValueError, match="one width"):
        ViLT(TextEmbedder(9, 16, 8), PatchEmbedder(32, 8, 4), Transformer(32, 1, 4))


def test_every_parameter_can_be_born_on_meta_and_is_trained() -> None:
    with torch.device("meta"):
        model = ViLT(TextEmbedder(60, 32, 12, segments=2), PatchEmbedder(32, 8, 4), Transformer(32, 2, 4), modal_types=2)
    model.to_empty(device="cpu")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        assert not own or hasattr(module, "reset_parameters"), type(module)
        if own:
            module.reset_parameters()
    assert all(p.dim() > 0 for p in model.parameters())
    out = model.train()(tiny.batch())
    (out.pooled_BD.square().sum() + out.image.x_ND.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

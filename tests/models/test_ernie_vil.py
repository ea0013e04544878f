"""ERNIE-ViL: sizes, co-attention at named positions against a plain reference, and ViLBERT where the two agree."""

import pytest
import torch
from helpers import official, tiny, two_streams
from helpers.two_streams import Padded

from mmpretrain.models.ernie_vil import ErnieViL
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder

BERT = {"norm": "post", "final_norm": False}


def test_parameter_count_of_base() -> None:
    with torch.device("meta"):
        model = ErnieViL(
            TextEmbedder(30522, 768, 512, segments=4),
            RegionEmbedder(1024, 2048, global_feature="first"),
            Transformer(768, 12, 12, **BERT),
            Transformer(1024, 6, 8, mlp_ratio=1.0, **BERT),
            CoAttention(768, 1024, 1024, 6, 8, text_hidden=3072, image_hidden=1024),
        )
    assert sum(p.numel() for p in model.parameters()) == 235_707_392
    assert (model.text_positions, model.image_positions) == ((6, 7, 8, 9, 10, 11), (0, 1, 2, 3, 4, 5))


def test_parameter_count_of_large() -> None:
    with torch.device("meta"):
        model = ErnieViL(
            TextEmbedder(30522, 1024, 512, segments=4),
            RegionEmbedder(1024, 2048, global_feature="first"),
            Transformer(1024, 24, 16, **BERT),
            Transformer(1024, 6, 16, **BERT),
            CoAttention(1024, 1024, 1024, 6, 16),
        )
    assert sum(p.numel() for p in model.parameters()) == 565_031_936
    assert (model.text_positions, model.image_positions) == ((18, 19, 20, 21, 22, 23), (0, 1, 2, 3, 4, 5))


def test_with_the_tensors_of_vilbert_it_is_vilbert() -> None:
    """At the released positions, with one eps and as many sentence types, the two orders are the same."""
    model = tiny.shake(two_streams.ernie_vil(segments=2, eps=1e-12))
    twin = two_streams.vilbert().eval()
    twin.load_state_dict(model.state_dict(), strict=True)
    ours, theirs = model(two_streams.batch()), twin(two_streams.batch())
    assert torch.equal(ours.text.x_ND, theirs.text.x_ND)
    assert torch.equal(ours.image.x_ND, theirs.image.x_ND)
    assert torch.equal(ours.pooled_BD, theirs.pooled_BD)


@pytest.mark.parametrize(("text_at", "image_at"), [((1, 3), (0, 2)), ((0, 3), (2, 2)), ((2, 3), (1, 2))])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_order_of_the_blocks(text_at: tuple[int, int], image_at: tuple[int, int], attention: str) -> None:
    sizes = official.VILBERT._replace(text_depth=4, image_depth=3)
    text_blocks, image_blocks, _ = two_streams.co_streams(sizes, attention, eps=1e-5)
    _, _, co = two_streams.co_streams(official.VILBERT, attention, eps=1e-5)
    parts = (*two_streams.embedders(sizes, 4, 1e-5), text_blocks, image_blocks, co)
    model, batch = tiny.shake(ErnieViL(*parts, text_at, image_at)), two_streams.batch()
    plain = Padded(model, 1e-5)
    (text, text_mask), (image, image_mask) = plain.text(batch.text), plain.image(batch.regions)
    text_done = image_done = 0
    for k in range(2):
        while text_done < text_at[k]:
            text = plain.block(f"text_blocks.blocks.{text_done}", text, text_mask, sizes.text_heads)
            text_done += 1
        while image_done < image_at[k]:
            image = plain.block(f"image_blocks.blocks.{image_done}", image, image_mask, sizes.image_heads)
            image_done += 1
        text, image = plain.co_block(f"co_attention.blocks.{k}", text, image, (text_mask, image_mask), sizes.pooled_heads)
    text = plain.block("text_blocks.blocks.3", text, text_mask, sizes.text_heads)
    image = plain.block("image_blocks.blocks.2", image, image_mask, sizes.image_heads)
    out = model(batch)
    torch.testing.assert_close(out.text.x_ND, text[text_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.image.x_ND, image[image_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled_BD, plain.pooled(text, image), atol=1e-5, rtol=0)


def test_four_sentence_types() -> None:
    model, batch = two_streams.shaken("ernie_vil"), two_streams.batch()
    typed = batch._replace(text=batch.text._replace(segments_BT=batch.text.segments_BT + 2))
    assert (model(batch).pooled_BD - model(typed).pooled_BD).abs().max() > 1e-3


@pytest.mark.parametrize("positions", [(1, 1), (0, 1, 2), (2, 1), (-1, 2), (2, 3)])
def test_positions_that_do_not_fit(positions: tuple[int, ...]) -> None:
    parts = (*two_streams.embedders(official.VILBERT), *two_streams.co_streams(official.VILBERT, "eager"))
    with pytest.raises(ValueError, match=r"text_positions must be 2 blocks in order, .* \(2\), got"):
        ErnieViL(*parts, text_positions=positions)

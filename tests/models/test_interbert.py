"""InterBERT: size, the order of its blocks against a plain reference, and what the released code returned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import official, two_streams
from helpers.two_streams import Padded

from mmpretrain.models.interbert import InterBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder

GOLDEN = Path(__file__).parents[1] / "golden" / "interbert_states.npz"


def test_parameter_count_of_the_released_configuration() -> None:
    stack = lambda heads: Transformer(768, 6, heads, norm="post", final_norm=False)
    with torch.device("meta"):
        text, regions = TextEmbedder(30522, 768, 512, segments=2), RegionEmbedder(768, 2048, global_feature="first")
        model = InterBERT(text, regions, stack(12), stack(12), stack(8))
    assert sum(p.numel() for p in model.parameters()) == 154_573_568


def test_the_states_of_the_released_code() -> None:
    sizes = official.INTERBERT
    model = official.fill(two_streams.interbert(), official.interbert_names())
    with np.load(GOLDEN) as golden:
        out = model(official.batch(sizes))
        for name, states in (("text", out.text.x_ND), ("image", out.image.x_ND), ("pooled", out.pooled_BD)):
            torch.testing.assert_close(states, torch.from_numpy(golden[name]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_order_of_the_blocks(attention: str) -> None:
    """Regions, then words, through the joint blocks; then each alone."""
    sizes, model, batch = official.INTERBERT, two_streams.shaken("interbert", attention), two_streams.batch()
    plain = Padded(model)
    (text, text_mask), (image, image_mask) = plain.text(batch.text), plain.image(batch.regions)
    x, mask = torch.cat([image, text], 1), torch.cat([image_mask, text_mask], 1)
    for i in range(sizes.joint_depth):
        x = plain.block(f"joint_blocks.blocks.{i}", x, mask, sizes.text_heads)
    image, text = x[:, : image.shape[1]], x[:, image.shape[1] :]
    for i in range(sizes.text_depth):
        text = plain.block(f"text_blocks.blocks.{i}", text, text_mask, sizes.text_heads)
    for i in range(sizes.image_depth):
        image = plain.block(f"image_blocks.blocks.{i}", image, image_mask, sizes.image_heads)
    out = model(batch)
    torch.testing.assert_close(out.text.x_ND, text[text_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.image.x_ND, image[image_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled_BD, plain.pooled(text, image), atol=1e-5, rtol=0)


def test_parts_that_do_not_fit() -> None:
    text, regions = two_streams.embedders(official.INTERBERT)
    stacks = [two_streams.stack(24, 1, 4, 40, "eager") for _ in range(3)]
    with pytest.raises(ValueError, match="one width"):
        InterBERT(text, regions, *stacks[:2], two_streams.stack(16, 1, 4, 40, "eager"))
    with pytest.raises(ValueError, match="global_feature: first"):
        InterBERT(text, RegionEmbedder(24, 10), *stacks)
    with pytest.raises(ValueError, match="choose one of mul, sum, text"):
        InterBERT(text, regions, *stacks, fusion="concat")

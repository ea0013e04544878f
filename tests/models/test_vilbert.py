"""ViLBERT: size, the order of its blocks against a plain reference, and what the released code returned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import official, tiny, two_streams
from helpers.two_streams import Padded

from mmpretrain.models.vilbert import ViLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder

GOLDEN = Path(__file__).parents[1] / "golden" / "vilbert_states.npz"


def test_parameter_count_of_the_paper() -> None:
    """The released model has 246,726,656, of which 11,020,800 are in layers that it never calls."""
    bert = {"norm": "post", "final_norm": False}
    with torch.device("meta"):
        model = ViLBERT(
            TextEmbedder(30522, 768, 512, segments=2),
            RegionEmbedder(1024, 2048, global_feature="first"),
            Transformer(768, 12, 12, **bert),
            Transformer(1024, 6, 8, mlp_ratio=1.0, **bert),
            CoAttention(768, 1024, 1024, 6, 8, text_hidden=3072, image_hidden=1024),
        )
    assert sum(p.numel() for p in model.parameters()) == 235_705_856 == 246_726_656 - 11_020_800


def test_the_states_of_the_released_code() -> None:
    model = official.fill(two_streams.vilbert(), official.vilbert_names())
    with np.load(GOLDEN) as golden:
        out = model(official.batch())
        for name, states in (("text", out.text.x_ND), ("image", out.image.x_ND), ("pooled", out.pooled_BD)):
            torch.testing.assert_close(states, torch.from_numpy(golden[name]), atol=1e-5, rtol=0)


def test_the_states_of_the_released_code_with_a_task() -> None:
    """12-in-1: row 7 of its table of 20 stands behind [CLS]."""
    names = official.vilbert_names() | {"tasks": ("embeddings.task_embeddings",)}
    model = official.fill(two_streams.vilbert(tasks=20, task=official.TASK), names)
    with np.load(GOLDEN.with_name("vilbert_tasks_states.npz")) as golden, np.load(GOLDEN) as without:
        out = model(official.batch())
        for name, states in (("text", out.text.x_ND), ("image", out.image.x_ND), ("pooled", out.pooled_BD)):
            torch.testing.assert_close(states, torch.from_numpy(golden[name]), atol=1e-5, rtol=0)
            assert np.abs(golden[name] - without[name]).max() > 0.01


@pytest.mark.parametrize(("text_depth", "image_depth", "co_depth"), [(4, 2, 2), (3, 3, 2), (2, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize(("attention", "tasks"), [("eager", 0), ("sdpa", 0), ("eager", 5), ("sdpa", 5)])
def test_order_of_the_blocks(text_depth: int, image_depth: int, co_depth: int, attention: str, tasks: int) -> None:
    """On padded tensors, with and without a token of the task, which has a LayerNorm and neither position nor segment."""
    sizes = official.VILBERT._replace(text_depth=text_depth, image_depth=image_depth)
    text_blocks, image_blocks, _ = two_streams.co_streams(sizes, attention)
    _, _, co = two_streams.co_streams(sizes._replace(image_depth=co_depth), attention)
    model = tiny.shake(ViLBERT(*two_streams.embedders(sizes), text_blocks, image_blocks, co, tasks=tasks, task=3 if tasks else 0))
    batch, plain = two_streams.batch(), Padded(model)
    (text, text_mask), (image, image_mask) = plain.text(batch.text), plain.image(batch.regions)
    if tasks:
        row = plain.norm("text.norm", plain.state["tasks.weight"][3]).expand(len(text), 1, -1)
        text, text_mask = torch.cat([text[:, :1], row, text[:, 1:]], 1), torch.cat([text_mask[:, :1], text_mask], 1)
    for i in range(text_depth - co_depth):
        text = plain.block(f"text_blocks.blocks.{i}", text, text_mask, sizes.text_heads)
    for i in range(image_depth - co_depth):
        image = plain.block(f"image_blocks.blocks.{i}", image, image_mask, sizes.image_heads)
    for k in range(co_depth):
        text, image = plain.co_block(f"co_attention.blocks.{k}", text, image, (text_mask, image_mask), sizes.pooled_heads)
        image = plain.block(f"image_blocks.blocks.{image_depth - co_depth + k}", image, image_mask, sizes.image_heads)
        text = plain.block(f"text_blocks.blocks.{text_depth - co_depth + k}", text, text_mask, sizes.text_heads)
    out, pooled = model(batch), plain.pooled(text, image)
    if tasks:
        text, text_mask = torch.cat([text[:, :1], text[:, 2:]], 1), text_mask[:, 1:]
    assert out.text.layout.lengths == batch.text.lengths
    torch.testing.assert_close(out.text.x_ND, text[text_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.image.x_ND, image[image_mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled_BD, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(batch, "pooled").pooled_BD, pooled, atol=1e-5, rtol=0)


def test_tasks() -> None:
    """The chosen row alone has a gradient; without a table nothing is drawn for it; a row that is not there is refused."""
    model, batch = two_streams.shaken("vilbert", tasks=4, task=1), two_streams.batch()
    first = model(batch).pooled_BD
    first.square().sum().backward()
    assert model.tasks.weight.grad.any(1).tolist() == [False, True, False, False]
    model.task = 2
    assert (model(batch).pooled_BD - first).abs().max() > 1e-3
    torch.manual_seed(0)
    plain = two_streams.vilbert()
    torch.manual_seed(0)
    with_tasks = two_streams.vilbert(tasks=4)
    added = {name for name, _ in with_tasks.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert added == {"tasks.weight"} and all(torch.equal(with_tasks.get_parameter(n), p) for n, p in plain.named_parameters())
    for options in ({"tasks": 4, "task": 4}, {"task": 1}):
        with pytest.raises(ValueError, match="raise tasks or lower task"):
            two_streams.vilbert(**options)


def test_the_first_co_attention_reads_embedded_regions() -> None:
    """No image block stands before it: text states reach the first image block through the second co-attention alone."""
    model, batch = two_streams.shaken("vilbert"), two_streams.batch()
    model(batch).text.x_ND.square().sum().backward()
    assert model.image_blocks.blocks[0].mlp.up.weight.grad is not None
    assert model.image_blocks.blocks[1].mlp.up.weight.grad is None  # the last image block comes after the last co-attention


@pytest.mark.parametrize("fusion", ["mul", "sum", "text"])
def test_fusions(fusion: str) -> None:
    model, batch = two_streams.shaken("vilbert", fusion=fusion), two_streams.batch()
    out, plain = model(batch), Padded(model)
    a = plain.linear("pooler.text.dense", out.text.x_ND[out.text.layout.first_B(torch.device("cpu"))]).relu()
    expected = a
    if fusion != "text":
        b = plain.linear("pooler.image.dense", out.image.x_ND[out.image.layout.first_B(torch.device("cpu"))]).relu()
        expected = a * b if fusion == "mul" else a + b
    torch.testing.assert_close(out.pooled_BD, expected, atol=1e-5, rtol=0)


def test_parts_that_do_not_fit() -> None:
    sizes = official.VILBERT
    text, regions = two_streams.embedders(sizes)
    text_blocks, image_blocks, co = two_streams.co_streams(sizes, "eager")
    with pytest.raises(ValueError, match="must have one width"):
        ViLBERT(text, RegionEmbedder(8, 10, global_feature="first"), text_blocks, image_blocks, co)
    with pytest.raises(ValueError, match="global_feature: first"):
        ViLBERT(text, RegionEmbedder(sizes.image, 10), text_blocks, image_blocks, co)
    with pytest.raises(ValueError, match="set norm: post, final_norm: false"):
        ViLBERT(text, regions, Transformer(sizes.text, 3, 4), image_blocks, co)
    _, _, deep = two_streams.co_streams(sizes._replace(image_depth=3), "eager")
    with pytest.raises(ValueError, match="lower that of co_attention"):
        ViLBERT(text, regions, text_blocks, image_blocks, deep)

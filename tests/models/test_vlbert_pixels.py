"""VL-BERT end to end: features of boxes from pixels against one picture and one box at a time; erased pixels; gradients; mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny
from torch import Tensor
from torchvision.ops import roi_align

from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.ragged import Layout
from mmpretrain.nn.roi import BoxFeatures, erase
from mmpretrain.nn.vlbert import VLBERTEmbedder, with_picture
from mmpretrain.types import Batch, Pixels, RegionBatch, Text

TEXTS, COUNTS = (5, 3, 6), (2, 3, 1)
PICTURES = ((64, 96), (96, 64), (64, 96))  # as the transform makes them
ORIGINALS = ((128, 192), (96, 64), (32, 48))  # as boxes know them
REMOVED = (True, False, False, True, True, True)


def model(mask_pixels: bool = True, **options) -> VLBERT:
    torch.manual_seed(1)
    cnn = ResNet("tiny", norm="fixed", freeze=2, dilated=True, stride_in_1x1=True)
    embed = VLBERTEmbedder(60, 48, 256, positions=16, geometry=64, mask_visual=not mask_pixels)
    blocks = Transformer(48, 2, 4, norm="post", final_norm=False, eps=1e-12, attention="eager", init="normal")
    return tiny.shake(VLBERT(embed, blocks, BoxFeatures(cnn, cells=4, mask_pixels=mask_pixels), **options))


def batch() -> Batch:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 60, (3, max(TEXTS)), generator=g)
    corners = torch.rand(sum(COUNTS), 2, 2, generator=g).sort(1).values.flatten(1)
    sides = torch.tensor([[w, h, w, h] for (h, w), n in zip(ORIGINALS, COUNTS, strict=True) for _ in range(n)]).float()
    regions = RegionBatch(torch.zeros(sum(COUNTS), 7), corners * sides, COUNTS, ORIGINALS, removed_N=torch.tensor(REMOVED))
    image = Pixels(torch.randn(3, 3, 96, 96, generator=g), PICTURES)
    return Batch(("a", "b", "c"), torch.arange(3), Text(ids, TEXTS), image, regions=regions)


def one_by_one(m: VLBERT, inputs: Batch, masked: bool = True) -> list[Tensor]:
    """The features of every object, each picture cut out and erased in a loop, each box pooled by itself."""
    cnn, found = m.detector.cnn, []
    for i, ((h, w), (oh, ow)) in enumerate(zip(PICTURES, ORIGINALS, strict=True)):
        own = slice(sum(COUNTS[:i]), sum(COUNTS[: i + 1]))
        last = torch.tensor([ow - 1.0, oh - 1.0] * 2)
        boxes = torch.cat([torch.cat([torch.zeros(2), last[2:]])[None], torch.minimum(inputs.regions.boxes_N4[own], last)])
        boxes = boxes * torch.tensor([w / ow, h / oh] * 2)
        pixels = inputs.image.pixels_BCHW[i : i + 1, :, :h, :w].clone()
        for box, gone in zip(boxes[1:], REMOVED[own], strict=True):
            if gone and masked:
                x1, y1, x2, y2 = box
                pixels[:, :, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 0
        c4 = cnn(pixels, last=3)
        for box in boxes:
            cells = roi_align(c4, [box[None]], 4, spatial_scale=1 / 16, sampling_ratio=1, aligned=False)
            found.append(cnn(cells, first=4).mean((2, 3))[0])
    return found


@torch.no_grad()
def test_features_are_those_of_one_box_at_a_time() -> None:
    m, inputs = model(), batch()
    expected = torch.stack(one_by_one(m, inputs))
    objects = m._objects(inputs, inputs.regions)
    assert objects.lengths == (3, 4, 2)
    torch.testing.assert_close(objects.features_NF, expected, atol=1e-5, rtol=1e-5)
    plain = m._objects(inputs, inputs.regions._replace(removed_N=None)).features_NF
    torch.testing.assert_close(plain, torch.stack(one_by_one(m, inputs, masked=False)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)


@torch.no_grad()
def test_masked_pixels_are_zero_before_the_network() -> None:
    m, inputs, seen = model(), batch(), []
    m.detector.cnn.conv1.register_forward_hook(lambda module, x, y: seen.append(x[0].clone()))
    m(inputs)
    assert [x.shape for x in seen] == [(2, 3, 64, 96), (1, 3, 96, 64)]
    objects = with_picture(inputs.regions)
    x1, y1, x2, y2 = (int(v) for v in objects.boxes_N4[1] / 2)  # the first region of a picture that was twice as large
    assert seen[0][0, :, y1 : y2 + 1, x1 : x2 + 1].abs().max() == 0
    outside = torch.ones(64, 96, dtype=torch.bool)
    outside[y1 : y2 + 1, x1 : x2 + 1] = False
    assert torch.equal(seen[0][0][:, outside], inputs.image.pixels_BCHW[0, :, :64, :96][:, outside])


def test_erasing_equals_a_loop() -> None:
    g = torch.Generator().manual_seed(2)
    pixels = torch.randn(4, 3, 24, 40, generator=g)
    layout = Layout((30, 0, 7, 1))
    boxes = torch.rand(38, 2, 2, generator=g).sort(1).values.flatten(1) * torch.tensor([44.0, 28.0, 44.0, 28.0])  # some beyond the picture
    boxes[:2] = torch.tensor([[39.0, 23.0, 39.0, 23.0], [0.0, 0.0, 0.0, 0.0]])
    erased = torch.rand(38, generator=g) < 0.4
    erased[:2] = True
    expected = pixels.clone()
    for (x1, y1, x2, y2), i, gone in zip(boxes.tolist(), layout.sample_N(pixels.device).tolist(), erased.tolist(), strict=True):
        if gone:
            expected[i, :, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 0
    assert torch.equal(erase(pixels, boxes, layout.sample_N(pixels.device), erased), expected)
    assert torch.equal(erase(pixels, boxes, layout.sample_N(pixels.device), torch.zeros(38, dtype=torch.bool)), pixels)


@torch.no_grad()
def test_company_order_and_padding_do_not_matter() -> None:
    m, inputs = model(), batch()
    whole = m(inputs)
    for order, grow in (([2, 0, 1], 0), ([1], 32), ([1, 2], 16)):
        rows = torch.cat([torch.arange(sum(COUNTS[:i]), sum(COUNTS[: i + 1])) for i in order])
        old = inputs.regions
        counts, sizes = tuple(COUNTS[i] for i in order), tuple(ORIGINALS[i] for i in order)
        regions = RegionBatch(old.features_NF[rows], old.boxes_N4[rows], counts, sizes, removed_N=old.removed_N[rows])
        image = Pixels(F.pad(inputs.image.pixels_BCHW[order], (0, grow, 0, grow), value=7.0), tuple(PICTURES[i] for i in order))
        text = Text(inputs.text.ids_BT[order], tuple(TEXTS[i] for i in order))
        part = m(Batch(tuple(inputs.keys[i] for i in order), inputs.draw_keys_B[order], text, image, regions=regions))
        for place, i in enumerate(order):
            for a, b in ((part.text, whole.text), (part.image, whole.image)):
                ours, theirs = (x.x_ND[x.layout.starts[n] : x.layout.starts[n + 1]] for x, n in ((a, place), (b, i)))
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_gradients_reach_what_is_trained_and_nothing_else() -> None:
    m, inputs = model().train(), batch()
    first, second = m(inputs), m(inputs._replace(regions=None, image=None))
    (first.text.x_ND[:, 0].sum() + first.image.x_ND[:, 1].sum() + second.text.x_ND[:, 2].sum()).backward()
    for name, p in m.named_parameters():
        frozen = ".bn" in name or "downsample.1" in name or name.startswith(("detector.cnn.conv1", "detector.cnn.layer1"))
        assert p.requires_grad != frozen, name
        assert (p.grad is None) if frozen else p.grad.abs().sum() > 0, name


@torch.no_grad()
def test_a_learned_feature_may_stand_for_what_is_masked() -> None:
    m, inputs = model(mask_pixels=False), batch()
    objects = m._objects(inputs, inputs.regions)
    removed = torch.tensor([False, True, False, False, False, True, True, False, True])
    assert torch.equal(objects.features_NF[removed], m.embed.mask_visual.expand(4, -1))
    plain = torch.stack(one_by_one(m, inputs, masked=False))
    torch.testing.assert_close(objects.features_NF[~removed], plain[~removed], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_features_of_the_batch_are_not_read_and_pixels_are() -> None:
    m, inputs = model(), batch()
    out = m(inputs)
    assert torch.equal(m(inputs._replace(regions=inputs.regions._replace(features_NF=torch.ones(6, 3)))).text.x_ND, out.text.x_ND)
    other = inputs.image._replace(pixels_BCHW=-inputs.image.pixels_BCHW)
    assert not torch.allclose(m(inputs._replace(image=other)).text.x_ND, out.text.x_ND, atol=1e-3)
    delta = torch.zeros(6, 256)
    delta[2] = 1.0
    moved = m._objects(inputs, inputs.regions._replace(delta_NF=delta)).features_NF - m._objects(inputs, inputs.regions).features_NF
    assert moved.abs().sum(1).nonzero().flatten().tolist() == [4]  # the first region of the second sample; its picture is at 3


def test_mistakes() -> None:
    m, inputs = model(), batch()
    with pytest.raises(ValueError, match=r"data\.show: both"):
        m(inputs._replace(image=None))
    with pytest.raises(ValueError, match="pixels of 1 samples and boxes of 3"):
        m(inputs._replace(image=Pixels(torch.zeros(1, 3, 64, 64), ((64, 64),))))
    blocks, cnn = Transformer(48, 1, 4, norm="post", final_norm=False), ResNet("tiny")
    with pytest.raises(ValueError, match="features=2048"):
        VLBERT(VLBERTEmbedder(60, 48, mask_visual=False), blocks, BoxFeatures(cnn))
    for learned in (True, False):
        with pytest.raises(ValueError, match="mask_pixels"):
            VLBERT(VLBERTEmbedder(60, 48, 256, mask_visual=learned), blocks, BoxFeatures(cnn, mask_pixels=learned))

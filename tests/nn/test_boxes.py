"""Codes of boxes against their formulas and golden numbers; overlaps against a loop."""

import math

import pytest
import torch
from helpers.region_batches import region_batch

from mmpretrain.nn.boxes import CODES, box_code, code_width, iou
from mmpretrain.nn.ragged import Layout
from mmpretrain.types import RegionBatch


def one(box: tuple[float, ...], size: tuple[int, int] = (480, 640)) -> RegionBatch:
    return RegionBatch(torch.zeros(1, 2), torch.tensor([box]), (1,), (size,))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", []),
        ("xyxy", [0.25, 0.25, 0.5, 1.0]),
        ("xyxya", [0.25, 0.25, 0.5, 1.0, 0.1875]),
        ("xyxywh", [0.25, 0.25, 0.5, 1.0, 0.25, 0.75]),
        ("xyxywha", [0.25, 0.25, 0.5, 1.0, 0.25, 0.75, 0.1875]),
    ],
)
def test_codes_by_hand(kind: str, expected: list[float]) -> None:
    code = box_code(one((160.0, 120.0, 320.0, 480.0)), kind)
    assert code.dtype == torch.float32 and code.shape == (1, code_width(kind))
    assert code[0].tolist() == expected


def test_sines_and_cosines_have_the_golden_values_of_vl_bert() -> None:
    """Values that the released code of VL-BERT gives for this box in 640 x 480, place, wave and function as there."""
    code = box_code(one((10.0, 20.0, 110.0, 220.0)), "sincos")[0].view(4, 512)
    golden = {(0, 0): 0.049757, (0, 1): 0.294914, (0, 256): -0.998761, (3, 255): 0.042793, (3, 511): 0.999084}
    for (place, wave), value in golden.items():
        assert abs(code[place, wave].item() - value) < 2e-5
    small = box_code(one((10.0, 20.0, 110.0, 220.0)), "sincos", 16)[0].view(4, 2, 2)
    for place, share in enumerate((60 / 640, 120 / 480, 100 / 640, 200 / 480)):
        for wave in (0, 1):
            angle = 100 * share / 1000 ** (wave / 2)
            assert small[place, :, wave].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=2e-5)


@pytest.mark.parametrize("kind", list(CODES))
def test_a_code_depends_on_its_own_picture_alone(kind: str) -> None:
    """Each sample with its size; halving picture and boxes together changes nothing."""
    regions = region_batch((3, 1, 4))._replace(sizes=((480, 640), (960, 700), (500, 2000)))
    code = box_code(regions, kind)
    layout = Layout(regions.lengths)
    for i in range(3):
        rows = slice(layout.starts[i], layout.starts[i + 1])
        height, width = regions.sizes[i]
        alone = RegionBatch(regions.features_NF[rows], regions.boxes_N4[rows] / 2, (regions.lengths[i],), ((height / 2, width / 2),))
        torch.testing.assert_close(box_code(alone, kind), code[rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pixels", [False, True])
def test_overlaps_by_a_loop(pixels: bool) -> None:
    regions = region_batch((5, 1, 9, 3), seed=3)
    layout, more = Layout(regions.lengths), 1.0 if pixels else 0.0
    got = iou(regions.boxes_N4, layout, pixels)
    expected = torch.zeros(4, 9, 9)
    for i, length in enumerate(regions.lengths):
        boxes = regions.boxes_N4[layout.starts[i] : layout.starts[i] + length].tolist()
        for a, (x1, y1, x2, y2) in enumerate(boxes):
            for b, (u1, v1, u2, v2) in enumerate(boxes):
                inner = max(min(x2, u2) - max(x1, u1) + more, 0) * max(min(y2, v2) - max(y1, v1) + more, 0)
                areas = (x2 - x1 + more) * (y2 - y1 + more) + (u2 - u1 + more) * (v2 - v1 + more)
                expected[i, a, b] = inner / (areas - inner)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert torch.equal(got, got.mT)


def test_overlaps_of_known_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3], [3, 3, 3, 3]])
    got = iou(boxes, Layout((5,)))[0]
    assert got[0, 0] == 1 and got[0, 1] == pytest.approx(1 / 3) and got[0, 2] == 0
    assert got[3].tolist() == [0.0] * 5  # no area
    last = iou(boxes, Layout((5,)), pixels=True)[0]
    assert last[0, 2] == pytest.approx(11 / (121 + 121 - 11)) and last[3, 4] == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="xyxywha"):
        box_code(one((0.0, 0.0, 1.0, 1.0)), "polar")
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        box_code(one((0.0, 0.0, 1.0, 1.0)), "sincos", 12)

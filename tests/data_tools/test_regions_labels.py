"""Labelled boxes: the layouts that are read, and the vocabulary that is learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools.regions_choose import Rule, strongest
from mmpretrain.data_tools.regions_labels import learn, things
from mmpretrain.data_tools.regions_measure import calibration_error
from mmpretrain.data_tools.regions_net import Config, Vocabulary, apply_deltas, deltas_to, windows

SCENE = {"shape": "star", "colour": "red", "size": "large", "material": "plain", "box": [2, 3, 10, 8]}
NLVR = {"tag": "circle", "attributes": ["blue", "small"], "bbox": [4, 5, 6, 6]}


def test_layouts():
    (one,) = things({"objects": [SCENE]}, [(20, 20)])
    assert one.box == (2, 3, 12, 11) and one.name == "star" and one.named == {"colour": "red", "size": "large", "material": "plain"}
    (two,) = things({"regions": [NLVR, {**NLVR, "crowd": 1}]}, [(20, 20)])
    assert two.name == "circle" and two.listed == ("blue", "small")
    both = things({"images": [{"objects": [SCENE]}, {"objects": [SCENE]}]}, [(20, 20), (30, 20)])
    assert [thing.box[0] for thing in both] == [2, 22]
    assert things({}, [(20, 20)]) == []


def test_boxes_are_clipped_and_specks_left_out():
    found = things({"objects": [{**SCENE, "box": [-5, -5, 10, 10]}, {**SCENE, "box": [19.5, 0, 5, 5]}]}, [(20, 20)])
    assert [thing.box for thing in found] == [(0, 0, 5, 5)]


@pytest.mark.parametrize(
    "wrong", [{"objects": {}}, {"objects": [1]}, {"objects": [{"box": [1, 2, 3]}]}, {"objects": [{"box": [1, 2, 3, "x"]}]}]
)
def test_other_layouts_are_refused(wrong):
    if wrong == {"objects": {}}:
        assert things(wrong, [(20, 20)]) == []
        return
    with pytest.raises(BadSample):
        things(wrong, [(20, 20)])


def test_vocabularies():
    named = learn(things({"objects": [SCENE, {**SCENE, "shape": "cross", "colour": "blue"}]}, [(20, 20)]))
    assert named.classes == ("cross", "star") and [kind for kind, _ in named.kinds] == ["colour", "size", "material"]
    assert named.attributes == ("blue", "red", "large", "plain") and named.groups[0] == ("colour", 0, 2)
    assert named.targets(things({"objects": [SCENE]}, [(20, 20)])[0]) == [1, 1, 0, 0]
    placed = learn(things({"regions": [NLVR, {**NLVR, "attributes": ["red", "big"]}]}, [(20, 20)]))
    assert placed.kinds == (("attribute1", ("blue", "red")), ("attribute2", ("big", "small")))
    mixed = learn(things({"regions": [NLVR, {**NLVR, "attributes": ["small"]}]}, [(20, 20)]))
    assert mixed.kinds == (("attribute", ("none", "blue", "small")),)
    assert mixed.targets(things({"regions": [{**NLVR, "attributes": []}]}, [(20, 20)])[0]) == [0, 0]
    with pytest.raises(DataError, match="no labelled box has a class"):
        learn(things({"regions": [{"bbox": [1, 1, 5, 5]}]}, [(20, 20)]))


def test_corrections_of_boxes_are_undone():
    boxes = torch.tensor([[2.0, 3, 12, 13], [0, 0, 5, 9]])
    wanted = torch.tensor([[1.0, 4, 15, 11], [2, 2, 6, 8]])
    torch.testing.assert_close(apply_deltas(boxes, deltas_to(boxes, wanted)), wanted)


def test_windows_cover_the_picture():
    grid = windows(40, 20, Config(Vocabulary(("a",), ()), 20, 4, (0.25, 0.5), (1.0,)))
    assert grid[0].tolist() == [0, 0, 40, 20] and grid[:, :2].min() == 0
    assert grid[:, 2].max() == 40 and grid[:, 3].max() == 20 and len(grid) == 1 + 22 * 10 + 10 * 4


def test_the_rule_of_boxes():
    scores = torch.tensor([0.1, 0.9, 0.3, 0.25])
    assert Rule(0.2, 1, 10).keep(scores).tolist() == [1, 2, 3]
    assert Rule(0.95, 2, 10).keep(scores).tolist() == [1, 2] and Rule(0.0, 1, 1).keep(scores).tolist() == [1]
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    by_class = torch.tensor([[0.9, 0.1], [0.8, 0.6], [0.2, 0.3]])
    np.testing.assert_allclose(strongest(by_class, boxes, 0.5), [0.9, 0.6, 0.3])  # of the second its other class is left


def test_calibration_error():
    probs, target = torch.tensor([[0.8, 0.2]]).repeat(10, 1), torch.tensor([0] * 8 + [1] * 2)
    assert calibration_error(probs, target) == pytest.approx(0, abs=1e-6)
    assert calibration_error(probs, torch.zeros(10, dtype=torch.int64)) == pytest.approx(0.2, abs=1e-6)

"""The random stream, the worlds and their twins, and the pixels."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mmpretrain.data_tools.scenes_render import boxes, png, render
from mmpretrain.data_tools.scenes_world import (
    COLOURS,
    GAP,
    HELD_OUT,
    MATERIALS,
    SHAPES,
    TWINS,
    Rng,
    World,
    sample_world,
    twin,
)


def worlds(n: int, split: str = "train") -> list[World]:
    return [sample_world(Rng("test", split, i), split) for i in range(n)]


def test_stream_is_the_same_everywhere():
    rng = Rng(1, 0, "train", 7)
    assert [rng.below(1000) for _ in range(6)] == [729, 360, 479, 705, 596, 775]
    assert sorted(rng.shuffled(range(9))) == list(range(9))


def test_worlds_keep_apart_and_inside():
    for world in worlds(500):
        for i, a in enumerate(world.things):
            assert all(a.radius <= at <= 1024 - a.radius for at in (a.x, a.y))
            for b in world.things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP


def test_held_out_pairs_are_in_every_compositional_world_and_nowhere_else():
    assert {colour for colour, _ in HELD_OUT} == set(COLOURS)
    for split, expected in (("train", 0), ("val", 0), ("pairs", 0)):
        assert sum((t.colour, t.shape) in HELD_OUT for world in worlds(400, split) for t in world.things) == expected
    seen = Counter()
    for world in worlds(400, "compositional"):
        inside = [(t.colour, t.shape) for t in world.things if (t.colour, t.shape) in HELD_OUT]
        assert inside
        seen.update(inside)
    assert set(seen) == HELD_OUT


def test_every_attribute_value_is_seen_and_every_train_pair():
    things = [thing for world in worlds(1500) for thing in world.things]
    assert {t.material for t in things} == set(MATERIALS)
    pairs = Counter((t.colour, t.shape) for t in things)
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(HELD_OUT)
    assert min(pairs.values()) > 0.4 * len(things) / len(pairs)


@pytest.mark.parametrize("part", TWINS)
def test_twins_change_one_part(part):
    changed = 0
    for i, world in enumerate(worlds(200)):
        other = twin(world, part, Rng("twin", i))
        assert len(other.things) == len(world.things) and other.palette == world.palette
        assert not any((t.colour, t.shape) in HELD_OUT for t in other.things)
        for a, b in zip(world.things, other.things, strict=True):
            differ = {field for field, x, y in zip(a._fields, a, b, strict=True) if x != y}
            allowed = {"layout": {"x", "y"}, "size": {"size", "radius", "x", "y"}, "permute": {"colour"}}.get(part, {part})
            assert differ <= allowed
        changed += other != world
    assert changed > 50


def test_twin_refuses_unknown_part():
    with pytest.raises(ValueError, match="unknown part 'mood'"):
        twin(worlds(1)[0], "mood", Rng(0))


def test_pixels_are_the_same_everywhere():
    digest = hashlib.sha256()
    for split in ("train", "compositional"):
        for world in worlds(40, split):
            digest.update(np.asarray(render(world)).tobytes())
    assert digest.hexdigest()[:32] == "eb909977c40a6c14950f721de634dfd4"


def test_downsampling_is_the_integer_mean():
    noise = np.frombuffer(hashlib.shake_256(b"noise").digest(64 * 64 * 3), np.uint8).reshape(64, 64, 3)
    mean = (noise.reshape(16, 4, 16, 4, 3).astype(np.uint16).sum((1, 3)) + 8) // 16
    assert np.array_equal(np.asarray(Image.fromarray(noise).reduce(4)), mean)


@pytest.mark.parametrize("size", [64, 96, 224])
def test_boxes_are_exact(size):
    for world in worlds(25):
        empty = np.asarray(render(world._replace(things=()), size)).astype(int)
        for index, (x, y, width, height) in enumerate(boxes(world, size)):
            alone = np.asarray(render(world._replace(things=(world.things[index],)), size)).astype(int)
            rows, columns = np.nonzero(np.abs(alone - empty).sum(2))
            assert x >= 0 and y >= 0 and x + width <= size and y + height <= size
            # a box may hold a pixel of which a sixteenth is covered, too little to change its rounded colour
            assert 0 <= columns.min() - x <= 1 and 0 <= rows.min() - y <= 1
            assert 0 <= x + width - 1 - columns.max() <= 1 and 0 <= y + height - 1 - rows.max() <= 1


def test_things_do_not_touch_in_the_picture():
    for world in worlds(200):
        found = boxes(world)
        for i, (ax, ay, aw, ah) in enumerate(found):
            for bx, by, bw, bh in found[:i]:
                assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


def test_png_holds_the_pixels():
    import io

    picture = render(worlds(1)[0])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), np.asarray(picture))

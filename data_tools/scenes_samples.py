"""One sample of the generated scenes: the members of a shard for (seed, split, index), a pure function of the three."""

from __future__ import annotations

import json
from typing import Any

from mmpretrain.data_tools.scenes_captions import captions
from mmpretrain.data_tools.scenes_edits import edits
from mmpretrain.data_tools.scenes_logic import OPPOSITE, RELATIONS, related
from mmpretrain.data_tools.scenes_render import boxes, png, render
from mmpretrain.data_tools.scenes_statements import pair_statements, questions, sample_pair, statements
from mmpretrain.data_tools.scenes_world import Rng, World, sample_world

VERSION = 1  # of the generator: raise it whenever any sample changes
SPLITS = ("train", "val", "compositional", "pairs", "pairs_val")


def sample_key(split: str, index: int) -> str:
    return f"{split}-{index:08d}"


def _graph(world: World, size: int) -> dict[str, Any]:
    """Objects with boxes and triples [subject, relation, object] of indices into them, every relation that clearly holds."""
    objects = [
        {"shape": thing.shape, "colour": thing.colour, "size": thing.size, "material": thing.material, "box": box}
        for thing, box in zip(world.things, boxes(world, size), strict=True)
    ]
    triples = []
    for i, a in enumerate(world.things):
        for j in range(i + 1, len(world.things)):
            for relation in RELATIONS:
                if related(a, relation, world.things[j]):
                    triples += [[i, relation, j], [j, OPPOSITE[relation], i]]
    return {"objects": objects, "triples": triples}


def _members(key: str, files: dict[str, bytes], text: str | None, annotation: dict[str, Any]) -> list[tuple[str, bytes]]:
    members = [(f"{key}.{name}", data) for name, data in files.items()]
    if text is not None:
        members.append((f"{key}.txt", text.encode()))
    members.append((f"{key}.json", json.dumps(annotation, separators=(",", ":")).encode()))
    return members


def scene_members(seed: int, split: str, index: int, size: int = 64) -> list[tuple[str, bytes]]:
    """[(file name, content)] of one picture: KEY.png, KEY.txt (the first caption), KEY.json (see docs/scenes.md)."""
    key = (VERSION, seed, split, index)
    world = sample_world(Rng(*key, "world"), split)
    said = captions(world, Rng(*key, "captions"))
    rng = Rng(*key, "edits")
    annotation = {
        "captions": [caption.text() for caption in said],
        "edits": [[{"text": edit.caption.text(), "kind": edit.kind} for edit in edits(caption, world, rng)] for caption in said],
        **_graph(world, size),
        "questions": questions(world, Rng(*key, "questions")),
        "statements": statements(world, Rng(*key, "statements")),
        "width": size,
        "height": size,
    }
    return _members(sample_key(split, index), {"png": png(render(world, size))}, annotation["captions"][0], annotation)


def pair_members(seed: int, split: str, index: int, size: int = 64) -> list[tuple[str, bytes]]:
    """[(file name, content)] of a pair: KEY.img0.png, KEY.img1.png, KEY.json with statements about both and a graph for each."""
    key = (VERSION, seed, split, index)
    worlds = sample_pair(Rng(*key, "world"), split)
    annotation = {
        "statements": pair_statements(worlds, Rng(*key, "statements")),
        "images": [_graph(world, size) for world in worlds],
        "width": size,
        "height": size,
    }
    pictures = {f"img{side}.png": png(render(world, size)) for side, world in enumerate(worlds)}
    return _members(sample_key(split, index), pictures, None, annotation)


def members(seed: int, split: str, index: int, size: int = 64) -> list[tuple[str, bytes]]:
    """Sample ``index`` of ``split`` (one of SPLITS): depends on nothing but the arguments and VERSION."""
    return (pair_members if split.startswith("pairs") else scene_members)(seed, split, index, size)

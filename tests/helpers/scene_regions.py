"""Generated scenes with regions that cost nothing: exact boxes, features and probabilities made of what the scenes say. And the options
with which any recipe reads a few of them, with regions, codes, or neither."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from helpers import scene_codes
from helpers.shards import write_tar

from mmpretrain.cli.layering import layer
from mmpretrain.data.regions import encode_regions
from mmpretrain.data.regions_info import Group, RegionsInfo, write_info
from mmpretrain.data_tools import scenes
from mmpretrain.data_tools.scenes_world import COLOURS, MATERIALS, SHAPES, SIZES
from mmpretrain.types import Regions

WIDTH = 128  # values of a feature, as in the tiny sizes
KINDS = {"colour": tuple(COLOURS), "size": tuple(SIZES), "material": tuple(MATERIALS)}
ATTRIBUTES = tuple(name for names in KINDS.values() for name in names)
_ENDS = np.cumsum([0, *map(len, KINDS.values())]).tolist()
GROUPS = tuple(Group(kind, start, stop) for kind, start, stop in zip(KINDS, _ENDS[:-1], _ENDS[1:], strict=True))
INFO = RegionsInfo("extractor", "5" * 64, WIDTH, "tests", "annotated", tuple(SHAPES), None, ATTRIBUTES, GROUPS)
"""The same numbers of classes and attributes as the regions of ``scenes?regions=128`` have."""


def _soft(names: tuple[str, ...], name: str) -> np.ndarray:
    """Nine tenths for a name, the rest for all."""
    return np.full(len(names), 0.1 / len(names)) + 0.9 * (np.asarray(names) == name)


def regions_of(meta: dict[str, Any]) -> Regions:
    """The regions of a scene by its ``KEY.json``."""
    things = meta["objects"]
    rng = np.random.default_rng(7)
    table = rng.standard_normal((len(SHAPES) + len(ATTRIBUTES), WIDTH)) / 2
    probs = np.stack([_soft(tuple(SHAPES), thing["shape"]) for thing in things])
    others = np.stack([np.concatenate([_soft(names, thing[kind]) for kind, names in KINDS.items()]) for thing in things])
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (thing["box"] for thing in things)]
    return Regions(
        (np.concatenate([probs, others], axis=1) @ table).astype(np.float16),
        np.asarray(boxes, dtype=np.float32),
        np.asarray([meta["height"], meta["width"]], dtype=np.int32),
        classes=probs.argmax(1).astype(np.int16),
        class_probs=probs.astype(np.float16),
        attributes=others[:, : len(COLOURS)].argmax(1).astype(np.int16),
        attribute_probs=others.astype(np.float16),
        scores=np.linspace(0.9, 0.8, len(things), dtype=np.float32),
    )


def write(out: Path, n: int, split: str = "train", shard_size: int = 8) -> Path:
    """A folder of scenes in ``out``, and the same with regions and with codes: ``plain``, ``regions``, ``codes``. Returns ``out``."""
    scenes.write(out / "plain", n, 0, split, shard_size=shard_size, progress=False)
    for shard in sorted((out / "plain").glob("*.tar")):
        members: list[tuple[str, bytes]] = []
        with tarfile.open(shard) as archive:
            for member in archive:
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                members.append((member.name, data))
                if member.name.endswith(".json"):
                    key = member.name.removesuffix(".json")
                    members.append((f"{key}.regions.npz", encode_regions(regions_of(json.loads(data)))))
        write_tar(out / "regions" / shard.name, members)
    write_info(out / "regions", INFO)
    scene_codes.write(out / "plain", out / "codes")
    return out


def sources(recipe: str, train: Path, val: Path) -> list[str]:
    """Options that put a few scenes in the place of what a recipe reads, every source of a mixture included.

    Args:
        train, val: folders of ``write``.
    """
    data = layer([recipe]).config["data"]
    kind = lambda show: {None: "plain", "image": "plain", "codes": "codes", "image+codes": "codes"}.get(show, "regions")
    whole = kind(data.get("show"))
    if isinstance(data["train"], dict):
        told = {
            name: {**one, "sources": str(train / ("plain" if one.get("reads") == "texts" else kind(one.get("show", data.get("show")))))}
            for name, one in data["train"].items()
        }
        return ["--data.train", json.dumps(told), "--data.val", json.dumps({"few": str(val / whole)})]
    return ["--data.train", str(train / whole), "--data.val", json.dumps({"few": str(val / whole)})]

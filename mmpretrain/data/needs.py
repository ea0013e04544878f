"""What a model and its objectives need of the data, looked at before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from mmpretrain.data.errors import DataError
from mmpretrain.data.units import Units
from mmpretrain.types import Spec


class Part(Protocol):
    """A source of the training set."""

    @property
    def name(self) -> str: ...
    @property
    def units(self) -> Units: ...


def check_texts(spec: Spec | None, parts: Iterable[Part], max_tokens: int) -> None:
    """That a model with a position for each token (DALL-E) has enough for the longest text.

    Raises:
        DataError: naming both numbers.
    """
    if spec is None or not 0 < spec.text_pads < max_tokens or all(part.units.reads == "images" for part in parts):
        return
    raise DataError(
        f"data.max_tokens={max_tokens} is above text_positions={spec.text_pads} of model.system; set data.max_tokens to {spec.text_pads} "
        "or less, or text_positions higher"
    )


def check_codes(spec: Spec | None, objectives: Mapping[str, Any], parts: Iterable[Part]) -> None:
    """That objectives which predict codes are shown them, and the pictures whose patches they stand for, by every source that they read.

    Raises:
        DataError: naming objective, source and what to show.
    """
    predicting = {name: one for name, one in objectives.items() if getattr(one, "predicts", "") == "codes"}
    patches = spec is not None and spec.patch_size is not None
    for part in parts:
        units = part.units
        if units.reads_codes and (units.reads_image or not patches):
            continue
        for name, one in predicting.items():
            if part.name and one.sources is not None and part.name not in one.sources:
                continue
            source = f"the source {part.name!r}" if part.name else "data.train"
            shown = units.shown.show if units.reads != "texts" else "texts alone"
            wanted, option = ("image+codes", " --keep-images") if patches else ("codes", "")
            raise DataError(
                f"objective {name!r} predicts codes of pictures, {source} shows {shown}; set data.show={wanted} (shards of mmpretrain data "
                f"tokens{option}), or name the sources that show them in its `sources`"
            )

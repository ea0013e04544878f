"""Half precision (``bf16-true``, ``16-true``) that leaves boxes alone."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins.precision import HalfPrecision

from mmpretrain.types import Batch


class Half(HalfPrecision):
    """Lightning's, but boxes stay float32: bf16 has 8 bits, and pixel 401 of a picture is none of its numbers. Their codes are computed in
    float32 and rounded then."""

    def convert_input(self, data: Any) -> Any:
        return _with_boxes(super().convert_input(data), data)


def _with_boxes(made: Any, given: Any) -> Any:
    if isinstance(given, Batch):
        if given.regions is None:
            return made
        return made._replace(regions=made.regions._replace(boxes_N4=given.regions.boxes_N4))
    if isinstance(given, tuple | list):
        return type(given)(_with_boxes(*pair) for pair in zip(made, given, strict=True))
    return made

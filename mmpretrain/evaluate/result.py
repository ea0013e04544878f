"""What every measurement returns: a number, its chance level and a stamp that says how it came about."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple


class Stamp(NamedTuple):
    """How a number came about. Two numbers are comparable only when ``data`` and ``protocol`` are equal."""

    data: str  # name and fingerprint of the data
    protocol: str  # one line: what was compared with what, and how ties count
    precision: str  # "float32", "bfloat16", ...
    count: int  # type: ignore[assignment]  # of a tuple's methods; samples (or pairs, or tokens: the protocol says which) behind the number
    weights: str  # "raw" or "ema"


class Result(NamedTuple):
    """One row of the final table.

    ``name`` is the metric's name without the split, for example ``retrieval/emoji_val/i2t_R@1``; shares lie in [0, 1].
    """

    name: str
    value: float
    chance: float | None
    stamp: Stamp

    def row(self) -> dict[str, Any]:
        """The result as plain types, as written to ``result.json``. A value that is not finite becomes None."""
        value = self.value if math.isfinite(self.value) else None
        return {"name": self.name, "value": value, "chance": self.chance, "stamp": self.stamp._asdict()}


_NATS = "{:.4f} nats"
_FORMS = {  # of what is no share
    "median_rank": "{:.1f}", "psnr": "{:.2f} dB", "mse": "{:.5f}", "perplexity": "{:.1f}", "dead": "{:.0f}", "loss": _NATS,
    "loss_other_text": _NATS, "loss_without_text": _NATS, "clip_score": "{:.3f}", "frechet_clip": "{:.4f}", "kernel_clip": "{:.5f}",
    "frechet_inception": "{:.2f}", "kernel_inception": "{:.4f}",
}  # fmt: skip


def shown(name: str, value: float) -> str:
    """The value of a metric as people read it: a share as 83.4 %, others by their unit."""
    form = next((form for end, form in _FORMS.items() if name.endswith(end)), None)
    return f"{100 * value:.1f} %" if form is None else form.format(value)


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """All results as plain types."""
    return [result.row() for result in results]


def precision_of(dtype: Any, autocast: Any = None) -> str:
    """The name of the arithmetic: the dtype of the weights, or ``bfloat16 (autocast)`` and the like."""
    name = str(dtype).removeprefix("torch.")
    return name if autocast is None else f"{str(autocast).removeprefix('torch.')} (autocast, weights {name})"

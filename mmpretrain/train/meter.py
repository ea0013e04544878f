"""Running sums of losses and metrics on the device, read out once per logging interval, exact over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpretrain.train import distributed
from mmpretrain.train.step import StepResult
from mmpretrain.types import Batch


class Meter:
    """Adds (sum, count) pairs by name; ``read`` gives means over everything added on all ranks.

    Every rank must add the same names between two reads (names come from the recipe, which all ranks share); a name may be missing
    on a rank that saw no batch, if ``names`` lists it.
    """

    def __init__(self) -> None:
        self.pairs: dict[str, Tensor] = {}
        self.empty: tuple[str, ...] = ()  # names without a count when it was last read

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum and its count."""
        like = total if isinstance(total, Tensor) else count
        device = like.device if isinstance(like, Tensor) else None
        pair = torch.stack([torch.as_tensor(x, dtype=torch.float64, device=device).detach().reshape(()) for x in (total, count)])
        self.pairs[name] = pair if name not in self.pairs else self.pairs[name].to(pair.device) + pair

    def add_step(self, result: StepResult) -> None:
        """Add the loss of an optimiser step, those of its objectives and their statistics. A step whose loss is not finite, which is
        skipped, leaves no trace."""
        finite = result.finite_K.all()

        def keep(x: Tensor) -> Tensor:
            return torch.where(finite, x, torch.zeros_like(x))

        self.add("train/loss", keep(result.loss), finite.to(torch.float32))
        for name, (total, count) in result.losses.items():
            self.add(f"train/{name}/loss", keep(total), keep(count))
        for name, (total, count) in result.stats.items():
            self.add(f"train/{name}", keep(total), keep(count))

    def read(self, device: torch.device, clear: bool = True) -> dict[str, float]:
        """name -> mean over all ranks; names without a count are left out. Every rank must call it."""
        sums = self.state(device)
        if clear:
            self.pairs = {}
        self.empty = tuple(name for name, (_, count) in sums.items() if not count > 0)
        return {name: total / count for name, (total, count) in sums.items() if count > 0}

    def state(self, device: torch.device) -> dict[str, list[float]]:
        """name -> [sum, count] over all ranks. Every rank must call it."""
        names = sorted({name for names in distributed.gather_objects(sorted(self.pairs)) for name in names})
        if not names:
            return {}
        zero = torch.zeros(2, dtype=torch.float64, device=device)
        table_N2 = torch.stack([self.pairs.get(name, zero).to(device) for name in names])
        if device.type == "mps":
            table_N2 = table_N2.float()
        rows = distributed.sum_(table_N2).tolist()
        return dict(zip(names, rows, strict=True))

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Continue from what ``state`` gave; rank 0 takes all of it."""
        if distributed.rank() == 0:
            self.pairs = {name: torch.tensor(list(pair), dtype=torch.float64) for name, pair in state.items()}


def token_count(batch: Batch, patch_size: int | None, regions: bool = False, codes: bool = False) -> int:
    """Real tokens of a batch: text without padding, the patches of the valid part of its images, its regions and its image codes.

    Args:
        patch_size: of a model that reads patches; None: images are not counted.
        regions: of a model that reads regions.
        codes: of a model that reads image codes.
    """
    words: int = sum(batch.text.lengths) if batch.text is not None else 0
    if regions and batch.regions is not None:
        words += sum(batch.regions.lengths)
    if codes and batch.codes is not None:
        words += len(batch.codes.ids_N)
    if batch.image is None or not patch_size:
        return words
    return words + sum((h // patch_size) * (w // patch_size) for h, w in batch.image.sizes)

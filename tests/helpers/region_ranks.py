"""One step of region objectives on each rank, over its samples. Executed as a script by each rank of a test: ``region_ranks.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.region_batches import ATTRIBUTES, CLASSES, RegionModel, region_sample_batch, rows_of
from torch import nn

from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.mrfr import MRFR
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.objectives.region_nce import RegionNCE
from mmpretrain.train import distributed
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import plain
from mmpretrain.types import Batch

SAMPLES = ((0, 3, 4), (1, 2, 5))  # of each rank


def batch() -> Batch:
    """The global batch: ranks hold different numbers of regions, of chosen regions and of true pairs."""
    whole = region_sample_batch((3, 7, 1, 5, 2, 9))
    return whole._replace(matched_B=torch.tensor([True, False, True, True, True, False]))


def root() -> Pretraining:
    """Every objective over regions in one view, with gains around 1."""
    masker = RegionMasker(prob=0.5, zero=0.8, spread_iou=0.4)
    common: dict[str, Any] = {"masker": masker}
    objectives = {
        "mrc": MRC(classes=CLASSES, only_if_matched=True, **common),
        "mrfr": MRFR(weight=2.0, **common),
        "nce": RegionNCE(across=0.0, within=1.0, negatives=5, **common),
        "objects": Objects(classes=CLASSES, attributes=ATTRIBUTES, **common),
    }
    torch.manual_seed(0)
    made = Pretraining(RegionModel(), objectives)
    made.bind(None)
    torch.manual_seed(1)
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return made


def step(module: Any, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor], dict[str, tuple[float, float]]]:
    """Loss (this rank's share), gradients (this rank's) and statistics after one step."""
    module.zero_grad()
    result = plain(module, batches, list(module.objectives), lambda loss, last: loss.backward())
    gradients = {name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in module.named_parameters()}
    return result.loss.item(), gradients, {name: (a.item(), b.item()) for name, (a, b) in {**result.losses, **result.stats}.items()}


def main() -> None:
    """Plain replicas whose gradients are averaged, then a sharded root."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    own, found = rows_of(batch(), SAMPLES[dist.get_rank()]), {}
    for name in ("replicas", "sharded"):
        module: Any = root()
        if name == "sharded":
            fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
        loss, gradients, stats = step(module, [own])
        total = torch.tensor([loss, *(x for pair in stats.values() for x in pair)], dtype=torch.float64)
        dist.all_reduce(total)
        if name == "replicas":
            for gradient in gradients.values():
                dist.all_reduce(gradient)
                gradient /= 2
        tied = module.objectives["mrfr"].head.weight is module.model.project.weight
        found[name] = {"loss": total[0] / 2, "gradients": gradients, "sums": total[1:], "stats": list(stats), "tied": tied}
    if dist.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    dist.barrier()
    distributed.leave()


if __name__ == "__main__":
    main()

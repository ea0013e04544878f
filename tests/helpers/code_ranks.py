"""Steps of a discrete autoencoder on each rank, over its samples. Executed as a script by each rank of a test: ``code_ranks.py OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from helpers.plain_dvae import batch, rows, shaken

from mmpretrain.models.dvae import DVAE
from mmpretrain.objectives.commitment import Commitment
from mmpretrain.objectives.elbo import ELBO
from mmpretrain.train import distributed
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import plain
from mmpretrain.types import Batch

SAMPLES = ((0, 3, 4), (1, 2, 5))  # of each rank
STEPS = 4


def root(sample: str) -> Pretraining:
    """Both objectives for a codebook of vectors, the first alone for relaxed codes."""
    model = shaken(DVAE((8, 12, 16), 1, 10, 6, 8, sample, decay=0.6)).train()  # type: ignore[arg-type]
    if model.codebook is not None:
        torch.manual_seed(0)
        model.codebook.reset_parameters()
    objectives = {"elbo": ELBO(kl_weight=2.0), **({"commitment": Commitment(restart=0.5)} if sample == "nearest" else {})}
    made = Pretraining(model, objectives)
    made.bind(None)
    return made.double().train()  # rounding must not decide which vector is nearest


def steps(made: Pretraining, layout: list[list[int]]) -> dict[str, torch.Tensor]:
    """After some steps by plain gradient descent: the statistics over whole steps, and every tensor of the model.

    Args:
        layout: samples of each micro-batch of this rank.
    """
    world, found = dist.get_world_size() if dist.is_initialized() else 1, {}
    for step in range(STEPS):
        whole = batch(6, seed=step)
        batches: list[Batch] = [rows(whole._replace(draw_keys_B=whole.draw_keys_B + step), samples) for samples in layout]
        made.zero_grad()
        plain(made, batches, list(made.objectives), lambda loss, last: loss.backward())
        with torch.no_grad():
            for parameter in made.parameters():
                if world > 1:
                    dist.all_reduce(parameter.grad)
                parameter -= 1e-3 * parameter.grad / world
        found |= {f"{step}/{name}": value.clone() for name, (value, _) in made.after_step().items()}
    return {**found, **{name: t.clone() for name, t in made.model.state_dict().items()}}


def main() -> None:
    """Both kinds of codes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {sample: steps(root(sample), [list(SAMPLES[dist.get_rank()])]) for sample in ("relaxed", "nearest")}
    if dist.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    dist.barrier()
    distributed.leave()


if __name__ == "__main__":
    main()

"""Objectives over several gloo processes: one spawn runs every case and writes what it measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
from helpers.objectives import keys
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Paired
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.paired import PairedObjective
from mmpretrain.objectives.sigmoid import Sigmoid
from mmpretrain.train import distributed
from mmpretrain.types import Batch

ROWS = 6  # pairs of each rank
MODES = [("contrastive", mode) for mode in Contrastive.modes] + [("sigmoid", mode) for mode in Sigmoid.modes]


class Towers(nn.Module):
    """The smallest dual encoder, fp64."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(7, 5).double(), nn.Linear(7, 5).double()
        self.logit_scale = nn.Parameter(torch.tensor([1.1], dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor([-1.5], dtype=torch.float64)) if bias else None

    def forward(self, image: Tensor, text: Tensor) -> Paired:
        features = (F.normalize(tower(x), dim=-1) for tower, x in ((self.image, image), (self.text, text)))
        return Paired(*features, self.logit_scale, self.logit_bias)


def inputs(world: int, matched: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    n = world * ROWS
    image, text = (torch.randn(n, 7, generator=generator, dtype=torch.float64) for _ in "ab")
    return image, text, (torch.arange(n) % 5 > 0) if matched else None


def reference(kind: str, hidden: Paired, matched: Tensor | None) -> Tensor:
    """The mean loss of the whole batch in one process, in plain torch."""
    logits = hidden.logit_scale.exp() * hidden.image_BE @ hidden.text_BE.T
    labels = torch.arange(len(logits))
    if kind == "contrastive":
        losses = (F.cross_entropy(logits, labels, reduction="none") + F.cross_entropy(logits.T, labels, reduction="none")) / 2
    else:
        losses = -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * (logits + hidden.logit_bias)).sum(1)
    return losses.mean() if matched is None else losses[matched].mean()


def averaged(values: list[Tensor], world: int) -> list[Tensor]:
    """What a data-parallel wrapper does to gradients."""
    for value in values:
        dist.all_reduce(value)
        value /= world
    return values


def case(kind: str, mode: str, rank: int, world: int, matched: bool) -> dict[str, float]:
    """Differences to one process: of the loss, of each parameter's gradient; and how much longer each gradient is."""
    image, text, true_pairs = inputs(world, matched)
    model = Towers(bias=kind == "sigmoid")
    parameters = list(model.parameters())
    wanted_loss = reference(kind, model(image, text), true_pairs)
    wanted = torch.autograd.grad(wanted_loss, parameters)
    objective: PairedObjective = Contrastive(mode, allow_biased=True) if kind == "contrastive" else Sigmoid(mode)
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    batch = Batch(("",) * ROWS, keys(ROWS), matched_B=None if true_pairs is None else true_pairs[own])
    score = objective(model(image[own], text[own]), batch)
    count = score.count.double()
    dist.all_reduce(count)
    loss = score.sum * world / count  # what the step does: the wrapper divides by the number of ranks
    gradients = averaged(list(torch.autograd.grad(loss, parameters)), world)
    (mean_loss,) = averaged([loss.detach().clone()], world)
    accuracy = torch.stack([x.double() for x in score.stats["accuracy"]])
    dist.all_reduce(accuracy)
    names = [name for name, _ in model.named_parameters()]
    out = {"loss": (mean_loss - wanted_loss).abs().item(), "accuracy": (accuracy[0] / accuracy[1]).item()}
    out["gradient"] = max((g - w).abs().max().item() for g, w in zip(gradients, wanted, strict=True))
    for name, g, w in zip(names, gradients, wanted, strict=True):
        out[f"ratio/{name}"] = (g.norm() / w.norm()).item()
        out[f"cosine/{name}"] = F.cosine_similarity(g.flatten(), w.flatten(), dim=0).item()
    alone = objective.eval()(model(image[own], text[own]), batch)  # no exchange in evaluation
    lone = reference(kind, model(image[own], text[own]), batch.matched_B)
    return out | {"evaluation": (alone.sum / alone.count - lone).abs().item()}


def halves(rank: int, world: int) -> float:
    """Exchange within a group of half of the ranks only: difference of the gradient to one process with their samples."""
    size = world // 2
    groups = [dist.new_group(list(range(i * size, (i + 1) * size))) for i in range(2)]
    worst = 0.0
    for objective in (Contrastive(), Sigmoid("ring"), Sigmoid("ring_bidirectional"), Sigmoid("gather")):
        group = groups[rank // size]
        objective.use_group(group)
        kind = type(objective).__name__.lower()
        image, text, _ = inputs(world, False)
        members, own = slice(rank // size * size * ROWS, (rank // size + 1) * size * ROWS), slice(rank * ROWS, (rank + 1) * ROWS)
        model = Towers(bias=kind == "sigmoid")
        wanted = torch.autograd.grad(reference(kind, model(image[members], text[members]), None), list(model.parameters()))
        score = objective(model(image[own], text[own]), Batch(("",) * ROWS, keys(ROWS)))
        for got, want in zip(torch.autograd.grad(score.sum / ROWS, list(model.parameters())), wanted, strict=True):
            dist.all_reduce(got, group=group)
            worst = max(worst, (got / size - want).abs().max().item())
    return worst


def sharded_scale(world: int) -> float:
    """The logit scale after the clamp when it is a DTensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = Towers(bias=False)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    if not isinstance(model.logit_scale, DTensor):
        raise TypeError("fully_shard left the logit scale as it was")
    Contrastive().after_step(model)
    return model.logit_scale.full_tensor().item()


def work(rank: int, world: int, folder: str) -> None:
    """Run every case; rank 0 writes results.json."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    results: dict[str, object] = {
        f"{kind}/{mode}/{'labels' if matched else 'plain'}": case(kind, mode, rank, world, matched)
        for kind, mode in MODES
        for matched in (False, True)
    }
    if world % 2 == 0 and world > 2:
        results["halves"] = halves(rank, world)
    results["sharded_scale"] = sharded_scale(world)
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    store.add("done", 1)
    while store.add("done", 0) < world:  # a rank that leaves closes its connections, also those in which another still waits
        time.sleep(0.01)
    distributed.leave()


def spawn(world: int, folder: Path, timeout: float = 300.0) -> dict:
    """Results of rank 0. Raises TimeoutError after ``timeout`` seconds, and what a rank raised."""
    context = torch.multiprocessing.start_processes(work, (world, str(folder)), nprocs=world, join=False, start_method="spawn")
    deadline = time.monotonic() + timeout
    while not context.join(timeout=1.0):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{world} ranks did not end within {timeout:.0f} s")
    return json.loads(Path(folder, "results.json").read_text())

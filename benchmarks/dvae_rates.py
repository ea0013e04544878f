"""What a trained dVAE keeps of held-out pictures, beside a continuous autoencoder of the same networks and beside PCA at the same bits.

    python benchmarks/dvae_rates.py --ckpt RUN --train scenes:train --val scenes:val

The continuous one has the encoder and the decoder of the checkpoint and a normal latent of ``--width`` values at each position in the place
of the codes. It is trained here, with the squared error, without augmentation and in fp32, otherwise as the checkpoint was (as dvae.yaml
says, where that is not known): steps, pictures of a step, optimiser, schedule, and the weight of the KL with its ramp; options put other
values in their place. It is not quantised: its bits are those of its KL, an ideal coder's. PCA is fitted to the training pictures; its
coefficients get bits greedily, one at a time where the error is largest, and each has the best levels for the training pictures (Lloyd's),
so that a picture costs as many bits as the dVAE's codes, or as many as so few training pictures can use. PSNR is the mean over pictures.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mmpretrain
from mmpretrain.cli.layering import layer
from mmpretrain.evaluate.rebuild import build, construct
from mmpretrain.evaluate.reconstruction import psnr, rebuild
from mmpretrain.evaluate.samples import chosen, open_set, with_visuals
from mmpretrain.models.dvae import DVAE, pictures
from mmpretrain.nn.dvae import Decoder, Encoder, map_pixels
from mmpretrain.objectives.elbo import ELBO
from mmpretrain.train import schedule as schedules
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.phases import Phases
from mmpretrain.train.schedule import Schedule
from mmpretrain.weights import dvae
from mmpretrain.weights.export_files import write_weights

MOST_BITS = 8  # of one coefficient of PCA
TINY = {"limit": 24, "val_limit": 8, "steps": 2, "batch": 4, "width": 2}


class Row(NamedTuple):
    """One line of the table."""

    name: str
    bits: float
    ratios: Tensor  # dB of each held-out picture


def ratios(x: Tensor, guess: Tensor) -> Tensor:
    """PSNR of each picture."""
    return psnr((x.double() - guess.double()).square().flatten(1).mean(1))


def read(pretrained: mmpretrain.Pretrained, source: str, limit: int) -> list:
    """What the model is shown of the pictures of a source."""
    return [visual for _, visual in with_visuals(pretrained, chosen(open_set("set", source), limit, pretrained.shows))]


class Continuous(torch.nn.Module):
    """The networks of a dVAE around a normal latent."""

    def __init__(self, like: DVAE, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(like.widths, like.block_count, 2 * width)
        self.decoder = Decoder(like.widths, like.block_count, None, width)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures and KL to the normal prior of each, in nats; without noise from the middle of the posterior."""
        mean, log_var = self.encoder(map_pixels(x)).chunk(2, 1)
        z = mean if noise is None else mean + noise * (0.5 * log_var).exp()
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).flatten(1).sum(1)
        output = self.decoder(z)
        return (pictures(output) if noise is None else (output[:, :3].sigmoid() - 0.1) / 0.8), kl


class Training(NamedTuple):
    """How the continuous autoencoder is trained."""

    steps: int
    batch: int
    optimizer: Optimizer
    schedule: Schedule
    objective: ELBO  # whose weight of the KL ``phases`` set
    phases: Phases

    def kl_weight(self, step: int) -> float:
        """At an optimiser step."""
        self.phases.apply(step, {self.objective.name: self.objective})
        return self.objective.kl_weight


def training(config: Mapping[str, Any], options: argparse.Namespace) -> Training:
    """That of a run, with the options in the place of what they name.

    Raises:
        ValueError: the weight of the KL is that of another likelihood than the squared error.
    """
    config = config if "optimizer" in config.get("model", {}) else layer(["dvae.yaml"]).config
    model = config["model"]
    name, node = next((name, node) for name, node in model["objectives"].items() if node["class_path"].endswith(".ELBO"))
    objective: ELBO = build(node, ELBO, f"model.objectives.{name}")
    objective.name = name
    rows = [
        {**row, "set": {key: value for key, value in row["set"].items() if key == f"{name}.kl_weight"}} for row in model.get("phases", ())
    ]
    if options.kl_weight is not None:
        objective.kl_weight, rows = options.kl_weight, []
    elif objective.likelihood != "mse":
        raise ValueError(f"the checkpoint was trained with likelihood={objective.likelihood}: set --kl-weight for the squared error")
    settings = dict(model["optimizer"].get("init_args", model["optimizer"]))
    settings |= {} if options.lr is None else {"lr": options.lr}
    if options.matrix_lr is not None:
        settings |= {"kind": "muon", "matrix_lr": options.matrix_lr} if options.matrix_lr else {"kind": "adamw", "matrix_lr": None}
    steps = config["trainer"]["max_steps"] if options.steps is None else options.steps
    batch = config["data"]["batch_size"] if options.batch is None else options.batch
    kind = getattr(schedules, model["schedule"]["class_path"].removeprefix(f"{schedules.__name__}."))  # one of the step alone
    schedule: Schedule = construct(kind, model["schedule"].get("init_args", {}), "model.schedule")
    return Training(steps, batch, construct(Optimizer, settings, "model.optimizer"), schedule, objective, Phases(rows))


def continuous(train: Tensor, val: Tensor, like: DVAE, width: int, told: Training, seed: int) -> Row:
    """Trained as told."""
    torch.manual_seed(seed)
    model, total = Continuous(like, width), told.schedule.total or told.steps
    optimizer = told.optimizer.build(model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    shape = (told.batch, width, train.shape[2] // like.factor, train.shape[3] // like.factor)
    for step in range(told.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * told.schedule.factor(step, total)
        x = train[torch.randint(0, len(train), (told.batch,))]
        guess, kl = model(x, torch.randn(shape))
        loss = F.mse_loss(guess, x) + told.kl_weight(step) * kl.mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guess, kl = model.eval()(val)
    return Row(f"continuous, {width} values a position, {told.steps} steps", kl.mean().item() / math.log(2), ratios(val, guess))


def lloyd(values: Tensor, levels: int, rounds: int = 30) -> Tensor:
    """The levels that leave the least squared error of values, from quantiles on."""
    found = values.quantile((torch.arange(levels) + 0.5) / levels)
    for _ in range(rounds):
        nearest = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
        count = torch.bincount(nearest, minlength=levels)
        total = torch.zeros(levels, dtype=values.dtype).index_add_(0, nearest, values)
        found = torch.where(count > 0, total / count.clamp(min=1), found).sort().values
    return found


def components(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances of the principal components of rows, descending, and their axes in columns: from the products of the columns, or from those
    of the rows where there are fewer of these."""
    n, p = centred.shape
    if n >= p:
        values, vectors = torch.linalg.eigh(centred.T @ centred / n)
        return values.flip(0).clamp(min=0), vectors.flip(1)
    values, own = torch.linalg.eigh(centred @ centred.T / n)
    kept = values > 1e-12 * values[-1]  # the rows are centred, so that at least one is a sum of the others
    values, own = values[kept].flip(0), own[:, kept].flip(1)
    return values, centred.T @ (own / (n * values).sqrt())


def principal(train: Tensor, val: Tensor, bits: int) -> Row:
    """PCA at so many bits a picture, or as many as its coefficients can have."""
    flat, held = train.flatten(1).double(), val.flatten(1).double()
    mean = flat.mean(0)
    values, vectors = components(flat - mean)
    given = torch.zeros(len(values), dtype=torch.int64)
    left = values.clone()
    for _ in range(min(bits, MOST_BITS * len(values))):
        best = int(torch.where(given < MOST_BITS, left, -1.0).argmax())
        given[best] += 1
        left[best] /= 4  # what a bit more does to the error of a coefficient
    used = int((given > 0).sum())
    axes = vectors[:, :used]
    own, coefficients = (flat - mean) @ axes, (held - mean) @ axes
    for k in range(used):
        levels = lloyd(own[:, k].float(), 2 ** int(given[k])).double()
        coefficients[:, k] = levels[torch.bucketize(coefficients[:, k].contiguous(), (levels[1:] + levels[:-1]) / 2)]
    guess = (mean + coefficients @ axes.T).clamp(0, 1).view_as(val)
    return Row(f"PCA, {used} coefficients quantised", int(given.sum()), ratios(val, guess))


def tiny(folder: Path) -> Path:
    """A folder with an untrained dVAE of 16 codes for pictures of 16 x 16."""
    torch.manual_seed(0)
    for name, state in dvae.to_openai(DVAE((8, 8, 8), 1, 16, 8, 16))._asdict().items():
        write_weights(folder / f"{name}.safetensors", state)
    dvae.import_folder(folder / "encoder.safetensors", folder / "decoder.safetensors", folder / "dvae", image_size=16)
    return folder / "dvae"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="a checkpoint of a dVAE, or the folder of its run")
    parser.add_argument("--train", default="scenes:train", help="pictures that PCA and the continuous autoencoder are fitted to")
    parser.add_argument("--val", default="scenes:val", help="held-out pictures")
    parser.add_argument("--limit", type=int, default=3000, help="most training pictures")
    parser.add_argument("--val-limit", type=int, default=10**9, help="most held-out pictures")
    parser.add_argument("--width", type=int, default=4, help="values of the continuous latent at each position")
    parser.add_argument("--steps", type=int, help="of the continuous autoencoder; 0: leave it out")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--matrix-lr", type=float, help="of Muon; 0: AdamW alone")
    parser.add_argument("--kl-weight", type=float, help="constant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="an untrained dVAE and few pictures and steps, to see whether everything runs")
    options = parser.parse_args()
    if options.tiny is (options.ckpt is not None):
        parser.error("name a checkpoint (--ckpt), or --tiny without one")
    torch.set_num_threads(1)
    if not options.tiny:
        return measure(mmpretrain.load(options.ckpt), options)
    with tempfile.TemporaryDirectory() as folder:
        measure(mmpretrain.load(tiny(Path(folder))), argparse.Namespace(**{**vars(options), **TINY}))


def measure(pretrained: mmpretrain.Pretrained, options: argparse.Namespace) -> None:
    """Print the table."""
    told = training(pretrained.config, options) if options.steps != 0 else None
    visuals = read(pretrained, options.val, options.val_limit)
    parts = [rebuild(pretrained, visuals[i : i + 64]) for i in range(0, len(visuals), 64)]
    val, guess, ids = (torch.cat(column) for column in zip(*((p.pixels_BCHW, p.rebuilt_BCHW, p.ids_Bhw) for p in parts), strict=True))
    train = torch.stack([visual.image for visual in read(pretrained, options.train, options.limit)]).float() / 255
    model: DVAE = pretrained.model
    bits = round(math.log2(model.codes) * ids[0].numel())
    average = train.mean((0, 2, 3), keepdim=True).expand_as(val)
    codes = f"dVAE, {ids[0].numel()} positions of {model.codes} codes"
    rows = [Row("one colour, the average", 0, ratios(val, average)), Row(codes, bits, ratios(val, guess)), principal(train, val, bits)]
    if told is not None:
        begun = time.perf_counter()
        rows.append(continuous(train, val, model, options.width, told, options.seed))
        print(f"the continuous autoencoder took {time.perf_counter() - begun:.0f} s")
    print(f"{len(train)} training and {len(val)} held-out pictures of {val.shape[2]} x {val.shape[3]}, checkpoint {pretrained.source}")
    for row in rows:
        error = row.ratios.std() / math.sqrt(len(row.ratios))
        print(f"{row.name:<48} {row.bits:8.0f} bits  {row.ratios.mean():6.2f} dB +- {error:.2f}")


if __name__ == "__main__":
    main()

"""What a trained dVAE keeps of held-out pictures, beside a continuous autoencoder of the same networks and beside PCA at the same bits.

    python benchmarks/dvae_rates.py --ckpt RUN --train scenes:train --val scenes:val

The continuous one has the encoder and the decoder of the checkpoint and a normal latent of ``--width`` values at each position in the place
of the codes; it is trained here, with the squared error, and not quantised: its bits are those of its KL, an ideal coder's. PCA is fitted
to the training pictures; its coefficients get bits greedily, one at a time where the error is largest, and each has the best levels for
the training pictures (Lloyd's), so that a picture costs as many bits as the dVAE's codes. PSNR is the mean over pictures.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mmpretrain
from mmpretrain.evaluate.reconstruction import psnr, rebuild
from mmpretrain.evaluate.samples import chosen, open_set, with_visuals
from mmpretrain.models.dvae import DVAE, pictures
from mmpretrain.nn.dvae import Decoder, Encoder, map_pixels
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import WarmupCosine

MOST_BITS = 8  # of one coefficient of PCA


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


def continuous(train: Tensor, val: Tensor, like: DVAE, options: argparse.Namespace) -> Row:
    """Trained for ``--steps``; the weight of the KL is that of the dVAE's recipe."""
    torch.manual_seed(options.seed)
    model, schedule = Continuous(like, options.width), WarmupCosine(warmup=50, floor=0.02)
    settings = {"kind": "muon", "matrix_lr": options.matrix_lr} if options.matrix_lr else {}
    optimizer = Optimizer(options.lr, betas=(0.9, 0.95), weight_decay=1e-4, **settings).build(model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    shape = (options.batch, options.width, train.shape[2] // like.factor, train.shape[3] // like.factor)
    for step in range(options.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step, options.steps)
        x = train[torch.randint(0, len(train), (options.batch,))]
        guess, kl = model(x, torch.randn(shape))
        loss = F.mse_loss(guess, x) + options.kl_weight * kl.mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guess, kl = model.eval()(val)
    return Row(f"continuous, {options.width} values a position, {options.steps} steps", kl.mean().item() / math.log(2), ratios(val, guess))


def lloyd(values: Tensor, levels: int, rounds: int = 30) -> Tensor:
    """The levels that leave the least squared error of values, from quantiles on."""
    found = values.quantile((torch.arange(levels) + 0.5) / levels)
    for _ in range(rounds):
        nearest = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
        count = torch.bincount(nearest, minlength=levels)
        total = torch.zeros(levels, dtype=values.dtype).index_add_(0, nearest, values)
        found = torch.where(count > 0, total / count.clamp(min=1), found).sort().values
    return found


def principal(train: Tensor, val: Tensor, bits: int) -> Row:
    """PCA at so many bits a picture."""
    flat, held = train.flatten(1).double(), val.flatten(1).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    given = torch.zeros(len(values), dtype=torch.int64)
    left = values.clone()
    for _ in range(bits):
        best = int(torch.where(given < MOST_BITS, left, torch.zeros_like(left)).argmax())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="a checkpoint of a dVAE, or the folder of its run")
    parser.add_argument("--train", default="scenes:train", help="pictures that PCA and the continuous autoencoder are fitted to")
    parser.add_argument("--val", default="scenes:val", help="held-out pictures")
    parser.add_argument("--limit", type=int, default=3000, help="most training pictures")
    parser.add_argument("--width", type=int, default=4, help="values of the continuous latent at each position")
    parser.add_argument("--steps", type=int, default=500, help="of the continuous autoencoder; 0: leave it out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--matrix-lr", type=float, default=0.02, help="of Muon, as in dvae.yaml; 0: AdamW alone")
    parser.add_argument("--kl-weight", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pretrained = mmpretrain.load(options.ckpt)
    visuals = read(pretrained, options.val, 10**9)
    parts = [rebuild(pretrained, visuals[i : i + 64]) for i in range(0, len(visuals), 64)]
    val, guess, ids = (torch.cat(column) for column in zip(*((p.pixels_BCHW, p.rebuilt_BCHW, p.ids_Bhw) for p in parts), strict=True))
    train = torch.stack([visual.image for visual in read(pretrained, options.train, options.limit)]).float() / 255
    model: DVAE = pretrained.model
    bits = round(math.log2(model.codes) * ids[0].numel())
    average = train.mean((0, 2, 3), keepdim=True).expand_as(val)
    codes = f"dVAE, {ids[0].numel()} positions of {model.codes} codes"
    rows = [Row("one colour, the average", 0, ratios(val, average)), Row(codes, bits, ratios(val, guess)), principal(train, val, bits)]
    if options.steps:
        begun = time.perf_counter()
        rows.append(continuous(train, val, model, options))
        print(f"the continuous autoencoder took {time.perf_counter() - begun:.0f} s")
    print(f"{len(train)} training and {len(val)} held-out pictures of {val.shape[2]} x {val.shape[3]}, checkpoint {pretrained.source}")
    for row in rows:
        error = row.ratios.std() / math.sqrt(len(row.ratios))
        print(f"{row.name:<48} {row.bits:8.0f} bits  {row.ratios.mean():6.2f} dB +- {error:.2f}")


if __name__ == "__main__":
    main()

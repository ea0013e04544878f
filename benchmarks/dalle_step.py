"""DALL-E's transformer: a training step with its sparse attention against one with dense causal attention of the same size, and sampling
with and without what is kept of earlier tokens.

    python benchmarks/dalle_step.py
    python benchmarks/dalle_step.py --width 1024 --heads 16 --depth 4 --text 256 --grid 32 --batch 1 --samples 4

Both sides of the step have the same weights, texts and codes; the dense one attends by torch's scaled_dot_product_attention with
``is_causal``. Their losses differ, since they look at different codes; that the sparse one computes what it should is tested
(tests/nn/test_sparse.py).

Sampling draws N pictures of one text, three ways: without a cache every code costs a forward of all tokens before it (timed at places
spread evenly over the picture); with a cache and the text run and kept N times; with a cache and the text run and kept once. States of the
last two are compared with those of one whole forward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import Contender, captions, compare, peak_memory, report_peak
from torch import Tensor

from mmpretrain.models.dalle import DALLE
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, CodeBatch, Text

WORDS = 4096
CODES = 1024
TINY = {"width": 32, "depth": 3, "heads": 2, "text": 32, "grid": 4, "samples": 2}


def build(args: argparse.Namespace, attention: str) -> Pretraining:
    """The same weights for both kinds of attention."""
    torch.manual_seed(0)
    grid = (args.grid, args.grid)
    model = DALLE(args.width, args.depth, args.heads, WORDS, CODES, args.text, grid, attention=attention, gain=1.0)
    root = Pretraining(model, {"text": NextText(), "code": NextCode()})
    root.bind(None)
    return root


def inputs(args: argparse.Namespace) -> tuple[Batch, str]:
    """Captions, a token for each letter and no more than fit, and codes drawn at random."""
    texts, source = captions(args.batch)
    rows = [torch.tensor([ord(letter) % WORDS for letter in text[: args.text]]) for text in texts]
    ids_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    codes_N = torch.randint(0, CODES, (args.batch * args.grid**2,), generator=torch.Generator().manual_seed(0))
    codes = CodeBatch(codes_N, ((args.grid, args.grid),) * args.batch)
    keys = tuple(map(str, range(args.batch)))
    return Batch(keys, torch.arange(args.batch), Text(ids_BT, tuple(map(len, rows))), codes=codes), source


def contender(name: str, root: Pretraining, batch: Batch) -> Contender:
    def forward() -> Tensor:
        scores = root(batch)
        return sum(root.objectives[name].weight * score.sum / score.count for name, score in scores.items())

    return Contender(name, forward, Optimizer(lr=1e-5, betas=(0.9, 0.96), decay="standard").build(root))


class Way(NamedTuple):
    """A way to sample."""

    name: str
    codes_per_s: float
    prefill: float  # seconds before the first code


def codes_of(model: DALLE, n: int) -> Tensor:
    return torch.randint(0, CODES, (n, model.length), generator=torch.Generator().manual_seed(1))


def repeated(text: Text, n: int) -> Text:
    """The first text n times."""
    return Text(text.ids_BT[:1].repeat(n, 1), text.lengths[:1] * n)


@torch.no_grad()
def uncached(model: DALLE, text: Text, n: int, places: int) -> Way:
    """Codes a second from forwards at some places."""
    codes_BN, taken = codes_of(model, n), []
    for place in torch.linspace(0, model.length - 1, places).long().tolist():
        began = time.perf_counter()
        model.prefill(repeated(text, n), codes_BN[:, :place] if place else None)
        taken.append(time.perf_counter() - began)
    return Way("without a cache", n * len(taken) / sum(taken), taken[0])


@torch.no_grad()
def cached(model: DALLE, text: Text, n: int, once: bool) -> tuple[Way, Tensor]:
    """Codes a second of whole pictures, and all their states (n, codes, D)."""
    codes_BN = codes_of(model, n)
    began = time.perf_counter()
    cache, state_BD = model.prefill(repeated(text, 1 if once else n))
    cache, state_BD = (cache.expand(n), state_BD.expand(n, -1)) if once else (cache.expand(1), state_BD)
    first = time.perf_counter() - began
    states = [state_BD]
    for place in range(model.length - 1):
        states.append(model.advance(cache, codes_BN[:, place]))
    taken = time.perf_counter() - began
    name = "cache, the text once" if once else "cache, the text for each picture"
    return Way(name, n * model.length / taken, first), torch.stack(states, 1)


@torch.no_grad()
def whole(model: DALLE, text: Text, n: int) -> Tensor:
    """The same states by one forward."""
    codes = CodeBatch(codes_of(model, n).flatten(), (model.grid,) * n)
    hidden = model(Batch(("",) * n, torch.zeros(n, dtype=torch.int64), repeated(text, n), codes=codes))
    return hidden.image.x_ND.view(n, model.length, -1)


def sampling(args: argparse.Namespace, root: Pretraining, batch: Batch) -> None:
    model: DALLE = root.model.eval()
    ways, expected = [uncached(model, batch.text, args.samples, args.places)], whole(model, batch.text, args.samples)
    difference = 0.0
    for once in (False, True):
        way, found = cached(model, batch.text, args.samples, once)
        ways.append(way)
        difference = max(difference, float((found - expected).abs().max() / expected.abs().max()))
    print(f"\nSampling, {args.samples} pictures of {model.length} codes of one text of {args.text} positions, attention as published")
    print(f"  outputs: largest difference {difference:.2e} of the largest reference value")
    for way in ways:
        print(f"  {way.name:<33} {way.codes_per_s:9.1f} codes/s, {way.codes_per_s / ways[0].codes_per_s:6.1f}x; text {way.prefill:.3f} s")


def step(args: argparse.Namespace, sides: Callable[[str], Contender], batch: Batch, source: str) -> None:
    sparse, full = sides("sparse"), sides("full")
    flops = sparse.flops(), full.flops()
    result = compare(sparse, full, args.pairs)
    arguments = [word for name in ("batch", "threads", *TINY) for word in (f"--{name}", str(getattr(args, name)))]
    memory = peak_memory(__file__, arguments, "sparse"), peak_memory(__file__, arguments, "full")
    tokens = args.text + args.grid**2
    print(
        f"A step, width {args.width}, depth {args.depth}, {tokens} tokens, batch {args.batch}, captions of {source}, {args.threads} threads"
    )
    print(f"  arithmetic: sparse {flops[0] / 1e9:.1f} GFLOP, dense {flops[1] / 1e9:.1f} GFLOP (all pairs, also those after a token)")
    for name, seconds in (("sparse", result.ours), ("dense", result.theirs)):
        print(f"  {name:<7} {batch.size / seconds.wall:.2f} samples/s, {batch.size * tokens / seconds.wall:.0f} tokens/s")
    for name, ratio in (("measured ratio", result.wall), ("of process time", result.process)):
        print(f"  {name} {ratio.median:.2f}x (quartiles {ratio.low:.2f} to {ratio.high:.2f})")
    print(f"  peak memory: sparse {memory[0]:.2f} GiB, dense {memory[1]:.2f} GiB")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--text", type=int, default=64, help="positions of a text")
    parser.add_argument("--grid", type=int, default=16, help="side of the grid of codes")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=4, help="steps of each side that are counted")
    parser.add_argument("--samples", type=int, default=8, help="pictures that are sampled together")
    parser.add_argument("--places", type=int, default=8, help="of a picture, at which a forward without a cache is timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=["sparse", "full"], help="train one side alone and print its peak memory")
    parser.add_argument("--tiny", action="store_true", help="a narrow model, to see whether everything runs")
    args = parser.parse_args()
    if args.tiny:
        vars(args).update(TINY)
    return args


def main() -> None:
    args = options()
    torch.set_num_threads(args.threads)
    batch, source = inputs(args)
    if args.only:
        side = contender(args.only, build(args, args.only), batch)
        for _ in range(3):
            side.step()
        report_peak()
        return
    step(args, lambda attention: contender(attention, build(args, attention), batch), batch, source)
    sampling(args, build(args, "sparse"), batch)


if __name__ == "__main__":
    main()

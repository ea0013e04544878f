"""What the step benchmarks share: real captions, interleaved timing, arithmetic and memory of a step."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

BUILT_IN = (  # lengths as in COCO, used without the real shards
    "a man riding a wave on top of a surfboard",
    "two dogs are playing with a red ball in the grass near a house",
    "a plate of food",
    "a group of people standing around a kitchen preparing a large meal for their guests",
    "an old train pulls into a small station",
    "a close up of a cat sleeping on a laptop keyboard",
    "several boats docked in a harbour on a cloudy day",
    "a woman holding an umbrella walks across a busy street in the rain",
)


def captions(n: int) -> tuple[list[str], str]:
    """``n`` captions and where they come from: the photographs of the real shards, or a few built in."""
    texts = list(BUILT_IN)
    source = "built in"
    if root := os.environ.get("MMPRETRAIN_REAL_SHARDS"):
        from mmpretrain.data.reader import ShardReader

        tars = sorted(Path(root, "coco_cc").glob("*.tar"))
        reader = ShardReader([str(path) for path in tars])
        texts = [caption for i in range(len(reader)) for caption in reader.read(i).captions]
        source = "coco_cc"
    return [texts[i % len(texts)] for i in range(n)], source


class Seconds(NamedTuple):
    """Of one step: on the clock, and of the processors that worked on it (which other programs do not lengthen as much)."""

    wall: float
    process: float


class Contender(NamedTuple):
    name: str
    forward: Callable[[], torch.Tensor]  # the loss
    optimizer: torch.optim.Optimizer

    def step(self) -> Seconds:
        """Seconds of forward, backward and update."""
        wall, process = time.perf_counter(), time.process_time()
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Seconds(time.perf_counter() - wall, time.process_time() - process)

    def flops(self) -> int:
        """Multiply-adds x 2 of forward and backward, counted by torch with attention spelt out."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.forward().backward()
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops()


class Ratio(NamedTuple):
    """Of theirs to ours, over pairs of steps: median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Ratio:
        ratios = sorted(ratios)
        quartile = len(ratios) // 4
        return cls(statistics.median(ratios), ratios[quartile], ratios[-1 - quartile])


class Comparison(NamedTuple):
    ours: Seconds  # medians
    theirs: Seconds
    wall: Ratio
    process: Ratio


def compare(ours: Contender, theirs: Contender, pairs: int, warmup: int = 2) -> Comparison:
    """Steps of both in turn, so that a drift of the machine's speed meets both."""
    rows: list[tuple[Seconds, Seconds]] = []
    for i in range(warmup + pairs):
        first, second = (ours, theirs) if i % 2 else (theirs, ours)
        a, b = first.step(), second.step()
        if i >= warmup:
            rows.append((a, b) if first is ours else (b, a))
    medians = [Seconds(*(statistics.median(values) for values in zip(*side, strict=True))) for side in zip(*rows, strict=True)]
    wall, process = (Ratio.of([b[clock] / a[clock] for a, b in rows]) for clock in (0, 1))
    return Comparison(medians[0], medians[1], wall, process)


def peak_memory(script: str, arguments: list[str], which: str) -> float:
    """GiB resident at the peak of a process that only trains ``which``."""
    command = [sys.executable, script, *arguments, "--only", which]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # the script itself, fixed arguments
    return float(json.loads(out.strip().splitlines()[-1])["peak_gib"])


def report_peak() -> None:
    """Peak of this process. What ``getrusage`` says starts at the size of the process that began this one."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="ascii").splitlines() if status.exists() else []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
    print(json.dumps({"peak_gib": (kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20}))


def show(title: str, batch: int, result: Comparison, flops: tuple[int, int], difference: float, memory: tuple[float, float] | None) -> None:
    """The table of one comparison."""
    ours, theirs = flops
    print(f"\n{title}")
    print(f"  outputs: largest difference {difference:.2e} of the largest reference value")
    print(f"  arithmetic of a step: ours {ours / 1e9:.1f} GFLOP, theirs {theirs / 1e9:.1f} GFLOP, ceiling {theirs / ours:.2f}x")
    print(f"  ours {batch / result.ours.wall:.2f} samples/s, theirs {batch / result.theirs.wall:.2f} samples/s")
    for name, ratio in (("measured ratio", result.wall), ("of process time", result.process)):
        share = ratio.median * ours / theirs
        print(f"  {name} {ratio.median:.2f}x (quartiles {ratio.low:.2f} to {ratio.high:.2f}): {share:.0%} of the ceiling")
    if memory:
        print(f"  peak memory: ours {memory[0]:.2f} GiB, theirs {memory[1]:.2f} GiB")

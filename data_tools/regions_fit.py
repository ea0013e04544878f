"""``mmpretrain data regions --fit``: train the small extractor on labelled boxes, calibrate it, measure it on samples that it never saw."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from mmpretrain.data.decode import decode_image, join
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data_tools.engine import EVERY
from mmpretrain.data_tools.regions_labels import Thing, Vocabulary, learn, things
from mmpretrain.data_tools.regions_measure import calibrate, measure
from mmpretrain.data_tools.regions_net import Config, RegionNet, deltas_to, pixels_of, save_extractor, windows

_JITTERS = 2  # moved copies of each labelled box
_MOVED = 0.3  # parts of a side by which the corners of copies move, at most
_WINDOWS = 4  # windows for each labelled box, half of them overlapping one
_TIGHT, _LOOSE, _NEAR, _SAME = 0.6, 0.5, 0.4, 0.7  # overlaps: a thing; none; to be corrected; near enough for its class
_DELTA_WEIGHT = 5.0
_SIZES = (48, 160)  # shorter side of pictures, least and most


class Options(NamedTuple):
    """How to train.

    Args:
        width: of features.
        samples: at most so many, evenly spread over the shards.
        passes: over the training samples.
        least_steps: small sets are seen more often, for so many steps.
        batch: pictures in a step.
        rate: highest learning rate.
        size: shorter side of pictures; 0: that of the median picture, 48 to 160.
        seed: of weights, order and boxes.
    """

    width: int = 128
    samples: int = 4000
    passes: int = 3
    batch: int = 32
    rate: float = 3e-3
    size: int = 0
    seed: int = 0
    least_steps: int = 100


class Picture(NamedTuple):
    """A decoded sample with its labels."""

    key: str
    pixels: Tensor  # uint8 (3, h, w)
    boxes: Tensor  # (G, 4) in pixels of ``pixels``
    targets: Tensor  # int64 (G, 1 + kinds)


class _Labelled(NamedTuple):
    """A sample with labelled boxes, without its pixels."""

    number: int  # in its reader
    size: tuple[int, int]  # (width, height) of the picture, several side by side
    things: list[Thing]


def _labelled(reader: ShardReader, most: int) -> list[_Labelled]:
    """The samples that have pictures and labelled boxes, at most ``most``, evenly spread."""
    found = []
    for number in np.linspace(0, len(reader) - 1, min(most, len(reader))).astype(int).tolist():
        sample = reader.read(number)
        try:
            sizes = [decode_image(data).size for data in sample.images]
            labelled = things(sample.meta, sizes)
        except BadSample as error:
            raise BadSample(f"{reader.name(*reader.locate(number))}: {error}") from None
        if labelled:
            found.append(_Labelled(number, (sum(width for width, _ in sizes), max(height for _, height in sizes)), labelled))
    return found


def _pictures(reader: ShardReader, found: Sequence[_Labelled], vocabulary: Vocabulary, size: int) -> list[Picture]:
    """The samples with pixels, shorter side ``size``."""
    made = []
    for one in found:
        sample = reader.read(one.number)
        pixels, sx, sy = pixels_of(join([decode_image(data) for data in sample.images]), size)
        boxes = torch.tensor([thing.box for thing in one.things]) * torch.tensor([sx, sy, sx, sy])
        made.append(Picture(sample.key, pixels, boxes, torch.tensor([vocabulary.targets(thing) for thing in one.things])))
    return made


def _part(key: str) -> float:
    """A number from 0 to 1 that depends on the key alone: who is held out does not change with the rest of the set."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:6], "big") / 2**48


def _window_shapes(found: Sequence[_Labelled]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(sides in shorter sides, height / width) that windows need to meet the labelled boxes."""
    sides = np.array([(t.box[2] - t.box[0], t.box[3] - t.box[1]) for one in found for t in one.things])
    short = np.array([min(one.size) for one in found for _ in one.things])
    scales: list[float] = []
    for scale in np.quantile(np.sqrt(sides.prod(1)) / short, (0.1, 0.5, 0.9)).tolist():
        if not scales or scale > scales[-1] * 1.25:
            scales.append(round(min(max(scale, 0.05), 1.0), 4))
    spread = np.quantile(np.log(sides[:, 1] / sides[:, 0]), (0.1, 0.9))
    ratios = (1.0,) if np.abs(spread).max() < np.log(1.5) else tuple(round(float(np.exp(v)), 4) for v in (spread[0], 0.0, spread[1]))
    return tuple(scales), ratios


def _drawn(picture: Picture, grid: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) to learn from, the labelled box that each overlaps most (N,), and that overlap (N,)."""
    boxes = picture.boxes
    height, width = picture.pixels.shape[1:]
    copies = boxes.repeat(_JITTERS, 1)
    sides = (copies[:, 2:] - copies[:, :2]).repeat(1, 2)
    amounts = torch.rand(len(copies), 1, generator=rng) * 2 * _MOVED
    copies = copies + (torch.rand(copies.shape, generator=rng) - 0.5) * amounts * sides
    mixed, many = grid[torch.randperm(len(grid), generator=rng)], _WINDOWS * len(boxes) // 2
    overlapping = box_iou(mixed, boxes).amax(1) > 0
    drawn = torch.cat((boxes, copies, mixed[overlapping][:many], mixed[:many]))
    drawn = torch.stack(
        (drawn[:, 0].clamp(0, width - 1), drawn[:, 1].clamp(0, height - 1), drawn[:, 2].clamp(max=width), drawn[:, 3].clamp(max=height)), 1
    )
    drawn[:, 2:] = torch.maximum(drawn[:, 2:], drawn[:, :2] + 1)
    overlap, nearest = box_iou(drawn, boxes).max(1)
    return drawn, nearest, overlap


def batch_of(pictures: Sequence[Picture]) -> Tensor:
    """Pixels (B, 3, H, W) from 0 to 1, padded at the bottom and the right with white."""
    height, width = (max(picture.pixels.shape[side] for picture in pictures) for side in (1, 2))
    made = torch.ones(len(pictures), 3, height, width)
    for row, picture in zip(made, pictures):
        row[:, : picture.pixels.shape[1], : picture.pixels.shape[2]] = picture.pixels / 255
    return made


def loss_of(net: RegionNet, pictures: Sequence[Picture], rng: torch.Generator) -> Tensor:
    """The loss of a batch: class and attributes of boxes near a thing, objectness of all, correction of those that overlap one."""
    boxes, targets, wanted, overlaps, sides = [], [], [], [], []
    for number, picture in enumerate(pictures):
        height, width = picture.pixels.shape[1:]
        drawn, nearest, overlap = _drawn(picture, windows(width, height, net.config), rng)
        boxes.append(torch.cat((torch.full((len(drawn), 1), float(number)), drawn), 1))
        targets.append(picture.targets[nearest])
        wanted.append(picture.boxes[nearest])
        overlaps.append(overlap)
        sides.append(torch.tensor([[float(width), float(height)]]).expand(len(drawn), 2))
    rows, labels, overlap = torch.cat(boxes), torch.cat(targets), torch.cat(overlaps)
    heads = net.heads(net(batch_of(pictures)), rows, torch.cat(sides))
    total = heads.features.new_zeros(())
    for kind, logits in enumerate(heads.labels):
        target = torch.where(overlap >= _SAME, labels[:, kind], -1)
        if (target >= 0).any():
            total = total + F.cross_entropy(logits, target, ignore_index=-1)
    clear = (overlap >= _TIGHT) | (overlap < _LOOSE)
    total = total + F.binary_cross_entropy_with_logits(heads.objectness[clear], (overlap[clear] >= _TIGHT).float())
    near = overlap >= _NEAR
    deltas = deltas_to(rows[near, 1:], torch.cat(wanted)[near])
    return total + _DELTA_WEIGHT * F.smooth_l1_loss(heads.deltas[near], deltas, beta=0.1)


def train(pictures: Sequence[Picture], config: Config, options: Options, report: Callable[[int, int, float], None]) -> RegionNet:
    """A network trained on these pictures; the same one for the same arguments, machine and number of threads.

    Args:
        report: called with (step, steps, loss) after every step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = RegionNet(config)
    rng = torch.Generator().manual_seed(options.seed)
    steps = max(options.least_steps, options.passes * len(pictures) // options.batch)
    optimizer = torch.optim.AdamW(net.parameters(), options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, total_steps=steps + 1, pct_start=0.2)
    order: list[int] = []
    for step in range(steps):
        while len(order) < min(options.batch, len(pictures)):
            order += torch.randperm(len(pictures), generator=rng).tolist()
        chosen, order = order[: options.batch], order[options.batch :]
        loss = loss_of(net, [pictures[number] for number in chosen], rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report(step + 1, steps, loss.item())
    return net.eval()


def fit(
    sources: Sequence[str], out: Path, held_out: Sequence[str] | Mapping[str, str], options: Options, progress: bool = True
) -> dict[str, Any]:
    """Train, calibrate, measure and save an extractor; returns what was measured, which its JSON keeps too.

    Args:
        sources: shards with labelled boxes (see ``regions_labels``).
        out: NAME.safetensors; NAME.json is written beside it.
        held_out: shards to measure on, or name -> shards; without any a tenth of the samples, by their keys, is kept out of training.
        options: how to train.
        progress: show a bar on stderr.

    Raises:
        DataError: no labelled boxes, too few samples, or a name that does not end in .safetensors.
    """
    if out.suffix != ".safetensors":
        raise DataError(f"--fit: {out} must end in .safetensors; its JSON is written beside it")
    began = time.monotonic()
    reader = ShardReader(expand(sources))
    found = _labelled(reader, options.samples)
    vocabulary = learn(thing for one in found for thing in one.things)
    size = options.size or int(np.clip(np.median([min(one.size) for one in found]), *_SIZES))
    config = Config(vocabulary, size, options.width, *_window_shapes(found))
    pictures = _pictures(reader, found, vocabulary, size)
    if held_out:
        named = held_out if isinstance(held_out, Mapping) else {source: source for source in held_out}
        readers = {name: ShardReader(expand(source)) for name, source in named.items()}
        tests = {name: _pictures(one, _labelled(one, options.samples), vocabulary, size) for name, one in readers.items()}
        rest = pictures
    else:
        tests = {"a tenth": [picture for picture in pictures if _part(picture.key) < 0.1]}
        rest = [picture for picture in pictures if _part(picture.key) >= 0.1]
    tuned = [picture for picture in rest if _part(picture.key) >= 0.9]
    rest = [picture for picture in rest if _part(picture.key) < 0.9]
    if not rest or not tuned or not all(tests.values()):
        raise DataError(f"--fit: {len(pictures)} samples with labelled boxes are too few to train, calibrate and measure; give 40 or more")
    with _Bar(progress) as report:
        net = train(rest, config, options, report)
    net.config = config._replace(temperatures=calibrate(net, tuned))
    measured: dict[str, Any] = {name: measure(net, pictures) for name, pictures in tests.items()}
    counts = {"trained_on": len(rest), "calibrated_on": len(tuned), "seconds": round(time.monotonic() - began, 1)}
    stated = {"held_out": measured, **{name: counts[name] for name in ("trained_on", "calibrated_on")}}
    save_extractor(out, net, stated, {"sources": list(map(str, sources)), **options._asdict()})
    return {**stated, "seconds": counts["seconds"]}


class _Bar:
    """Progress of the steps on stderr: a bar where that is a terminal, else a line at times."""

    def __init__(self, wanted: bool) -> None:
        self.wanted, self.lines = wanted and sys.stderr.isatty(), wanted and not sys.stderr.isatty()
        self.last = time.monotonic()

    def _line(self, step: int, steps: int, loss: float) -> None:
        if self.lines and (step == steps or time.monotonic() - self.last >= EVERY):
            self.last = time.monotonic()
            print(f"training: {step}/{steps}, loss {loss:.3f}", file=sys.stderr, flush=True)

    def __enter__(self) -> Callable[[int, int, float], None]:
        if not self.wanted:
            return self._line
        from rich.console import Console
        from rich.progress import Progress

        self.shown = Progress(console=Console(stderr=True))
        self.shown.start()
        task = self.shown.add_task("training the extractor", total=None)
        return lambda step, steps, loss: self.shown.update(task, total=steps, completed=step, description=f"training, loss {loss:.3f}")

    def __exit__(self, *_: object) -> None:
        if self.wanted:
            self.shown.stop()

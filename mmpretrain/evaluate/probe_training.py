"""Training of the probe (``evaluate.probe``), its file, and one kept in the cache for each set of data."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.data.cache import cache_root, locked, write_atomic
from mmpretrain.evaluate.claims import Placed, Words
from mmpretrain.evaluate.probe import STRIDE, Labelled, Maps, Options, Probe, ProbeNet, Report, labelled, weights_of
from mmpretrain.evaluate.samples import EvalSet

VERSION = 1  # of the network and of how it is trained: probes in the cache are named by it
_SPREAD = 0.7  # cells: how far around a centre a high probability costs little
_BLUR, _NOISE, _SHIFT = (0.3, 1.6), 0.08, 0.1  # standard deviations in pixels; standard deviation; largest shift of a channel


def fit(data: Labelled, words: Words, options: Options, source: str, report: Report | None = None) -> Probe:
    """Train a probe; the same one for the same arguments, machine and number of threads.

    Raises:
        ValueError: a side that is no multiple of 4, or an option below 1.
    """
    if options.side % STRIDE or min(options.side, options.samples, options.steps, options.batch) < 1:
        raise ValueError(f"probe: side={options.side} must be a multiple of {STRIDE}, and samples, steps and batch at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        net = ProbeNet(len(words.colours), len(words.shapes))
    net.train()
    rng = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(net.parameters(), options.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=options.steps))
    order: list[int] = []
    for step in range(options.steps):
        while len(order) < options.batch:
            order += torch.randperm(len(data.things), generator=rng).tolist()
        rows, order = order[: options.batch], order[options.batch :]
        pixels_BCHW = distorted(data.pixels_NCHW[rows].float() / 255, rng)
        loss = loss_of(net(pixels_BCHW), [data.things[row] for row in rows], words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if report is not None:
            report(step + 1, options.steps)
    return Probe(net, words, options, source)


def _rate(step: int, steps: int) -> float:
    """Part of the highest rate: up in a straight line over a fifth of the steps, then down to 0 along a cosine."""
    rising = max(1, steps // 5)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def distorted(pixels_BCHW: Tensor, rng: torch.Generator) -> Tensor:
    """Pictures of which every second one is blurred, all with shifted channels and noise; values from 0 to 1."""
    spread = _BLUR[0] + (_BLUR[1] - _BLUR[0]) * float(torch.rand((), generator=rng))
    line = torch.exp(-((torch.arange(-4, 5) / spread) ** 2) / 2)
    kernel = (line[:, None] * line / line.sum() ** 2).expand(3, 1, 9, 9)
    soft = F.conv2d(F.pad(pixels_BCHW[::2], (4, 4, 4, 4), mode="replicate"), kernel, groups=3)
    made = pixels_BCHW.clone()
    made[::2] = soft
    size = len(made)
    shift = (torch.rand(size, 3, 1, 1, generator=rng) * 2 - 1) * _SHIFT
    noise = torch.randn(made.shape, generator=rng) * torch.rand(size, 1, 1, 1, generator=rng) * _NOISE
    return (made + shift + noise).clamp(0, 1)


def loss_of(maps: Maps, things: list[tuple[Placed, ...]], words: Words) -> Tensor:
    """Penalty-reduced focal loss of centres (Law and Deng, arXiv 1808.01244), cross-entropies of colour and shape and distance of the place
    at the cells with a centre; each a mean over things."""
    height, width = maps.centre_BHW.shape[1:]
    near_BHW = torch.zeros_like(maps.centre_BHW)
    rows: list[tuple[int, int, int]] = []
    wanted: list[tuple[float, float, int, int]] = []
    y_H, x_W = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    for picture, placed in enumerate(things):
        for (colour, shape), share_x, share_y in placed:
            x, y = min(share_x * width, width - 1e-3), min(share_y * height, height - 1e-3)
            around_HW = torch.exp(-((y_H[:, None] - y) ** 2 + (x_W - x) ** 2) / (2 * _SPREAD**2))
            near_BHW[picture] = torch.maximum(near_BHW[picture], around_HW)
            rows.append((picture, int(y), int(x)))
            wanted.append((x - int(x), y - int(y), words.colours.index(colour), words.shapes.index(shape)))
    if not rows:
        return -(maps.centre_BHW.sigmoid() ** 2 * F.logsigmoid(-maps.centre_BHW)).sum()
    picture_T, row_T, column_T = torch.tensor(rows).T
    at_BHW = torch.zeros_like(near_BHW, dtype=torch.bool)
    at_BHW[picture_T, row_T, column_T] = True
    share_BHW = maps.centre_BHW.sigmoid()
    hit = (1 - share_BHW) ** 2 * F.logsigmoid(maps.centre_BHW)
    miss = (1 - near_BHW) ** 4 * share_BHW**2 * F.logsigmoid(-maps.centre_BHW)
    centre = -torch.where(at_BHW, hit, miss).sum() / len(rows)
    place_T2 = torch.tensor([one[:2] for one in wanted])
    colour_T, shape_T = (torch.tensor([one[part] for one in wanted]) for part in (2, 3))
    place = (maps.place_B2HW[picture_T, :, row_T, column_T] - place_T2).abs().sum(1).mean()
    colour_TC, shape_TC = (logits[picture_T, :, row_T, column_T] for logits in (maps.colour_BCHW, maps.shape_BCHW))
    return centre + place + F.cross_entropy(colour_TC, colour_T) + F.cross_entropy(shape_TC, shape_T)


def words_of(data: Labelled) -> Words:
    """The colours and shapes of labelled things, in the order of the alphabet."""
    things = {placed.thing for row in data.things for placed in row}
    return Words(tuple(sorted({colour for colour, _ in things})), tuple(sorted({shape for _, shape in things})))


def trained(data: EvalSet, options: Options = Options(), report: Report | None = None) -> Probe:  # noqa: B008  (immutable)
    """The probe of a set of labelled pictures: from the cache where it was trained on these data with these options before. Training takes
    about a minute of one core, and one thread, so that its weights are those of any number of cores.

    Raises:
        ValueError: no sample is labelled, or an option is out of its range.
    """
    source = f"{data.name}@{data.fingerprint}"
    facts = json.dumps([VERSION, data.fingerprint, len(data.samples), options])
    path = cache_root() / "probes" / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
    with locked(str(path)):
        if (found := _read(path, options, source)) is not None:
            return found
        held = labelled(data, options.samples, options.side)
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            made = fit(held, words_of(held), options, source, report)
        finally:
            torch.set_num_threads(before)
        with suppress(OSError):  # without a writable cache it is trained again next time
            write_atomic(path, save(weights_of(made.net), {"words": json.dumps(made.words)}))
    return made


def _read(path: Path, options: Options, source: str) -> Probe | None:
    """A probe of the cache; None where there is none that can be read."""
    try:
        data = path.read_bytes()
        words = Words(*map(tuple, json.loads(_metadata(data)["words"])))
        net = ProbeNet(len(words.colours), len(words.shapes))
        net.load_state_dict(load(data))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return Probe(net, words, options, source)


def _metadata(data: bytes) -> dict[str, str]:
    """What is told in the head of a safetensors file beside its tensors."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]

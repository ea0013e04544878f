"""A probe that says which coloured shapes a picture shows, and where: a small network trained on labelled pictures.

Every cell of a map of a quarter of the picture's side says whether the centre of a thing lies in it, where in the cell, and of what colour
and shape the thing is (centres as points: Zhou, Wang and Kraehenbuehl, arXiv 1904.07850). It is trained with blur, noise and shifts of
brightness, so that soft pictures of a decoder are not unlike everything it has seen. What it is worth is stated beside what it measures:
:meth:`Probe.measured`, on labelled pictures that it was not trained on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.data.decode import decode_image
from mmpretrain.data.errors import BadSample
from mmpretrain.evaluate.claims import Placed, Words, things_of
from mmpretrain.evaluate.inputs import ImageLike, picture_of
from mmpretrain.evaluate.samples import EvalSet, chosen

STRIDE = 4
_CHANNELS = (16, 32, 48)
_CHUNK = 256
_LOG = logging.getLogger("mmpretrain")
Report = Callable[[int, int], None]  # (steps done, steps)


class Options(NamedTuple):
    """How a probe is trained.

    Args:
        side: pictures are read at side x side pixels, a multiple of 4.
        samples: at most so many, evenly spread over the set.
        steps: of the optimiser.
        batch: pictures of a step.
        rate: highest learning rate.
        threshold: a cell with at least this probability of a centre, and the highest around, is a thing.
        seed: of weights, order and distortions.
    """

    side: int = 64
    samples: int = 8192
    steps: int = 800
    batch: int = 32
    rate: float = 5e-3
    threshold: float = 0.5
    seed: int = 0


class Maps(NamedTuple):
    """What the network says of every cell."""

    centre_BHW: Tensor  # logits
    place_B2HW: Tensor  # x and y of the centre in its cell, in cells
    colour_BCHW: Tensor  # logits
    shape_BCHW: Tensor


class ProbeNet(nn.Module):
    """See the module.

    Args:
        colours, shapes: how many.
    """

    def __init__(self, colours: int, shapes: int) -> None:
        super().__init__()
        first, second, width = _CHANNELS
        self.parts = (1, 2, colours, shapes)

        def layer(before: int, after: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

        self.trunk = nn.Sequential(
            *layer(3, first, 2),
            *layer(first, second, 2),
            *layer(second, width),
            *layer(width, width, dilation=2),
            *layer(width, width, dilation=2),
            *layer(width, width),
            nn.Conv2d(width, sum(self.parts), 1),
        )

    def forward(self, pixels_BCHW: Tensor) -> Maps:
        """The maps (B, ..., H / 4, W / 4) of pictures with values from 0 to 1."""
        centre, place, colour, shape = self.trunk((pixels_BCHW - 0.5) * 4).split(self.parts, dim=1)
        return Maps(centre[:, 0], place.sigmoid(), colour, shape)


class Labelled(NamedTuple):
    """Pictures with their things."""

    pixels_NCHW: Tensor  # uint8
    things: tuple[tuple[Placed, ...], ...]


def labelled(data: EvalSet, limit: int | None, side: int) -> Labelled:
    """The samples of a set whose things are annotated, at side x side pixels; those that cannot be decoded are left out with a warning.

    Raises:
        ValueError: there is none.
    """
    pixels, things = [], []
    for sample in chosen(data, limit, lambda sample: len(sample.images) == 1):
        found = things_of(sample.meta)
        if found is None:
            continue
        try:
            pixels.append(_pixels(decode_image(sample.images[0]), side))
        except BadSample as error:
            _LOG.warning("left out of the probe: sample %s: %s", sample.key, error)
            continue
        things.append(tuple(found))
    if not pixels:
        raise ValueError(f"{data.name}: no sample has one picture and 'objects' with colour, shape and box, which the probe learns from")
    return Labelled(torch.stack(pixels), tuple(things))


def _pixels(image: ImageLike, side: int) -> Tensor:
    picture = picture_of(image)
    small = picture if picture.size == (side, side) else picture.resize((side, side))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


class Probe:
    """A trained probe.

    Args:
        net: the network.
        words: what its logits stand for.
        options: how it was trained.
        source: the data that it was trained on, with fingerprint.
    """

    def __init__(self, net: ProbeNet, words: Words, options: Options, source: str) -> None:
        self.net, self.words, self.options, self.source = net.eval(), words, options, source

    def __call__(self, pictures: Sequence[ImageLike]) -> list[list[Placed]]:
        """The things in each picture, most certain first."""
        found: list[list[Placed]] = []
        for start in range(0, len(pictures), _CHUNK):
            pixels_BCHW = torch.stack([_pixels(picture, self.options.side) for picture in pictures[start : start + _CHUNK]])
            with torch.inference_mode():
                found += self._read(self.net(pixels_BCHW.float() / 255))
        return found

    def _read(self, maps: Maps) -> list[list[Placed]]:
        score_BHW = maps.centre_BHW.sigmoid()
        peak_BHW = score_BHW == F.max_pool2d(score_BHW[:, None], 3, stride=1, padding=1)[:, 0]
        keep_BHW = peak_BHW & (score_BHW >= self.options.threshold)
        rows, columns = score_BHW.shape[1:]
        colour_BHW, shape_BHW = maps.colour_BCHW.argmax(1), maps.shape_BCHW.argmax(1)
        found: list[list[Placed]] = []
        for picture in range(len(score_BHW)):
            cells = keep_BHW[picture].nonzero().tolist()
            cells.sort(key=lambda cell: -float(score_BHW[picture, cell[0], cell[1]]))
            things = []
            for y, x in cells:
                thing = (self.words.colours[int(colour_BHW[picture, y, x])], self.words.shapes[int(shape_BHW[picture, y, x])])
                dx, dy = maps.place_B2HW[picture, :, y, x].tolist()
                things.append(Placed(thing, (x + dx) / columns, (y + dy) / rows))
            found.append(things)
        return found

    def measured(self, data: EvalSet, limit: int | None = None) -> dict[str, float]:
        """On labelled pictures: ``recall`` and ``precision`` of things (colour and shape, counted), and ``exact``, the share of pictures of
        which all things and nothing else are found; ``pictures``, how many there were."""
        held = labelled(data, limit, self.options.side)
        found = self(list(held.pixels_NCHW))
        pairs = [(Counter(p.thing for p in true), Counter(p.thing for p in seen)) for true, seen in zip(held.things, found, strict=True)]
        right = sum((true & seen).total() for true, seen in pairs)
        return {
            "recall": right / max(1, sum(true.total() for true, _ in pairs)),
            "precision": right / max(1, sum(seen.total() for _, seen in pairs)),
            "exact": sum(true == seen for true, seen in pairs) / len(pairs),
            "pictures": float(len(pairs)),
        }

    @property
    def fingerprint(self) -> str:
        """Of weights, words and options."""
        digest = hashlib.sha256(save(weights_of(self.net)))
        digest.update(json.dumps([self.words, self.options]).encode())
        return digest.hexdigest()


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network, as they are written."""
    return {name: value.detach().contiguous() for name, value in net.state_dict().items()}

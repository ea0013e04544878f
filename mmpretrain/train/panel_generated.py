"""Pictures drawn for the captions of a validation batch, beside what the autoencoder makes of the codes of their own pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmpretrain.data.codes_info import CodesInfo
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.generate.checks import made_codes, maker
from mmpretrain.generate.choosing import Sampling, sample_key
from mmpretrain.generate.generator import as_bytes, image_of
from mmpretrain.generate.sampling import Request, sample
from mmpretrain.objectives.next_token import NextCode
from mmpretrain.report.panels_schema import GeneratedExample, GeneratedPanel
from mmpretrain.train.panel_bodies import select
from mmpretrain.train.panel_pictures import row, shrunk
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch

SAMPLING = Sampling()


def open_dvae(path: str | Path, root: Pretraining, info: CodesInfo | None) -> Pretrained:
    """The autoencoder that turns drawn codes into pictures, on the CPU.

    Args:
        path: a checkpoint, or the folder of a run; see ``generate.checks.maker``.
        root: whose model draws.
        info: what made the codes of the data.

    Raises:
        ValueError: the model draws no codes; the checkpoint cannot be read, is no autoencoder, or did not make these codes.
    """
    if head_of(root) is None:
        raise ValueError(f"panels.dvae={path}: pictures are drawn by a model with an objective NextCode, which this recipe lacks")
    found = maker(path, info)
    made_codes(found, root.model.spec.codes, info, "the model of this run")
    return found


def head_of(root: Pretraining) -> str | None:
    """The name of the objective that turns states into logits of codes."""
    return next((name for name, one in root.objectives.items() if isinstance(one, NextCode)), None)


def generated(
    batch: Batch, texts: Sequence[str], root: Pretraining, dvae: Pretrained, n: int, store: Callable[[Image.Image], str]
) -> GeneratedPanel:
    """n pictures for each caption. The noise is a function of the sample and the number of the picture alone, so that the panels of a run
    differ by what was learned.

    Args:
        batch: with texts; with codes, the pictures of these stand beside.
        texts: the captions as people read them.
        root: every rank enters it alike.
        dvae: see ``open_dvae``.
        n: pictures of each.
        store: keeps a picture and gives its path.
    """
    name, (height, width) = head_of(root), root.model.spec.code_grid
    device = batch.draw_keys_B.device

    def run(model: Any, objectives: Mapping[str, Any]) -> Tensor:
        request = Request(
            texts=lambda numbers, _: select(batch, numbers).text,
            keys=lambda p, j: sample_key(SAMPLING.seed, batch.keys[p], 0, j),
            prompts=batch.size,
            n=n,
            length=height * width,
        )
        return sample(model, objectives[name].logits_of, request, SAMPLING, batch.size * n, device)

    codes_PNhw = root(run, mode="call").view(batch.size, n, height, width)
    own = None if batch.codes is None else _stored(dvae, batch.codes.dense().cpu(), store)
    examples = [
        GeneratedExample(text, tuple(_stored(dvae, codes_Nhw, store)), None if own is None else own[place])
        for place, (text, codes_Nhw) in enumerate(zip(texts, codes_PNhw, strict=True))
    ]
    return GeneratedPanel(tuple(examples), SAMPLING.describe())


def _stored(dvae: Pretrained, codes_Nhw: Tensor, store: Callable[[Image.Image], str]) -> list[str]:
    def run(model: Any, _: Mapping[str, Any]) -> Tensor:
        return as_bytes(model.decode(codes_Nhw))

    return [store(shrunk(image_of(picture))) for picture in dvae.run(run)]


def sheet(example: GeneratedExample, sources: dict[str, Image.Image]) -> Image.Image:
    """The pictures of one caption in a row."""
    own = [] if example.own is None else [example.own]
    names, labels = [*own, *example.images], [*("own codes" for _ in own), *("" for _ in example.images)]
    return row([sources[name] for name in names], labels, example.text)

"""Tiny stand-ins with the signatures that evaluation relies on."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmpretrain.data.decode import decode_image
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.samples import EvalSet
from mmpretrain.nn.hidden import Fused, Paired
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Batch, Pixels, Sample, Spec, Statement, Text, Tokens, Vocabulary

WORDS = ("red", "green", "blue", "above", "below", "cube", "ball")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Tokenizer:
    """One id per known word; 1 is [CLS], 2 is [SEP]."""

    def tokenize(self, text: str) -> Tokens:
        ids = (1, *(3 + WORDS.index(word) if word in WORDS else 3 + len(WORDS) for word in text.split()), 2)
        return Tokens(ids, (-1, *range(len(ids) - 2), -1), text)


class Transform:
    """The picture at 4 x 4 pixels."""

    calls = 0

    def __call__(self, image: Image.Image) -> Tensor:
        type(self).calls += 1
        return torch.from_numpy(np.asarray(image.convert("RGB").resize((4, 4))).copy()).permute(2, 0, 1)

    def read(self, files: Sequence[bytes]) -> Tensor:
        (data,) = files
        return self(decode_image(data))


class Collate:
    def text(self, texts: Sequence[Tokens]) -> Text:
        width = max(len(t.ids) for t in texts)
        return Text(torch.tensor([[*t.ids, *[0] * (width - len(t.ids))] for t in texts]), tuple(len(t.ids) for t in texts))

    def pixels(self, images: Sequence[Tensor]) -> Pixels:
        return Pixels(torch.stack(list(images)), tuple((4, 4) for _ in images), (0.0,) * 3, (1.0,) * 3)


class Dual(nn.Module):
    """Colours of the picture against counts of the colour words."""

    spec = Spec(width=4, kinds=("paired",), vocab_size=16, patch_size=2, embed_dim=3)

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))
        self.constant = constant

    def forward(self, batch: Batch, kind: str = "paired") -> Paired:
        image = text = None
        if batch.image is not None:
            image = batch.image.floats().mean(dim=(2, 3)) * (0 if self.constant else 1) + 1e-3
        if batch.text is not None:
            text = torch.stack([(batch.text.ids_BT == 3 + i).sum(1) for i in range(3)], 1) * (0.0 if self.constant else 1.0) + 1e-3
        unit = nn.functional.normalize
        return Paired(None if image is None else unit(image, dim=1), None if text is None else unit(text, dim=1), self.logit_scale)


class Fusion(nn.Module):
    """The pooled state is the cosine that ``Dual`` computes."""

    spec = Spec(width=1, kinds=("fused",), vocab_size=16, patch_size=2)

    def __init__(self, constant: bool = False) -> None:
        super().__init__()
        self.dual, self.batches = Dual(constant), 0

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        self.batches += 1
        out = self.dual(batch)
        size = Layout((1,) * batch.size)
        text = None if out.text_BE is None else Ragged(out.text_BE, size)
        image = None if out.image_BE is None else Ragged(out.image_BE, size)
        both = text is not None and image is not None
        return Fused(text, image, (out.image_BE * out.text_BE).sum(1, keepdim=True) if both else None)


class Matching(nn.Module):
    kind = "fused"

    def score(self, hidden: Fused) -> Tensor:
        return hidden.pooled_BD[:, 0] * 10 - 8


def pretrained(fusion: bool = False, constant: bool = False) -> Pretrained:
    model, objectives = (Fusion(constant), {"itm": Matching()}) if fusion else (Dual(constant), {})
    vocabulary = Vocabulary(16, 0, None, 1, 2, (0, 1, 2))
    return Pretrained(model, objectives, Tokenizer(), Transform(), vocabulary, collate=Collate(), source="fake")


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def coloured(rounds: int = 1, statements: bool = False) -> EvalSet:
    """One image per colour and round, with two captions, an edit and statements."""
    samples = []
    for i in range(rounds):
        for colour, value in COLOURS.items():
            other = "green" if colour == "red" else "red"
            captions = (f"{colour} cube", f"{colour} ball below {colour} cube")
            edits = [[{"text": c.replace(colour, other), "kind": "colour"}] for c in captions]
            told = (Statement(f"{colour} ball", True), Statement(f"{other} ball", False)) if statements else ()
            samples.append(Sample(f"{colour}{i}", captions, (png(value),), told, {"edits": edits}))
    return EvalSet("fake", samples, "f00")

"""Lists of examples -> tensors: texts padded to the longest, pictures to the largest, true sizes kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmpretrain.data.image import Triple
from mmpretrain.types import Batch, Example, Pixels, Preparer, Text, Tokens


class Collator:
    """Implements ``types.Collate`` and makes batches.

    Args:
        pad: id of text padding.
        mean: of the pixels, for the model's normalisation.
        std: likewise.
    """

    def __init__(self, pad: int, mean: Triple, std: Triple) -> None:
        self.pad, self.mean, self.std = pad, mean, std

    def text(self, texts: Sequence[Tokens]) -> Text:
        """Texts padded on the right to the longest: ids int64 (B, T), words int64 (B, T) with -1 for special tokens and padding."""
        lengths = tuple(len(text.ids) for text in texts)
        longest = max(lengths, default=0)
        ids_BT = torch.tensor([list(t.ids) + [self.pad] * (longest - len(t.ids)) for t in texts], dtype=torch.int64)
        words_BT = torch.tensor([list(t.words) + [-1] * (longest - len(t.words)) for t in texts], dtype=torch.int64)
        return Text(ids_BT.view(len(texts), longest), lengths, words_BT.view(len(texts), longest))

    def pixels(self, images: Sequence[Tensor]) -> Pixels:
        """uint8 pictures (3, H, W) padded with zeros at the bottom and the right to the largest: (B, 3, H, W)."""
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        if len(set(sizes)) == 1:
            pixels_BCHW = torch.stack(tuple(images))
        else:
            height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
            pixels_BCHW = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
            for row, image in zip(pixels_BCHW, images, strict=True):
                row[:, : image.shape[1], : image.shape[2]] = image
        return Pixels(pixels_BCHW, sizes, self.mean, self.std)

    def batch(self, examples: Sequence[Example], preparers: Mapping[str, Preparer]) -> Batch:
        """The micro-batch of examples; what preparers wrote is collated by themselves."""
        texts = [example.text for example in examples]
        images = [example.image for example in examples]
        return Batch(
            keys=tuple(example.key for example in examples),
            draw_keys_B=torch.tensor([example.draw_key for example in examples], dtype=torch.int64),
            text=self.text(texts) if all(text is not None for text in texts) else None,
            image=self.pixels(images) if all(image is not None for image in images) else None,
            matched_B=torch.tensor([example.matched for example in examples], dtype=torch.bool),
            targets={name: one.collate([example.targets[name] for example in examples], self) for name, one in preparers.items()},
        )

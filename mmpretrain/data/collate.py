"""Lists of examples -> tensors: texts padded to the longest, pictures to the largest, true sizes kept; regions packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import Triple
from mmpretrain.types import Batch, CodeBatch, Example, Pixels, Preparer, RegionBatch, Regions, Text, Tokens

_REMEDY = "make the regions of all shards by one call of mmpretrain data regions"
# optional array -> its name in a RegionBatch, and its type there
_OPTIONAL = {
    "classes": ("classes_N", np.int64),
    "class_probs": ("class_probs_NC", np.float32),
    "attributes": ("attributes_N", np.int64),
    "attribute_probs": ("attribute_probs_NA", np.float32),
    "scores": ("scores_N", np.float32),
    "global_feature": ("global_BF", np.float32),
}


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
        """Texts padded on the right to the longest: ids int64 (B, T), words int64 (B, T) with -1 for special tokens and padding.

        Segments, int64 (B, T), where a text has them: 0 for padding and for the texts that have none.
        """
        lengths = tuple(len(text.ids) for text in texts)
        longest = max(lengths, default=0)

        def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
            filled = [list(row) + [value] * (longest - len(row)) for row in rows]
            return torch.tensor(filled, dtype=torch.int64).view(len(texts), longest)

        paired = any(text.segments is not None for text in texts)
        segments_BT = padded([text.segments or () for text in texts], 0) if paired else None
        return Text(padded([text.ids for text in texts], self.pad), lengths, padded([text.words for text in texts], -1), segments_BT)

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

    def regions(self, regions: Sequence[Regions]) -> RegionBatch:
        """The regions of all samples one after another: features, probabilities and scores float32, labels int64.

        Raises:
            DataError: a sample without a region, or samples whose arrays do not fit together: one there and not here, or of another width.
        """
        lengths = tuple(len(one.boxes) for one in regions)
        if not all(lengths):
            raise DataError(f"regions: sample {lengths.index(0)} of a batch has none; {_REMEDY}")

        def joined(name: str, kind: type) -> Tensor:
            arrays = [getattr(one, name) for one in regions]
            widths = {array.shape[-1] for array in arrays if array.ndim == 2 or name == "global_feature"}
            if len(widths) > 1:
                raise DataError(f"regions: {name} of a batch have {' and '.join(map(str, sorted(widths)))} values; {_REMEDY}")
            return torch.from_numpy((np.stack if name == "global_feature" else np.concatenate)(arrays).astype(kind))

        required = joined("features", np.float32), joined("boxes", np.float32)
        optional = {}
        for name, (field, kind) in _OPTIONAL.items():
            there = sum(getattr(one, name) is not None for one in regions)
            if there == len(regions):
                optional[field] = joined(name, kind)
            elif there:
                raise DataError(f"regions: {there} of {len(regions)} samples of a batch have {name}, the others do not; {_REMEDY}")
        sizes = tuple((int(height), int(width)) for height, width in (one.image_size for one in regions))
        return RegionBatch(*required, lengths, sizes, **optional)

    def codes(self, codes: Sequence[Tensor]) -> CodeBatch:
        """Codes of pictures, int64 (h, w) each, one after another."""
        return CodeBatch(torch.cat([one.reshape(-1) for one in codes]), tuple((one.shape[0], one.shape[1]) for one in codes))

    def batch(self, examples: Sequence[Example], preparers: Mapping[str, Preparer]) -> Batch:
        """The micro-batch of examples; what preparers wrote is collated by themselves."""
        texts = [example.text for example in examples]
        images = [example.image for example in examples]
        regions = [example.regions for example in examples]
        codes = [example.codes for example in examples]
        return Batch(
            keys=tuple(example.key for example in examples),
            draw_keys_B=torch.tensor([example.draw_key for example in examples], dtype=torch.int64),
            text=self.text(texts) if all(text is not None for text in texts) else None,
            image=self.pixels(images) if all(image is not None for image in images) else None,
            matched_B=torch.tensor([example.matched for example in examples], dtype=torch.bool),
            targets={name: one.collate([example.targets[name] for example in examples], self) for name, one in preparers.items()},
            regions=self.regions(regions) if all(one is not None for one in regions) else None,
            codes=self.codes(codes) if all(one is not None for one in codes) else None,
        )

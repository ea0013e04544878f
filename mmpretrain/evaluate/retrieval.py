"""Image-text retrieval with several captions per image.

Image to text: a hit at K when *any* of the image's captions is among the K best of all captions. Text to image: a hit when the
caption's one image is. Dual encoders rank by cosine, fusion models by the matching head on every pair. See ``ranking.py`` for ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.ranking import Standing, chance_recall, standings
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, onward, with_visuals
from mmpretrain.types import Sample, Tokens, Visual

RECALLS = (1, 5, 10)
BLOCK = 512  # images and texts of one block of cosines
PAIRS = 16384  # pairs that a fusion model is given at a time
FUSION_LIMIT = 256  # images; a fusion model needs images x captions forwards
FUSION_PAIRS = 65536  # pairs; beyond it a fusion model ranks fewer captions of each image, down to one


class Gallery(NamedTuple):
    """Images and texts to rank. Text p belongs to image ``image_P[p]``."""

    images: Tensor | list[Visual]  # vectors float32 (I, E) of a dual encoder, what samples show for a fusion model
    tokens: list[Tokens]
    image_P: np.ndarray  # int64 (P,)


def retrieval(
    pretrained: Pretrained,
    data: EvalSet,
    limit: int | None = None,
    captions: int | None = None,
    recalls: tuple[int, ...] = RECALLS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """R@K both ways with their chance levels, and median ranks.

    Args:
        pretrained: a dual encoder or a fusion model with a matching head.
        data: samples with what the model is shown and at least one caption take part.
        limit: at most so many samples, evenly spread; None: all for dual encoders, 256 for fusion models.
        captions: at most so many captions of each image, the first ones; None: all for dual encoders, for fusion models as many as
            keep the number of pairs within 65,536. The protocol of the result says how many took part.
        recalls: the Ks.
        progress: called with (done, total) pairs.

    Raises:
        ValueError: no sample has what the model is shown and a caption, or the model cannot score pairs.
    """
    if not pretrained.can_match():
        raise ValueError("retrieval: this checkpoint cannot score pairs (a fusion model without a matching head)")
    limit = FUSION_LIMIT if limit is None and not pretrained.dual else limit
    samples: Iterable[Sample] = chosen(data, limit, lambda sample: pretrained.shows(sample) and bool(sample.captions))
    if captions is not None or not pretrained.dual:
        samples = _with_captions(samples, captions)
    gallery = gather(pretrained, samples)
    if not len(gallery.images):
        raise ValueError(f"{data.name}: no sample has {pretrained.shown.wants} (just one) and a caption, so there is nothing to retrieve")
    i2t, t2i = _rank(pretrained, gallery, progress)
    return _results(pretrained, data, gallery, i2t, t2i, recalls)


def gather(pretrained: Pretrained, samples: Iterable[Sample]) -> Gallery:
    """Images and tokenised captions of samples. Each image is decoded once; a dual encoder keeps its vector only."""
    images: list[Any] = []  # blocks of vectors, or what samples show
    tokens: list[Tokens] = []
    owners: list[int] = []
    count = 0
    for part in chunks(with_visuals(pretrained, samples), BLOCK):
        visuals = [visual for _, visual in part]
        images.extend([pretrained.encode_pixels(visuals)] if pretrained.dual else visuals)
        for sample, _ in part:
            tokens.extend(pretrained.tokenize(list(sample.captions)))
            owners.extend([count] * len(sample.captions))
            count += 1
    return Gallery(torch.cat(images) if pretrained.dual and images else images, tokens, np.asarray(owners, dtype=np.int64))


def _with_captions(samples: Iterable[Sample], captions: int | None) -> list[Sample]:
    """The samples with their first captions: so many, or as many as ``FUSION_PAIRS`` allows (at least one)."""
    listed = list(samples)
    if captions is None:
        most = max((len(sample.captions) for sample in listed), default=1)
        fitting = [n for n in range(1, most + 1) if len(listed) * sum(min(n, len(s.captions)) for s in listed) <= FUSION_PAIRS]
        captions = max(fitting, default=1)
    return [sample._replace(captions=sample.captions[:captions]) for sample in listed]


def tie_tolerance(pretrained: Pretrained) -> float:
    """Scores closer than this tie: rounding of the arithmetic, which depends on the shape of the batch a pair sat in."""
    if pretrained.dual:
        return 1e-6  # each vector is computed once, only the products round
    return 1e-5 if pretrained.precision == "float32" else 1e-2


def _rank(pretrained: Pretrained, gallery: Gallery, progress: Callable[[int, int], None] | None) -> tuple[Standing, Standing]:
    images, texts = len(gallery.images), len(gallery.tokens)
    total = images * texts + (0 if pretrained.dual else texts)
    if pretrained.dual:
        assert isinstance(gallery.images, Tensor)
        scores = _Cosines(gallery.images, pretrained.encode_tokens(gallery.tokens))
        own, rows = scores.own(gallery.image_P), BLOCK
        block: Callable[[slice], Tensor] = scores.block
    else:
        visuals = list(gallery.images)
        own = pretrained.match(visuals, gallery.tokens, gallery.image_P, np.arange(texts), onward(progress, 0, total))
        rows = max(1, PAIRS // texts)

        def matched(part: slice) -> Tensor:
            image, text = np.divmod(np.arange((part.stop - part.start) * texts), texts)
            told = onward(progress, texts + part.start * texts, total)
            return pretrained.match(visuals, gallery.tokens, image + part.start, text, told).view(-1, texts)

        block = matched

    def counted(part: slice) -> Tensor:
        result = block(part)
        if progress is not None and pretrained.dual:
            progress(part.stop * texts, total)
        return result

    return standings(own, torch.from_numpy(gallery.image_P), images, counted, rows, tie_tolerance(pretrained))


class _Cosines:
    """Cosines block by block."""

    def __init__(self, image_IE: Tensor, text_TE: Tensor) -> None:
        self.image_IE, self.text_TE = image_IE, text_TE

    def block(self, rows: slice) -> Tensor:
        """Cosines of some images with all texts, (rows, T)."""
        image_BE = self.image_IE[rows]
        return torch.cat([image_BE @ part.T for part in self.text_TE.split(BLOCK * 8)], dim=1)

    def own(self, image_P: np.ndarray) -> Tensor:
        """Cosine of each text with its own image, (T,)."""
        parts = zip(self.text_TE.split(BLOCK), torch.from_numpy(image_P).split(BLOCK), strict=True)
        return torch.cat([(text * self.image_IE[image]).sum(dim=1) for text, image in parts])


def _results(
    pretrained: Pretrained, data: EvalSet, gallery: Gallery, i2t: Standing, t2i: Standing, recalls: tuple[int, ...]
) -> list[Result]:
    images, texts = len(gallery.images), len(gallery.tokens)
    captions = np.bincount(gallery.image_P, minlength=images)
    counts = f"{images} images, {texts} captions, any caption of the image counts"
    protocol = f"{counts}, ranked by {pretrained.scorer}, ties in random order{pretrained.how}"
    results = []
    for name, standing, chances, count in (
        ("i2t", i2t, lambda k: chance_recall(captions, texts, k), images),
        ("t2i", t2i, lambda k: chance_recall([1], images, k), texts),
    ):
        stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, count, pretrained.weights)
        for k in recalls:
            results.append(Result(f"retrieval/{data.name}/{name}_R@{k}", float(standing.recall(k).mean()), chances(k), stamp))
        results.append(Result(f"retrieval/{data.name}/{name}_median_rank", float(np.median(standing.rank())), None, stamp))
    return results

"""Samples as the measurements read them: a fixed choice of a set, what is shown of them decoded once."""

from __future__ import annotations

import io
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from mmpretrain.data import codes_info, regions_info
from mmpretrain.data.codes import encode_codes
from mmpretrain.data.decode import decode_image
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader, open_reader
from mmpretrain.data.regions import encode_regions
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.seeing import MAKE, TOKENS
from mmpretrain.types import Regions, Sample, Visual

T = TypeVar("T")
Progress = Callable[[int, int], None]  # (done, total)
_LOG = logging.getLogger("mmpretrain")


class EvalSet(NamedTuple):
    """A named set of samples. ``samples`` reads one at a time: ``len`` and ``[i]``."""

    name: str
    samples: Sequence[Sample]
    fingerprint: str


class Shards(Sequence):
    """The samples of shards as a sequence; each access reads one sample, without its pictures, regions or codes where they are not asked
    for."""

    def __init__(self, reader: ShardReader, images: bool = True, regions: bool = True, codes: bool = True) -> None:
        self.reader, self.images, self.regions, self.codes = reader, images, regions, codes

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        return self.reader.read_at(*self.reader.locate(index), self.images, self.regions, self.codes)


class Counted(Sequence):
    """Samples that tell, after each reading of one, how many were read so far of a ``total``."""

    def __init__(self, samples: Sequence[Sample], total: int, progress: Progress) -> None:
        self.samples, self.total, self.progress, self.read = samples, total, progress, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        self.read = min(self.read + 1, self.total)
        try:
            return self.samples[index]
        finally:
            self.progress(self.read, self.total)


def counted(data: EvalSet, limit: int | None, progress: Progress | None) -> EvalSet:
    """The set, telling how many of the samples that ``choose`` gives have been read."""
    return data if progress is None else data._replace(samples=Counted(data.samples, len(choose(len(data.samples), limit)), progress))


def onward(progress: Progress | None, before: int, total: int) -> Progress | None:
    """``progress`` of all the work, for a part of it that ``before`` of ``total`` are done ahead of."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def open_set(name: str, source: str | Sequence[str]) -> EvalSet:
    """The set of a source as the data module takes it: a folder, tar files, a pattern, ``scenes:val``.

    Raises:
        DataError: the source does not exist or is damaged.
    """
    return of_reader(name, open_reader(source, "val"))


def of_reader(name: str, reader: ShardReader) -> EvalSet:
    """The set that a reader reads."""
    return EvalSet(name, Shards(reader), reader.fingerprint[:16])


def choose(size: int, limit: int | None) -> np.ndarray:
    """Indices of at most ``limit`` samples, evenly spread over the set, so that every shard has its part: int64, ascending."""
    if limit is None or limit >= size:
        return np.arange(size)
    if limit < 1:
        raise ValueError(f"a subset needs at least one sample, not {limit}")
    return np.arange(limit) * size // limit


def chosen(data: EvalSet, limit: int | None, keep: Callable[[Sample], bool] = lambda sample: True) -> Iterator[Sample]:
    """The samples of a subset that ``keep`` accepts, in order. Samples that cannot be read are left out with a warning."""
    for index in choose(len(data.samples), limit):
        try:
            sample = data.samples[int(index)]
        except BadSample as error:
            _LOG.warning("left out of the evaluation: %s", error)
            continue
        if keep(sample):
            yield sample


def fitted(pretrained: Pretrained, data: EvalSet) -> EvalSet:
    """The set with only what the model is shown read from its shards.

    Raises:
        ValueError: the model reads regions or codes, and the shards have none, or those of another maker than the run's.
    """
    if not isinstance(data.samples, Shards):
        return data
    shown, reader = pretrained.shown, data.samples.reader
    if shown.has_regions:
        if not any(index.regions_S.any() for index in reader.indexes):
            raise ValueError(f"{data.name}: no sample has KEY.regions.npz, which this checkpoint reads; {MAKE}")
        _check_extractor(pretrained, data.name, reader)
    if shown.has_codes:
        if shown.show == "codes" and not any(index.code_rows_S.any() for index in reader.indexes):
            raise ValueError(f"{data.name}: no sample has KEY.codes.npy, which this checkpoint reads; {TOKENS}")
        _check_codes(pretrained, data.name, reader)
    return data._replace(samples=Shards(reader, shown.has_image, shown.has_regions, shown.has_codes))


def _check_extractor(pretrained: Pretrained, name: str, reader: ShardReader) -> None:
    own, found = pretrained.about.get("regions"), regions_info.check_readers([reader])
    if own and found is not None and found.fingerprint != own["fingerprint"]:
        raise ValueError(
            f"{name}: its regions were made by {found.source} ({found.fingerprint[:12]}), those that the checkpoint was trained on by "
            f"{own['source']} ({own['fingerprint'][:12]}), so their features mean something else; {MAKE}"
        )


def _check_codes(pretrained: Pretrained, name: str, reader: ShardReader) -> None:
    own, found = pretrained.about.get("codes"), codes_info.check_readers([reader])
    if own and found is not None and found.fingerprint != own["fingerprint"]:
        raise ValueError(
            f"{name}: its image codes were made by {found.source} ({found.fingerprint[:12]}), those that the checkpoint was trained on by "
            f"{own['source']} ({own['fingerprint'][:12]}), so their numbers mean something else; {TOKENS}"
        )


def visual(pretrained: Pretrained, sample: Sample) -> Visual | None:
    """What the model is shown of a sample; None, with a warning, where it cannot be decoded."""
    try:
        return pretrained.see(sample)
    except BadSample as error:
        _LOG.warning("left out of the evaluation: sample %s: %s", sample.key, error)
        return None


def with_visuals(pretrained: Pretrained, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Visual]]:
    """The samples of which what is shown can be decoded, with it."""
    for sample in samples:
        found = visual(pretrained, sample)
        if found is not None:
            yield sample, found


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most ``size`` consecutive items."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


def real_samples(pretrained: Pretrained, n: int = 8) -> tuple[list[Image.Image] | list[Sample], list[str], str]:
    """Up to ``n`` images and texts of the data of the run: (images, texts, where they come from).

    Images are pictures, or whole samples where the model is shown regions. The validation sets of the configuration are tried first, then
    the training data. Where none of them is on this machine, pictures and regions of noise at four sizes and texts of random words of the
    vocabulary stand in, and the third value says so.
    """
    from mmpretrain.data.training_set import specs_of

    data = pretrained.config.get("data") or {}
    val = data.get("val") or {}
    reads = ("pairs", "images") if pretrained.tokenizer is None else ("pairs",)
    train = [spec.sources for spec in specs_of(data["train"]).values() if spec.reads in reads] if data.get("train") else []
    for source in [*(val.values() if isinstance(val, Mapping) else ()), *train]:
        try:
            found = open_set("samples", source)
        except DataError as error:
            _LOG.info("not used for the comparison: %s", error)
            continue
        images: list[Any] = []
        texts: list[str] = []
        for sample in chosen(found, 4 * n, lambda sample: pretrained.shows(sample) and _told(pretrained, sample)):
            try:
                images.append(_comparable(pretrained, sample))
            except BadSample as error:
                _LOG.warning("left out of the comparison: sample %s: %s", sample.key, error)
                continue
            texts.append(sample.captions[0] if sample.captions else sample.statements[0].text if sample.statements else "")
            if len(images) == n:
                return images, texts, str(source)
        if images:
            return images, texts, str(source)
    return (*_stand_ins(pretrained, n), "noise and random words: the data of the run are not on this machine")


def _told(pretrained: Pretrained, sample: Sample) -> bool:
    """Whether a sample has a text; a model without texts needs none."""
    return pretrained.tokenizer is None or bool(sample.captions or sample.statements)


def _comparable(pretrained: Pretrained, sample: Sample) -> Image.Image | Sample:
    """The decoded picture; where regions or codes are shown, the sample itself, after a look at whether it can be decoded.

    Raises:
        BadSample: it cannot.
    """
    if not pretrained.shown.has_regions and pretrained.shown.has_image:
        return decode_image(sample.images[0])
    pretrained.see(sample)
    return sample


def _stand_ins(pretrained: Pretrained, n: int) -> tuple[list[Image.Image] | list[Sample], list[str]]:
    rng = np.random.default_rng(0)
    sizes = [((96, 128), (128, 96), (120, 120), (64, 160))[i % 4] for i in range(n)]
    images: list[Any] = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    if pretrained.shown.has_regions:
        width = pretrained.model.spec.feature_width
        images = [_noise(image, 1 + i % 5, width, rng) for i, image in enumerate(images)]
    if pretrained.shown.show == "codes":
        spec = pretrained.model.spec
        images = [Sample("noise", (), (), codes=encode_codes(rng.integers(spec.codes, size=spec.code_grid))) for _ in range(n)]
    if pretrained.tokenizer is None:
        return images, [""] * n
    words = [i for i in range(pretrained.vocabulary.size) if i not in pretrained.vocabulary.special]
    return images, [pretrained.tokenizer.decode(rng.choice(words, size=2 + i).tolist()) for i in range(n)]


def _noise(image: Image.Image, count: int, width: int, rng: np.random.Generator) -> Sample:
    """A sample with a picture and ``count`` regions of ``width`` values in it."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4) * np.tile([image.width, image.height], 2)
    regions = Regions(
        rng.standard_normal((count, width)).astype(np.float16),
        corners.astype(np.float32),
        np.array([image.height, image.width], dtype=np.int32),
        classes=np.zeros(count, dtype=np.int16),
        scores=rng.random(count).astype(np.float32),
    )
    return Sample("noise", (), (buffer.getvalue(),), regions=encode_regions(regions))

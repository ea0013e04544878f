"""One shard with regions: the members of the original, each sample followed by its ``KEY.regions.npz``. Deterministic, atomic, resumable.

:func:`shard` is what the engine runs for each shard. Which regions a picture gets is decided by a *maker*: a small extractor, a torchvision
detector, a grid of a timm backbone, or a store of old features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from mmpretrain.data.decode import REGIONS, allowed, assemble, decode_image, join, limit
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import open_index
from mmpretrain.data.regions import encode_regions
from mmpretrain.data_tools.shards import read_samples, write_shard
from mmpretrain.types import Regions, Sample

BATCH = 16  # samples that a maker sees at a time

_Group = tuple[str, Mapping[str, bytes]]  # key, extension -> bytes


class Job(NamedTuple):
    """A sample whose regions are wanted."""

    sample: Sample
    image: Image.Image  # RGB, several side by side
    sizes: tuple[tuple[int, int], ...]  # (width, height) of each of them


class Maker(Protocol):
    """Gives pictures their regions."""

    def regions(self, jobs: Sequence[Job]) -> list[Regions | None]:
        """The regions of each; None where it has none to give (a store without this picture).

        Raises:
            BadSample: naming the key of the sample that it refuses.
        """
        ...


class Counts(NamedTuple):
    """What was done to a shard."""

    samples: int = 0
    with_regions: int = 0
    regions: int = 0
    missing: int = 0  # samples for which the maker had none
    bad: int = 0  # samples whose picture or annotation cannot be read
    bytes: int = 0
    sha256: str = ""
    problem: str = ""  # the first bad one


def maker_of(options: Mapping[str, Any]) -> Maker:
    """The maker that ``options["kind"]`` names; models are loaded once in a process."""
    kind = options["kind"]
    if kind == "extractor":
        from mmpretrain.data_tools import regions_extract

        return regions_extract.maker(options)
    if kind == "detector":
        from mmpretrain.data_tools import regions_detector

        return regions_detector.maker(options)
    if kind == "grid":
        from mmpretrain.data_tools import regions_grid

        return regions_grid.maker(options)
    from mmpretrain.data_tools import regions_store

    return regions_store.maker(options)


def shard(work: Mapping[str, Any]) -> dict[str, Any]:
    """Write the shard ``work["target"]`` from ``work["source"]`` by the maker of ``work["options"]``.

    Args:
        work: source (path, size and time, so that a changed shard is done again), target, options; ``replace``: put new regions in the
        place
            of those that a sample has; ``on_bad``: stop, or ``skip`` samples that cannot be read, which then have no regions.

    Raises:
        DataError: a damaged shard, samples that have regions already, or a bad sample with ``on_bad`` stop.
    """
    source, target = Path(work["source"][0]), Path(work["target"])
    open_index(source)  # the check of the whole shard
    with contextlib.nullcontext() if work["options"]["kind"] == "store" else one_thread():
        return _write(source, target, maker_of(work["options"]), work)._asdict()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are cut alike in this process and in those of a pool, so that the bytes do not depend on the number of processes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(source: Path, target: Path, maker: Maker, work: Mapping[str, Any]) -> Counts:
    writer = _Writer(str(source), maker, bool(work["replace"]), str(work["on_bad"]))
    written = write_shard(target, writer.samples(read_samples(source, everything=True)))
    return writer.counts._replace(bytes=written["bytes"], sha256=written["sha256"])


class _Writer:
    """Puts regions to samples, and counts.

    Args:
        source: the shard, for messages.
        maker: of regions.
        replace: regions that a sample has make way for new ones.
        on_bad: ``stop`` or ``skip``.
    """

    def __init__(self, source: str, maker: Maker, replace: bool, on_bad: str) -> None:
        self.source, self.maker, self.replace, self.on_bad = source, maker, replace, on_bad
        self.counts = Counts()

    def samples(self, found: Iterable[_Group]) -> Iterator[_Group]:
        """The samples with their regions, read BATCH at a time."""
        batch: list[_Group] = []
        for key, members in found:
            if REGIONS in members and not self.replace:
                raise DataError(f"{self.source} key {key!r} has regions already; --replace puts new ones in their place")
            batch.append((key, members))
            if len(batch) == BATCH:
                yield from self._batch(batch)
                batch = []
        yield from self._batch(batch)

    def _batch(self, batch: Sequence[_Group]) -> Iterator[_Group]:
        jobs: dict[str, Job] = {}
        for key, members in batch:
            try:
                if (job := _job(key, members)) is not None:
                    jobs[key] = job
            except BadSample as error:
                self._bad(key, error)
        made = _made(self.maker, jobs)
        for key, members in batch:
            kept = {name: data for name, data in members.items() if name != REGIONS}
            found, count = made.get(key, (None, 0))
            if isinstance(found, BadSample):
                self._bad(key, found)
            elif found is not None:
                kept[REGIONS] = found
                self.counts = self.counts._replace(with_regions=self.counts.with_regions + 1, regions=self.counts.regions + count)
            elif key in jobs:
                self.counts = self.counts._replace(missing=self.counts.missing + 1)
            yield key, kept
        self.counts = self.counts._replace(samples=self.counts.samples + len(batch))

    def _bad(self, key: str, error: BadSample) -> None:
        message = f"{self.source} key {key!r}: {error}"
        if self.on_bad == "stop":
            raise DataError(f"{message}; --on-bad skip leaves such samples without regions")
        self.counts = self.counts._replace(bad=self.counts.bad + 1, problem=self.counts.problem or message)


def _made(maker: Maker, jobs: Mapping[str, Job]) -> dict[str, tuple[bytes | BadSample | None, int]]:
    """Key -> (file, number of regions), none, or why they cannot be made; a refused sample does not take its neighbours with it."""
    try:
        found: list[Regions | None] = maker.regions(list(jobs.values())) if jobs else []
        files = [(encode_regions(one), len(one.boxes)) if one is not None else (None, 0) for one in found]
        return dict(zip(jobs, files, strict=True))
    except BadSample as error:
        if len(jobs) == 1:
            return {next(iter(jobs)): (error, 0)}
    return {key: made for one in jobs for key, made in _made(maker, {one: jobs[one]}).items()}


def _job(key: str, members: Mapping[str, bytes]) -> Job | None:
    """The decoded sample; None without a picture."""
    for extension, data in members.items():
        if (most := limit(extension)) is not None and len(data) > most:
            raise BadSample(f"{extension} of {len(data)} bytes is longer than {most}")
    sample = assemble(key, {extension: data for extension, data in members.items() if allowed(extension)})
    if not sample.images:
        return None
    images = [decode_image(data) for data in sample.images]
    return Job(sample, join(images), tuple(image.size for image in images))

"""The generated scenes with regions: a small extractor trained on their exact boxes, and shards with what it says of them.

Made at first use. The extractor learns from the first training samples, which depend on the seed and the size of the pictures alone, so
that sets of any number of training samples go together with each other and with the validation sets.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools import scenes
from mmpretrain.data_tools.scenes import IMAGE_SIZE, SHARD_SIZE, cache_folder, complete, one_process

VERSION = 1  # of what is trained on, how, and what is written
WIDTHS = (8, 1024)  # of features, least and most
SAMPLES = 5 * SHARD_SIZE  # training samples that the extractor sees
LEAST = 100  # training samples, fewer are not enough to train, calibrate and measure
TRAINING = {"passes": 2, "least_steps": 100}


def embedded(
    width: int,
    cache: Path | None = None,
    n: int | None = None,
    seed: int = 0,
    size: int = IMAGE_SIZE,
    progress: bool = True,
    workers: int | None = None,
) -> dict[str, Path]:
    """The folders of ``scenes.embedded`` with ``KEY.regions.npz`` in every sample, by split; safe with several processes at once.

    Folders are named by split, n, seed, size and the fingerprint of the extractor, which is kept beside them; an incomplete or damaged
    folder is made again.

    Args:
        width: values of a region's feature, 8 to 1024.
        cache, n, seed, size, progress, workers: see ``scenes.embedded``; the result depends neither on ``progress`` nor on ``workers``.

    Raises:
        ValueError: a width or a number of samples out of its range.
    """
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        raise ValueError(f"regions={width}: features have {WIDTHS[0]} to {WIDTHS[1]} values")
    if n is not None and n < LEAST:
        raise ValueError(f"n={n}: regions need {LEAST} training samples or more, since an extractor is trained on them")
    plain = scenes.embedded(cache, n, seed, size, progress, workers)
    home = cache_folder(cache) / f"scenes-v{scenes.VERSION}"
    seen = min(n or scenes.EMBEDDED["train"], SAMPLES)
    extractor = home / f"extractor-v{VERSION}-n{seen}-seed{seed}-{size}px-{width}.safetensors"
    found = _folders(plain, extractor)
    if found and all(map(_whole, found.values())):
        return found
    try:
        with one_process(home / ".regions.lock", f"another process is making regions of scenes in {home}; waiting for it"):
            return _make(plain, extractor, seen, width, progress, workers)
    except PermissionError as error:
        raise PermissionError(
            f"cannot write the regions of scenes to {home}: set MMPRETRAIN_CACHE to a folder that you may write"
        ) from error


def _folders(plain: dict[str, Path], extractor: Path) -> dict[str, Path]:
    """Where the shards of this extractor are; {} where there is none that can be read."""
    from mmpretrain.data_tools.regions_net import load_extractor

    if not extractor.is_file():
        return {}
    try:
        mark = load_extractor(extractor).info.fingerprint[:12]
    except DataError:
        return {}
    return {split: folder.with_name(f"{folder.name}-regions-{mark}") for split, folder in plain.items()}


def _whole(folder: Path) -> bool:
    from mmpretrain.data.regions_info import NAME

    return (folder / NAME).is_file() and complete(folder)


def _make(plain: dict[str, Path], extractor: Path, seen: int, width: int, progress: bool, workers: int | None) -> dict[str, Path]:
    began, told = time.monotonic(), progress and not sys.stderr.isatty()
    if told:
        print(f"mmpretrain: training a region extractor on {seen} scenes and writing regions to {extractor.parent}, once", file=sys.stderr)
    if not _folders(plain, extractor):
        _fit(plain, extractor, seen, width, progress)
    found = _folders(plain, extractor)
    for split, folder in found.items():
        if not _whole(folder):
            _write(plain[split], folder, extractor, split, progress, workers)
    if told:
        print(f"mmpretrain: regions of scenes made in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return found


def _fit(plain: dict[str, Path], extractor: Path, seen: int, width: int, progress: bool) -> None:
    """Train the extractor on the first training samples, in one thread: sums are cut alike whatever the number of cores."""
    from mmpretrain.data_tools.regions_fit import Options, fit
    from mmpretrain.data_tools.regions_shard import one_thread

    first = [str(path) for path in sorted(plain["train"].glob("*.tar"))[: -(-seen // SHARD_SIZE)]]
    with one_thread():
        fit(first, extractor, {"scenes:val": str(plain["val"])}, Options(width=width, samples=seen, **TRAINING), progress)


def _write(source: Path, folder: Path, extractor: Path, split: str, progress: bool, workers: int | None) -> None:
    """The shards of one split; the folder appears complete or not at all."""
    from mmpretrain.data_tools.regions import of_extractor
    from mmpretrain.data_tools.regions_write import fill

    for left in folder.parent.glob(f".tmp-{folder.name}-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    info, made = of_extractor(extractor, "annotated")
    try:
        works = dict.fromkeys(sorted(source.glob("*.tar")), made)
        fill(temporary, info, works, name=f"scenes_{split}", title=f"regions of scenes: {split}", progress=progress, workers=workers)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""One shard with image codes: texts and JSON of the original, ``KEY.codes.npy`` in the place of the picture or beside it. Deterministic,
atomic, indexed. :func:`shard` is what the engine runs for each shard."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.data.codes import encode_codes
from mmpretrain.data.codes_info import digest, fingerprint
from mmpretrain.data.decode import CODES, IMAGE, assemble, limit
from mmpretrain.data.draws import generator
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.index import open_index
from mmpretrain.data_tools.regions_shard import one_thread
from mmpretrain.data_tools.shards import read_samples, write_shard

_Group = tuple[str, dict[str, bytes]]  # key, extension -> bytes


class Autoencoder(NamedTuple):
    """A discrete autoencoder with the transform of its pictures."""

    model: Any  # has encode(pixels_BCHW in 0 to 1) -> ids_Bhw
    transform: ImageTransform
    device: str
    codes: int
    weights: str
    source: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.weights, self.transform)

    @torch.inference_mode()
    def encode(self, images: Sequence[Tensor]) -> np.ndarray:
        """The codes of transformed pictures, uint8 (3, H, W) each: integers (B, h, w)."""
        with _exact(self.device):
            return self.model.encode(torch.stack(tuple(images)).to(self.device).float() / 255).cpu().numpy()

    def grid(self) -> tuple[int, int]:
        """Rows and columns of the codes of a picture.

        Raises:
            DataError: the size does not fit the model.
        """
        side, unit = self.transform.size, self.model.spec.patch_size or 1
        if side % unit:
            fits = " or ".join(str(one) for one in (side // unit * unit, -(-side // unit) * unit) if one)
            raise DataError(f"--size {side}: pictures of {side} x {side} pixels are no multiples of {unit}; take --size {fits}")
        try:
            _, rows, columns = self.encode([torch.zeros(3, side, side, dtype=torch.uint8)]).shape
        except ValueError as error:
            raise DataError(f"--size {side}: {error}") from None
        return rows, columns


class Counts(NamedTuple):
    """What was done to a shard."""

    samples: int = 0
    coded: int = 0
    missing: int = 0  # samples without a picture
    bad: int = 0  # samples whose picture cannot be read
    bytes: int = 0
    sha256: str = ""
    problem: str = ""  # the first bad one
    seen: str = ""  # how often each code came, see :func:`usage`


def load(checkpoint: str, device: str, size: int | None) -> Autoencoder:
    """The autoencoder of a checkpoint; loaded once in a process.

    Raises:
        DataError: there is none.
    """
    found = _loaded(checkpoint, device)
    return found if size is None else found._replace(transform=dataclasses.replace(found.transform, size=size))


@functools.lru_cache(maxsize=2)
def _loaded(checkpoint: str, device: str) -> Autoencoder:
    import mmpretrain  # the public entry: this package knows nothing of models

    try:
        found = mmpretrain.load(checkpoint, device=device)
    except ValueError as error:
        raise DataError(str(error)) from None
    kinds = tuple(found.model.spec.kinds)
    if "coded" not in kinds or not callable(getattr(found.model, "encode", None)):
        raise DataError(f"{checkpoint}: no discrete autoencoder, but {type(found.model).__name__}, which gives {', '.join(kinds)}")
    return Autoencoder(found.model, found.image_transform, device, found.model.spec.codes, digest(found.model.state_dict()), found.source)


def shard(work: Mapping[str, Any]) -> dict[str, Any]:
    """Write the shard ``work["target"]`` from ``work["source"]``, and its index.

    Args:
        work: source (path, size and time, so that a changed shard is done again), target; checkpoint, device, size and the
            ``fingerprint`` and ``grid`` that they gave; views, of which the first is the picture as evaluation shows it and the others are
            drawn by the key; batch; ``keep_images``; ``replace``: put new codes in the place of those that a sample has; ``on_bad``: stop,
            or ``skip`` pictures that cannot be read, which then have no codes.

    Raises:
        DataError: a damaged shard, samples that have codes already, a checkpoint that changed, or a bad sample with ``on_bad`` stop.
    """
    source, target = Path(work["source"][0]), Path(work["target"])
    open_index(source)  # the check of the whole shard
    with one_thread():
        made = load(work["checkpoint"], work["device"], work["size"])
        if made.fingerprint != work["fingerprint"]:
            raise DataError(f"{work['checkpoint']}: it is not what it was when the command began; run the command again")
        writer = _Writer(str(source), made, work)
        written = write_shard(target, writer.samples(read_samples(source)))
        open_index(target)
    return writer.counts(written)._asdict()


class _Writer:
    """Puts codes to samples, and counts."""

    def __init__(self, source: str, made: Autoencoder, work: Mapping[str, Any]) -> None:
        self.source, self.made, self.work = source, made, work
        self.views = [made.transform, *[_second_stage(made.transform)] * (work["views"] - 1)]
        self.seen_K = np.zeros(made.codes, dtype=np.uint64)
        self.found = Counts()

    def counts(self, written: Mapping[str, Any]) -> Counts:
        return self.found._replace(bytes=written["bytes"], sha256=written["sha256"], seen=_packed(self.seen_K))

    def samples(self, found: Iterable[_Group]) -> Iterator[_Group]:
        """The samples with their codes, encoded a batch at a time, in their order."""
        waiting: list[tuple[str, dict[str, bytes], Tensor | None]] = []
        pictures = 0
        for key, members in found:
            for row in self._views(key, members):
                waiting.append(row)
                pictures += row[2] is not None
                if pictures == self.work["batch"] or len(waiting) == 8 * self.work["batch"]:
                    yield from self._encoded(waiting)
                    waiting, pictures = [], 0
        yield from self._encoded(waiting)

    def _views(self, key: str, members: dict[str, bytes]) -> Iterator[tuple[str, dict[str, bytes], Tensor | None]]:
        if CODES in members and not self.work["replace"]:
            raise DataError(f"{self.source} key {key!r} has image codes already; --replace puts new ones in their place")
        kept = {name: data for name, data in members.items() if name != CODES and (self.work["keep_images"] or not IMAGE.fullmatch(name))}
        images = self._images(key, members)
        for number, transform in enumerate(self.views):
            rng = generator(_number(key), number, name="tokens/view") if number else None
            try:
                image = transform.read(images, rng) if images else None
            except BadSample as error:
                self._bad(key, error)
                images, image = (), None
            if image is not None or not number:  # without a picture once
                self.found = self.found._replace(samples=self.found.samples + 1)
                yield f"{key}~{number + 1}" if number else key, kept, image

    def _images(self, key: str, members: Mapping[str, bytes]) -> tuple[bytes, ...]:
        """The encoded pictures of a sample."""
        try:
            for name, data in members.items():
                if (most := limit(name)) is not None and len(data) > most:
                    raise BadSample(f"{name} of {len(data)} bytes is longer than {most}")
            found = assemble(key, members).images
        except BadSample as error:
            self._bad(key, error)
            return ()
        if not found:
            self.found = self.found._replace(missing=self.found.missing + 1)
        return found

    def _bad(self, key: str, error: BadSample) -> None:
        message = f"{self.source} key {key!r}: {error}"
        if self.work["on_bad"] == "stop":
            raise DataError(f"{message}; --on-bad skip leaves such samples without codes")
        self.found = self.found._replace(bad=self.found.bad + 1, problem=self.found.problem or message)

    def _encoded(self, rows: Sequence[tuple[str, dict[str, bytes], Tensor | None]]) -> Iterator[_Group]:
        images = [image for _, _, image in rows if image is not None]
        ids = iter(self.made.encode(images) if images else ())
        for key, members, image in rows:
            if image is None:
                yield key, members
                continue
            codes = next(ids)
            if list(codes.shape) != self.work["grid"]:
                raise DataError(f"{self.source} key {key!r}: codes of shape {codes.shape}, not {tuple(self.work['grid'])}")
            self.seen_K += np.bincount(codes.reshape(-1), minlength=len(self.seen_K)).astype(np.uint64)
            self.found = self.found._replace(coded=self.found.coded + 1)
            yield key, {**members, CODES: encode_codes(codes)}


def _second_stage(transform: ImageTransform) -> ImageTransform:
    """Of further views: the augmentation of DALL-E's second stage, near-central crops (arXiv 2102.12092, listing 2)."""
    return dataclasses.replace(transform, mode="dalle", stage=2, flip=False, randaugment=None)


def _number(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "little")


def _exact(device: str) -> AbstractContextManager[Any]:
    """The same sums in every run, in full precision: a code is the largest of many logits."""
    if not device.startswith("cuda"):
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _packed(seen_K: np.ndarray) -> str:
    return base64.b64encode(seen_K.astype("<u8").tobytes()).decode("ascii")


def usage(seen: Iterable[str], codes: int) -> np.ndarray:
    """How often each code came in all shards: uint64 (K,)."""
    total_K = np.zeros(codes, dtype=np.uint64)
    for one in seen:
        total_K += np.frombuffer(base64.b64decode(one), dtype="<u8")
    return total_K


def perplexity(used_K: np.ndarray) -> float:
    """exp of the entropy of the codes: as if so many were in equal use."""
    share = used_K[used_K > 0] / max(int(used_K.sum()), 1)
    return math.exp(-float((share * np.log(share)).sum())) if len(share) else 0.0

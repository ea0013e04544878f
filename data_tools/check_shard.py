"""The check of one shard: everything that is wrong with it, where ``data.index`` stops at the first damage.

A problem is ``{"kind", "key", "reason"}``; ``key`` is None where it concerns the whole shard. Kinds are in ``KINDS``.
"""

from __future__ import annotations

import base64
import hashlib
import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data import shapes, tar
from mmpretrain.data.codes import MAX_KNOWN, decode_codes
from mmpretrain.data.codes_info import NAME as CODES_JSON
from mmpretrain.data.codes_info import CodesInfo, read_info
from mmpretrain.data.decode import CODES, IMAGE, REGIONS, allowed, assemble, decode_image, limit
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.index import index_path, parse
from mmpretrain.data.regions import decode_regions
from mmpretrain.data_tools import histogram
from mmpretrain.data_tools.histogram import Counts
from mmpretrain.data_tools.shards import sha256, split_name

KINDS = {  # kind -> what it means
    "cut": "the shard is shorter than it was",
    "end blocks": "no end-of-archive blocks: cut at a border of members, or only the end is missing",
    "header": "a damaged header; what follows it is lost",
    "checksum": "bytes differ from the index or the manifest",
    "duplicate member": "a sample has two members of one kind",
    "not adjacent": "the members of a key do not stand together",
    "dotted key": "a dot in the key: the loader would not find its members",
    "split key": "a key ends one shard and begins the next",
    "duplicate key": "a key stands in two shards",
    "missing shard": "the manifest names a shard that is not there",
    "incomplete": "no picture or no text, where the set has them",
    "text": "text or JSON that breaks the rules",
    "picture": "a picture that cannot be decoded",
    "regions": "region features that break the schema",
    "codes": "image codes that break the schema, or the codes.json beside the shard",
    "bomb": "more pixels, bytes or nesting than is allowed",
    "pickle": "a member that some readers execute",
}
_EXECUTED = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib")
_PACKED = ("gz", "bz2", "xz", "zst")
_TOO_MUCH = ("more than", "longer than", "nested deeper", "too many", "too large")
_REMEDIES = ("; copy it again", "; copy the shard again", "; write the shard again", "; write it again")


def check_shard(item: Mapping[str, Any]) -> dict[str, Any]:
    """Check one shard: what runs in a worker.

    Args:
        item: ``shard``, its stamp; ``decode``, whether pictures are decoded to the last pixel; ``manifest``, its entry there or None.
    """
    return _Check(Path(item["shard"][0]), bool(item["decode"]), item["manifest"]).run()


def keys_of(path: Path) -> list[str]:
    """The keys of a shard as far as it can be read, in the order of the hashes of :func:`check_shard`."""
    found = _Check(path, False, None)
    found.run()
    return found.keys


class _Check:
    def __init__(self, path: Path, decode: bool, manifest: Mapping[str, Any] | None) -> None:
        self.path, self.decode, self.manifest = path, decode, manifest
        self.problems: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.seen: set[str] = set()
        self.lacking: dict[str, list[str]] = {"picture": [], "text": []}
        self.counts: dict[str, Counts] = {name: {} for name in ("captions", "words", "width", "height", "kilobytes")}
        self.size = path.stat().st_size
        self.crcs = self._saved()
        self.codes = self._codes()

    def run(self) -> dict[str, Any]:
        if self.size:
            with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._archive(data)
        else:
            self.problem("cut", None, "the file is empty")
        self._manifest()
        samples = len(self.keys)
        hashes = np.asarray([_hash(key) for key in self.keys], dtype="<u8")
        return {
            "samples": samples,
            "bytes": self.size,
            "problems": self.problems,
            "first": self.keys[0] if self.keys else None,
            "last": self.keys[-1] if self.keys else None,
            "hashes": base64.b64encode(hashes.tobytes()).decode("ascii"),
            "lacking": {
                name: {"count": len(keys), "keys": keys if 2 * len(keys) <= samples else []} for name, keys in self.lacking.items()
            },
            "verified": self.crcs is not None or bool(self.manifest and "sha256" in self.manifest),
            "counts": self.counts,
        }

    def problem(self, kind: str, key: str | None, reason: str) -> None:
        reason = reason.removeprefix(f"{self.path}: ")
        for remedy in _REMEDIES:
            reason = reason.removesuffix(remedy)
        self.problems.append({"kind": kind, "key": key, "reason": reason})

    def _saved(self) -> dict[int, int] | None:
        """Offset -> CRC-32 of members, by the saved index if it is of a shard of this size."""
        try:
            _, index = parse(self.path, index_path(self.path))
        except (OSError, ValueError):
            return None
        if index.tar_size != self.size:
            return None
        return dict(zip(index.offsets_M.tolist(), index.crcs_M.tolist(), strict=True))

    def _archive(self, data: mmap.mmap) -> None:
        key: str | None = None
        group: dict[str, tar.Member] = {}
        try:
            for member in tar.members(data, str(self.path)):
                found, extension = split_name(member.name)
                if not found or not extension:
                    continue
                if found != key:
                    if key is not None:
                        self._sample(key, group, data)
                    key, group = found, {}
                if extension in group:
                    self.problem("duplicate member", key, f"two members {extension!r} (the second at offset {member.header})")
                group.setdefault(extension, member)
        except DataError as error:
            message = str(error)
            kind = "end blocks" if "end-of-archive" in message else "cut" if "cut" in message else "header"
            self.problem(kind, None, f"{message}, after {len(self.keys) + bool(group)} samples")
        if key is not None:
            self._sample(key, group, data)

    def _sample(self, key: str, group: Mapping[str, tar.Member], data: mmap.mmap) -> None:
        if key in self.seen:
            self.problem("not adjacent", key, f"members stand again at offset {next(iter(group.values())).header}")
            return
        self.seen.add(key)
        for name in group:
            if _executed(name):
                self.problem("pickle", key, f"the member {name!r} is code to readers that unpickle; the loader never reads it")
        readable = {name: member for name, member in group.items() if allowed(name)}
        hidden = [name for name in group if not allowed(name) and any(allowed(name[at + 1 :]) for at, c in enumerate(name) if c == ".")]
        if not readable:
            if hidden:
                self.problem("dotted key", key, f"no readable member but {hidden[0]!r}: a key must not hold a dot")
            return
        self.keys.append(key)
        members: dict[str, bytes | None] = {}
        for name, member in readable.items():
            content = data[member.offset : member.offset + member.size]
            if self.crcs is not None and self.crcs.get(member.offset, 0) != zlib.crc32(content):
                self.problem("checksum", key, f"the bytes of {name} at offset {member.offset} differ from the index")
            members[name] = self._member(key, name, content)
        self._whole(key, members)

    def _member(self, key: str, name: str, content: bytes) -> bytes | None:
        """The bytes of a text; what is wrong with any other member is noted."""
        if (most := limit(name)) is not None and len(content) > most:
            self.problem("bomb", key, f"{name} of {len(content)} bytes is longer than {most}")
            return None
        try:
            if IMAGE.fullmatch(name):
                height, width = shapes.picture(content)
                if self.decode or not height:
                    decode_image(content)
                histogram.add(self.counts["width"], width)
                histogram.add(self.counts["height"], height)
                histogram.add(self.counts["kilobytes"], len(content) / 1000)
            elif name == REGIONS:
                decode_regions(content)
            elif name == CODES:
                self._grid(decode_codes(content, self.codes.codes if self.codes is not None else MAX_KNOWN).shape)
            else:
                return content
        except BadSample as error:
            bomb = any(words in str(error) for words in _TOO_MUCH)
            kind = {REGIONS: "regions", CODES: "codes"}.get(name, "picture")
            self.problem("bomb" if bomb else kind, key, f"{name}: {error}")
        return None

    def _codes(self) -> CodesInfo | None:
        """What the codes.json beside the shard says."""
        try:
            return read_info(self.path.parent)
        except DataError as error:
            self.problem("codes", None, str(error))
            return None

    def _grid(self, found: tuple[int, ...]) -> None:
        if self.codes is not None and found != self.codes.grid:
            raise BadSample(f"a grid of {found[0]} x {found[1]}, {CODES_JSON} says {self.codes.grid[0]} x {self.codes.grid[1]}")

    def _whole(self, key: str, members: Mapping[str, bytes | None]) -> None:
        pictures = any(IMAGE.fullmatch(name) for name in members)
        if not pictures:
            self.lacking["picture"].append(key)
        try:
            sample = assemble(key, {name: content for name, content in members.items() if content is not None or IMAGE.fullmatch(name)})
        except BadSample as error:
            self.problem("bomb" if any(words in str(error) for words in _TOO_MUCH) else "text", key, str(error))
            return
        unread = any(name in members and members[name] is None for name in ("txt", "json"))  # a problem already
        if not sample.captions and not sample.statements and not unread:
            self.lacking["text"].append(key)
        histogram.add(self.counts["captions"], len(sample.captions))
        for caption in sample.captions:
            histogram.add(self.counts["words"], len(caption.split()))

    def _manifest(self) -> None:
        entry = self.manifest or {}
        if "bytes" in entry and entry["bytes"] != self.size:
            kind = "cut" if self.size < entry["bytes"] else "checksum"
            self.problem(kind, None, f"{self.size} bytes, but the manifest says {entry['bytes']}")
        elif "sha256" in entry and not self.problems and sha256(self.path) != entry["sha256"]:
            self.problem("checksum", None, "the sha256 differs from the manifest")


def _executed(name: str) -> bool:
    """Whether readers that choose a decoder by the last extension, behind compression, would unpickle or run this member."""
    parts = name.split(".")
    while len(parts) > 1 and parts[-1] in _PACKED:
        parts = parts[:-1]
    return parts[-1] in _EXECUTED


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest(), "little")

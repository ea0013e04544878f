"""Sources in the layouts of public data sets, a few records each, and what ``data build`` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from helpers.shards import picture

from mmpretrain.data.decode import assemble
from mmpretrain.data_tools import build
from mmpretrain.data_tools.shards import read_samples
from mmpretrain.types import Sample


class Built(NamedTuple):
    """The result of a build."""

    code: int
    samples: dict[str, Sample]
    members: dict[str, dict[str, bytes]]  # key -> extension -> bytes
    skipped: list[dict[str, Any]]
    manifest: dict[str, Any]

    def meta(self, key: str) -> dict[str, Any]:
        return dict(self.samples[key].meta)


def put(folder: Path, files: dict[str, Any]) -> Path:
    """Write files: bytes and texts as they are, a number as the picture of that number, all else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(picture(content, kind="PNG" if name.endswith(".png") else "JPEG"))
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def run(folder: Path, format: str, *words: str, out: str = "out") -> Built:
    """Build in this process; words that name files of ``folder`` are given as its paths."""
    named = [str(folder / word) if (folder / word).exists() and not word.startswith("-") else word for word in words]
    code = build.main([format, *named, "--out", str(folder / out), "--workers", "1", "--quiet"])
    return read(folder / out, code)


def read(out: Path, code: int = 0) -> Built:
    """What stands in a folder of shards."""
    members = {key: group for path in sorted(out.glob("*.tar")) for key, group in read_samples(path)}
    skipped = out / "skipped.jsonl"
    listed = [json.loads(line) for line in skipped.read_text().splitlines()] if skipped.exists() else []
    samples = {key: assemble(key, group) for key, group in members.items()}
    return Built(code, samples, members, listed, json.loads((out / "manifest.json").read_text()))

"""The first 20 steps of tiny systems are those that were recorded: to 1e-5 everywhere, to the last bit on the machine that wrote them.

``MMPRETRAIN_WRITE_GOLDEN=1 pytest tests/test_golden.py`` writes them anew (tests/golden/README.md).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shards import write_shards
from train.runs import Recorder, quiet, trainer
from train.systems import build, data

from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.schedule import WarmupLinear

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20
TOLERANCE = 1e-5
OBJECTIVES = {"vilt": ("mlm", "itm", "wpa"), "clip": ("contrastive",), "siglip": ("contrastive",)}
WRITE = os.environ.get("MMPRETRAIN_WRITE_GOLDEN") == "1"


def fingerprint() -> dict[str, Any]:
    """What the last bit of a loss depends on."""
    about: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
        about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    flags = " ".join(sorted((about.get("flags") or about.get("Features") or "").split()))
    return {
        "machine": platform.machine(),
        "processor": about.get("model name", platform.processor()),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
        "vector code": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "pillow", "tokenizers")},
    }


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples in three shards: 20 steps of 8 are more than six epochs."""
    return write_shards(tmp_path_factory.mktemp("golden"), sizes=(10, 8, 6))


def losses(system: str, shards: Path, folder: Path) -> dict[str, list[float]]:
    """Name -> its value at every step."""
    quiet()
    recorder, module = Recorder(), build(system)
    module.schedule = WarmupLinear(warmup=2, total=STEPS)
    fitter = trainer(STEPS, [Metrics(), recorder], log_every_n_steps=1, gradient_clip_val=0.5, default_root_dir=folder)
    fitter.fit(module, datamodule=data(shards, system))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    parts = {f"{name}/loss": [row[f"train/{name}/loss"] for row in rows] for name in OBJECTIVES[system]}
    return {"loss": recorder.losses, **parts, "grad_norm": recorder.norms}


@pytest.mark.parametrize("system", OBJECTIVES)
def test_first_steps_are_the_recorded_ones(system: str, shards: Path, tmp_path: Path) -> None:
    found, path = losses(system, shards, tmp_path), GOLDEN / f"{system}.json"
    assert all(len(values) == STEPS for values in found.values())
    if WRITE:
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in {"fingerprint": fingerprint(), **found}.items())
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
        pytest.skip(f"wrote {path}")
    golden = json.loads(path.read_text(encoding="utf-8"))
    written_on = golden.pop("fingerprint")
    assert found.keys() == golden.keys()
    for name, values in golden.items():
        floor = 0.0 if name == "loss" else TOLERANCE * max(map(abs, values))  # WPA's distances cross zero
        for step, (now, then) in enumerate(zip(found[name], values, strict=True)):
            assert now == pytest.approx(then, rel=TOLERANCE, abs=floor), f"{name} at step {step}"
    if written_on == fingerprint():
        assert found == golden, "within the tolerance, but not the same bits on the machine that wrote them"

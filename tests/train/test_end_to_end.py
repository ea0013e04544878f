"""The real parts together: shards, ViLT with MLM, ITM and WPA, CLIP with its losses, on any layout, stopped and resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.shards import write_shards
from train.runs import Trace, largest
from train.spawn import environment, ranks
from train.systems import fit, resumable
from train.test_resume import wait_for_step

SCRIPT = Path(__file__).with_name("systems.py")
LAYOUTS = [f"{strategy}:{system}:{k}" for strategy in ("ddp", "fsdp2") for system in ("vilt", "clip", "siglip") for k in (1, 2)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_shards(tmp_path_factory.mktemp("shards"), sizes=(10, 8, 6))
    fit("vilt", folder, steps=1)  # writes the indexes and the tokenizer
    return folder


@pytest.fixture(scope="module")
def traces(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("ranks") / "traces.pt"
    for rank, done in enumerate(ranks(SCRIPT, "parity", str(out), str(shards), *LAYOUTS)):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return torch.load(out, weights_only=True)


def drift(a: Trace, b: Trace) -> float:
    """Largest difference of parameters; the attention key bias has no gradient in theory and noise in practice."""
    worst = 0.0
    for name, x in a.parameters.items():
        difference = (x - b.parameters[name]).abs()
        if name.endswith("qkv.bias"):
            third = len(x) // 3
            difference = torch.cat([difference[:third], difference[2 * third :]])
        worst = max(worst, difference.max().item())
    return worst


@pytest.fixture(scope="module")
def alone(shards: Path) -> dict[str, Trace]:
    return {system: fit(system, shards) for system in ("vilt", "clip", "siglip")}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_equal_one(traces: dict[str, dict], alone: dict[str, Trace], layout: str) -> None:
    one, two = alone[layout.split(":")[1]], Trace(**traces[layout])
    assert largest(one.losses, two.losses) < 1e-5
    assert largest(one.norms, two.norms) < 1e-5
    assert drift(one, two) < 2e-5
    assert two.tied and one.tied
    if "vilt" in layout:
        assert {"val/mlm/loss", "val/itm/accuracy", "val/wpa/loss"} <= two.metrics.keys()
        assert all(abs(one.metrics[name] - two.metrics[name]) < 1e-4 for name in one.metrics)


@pytest.mark.fault(34)
@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_stopped_in_mid_epoch_and_resumed(tmp_path: Path, shards: Path, system: str) -> None:
    resumable(tmp_path / "whole", shards, system, 8)
    for stop in (4, 5, 8):
        resumable(tmp_path / "parts", shards, system, stop)
    a, b = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.fault(34)
@pytest.mark.slow
@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, shards: Path, system: str) -> None:
    resumable(tmp_path / "whole", shards, system, 8)
    parts = tmp_path / "parts"
    command = [sys.executable, str(SCRIPT), "resume", str(parts), str(shards), system, "8", "0.3"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_step(parts, process, 5)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumable(parts, shards, system, 8)
    a, b = (torch.load(folder / "end.pt", weights_only=True) for folder in (tmp_path / "whole", parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_losses_fall(shards: Path) -> None:
    for system in ("vilt", "clip"):
        trace = fit(system, shards, steps=40)
        assert sum(trace.losses[-5:]) < sum(trace.losses[:5])

"""Two gloo processes equal one process with the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train.cases import CASES, execute
from train.runs import Trace, drift, largest
from train.spawn import ranks

QUICK = ["ddp:plain", "fsdp2:accumulate", "ddp:adversarial", "fsdp2:adversarial", "ddp:plateau"]
LAYOUTS = [f"{strategy}:{name}" for strategy in ("ddp", "fsdp2") for name in CASES] + ["zero2:plain"]


def together(out: Path, layouts: list[str]) -> dict[str, dict]:
    """All layouts in one pair of processes."""
    for rank, done in enumerate(ranks(Path(__file__).with_name("cases.py"), str(out), *layouts)):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return together(tmp_path_factory.mktemp("quick") / "traces.pt", QUICK)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    return together(tmp_path_factory.mktemp("ranks") / "traces.pt", LAYOUTS)


@pytest.mark.parametrize("layout", QUICK)
def test_two_processes_equal_one(quick: dict[str, dict], layout: str) -> None:
    check(quick, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_equal_one_in_every_way(traces: dict[str, dict], layout: str) -> None:
    check(traces, layout)


def check(traces: dict[str, dict], layout: str) -> None:
    """Losses and norms to 1e-5, parameters to 2e-5, the tie, validation metrics, the average."""
    module, one = execute(layout.split(":")[1])
    found = dict(traces[layout])
    ema = found.pop("ema", None)
    two = Trace(**found)
    assert largest(one.losses, two.losses) < 1e-5
    assert largest(one.norms, two.norms) < 1e-5
    assert drift(one, two) < 2e-5
    assert two.tied
    assert one.metrics.keys() == two.metrics.keys()
    assert all(abs(one.metrics[name] - two.metrics[name]) < 1e-4 for name in one.metrics)
    if ema is not None:
        own = module.ema.state()
        assert max((own[name] - ema[name]).abs().max() for name in own if "qkv.bias" not in name) < 2e-5

"""A small DALL-E over two gloo processes equals one with the same global batch: losses, perplexities, parameters, drops of the rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train.causal_run import execute
from train.runs import Trace, drift, largest
from train.spawn import ranks

STRATEGIES = ("ddp", "fsdp2")


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    for rank, done in enumerate(ranks(Path(__file__).with_name("causal_run.py"), str(tmp_path / "traces.pt"), *STRATEGIES)):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    one, traces = execute(), torch.load(tmp_path / "traces.pt", weights_only=True)
    assert {"val/text/perplexity", "val/code/perplexity", "val/code/accuracy"} <= set(one.metrics)
    for strategy in STRATEGIES:
        two = Trace(**traces[strategy])
        assert largest(one.losses, two.losses) < 1e-5 and largest(one.norms, two.norms) < 1e-4
        assert drift(one, two) < 2e-5
        assert one.metrics.keys() == two.metrics.keys()
        assert all(abs(one.metrics[name] - two.metrics[name]) < 1e-4 for name in one.metrics)

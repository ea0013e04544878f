"""Networks trained along with a transformer: two processes with other numbers of picture sizes equal one, and training moves them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from train.pixels import build, fit
from train.runs import Trace, drift, largest
from train.spawn import ranks

LAYOUTS = [f"{strategy}:{system}:{micros}" for strategy in ("ddp", "fsdp2") for system in ("pixelbert", "vlbert") for micros in (1, 2)]


@pytest.mark.parametrize("system", ["pixelbert", "vlbert"])
def test_training_moves_what_is_trained(system: str) -> None:
    before = {name: p.detach().clone() for name, p in build(system).root.model.named_parameters()}
    trace, model = fit(system), build(system).root.model
    moved = {name for name, start in before.items() if not torch.equal(start, trace.parameters[f"model.{name}"])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    unread = {"pooler.dense.weight", "pooler.dense.bias", "embed.text_visual"} & trained  # no objective here reads them
    assert moved == trained - unread
    assert len(trace.losses) == 6 and trace.tied


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("ranks") / "traces.pt"
    for rank, done in enumerate(ranks(Path(__file__).with_name("pixels.py"), str(out), *LAYOUTS)):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_equal_one(traces: dict[str, dict], layout: str) -> None:
    one, two = fit(layout.split(":")[1]), Trace(**traces[layout])
    assert largest(one.losses, two.losses) < 1e-5
    assert largest(one.norms, two.norms) < 1e-5
    assert drift(one, two) < 2e-5
    assert two.tied

"""Region objectives over two gloo processes, replicated and sharded, equal one process with the same samples."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import region_ranks
from helpers.region_batches import rows_of
from train.spawn import ranks

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("ranks") / "found.pt"
    for rank, done in enumerate(ranks(Path(region_ranks.__file__), str(out))):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("layout", ["replicas", "sharded"])
def test_two_processes_equal_one(measured, layout):
    got, module = measured[layout], region_ranks.root()
    loss, gradients, stats = region_ranks.step(module, [region_ranks.batch()])
    assert got["loss"].item() == pytest.approx(loss, rel=1e-5) and got["tied"]
    assert got["stats"] == list(stats)
    wanted = torch.tensor([x for pair in stats.values() for x in pair], dtype=torch.float64)
    torch.testing.assert_close(got["sums"], wanted, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        assert (got["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_two_micro_batches_equal_one():
    module, batch = region_ranks.root(), region_ranks.batch()
    whole = region_ranks.step(module, [batch])
    parts = region_ranks.step(module, [rows_of(batch, samples) for samples in region_ranks.SAMPLES])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert all(parts[2][name] == pytest.approx(pair, rel=1e-5, abs=1e-5) for name, pair in whole[2].items())
    for name, gradient in whole[1].items():
        assert (parts[1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name

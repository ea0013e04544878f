"""Losses over several processes equal one process; what the compatible variants really compute. fp64, gloo."""

import pytest
import torch.distributed as dist
from helpers import ranks

EXACT = [f"contrastive/{mode}" for mode in ("local_grad", "global_grad")] + [
    f"sigmoid/{mode}" for mode in ("ring", "ring_bidirectional", "gather")
]
pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def measured(request, tmp_path_factory) -> tuple[int, dict]:
    return request.param, ranks.spawn(request.param, tmp_path_factory.mktemp("ranks"), timeout=150.0 * request.param)


@pytest.mark.parametrize("labels", ["plain", "labels"])
@pytest.mark.parametrize("variant", EXACT)
def test_exact_variants_equal_one_process(measured, variant, labels):
    _, results = measured
    got = results[f"{variant}/{labels}"]
    # with labels, ranks hold different numbers of true pairs; the count is summed in fp32, which is exact for whole numbers
    assert got["loss"] < 1e-12 and got["gradient"] < 1e-12 and got["evaluation"] < 1e-12


@pytest.mark.parametrize("labels", ["plain", "labels"])
def test_gather_without_gradient_scales_the_encoders_by_one_over_ranks(measured, labels):
    world, results = measured
    got = results[f"contrastive/global_no_grad/{labels}"]
    assert got["loss"] < 1e-12
    for name in ("image.weight", "image.bias", "text.weight", "text.bias"):
        assert got[f"ratio/{name}"] == pytest.approx(1 / world, abs=1e-12) and got[f"cosine/{name}"] == pytest.approx(1, abs=1e-12)
    assert got["ratio/logit_scale"] == pytest.approx(1, abs=1e-12)


def test_local_rows_without_gradient_are_biased(measured):
    _, results = measured
    got = results["contrastive/local_no_grad/plain"]
    assert got["loss"] < 1e-12 and got["gradient"] > 1e-3 and got["cosine/image.weight"] < 0.9999


def test_all_variants_count_the_same_hits(measured):
    _, results = measured
    for labels in ("plain", "labels"):
        for kind in ("contrastive", "sigmoid"):
            values = {results[f"{k}/{mode}/{labels}"]["accuracy"] for k, mode in ranks.MODES if k == kind}
            assert len(values) == 1


def test_clamp_reaches_a_sharded_scale(measured):
    assert measured[1]["sharded_scale"] == pytest.approx(4.6052)


def test_exchange_within_a_group(measured):
    world, results = measured
    if world == 4:
        assert results["halves"] < 1e-12
    else:
        assert "halves" not in results

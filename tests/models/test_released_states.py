"""UNITER, its host in VILLA, Oscar and Oscar+ against what the released code returned for the same weights and inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import official_single as official

GOLDEN = Path(__file__).parents[1] / "golden"
STATES = ("text", "image", "pooled")


def golden(system: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{system}_states.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


@pytest.mark.parametrize("system", ["uniter", "villa", "oscar", "oscar_plus"])
def test_the_states_of_the_released_code(system: str) -> None:
    expected, out = golden(system), official.filled(system)(official.inputs(system))
    for name, got in zip(STATES, (out.text.x_ND, out.image.x_ND, out.pooled_BD), strict=True):
        torch.testing.assert_close(got, expected[name], atol=1e-5, rtol=0)


def test_the_deltas_of_villa_have_the_gradients_of_the_released_code() -> None:
    """Both injection points at once: words before position and type, features after the mask embedding."""
    expected, model, batch = golden("villa"), official.filled("villa"), official.inputs("villa")
    deltas = (batch.text.delta_ND.requires_grad_(), batch.regions.delta_NF.requires_grad_())
    grads = torch.autograd.grad(model(batch).pooled_BD.sum(), deltas)
    for name, grad in zip(("text_grad", "image_grad"), grads, strict=True):
        assert expected[name].abs().max() > 0.01
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", ["mask embedding", "text delta", "image delta"])
def test_the_states_know_what_was_added(change: str) -> None:
    """Without the mask embedding or a delta the states are others by far more than the tolerance."""
    system = "uniter" if change == "mask embedding" else "villa"
    model, batch = official.filled(system), official.inputs(system)
    if change == "mask embedding":
        batch = batch._replace(regions=batch.regions._replace(removed_N=None))
    elif change == "text delta":
        batch = batch._replace(text=batch.text._replace(delta_ND=None))
    else:
        batch = batch._replace(regions=batch.regions._replace(delta_NF=None))
    assert (model(batch).pooled_BD - golden(system)["pooled"]).abs().amax(1).min() > 1e-2

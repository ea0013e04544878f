"""Every system over regions reads both deltas; UNITER with its objectives under VILLA's training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import single_stream, two_streams
from helpers.region_batches import CLASSES
from torch import Tensor

from mmpretrain.methods.adversarial import Adversarial, sample_norms
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.mrfr import MRFR
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.objectives.wpa import WPA
from mmpretrain.train.adversarial import adversarial
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Score, Vocabulary


class Pooled(Objective):
    """A loss on what heads of matching read."""

    kind = "fused"

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        weights_D = torch.linspace(-1, 1, hidden.pooled_BD.shape[1])
        return Score((hidden.pooled_BD * weights_D).sum(), self.count(batch), {})


SYSTEMS = [(single_stream, name) for name in single_stream.MAKERS] + [(two_streams, name) for name in two_streams.SYSTEMS]


@pytest.mark.parametrize(("helper", "name"), SYSTEMS, ids=[name for _, name in SYSTEMS])
def test_systems_read_both_deltas(helper: Any, name: str) -> None:
    model, batch, seen = helper.shaken(name), helper.batch(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module = Pretraining(model, {"pooled": Pooled()})
    method = Adversarial("both", steps=2, lr=0.05, lr_image=0.1)
    result = adversarial(module, [batch], ["pooled"], lambda loss, last: loss.backward(), method=method)
    first, moved = (seen[k] for k in (1, 2))
    assert not first.text.delta_ND.any() and not first.regions.delta_NF.any()
    assert sample_norms(moved.text.delta_ND.detach(), Layout(batch.text.lengths), "l2").tolist() == pytest.approx([0.05] * 4, rel=1e-4)
    assert sample_norms(moved.regions.delta_NF.detach(), Layout(batch.regions.lengths), "l2").tolist() == pytest.approx([0.1] * 4, rel=1e-4)
    assert result.stats["pooled/adversarial_loss"][0] / 2 > result.losses["pooled"][0], "the mean of d = 0 and of one step up"


def test_uniter_with_its_objectives() -> None:
    model = single_stream.shaken("uniter").train()
    masker = RegionMasker(prob=0.5)
    objectives: dict[str, Objective] = {
        "mlm": MLM(prob=0.4, view="mlm"),
        "mrfr": MRFR(view="mrfr", masker=masker),
        "mrc": MRC("kl", CLASSES, view="mrc", masker=masker),
        "itm": ITM({}),
        "wpa": WPA(iterations=5),
    }
    module = Pretraining(model, objectives)
    torch.manual_seed(0)
    module.bind(Vocabulary(single_stream.WORDS, 0, 2, 1, 3, (0, 1, 2, 3)))
    batch = single_stream.batch()._replace(targets={"itm": Swaps(torch.tensor([0, 1, 0, 1]))})
    optimizer, method = torch.optim.AdamW(module.parameters(), lr=3e-3), Adversarial("both", lr=0.05, lr_image=0.2)
    totals = []
    for _ in range(30):
        optimizer.zero_grad(set_to_none=True)
        result = adversarial(module, [batch], list(objectives), lambda loss, last: loss.backward(), method=method)
        optimizer.step()
        totals.append(float(result.loss))
    assert set(result.losses) == set(objectives) and totals[-1] < 0.5 * totals[0]
    assert {name for name in objectives if f"{name}/kl" in result.stats} == {"mlm", "mrc", "itm"}
    assert {name for name in objectives if f"{name}/adversarial_loss" in result.stats} == {"mlm", "mrfr", "mrc", "itm"}
    assert all(p.grad is not None for p in module.parameters())
    for modality, rate in (("text", 0.05), ("image", 0.2)):
        total, count = result.stats[f"adversarial/delta_{modality}"]
        assert count == 4 * 4 and 0 < total / count <= 2 * rate + 1e-6

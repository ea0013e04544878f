"""What can be perturbed and what cannot: shared forwards, patches, two towers, half precision, refusals."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import batch as pictures
from helpers.tiny import clip, vilt
from methods.small import Perturbable, gradients, line, root, sample
from torch import Tensor

from mmpretrain.methods.adversarial import Adversarial, perturb, sample_norms
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective, scored
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.mlm import MLM
from mmpretrain.train.adversarial import adversarial, checked
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Score, Vocabulary


def test_views_that_share_a_forward_share_a_delta() -> None:
    module = Pretraining(Perturbable(), {"a": _Sum(view="a"), "b": _Sum(view="b")})
    batch = sample()
    views = {"a": batch, "b": batch}
    assert module.shared(views) == [("a", "b")]
    method = Adversarial(modality="both")
    deltas = [method.start(batch, m, ("a", "b"), module.model.spec) for m in ("text", "image")]
    moved = perturb(views, deltas)
    assert module.shared(moved) == [("a", "b")] and moved["a"].regions.delta_NF is deltas[1].x_NW
    module.double()(moved)
    assert len(module.model.seen) == 1
    other = {"a": batch, "b": batch._replace(text=batch.text._replace(ids_BT=batch.text.ids_BT.clone()))}
    assert module.shared(other) == [("a",), ("b",)]


class _Sum(Objective):
    kind = "fused"

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(1.0)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        return Score(hidden.text.x_ND.square().sum(), self.count(batch), {})


def test_logits_of_a_score_are_the_very_ones() -> None:
    module = root()
    views = module.corrupt(sample())
    hidden = module.model(views["mlm"])
    mlm, drawn = module.objectives["mlm"], []
    mlm.head.register_forward_hook(lambda *args: drawn.append(args[2]))
    found = scored(mlm, hidden, views["mlm"])
    assert len(drawn) == 1 and found.logits_RC is drawn[0] and "logits" not in vars(mlm)
    assert torch.equal(found.score.sum, mlm(hidden, views["mlm"]).sum)
    assert scored(module.objectives["regress"], hidden, views["mlm"]).logits_RC is None


@pytest.mark.parametrize("limit", [-1, 2])
def test_patches_of_pictures_can_be_perturbed(limit: int) -> None:
    """ViLT: patches that were not sampled keep a delta of zero, and the gradient is that of the projected patches."""
    torch.manual_seed(0)
    model = vilt(patch_limit=limit).train()
    mlm = MLM(prob=0.5)
    module = Pretraining(model, {"mlm": mlm})
    module.bind(None)
    mlm.bind(model.spec, Vocabulary(60, 0, 1, 2, 59, (0, 1, 2, 59)))
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].image.delta_ND))
    batch = pictures()
    result = adversarial(module, [batch], ["mlm"], lambda loss, last: loss.backward(), method=Adversarial("image", lr=0.2))
    layout = Layout(tuple((h // 8) * (w // 8) for h, w in batch.image.sizes))
    assert seen[0] is None and all(x.shape == (layout.total, 32) for x in seen[1:])
    moved_N = seen[3].abs().amax(1) > 0
    kept = layout.total if limit < 0 else sum(min(n, limit) for n in layout.lengths)
    assert int(moved_N.sum()) == kept
    assert sample_norms(seen[2].detach(), layout, "l2").tolist() == pytest.approx([0.2] * 4, rel=1e-4)
    assert result.stats["mlm/adversarial_loss"][0] / 3 > result.losses["mlm"][0]


def test_parameters_in_half_precision_and_deltas_in_full() -> None:
    model, seen = vilt().bfloat16(), []
    mlm = MLM(prob=0.5)
    module = Pretraining(model, {"mlm": mlm})
    module.bind(Vocabulary(60, 0, 1, 2, 59, (0, 1, 2, 59)))
    mlm.bfloat16()
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    adversarial(module, [pictures()], ["mlm"], lambda loss, last: loss.backward(), method=Adversarial("both", lr=0.2))
    assert seen[3].text.delta_ND.dtype == seen[3].image.delta_ND.dtype == torch.float32
    assert seen[3].text.delta_ND.any() and seen[3].image.delta_ND.any()


def test_two_towers_can_be_perturbed() -> None:
    model = clip().train()
    module = Pretraining(model, {"contrastive": Contrastive()})
    module.bind(None)
    batch = pictures(sizes=((32, 32),) * 4)
    method = Adversarial("both", lr=0.5)
    result = adversarial(module, [batch], ["contrastive"], lambda loss, last: loss.backward(), method=method)
    assert result.stats["contrastive/adversarial_loss"][0] / 3 > result.losses["contrastive"][0]
    assert "contrastive/kl" not in result.stats


def test_what_cannot_be_perturbed_says_so() -> None:
    module = root()
    with pytest.raises(ValueError, match="modality: text"):
        adversarial(
            Pretraining(clip("resnet"), {"contrastive": Contrastive()}), [pictures(sizes=((64, 64),) * 4)], ["contrastive"],
            lambda loss, last: loss.backward(), method=Adversarial("image"),
        )  # fmt: skip
    deaf = Pretraining(_Deaf(), {"a": _Sum()}).double()
    with pytest.raises(ValueError, match="does not depend on the text delta"):
        adversarial(deaf, [sample()], ["a"], lambda loss, last: loss.backward(), method=Adversarial())
    with pytest.raises(ValueError, match=r"regress cannot be held.*mlm, itm"):
        gradients(module, [sample()], objectives=("regress",))
    with pytest.raises(ValueError, match="backward=plain"):
        checked(Adversarial(), "cached", {})
    with pytest.raises(ValueError, match=r"regress cannot be held.*mlm, itm"):
        checked(Adversarial(objectives=("regress",)), "plain", module.objectives)
    for wrong, named in (
        ({"steps": 0}, "steps"), ({"lr": 0.0}, "lr"), ({"lr_image": -1.0}, "lr_image"), ({"norm": "l1"}, "l2 or linf"),
        ({"modality": "sound"}, "alternate"),
        ({"clean": "both"}, "explicit"), ({"kl_weight": -1.0}, "kl_weight"), ({"init": 2.0, "max_norm": 1.0}, "max_norm"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            Adversarial(**wrong)


class _Deaf(Perturbable):
    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        return super().forward(batch._replace(text=batch.text._replace(delta_ND=None)), kind)


def test_a_step_with_nothing_to_perturb_is_a_plain_one() -> None:
    module, batch = line()
    found = adversarial(module, [batch], ["signed"], lambda loss, last: loss.backward(), method=Adversarial("image"))
    assert module.model.seen == [] and "signed/adversarial_loss" not in found.stats
    assert Adversarial("alternate").together(batch) == (("text",),)


def test_consistency_for_the_objectives_that_are_named() -> None:
    module = root()
    _, result = gradients(module, [sample()], objectives=("itm",))
    assert "itm/kl" in result.stats and "mlm/kl" not in result.stats
    assert {"mlm/adversarial_loss", "regress/adversarial_loss"} <= result.stats.keys() and "wpa/adversarial_loss" not in result.stats
    assert set(result.losses) == set(module.objectives)

"""Adversarial training: closed forms, VILLA's loop written out, any cut of a batch, what cannot be perturbed."""

from __future__ import annotations

import pytest
import torch
from helpers.region_batches import rows_of
from methods.small import LENGTHS, gradients, line, plainly, root, sample
from torch import Tensor

from mmpretrain import random
from mmpretrain.methods.adversarial import Adversarial, Delta, sample_norms, symmetric_kl
from mmpretrain.nn.ragged import Layout
from mmpretrain.train.adversarial import adversarial
from mmpretrain.train.step import plain
from mmpretrain.types import Batch, Spec, Text

GROUPS = {"text": [("text",)], "image": [("image",)], "both": [("text", "image")], "alternate": [("text",), ("image",)]}


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference, over the largest gradient."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a) / max(float(x.abs().max()) for x in b.values())


@pytest.mark.parametrize("modality", GROUPS)
@pytest.mark.parametrize(
    ("clean", "detach", "norm"),
    [("implicit", False, "l2"), ("implicit", True, "linf"), ("explicit", False, "linf"), ("explicit", True, "l2")],
)
def test_gradients_are_those_of_the_released_loop(modality: str, clean: str, detach: bool, norm: str) -> None:
    settings = {"modality": modality, "clean": clean, "detach_clean": detach, "norm": norm, "lr": 0.3}
    module, micros = root(), [sample(), sample((2, 6, 3), seed=7)]
    found, _ = gradients(module, micros, **settings)
    assert far(found, plainly(module, micros, Adversarial(**settings), GROUPS[modality])) < 1e-6


def test_the_side_that_is_detached_matters() -> None:
    module = root()
    found = [gradients(module, [sample()], lr=0.3, detach_clean=detach)[0] for detach in (False, True)]
    assert far(*found) > 1e-2


def test_explicit_adds_the_clean_loss() -> None:
    module, batch = root(), sample()
    implicit, first = gradients(module, [batch], lr=0.3)
    explicit, second = gradients(module, [batch], lr=0.3, clean="explicit")
    module.zero_grad(set_to_none=True)
    names = ["mlm", "itm", "regress"]  # WPA has its clean term in both
    clean = plain(module, [batch], names, lambda loss, last: loss.backward())
    added = {name: implicit[name] + (p.grad if p.grad is not None else 0) for name, p in module.named_parameters()}
    assert far(explicit, added) < 1e-6
    assert float(second.loss) == pytest.approx(float(first.loss + clean.loss), rel=1e-6)


def test_one_step_from_zero_without_consistency_is_the_ordinary_gradient_exactly() -> None:
    module, micros = root(), [sample(), sample((2, 6, 3), seed=7)]
    found, result = gradients(module, micros, steps=1, kl_weight=0.0, modality="both")
    module.zero_grad(set_to_none=True)
    names = list(module.objectives)
    ordinary = plain(module, micros, names, lambda loss, last: loss.backward())
    expected = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    exact = root(wpa=False)  # WPA comes from the clean forward, and sums of two graphs are rounded once more
    once, _ = gradients(exact, micros, steps=1, kl_weight=0.0, modality="both")
    exact.zero_grad(set_to_none=True)
    plain(exact, micros, list(exact.objectives), lambda loss, last: loss.backward())
    assert all(torch.equal(once[name], p.grad) for name, p in exact.named_parameters() if p.grad is not None)
    assert far(found, expected) < 1e-6 and float(result.loss) == pytest.approx(float(ordinary.loss), rel=1e-6)
    assert {n: float(x[0]) for n, x in result.losses.items()} == {n: float(x[0]) for n, x in ordinary.losses.items()}


def test_a_linear_model_has_closed_forms() -> None:
    lr, (module, batch) = 0.25, line()
    result = adversarial(module, [batch], ["signed"], lambda loss, last: loss.backward(), method=Adversarial(steps=3, lr=lr))
    layout, w_D = Layout(batch.text.lengths), module.model.w.detach()
    sample_N = layout.sample_N(w_D.device)
    lengths_B, y_B = torch.tensor(layout.lengths, dtype=torch.float64), torch.where(batch.matched_B, 1.0, -1.0).double()
    for k, delta_ND in enumerate(module.model.seen):
        expected_ND = (-y_B * k * lr / lengths_B.sqrt())[sample_N][:, None] * w_D / w_D.norm()
        assert torch.allclose(delta_ND, expected_ND, rtol=0, atol=1e-7)  # a constant gradient: k steps in one direction
        assert sample_norms(delta_ND, layout, "l2").tolist() == pytest.approx([k * lr] * 3, abs=1e-7)
    # a step raises the loss of a sample by lr ||w|| sqrt(tokens); the mean over the K passes is that of 0, 1, ..., K - 1 steps
    rise = float((lr * w_D.norm() * lengths_B.sqrt()).mean())
    clean = float(result.losses["signed"][0] / 3)
    assert float(result.loss) == pytest.approx(clean + rise, rel=1e-6)
    assert float(result.stats["signed/adversarial_loss"][0]) == pytest.approx(3 * 3 * (clean + rise), rel=1e-6)


def test_linf_goes_lr_in_every_channel() -> None:
    module, batch = line()
    method = Adversarial(steps=3, lr=0.25, norm="linf")
    adversarial(module, [batch], ["signed"], lambda loss, last: loss.backward(), method=method)
    layout = Layout(batch.text.lengths)
    for k, delta_ND in enumerate(module.model.seen):
        assert sample_norms(delta_ND, layout, "linf").tolist() == pytest.approx([k * 0.25] * 3, abs=1e-7)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_holds_and_is_idempotent(norm: str) -> None:
    layout = Layout((1, 4, 2))
    x_NW = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, *[1.0] * 6])[:, None]
    method = Adversarial(norm=norm, max_norm=0.5)
    once = method.project(x_NW, layout)
    norms_B = sample_norms(once, layout, norm)
    assert norms_B.max() <= 0.5 + 1e-6 and norms_B[1:].tolist() == pytest.approx([0.5, 0.5])
    assert torch.equal(once[:1], x_NW[:1]), "what is inside stays"
    assert torch.allclose(method.project(once, layout), once, rtol=1e-6, atol=0)
    assert Adversarial().project(x_NW, layout) is x_NW
    module, batch = line()
    limited = Adversarial(steps=4, lr=0.25, norm=norm, max_norm=0.4)
    adversarial(module, [batch], ["signed"], lambda loss, last: loss.backward(), method=limited)
    norms = [sample_norms(delta_ND, layout, norm).max().item() for delta_ND in module.model.seen]
    assert norms == pytest.approx([0, 0.25, 0.4, 0.4], abs=1e-6)


def test_norms_of_k_steps() -> None:
    module, rates = root(), {"text": 0.05, "image": 0.02}
    gradients(module, [sample()], modality="both", steps=4, lr=rates["text"], lr_image=rates["image"])
    text, regions = Layout(sample().text.lengths), Layout(LENGTHS)
    perturbed = [seen for seen in module.model.seen if seen]
    assert len(perturbed) == 8  # two views, four steps
    for k, seen in enumerate(perturbed[::2]):  # the view of MLM
        for modality, layout in (("text", text), ("image", regions)):
            norms_B = sample_norms(seen[modality], layout, "l2")
            assert (norms_B <= k * rates[modality] + 1e-9).all()
            assert k != 1 or norms_B.tolist() == pytest.approx([rates[modality]] * 4, rel=1e-6)
            assert k != 0 or not seen[modality].any()


def test_divergence_is_zero_at_zero_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    a_RC, b_RC = torch.randn(6, 9, generator=generator), torch.randn(6, 9, generator=generator)
    assert symmetric_kl(a_RC, a_RC) == 0 and symmetric_kl(a_RC, a_RC + 3) < 1e-10
    p_RC, q_RC = a_RC.softmax(-1), b_RC.softmax(-1)
    assert float(symmetric_kl(a_RC, b_RC)) == pytest.approx(
        float((p_RC * (p_RC / q_RC).log() + q_RC * (q_RC / p_RC).log()).sum()), rel=1e-5
    )
    assert symmetric_kl(a_RC, b_RC) == symmetric_kl(b_RC, a_RC) > 0
    still = root(dropout=0.5).eval()
    _, result = gradients(still, [sample()], steps=1)
    assert result.stats["mlm/kl"][0] == result.stats["itm/kl"][0] == 0
    _, noisy = gradients(root(dropout=0.5).train(), [sample()], steps=1)
    assert noisy.stats["mlm/kl"][0] > 0, "dropout of the two forwards differs"


def test_only_what_is_there_has_a_delta() -> None:
    """Deltas are packed: rows of padding do not exist, and the padding of a batch changes nothing."""
    module, batch = root(), sample()
    found, _ = gradients(module, [batch], modality="both", lr=0.3)
    assert {delta.shape[0] for seen in module.model.seen for delta in seen.values()} == {sum(batch.text.lengths), sum(LENGTHS)}
    wider = batch._replace(text=batch.text._replace(ids_BT=torch.nn.functional.pad(batch.text.ids_BT, (0, 3), value=7)))
    again, _ = gradients(module, [wider], modality="both", lr=0.3)
    assert far(again, found) < 1e-12


@pytest.mark.parametrize("init", [0.0, 0.2])
def test_a_sample_is_perturbed_alike_in_any_company(init: float) -> None:
    module, batch = root(), sample()
    settings = {"modality": "both", "lr": 0.3, "init": init}
    gradients(module, [batch], **settings)
    together = module.model.seen
    halves = []
    for rows in ((0, 1), (2, 3)):
        part = rows_of(batch._replace(targets={}), rows)
        part = part._replace(targets={"itm": batch.targets["itm"]._replace(kinds_B=batch.targets["itm"].kinds_B[list(rows)])})
        halves.append(part)
    whole, one = gradients(module, [batch], **settings)
    parts, two = gradients(module, halves, **settings)
    assert far(parts, whole) < 1e-6 and float(one.loss) == pytest.approx(float(two.loss), rel=1e-6)
    assert one.stats.keys() == two.stats.keys()
    assert all(float(one.stats[name][0]) == pytest.approx(float(two.stats[name][0]), rel=1e-5) for name in one.stats)
    last = [seen for seen in together if seen][-1]
    assert float(one.stats["adversarial/delta_text"][1]) == 2 * 4 and last["text"].any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_uniform_start(norm: str) -> None:
    lengths = (40, 3)
    keys_B = torch.tensor([random.key_of(i) for i in range(2)])
    batch = Batch(("a", "b"), keys_B, Text(torch.zeros(2, 40, dtype=torch.int64), lengths))
    spec = Spec(64, ("fused",), 20)
    method = Adversarial(init=0.4, norm=norm)
    delta = method.start(batch, "text", ("main",), spec)
    assert delta.x_NW.requires_grad and delta.x_NW.is_leaf
    bound_N = 0.4 if norm == "linf" else (0.4 / (torch.tensor(lengths) * 64.0).sqrt())[delta.layout.sample_N(keys_B.device)][:, None]
    unit_NW = delta.x_NW.detach() / bound_N
    assert unit_NW.abs().max() <= 1 + 1e-6 and abs(unit_NW.mean()) < 4 * (1 / 3 / unit_NW.numel()) ** 0.5
    assert unit_NW.var() == pytest.approx(1 / 3, rel=0.05)
    alone = method.start(
        batch._replace(keys=("b",), draw_keys_B=keys_B[1:], text=Text(batch.text.ids_BT[1:, :3], (3,))), "text", ("main",), spec
    )
    assert torch.equal(alone.x_NW, delta.x_NW[40:])
    assert not torch.equal(method.start(batch, "text", ("other",), spec).x_NW, delta.x_NW)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    layout = Layout((2, 1))
    delta = Delta("text", ("main",), layout, torch.zeros(3, 2))
    moved = Adversarial(lr=0.5).ascend(delta, torch.tensor([[1.0, float("inf")], [0.0, 1.0], [3.0, 4.0]]))
    assert torch.equal(moved.x_NW, torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.3, 0.4]]))
    still = Adversarial(lr=0.5).ascend(delta, torch.zeros(3, 2))
    assert torch.equal(still.x_NW, delta.x_NW) and still.x_NW.requires_grad


def test_loss_scaling_changes_nothing() -> None:
    module, micros = root(), [sample(), sample((2, 6, 3), seed=7)]
    settings = {"modality": "alternate", "lr": 0.3}
    found, one = gradients(module, micros, **settings)
    scaled, two = gradients(module, micros, **settings, scale=2.0**16)
    assert far(scaled, found) < 1e-9 and one.loss == two.loss


@pytest.mark.parametrize(("modality", "forwards"), [("both", 1), ("alternate", 2)])
def test_gradients_are_exchanged_with_the_last_backward_alone(modality: str, forwards: int) -> None:
    module, told = root(), []
    method = Adversarial(modality, steps=3)
    adversarial(module, [sample(), sample(seed=7)], ["mlm", "itm"], lambda loss, last: (loss.backward(), told.append(last)), method=method)
    assert told == [False] * (2 * 3 * forwards - 1) + [True]
    assert len(module.model.seen) == 2 * 2 * (1 + 3 * forwards), "micro-batches x views x (clean + perturbed)"

"""Parameter groups as the papers' code has them."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn
from train.fakes import VOCABULARY, FakeModel
from train.runs import build

from mmpretrain.train.optim import Optimizer, apply_settings, group_settings
from mmpretrain.weights import clip, clip_config


class ViTLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed, self.cls_token = nn.Parameter(torch.zeros(1, 5, 8)), nn.Parameter(torch.zeros(1, 1, 8))
        self.norm, self.fc, self.logit_scale = nn.LayerNorm(8), nn.Linear(8, 8), nn.Parameter(torch.ones(1))
        self.itm_head = nn.Linear(8, 2)


def decayed(optimizer: Optimizer, module: nn.Module) -> set[str]:
    return {name for group in optimizer.groups(module) if group["weight_decay"] for name in group["names"]}


def test_vilt_decays_positions_and_class_token_but_no_bias_and_no_norm() -> None:
    assert decayed(Optimizer(decay="vilt"), ViTLike()) == {"pos_embed", "cls_token", "fc.weight", "logit_scale", "itm_head.weight"}


def test_clip_decays_matrices_only() -> None:
    assert decayed(Optimizer(decay="clip"), ViTLike()) == {"pos_embed", "fc.weight", "itm_head.weight"}


def open_clips(model: nn.Module) -> set[str]:
    """What the rule of open_clip's training script decays."""

    def excluded(n: str, p: torch.Tensor) -> bool:
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    return {n for n, p in model.named_parameters() if not excluded(n, p)}


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_clip_groups_are_those_of_open_clip_on_its_own_model(name: str) -> None:
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, device="meta")
    assert decayed(Optimizer(decay="clip", weight_decay=0.2), model) == open_clips(model)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_clip_groups_of_our_model_are_those_of_open_clip(name: str) -> None:
    """Ours, with 1 for what is decayed and 0 for the rest, written under open_clip's names."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = clip_config.build(clip_config.system_from_open_clip(config))
        reference = open_clip.CLIP(**config)
    kept = decayed(Optimizer(decay="clip", weight_decay=0.2), model)
    ours = {n: torch.full(p.shape, float(n in kept)) for n, p in model.named_parameters()}
    buffers = {n: torch.zeros(b.shape) for n, b in model.named_buffers()}
    theirs = clip.to_open_clip(ours | buffers)
    found = {n: set(theirs[n].unique().tolist()) for n, _ in reference.named_parameters()}
    assert found == {n: {float(n in open_clips(reference))} for n, _ in reference.named_parameters()}


def test_every_parameter_once_with_rate_multipliers() -> None:
    module = ViTLike()
    groups = Optimizer(lr=1e-4, lr_mult={"itm_head": 5.0}).groups(module)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert {name: group["lr"] for group in groups for name in group["names"]}["itm_head.weight"] == pytest.approx(5e-4)


def test_tied_parameters_occur_once_and_frozen_ones_never() -> None:
    module = build()
    module.vocabulary = VOCABULARY
    module.configure_model()
    module.root.model.pooler.weight.requires_grad_(False)
    names = [name for group in Optimizer().groups(module.root) for name in group["names"]]
    assert "model.words.weight" in names and "objectives.mlm.decoder.weight" not in names and "model.pooler.weight" not in names


def test_pattern_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="vqa_classifier"):
        Optimizer(lr_mult={"vqa_classifier": 10.0}).groups(FakeModel())


def test_settings_of_the_configuration_win_and_are_shown() -> None:
    model = FakeModel()
    wanted = Optimizer(weight_decay=0.3).build(model)
    resumed = Optimizer(weight_decay=0.1).build(model)
    changes = apply_settings(resumed, group_settings(wanted))
    assert changes == ["weight_decay is 0.3, the checkpoint had 0.1"]
    assert group_settings(resumed) == group_settings(wanted)


def test_cuda_takes_the_fused_kernel_where_nothing_is_asked_for() -> None:
    class OnCuda(torch.Tensor):
        is_cuda = True

    there, here = torch.zeros(2).as_subclass(OnCuda), torch.zeros(2)
    assert Optimizer().switches([there]) == {"foreach": None, "fused": True}
    assert Optimizer().switches([there, here]) == Optimizer().switches([here]) == {"foreach": None, "fused": None}
    assert Optimizer(foreach=True).switches([there]) == {"foreach": True, "fused": None}
    assert Optimizer(fused=False).switches([there]) == {"foreach": None, "fused": False}

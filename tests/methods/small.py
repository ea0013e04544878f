"""A small model that reads words and regions with their deltas, objectives on it, and VILLA's loop written out plainly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from helpers.region_batches import FEATURES, VOCABULARY, WIDTH, RegionModel, region_sample_batch
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.methods.adversarial import Adversarial
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.objectives.wpa import WPA
from mmpretrain.train.adversarial import adversarial
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import StepResult
from mmpretrain.types import Batch, Score, Spec, Text, Vocabulary

LENGTHS = (3, 5, 2, 4)


class Words(nn.Embedding):
    """A word table with dropout, which adds a delta."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(VOCABULARY.size, width)
        self.dropout, self.delta_ND = nn.Dropout(dropout), None

    def forward(self, ids_N: Tensor) -> Tensor:
        x_ND = super().forward(ids_N)
        return self.dropout(x_ND if self.delta_ND is None else x_ND + self.delta_ND)


class Perturbable(RegionModel):
    """``RegionModel`` with deltas of words; every forward notes the deltas that it was given."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.words = Words(WIDTH, dropout)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        deltas = {"text": batch.text.delta_ND, "image": batch.regions.delta_NF}
        self.seen.append({name: delta.detach().clone() for name, delta in deltas.items() if delta is not None})
        self.words.delta_ND = batch.text.delta_ND
        return super().forward(batch, kind)


class Regress(Objective):
    """Mean of squares between visual states and a constant: a loss without a distribution."""

    kind = "fused"

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        self.head = nn.Linear(spec.width, FEATURES)

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        return Score((self.head(hidden.image.x_ND) - 0.5).square().sum(), self.count(batch), {})


def root(dropout: float = 0.0, *, wpa: bool = True, regress: bool = True) -> Pretraining:
    """The same parameters every time, in fp64."""
    torch.manual_seed(0)
    objectives: dict[str, Objective] = {"mlm": MLM(prob=0.6, view="mlm"), "itm": ITM({}, weight=0.5)}
    if wpa:
        objectives["wpa"] = WPA(iterations=5, weight=0.3)
    if regress:
        objectives["regress"] = Regress(view="mlm", weight=0.1)
    made = Pretraining(Perturbable(dropout), objectives)
    made.bind(VOCABULARY)
    return made.double()


def sample(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Batch:
    """Texts of three or four tokens, regions of several counts; every second pair does not match."""
    batch = region_sample_batch(lengths, seed)
    kinds_B = torch.arange(len(lengths)) % 2
    regions = batch.regions._replace(features_NF=batch.regions.features_NF.double())
    return batch._replace(regions=regions, matched_B=kinds_B == 0, targets={"itm": Swaps(kinds_B)})


def gradients(module: Pretraining, micros: list[Batch], **settings: Any) -> tuple[dict[str, Tensor], StepResult]:
    """Gradients of a step under the plan."""
    module.zero_grad(set_to_none=True)
    module.model.seen = []
    scale = settings.pop("scale", 1.0)
    method, reduction = Adversarial(**settings), settings.pop("reduction", "global")
    scaled = lambda loss, last: (loss * scale).backward()
    result = adversarial(module, micros, list(module.objectives), scaled, reduction, method=method, scale=scale)
    return {name: p.grad / scale for name, p in module.named_parameters() if p.grad is not None}, result


def plainly(module: Pretraining, micros: list[Batch], method: Adversarial, groups: list[tuple[str, ...]]) -> dict[str, Tensor]:
    """VILLA's released loop, as it is told: K times backward through the clean graph, padded samples one by one."""
    module.zero_grad(set_to_none=True)
    views = [module.corrupt(batch) for batch in micros]
    counts = [module.counts(view) for view in views]
    objectives = dict(module.objectives.items())
    factor = {name: float(one.weight / sum(c[name] for c in counts)) for name, one in objectives.items()}

    def forward(view: str, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        names = [name for name, one in objectives.items() if one.view == view]
        hidden = module.model(batch)
        sums = {name: objectives[name](hidden, batch).sum for name in names}
        return sums, {name: objectives[name].logits(hidden, batch) for name in names if name in ("mlm", "itm")}

    def distance(a_RC: Tensor, b_RC: Tensor) -> Tensor:
        p, q = F.log_softmax(a_RC, -1), F.log_softmax(b_RC, -1)
        return F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)

    for micro in views:
        for view, batch in ((name, micro[name]) for name in ("mlm", "itm")):
            clean_sums, clean_logits = forward(view, batch)
            if method.detach_clean:
                clean_logits = {name: x.detach() for name, x in clean_logits.items()}
            once = [name for name in clean_sums if name == "wpa" or method.clean == "explicit"]
            deltas: Mapping[str, list[Tensor]] = {
                "text": [torch.zeros(n, WIDTH, dtype=torch.float64) for n in batch.text.lengths],
                "image": [torch.zeros(n, FEATURES, dtype=torch.float64) for n in batch.regions.lengths],
            }
            for _ in range(method.steps):
                loss = torch.zeros((), dtype=torch.float64)
                for group in groups:
                    for name in group:
                        deltas[name][:] = [delta.detach().requires_grad_() for delta in deltas[name]]
                    text, regions = batch.text, batch.regions
                    if "text" in group:
                        text = text._replace(delta_ND=torch.cat(deltas["text"]))
                    if "image" in group:
                        regions = regions._replace(delta_NF=torch.cat(deltas["image"]))
                    sums, logits = forward(view, batch._replace(text=text, regions=regions))
                    loss = loss + sum(factor[name] * total for name, total in sums.items() if name != "wpa")
                    loss = loss + sum(method.kl_weight * factor[name] * distance(clean_logits[name], x) for name, x in logits.items())
                (loss / (method.steps * len(groups))).backward(retain_graph=True)
                for name in {name for group in groups for name in group}:
                    for i, delta in enumerate(deltas[name]):
                        g = delta.grad
                        size = g.norm() if method.norm == "l2" else g.abs().max()
                        deltas[name][i] = delta.detach() + method.lr * g / size.clamp(min=1e-8)
            if once:
                sum(factor[name] * clean_sums[name] for name in once).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


class Line(nn.Module):
    """f = sum over tokens of w.x."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.words, self.w = nn.Embedding(20, width), nn.Parameter(torch.randn(width))
        self.seen: list[Tensor] = []

    @property
    def spec(self) -> Spec:
        return Spec(len(self.w), ("fused",), 20, self.words)

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        layout, delta_ND = Layout(batch.text.lengths), batch.text.delta_ND
        x_ND = self.words(layout.pack(batch.text.ids_BT))
        if delta_ND is not None:
            self.seen.append(delta_ND.detach().clone())
            x_ND = x_ND + delta_ND
        return Fused(Ragged(x_ND, layout), None, layout.pad(x_ND @ self.w).sum(1, keepdim=True))


class Signed(Objective):
    """loss = - y f"""

    kind = "fused"

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        y_B = torch.where(batch.matched_B, 1.0, -1.0)
        return Score(-(y_B * hidden.pooled_BD[:, 0]).sum(), self.count(batch), {})


def line(lengths: tuple[int, ...] = (1, 4, 2)) -> tuple[Pretraining, Batch]:
    torch.manual_seed(3)
    module = Pretraining(Line(), {"signed": Signed()})
    module.bind(None)
    ids_BT = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1) % 20
    keys_B = torch.tensor([random.key_of(i) for i in range(len(lengths))])
    batch = Batch(tuple("abc"[: len(lengths)]), keys_B, Text(ids_BT, lengths), matched_B=torch.tensor([True, False, True]))
    return module.double(), batch

"""Optimisers and their parameter groups, as the papers' lists say.

Which parameters are decayed (``decay``):

``standard``  all but biases and the gains of norms (BERT).
``vilt``      the same: ViLT's code ignores the ``no_weight_decay`` list of its ViT, so positions and class tokens are decayed.
``clip``      matrices alone: nothing with fewer than two dimensions, no norm, bias, class token or logit scale (open_clip).
``all``       everything (LXMERT, VL-BERT).
``uniter``    as ``standard``, and the gains of the norms of region features, of boxes and in the heads that predict regions, which the rule
              of UNITER's release does not find because they are not called LayerNorm there.
``swapped``   biases and gains alone: the release of ViLBERT, and InterBERT after it, has the two groups the wrong way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from mmpretrain.nn.attention import Attention
from mmpretrain.train.bert_adam import BertAdam
from mmpretrain.train.composite import Composite
from mmpretrain.train.muon import Muon

KINDS = ("adamw", "sgd", "muon", "bert_adam")
POLICIES = ("standard", "vilt", "clip", "all", "uniter", "swapped")

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

# Of the norms in ``nn.regions`` and ``nn.region_heads`` that UNITER's release decays by oversight.
UNITER_GAINS = (".feature_norm.weight", ".box_norm.weight", ".transform.norm.weight")
# Held as (1, D) or (1, 1, D), published as (D,). A class position, also (1, D), is row 0 of the published table of positions.
CLASS_TOKENS = ("class_token", "cls_token")


def norm_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters that belong to normalisation layers."""
    norms = (m for m in module.modules() if isinstance(m, NORMS) or type(m).__name__.endswith("Norm"))
    return {id(p) for m in norms for p in m.parameters(recurse=False)}


def is_decayed(name: str, parameter: torch.Tensor, is_norm: bool, policy: str, never: Sequence[str] = ()) -> bool:
    """Whether weight decay applies to a parameter under a policy (one of ``POLICIES``)."""
    if any(pattern in name for pattern in never):
        return False
    if policy == "all":
        return True
    if policy == "uniter" and is_norm and name.endswith(UNITER_GAINS):
        return True
    if is_norm or "bias" in name:
        return policy == "swapped"
    if policy == "swapped":
        return False
    is_vector = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in CLASS_TOKENS
    return not (policy == "clip" and (is_vector or "logit_scale" in name))


def matrices(module: nn.Module) -> dict[int, int]:
    """Id -> parts of the weights that Muon takes: linear layers and convolutions (1), self-attention's projections to query, key and
    value (3; those between two streams are one matrix). Word tables, positions, heads of objectives and whatever has fewer than two
    dimensions are AdamW's."""
    model = getattr(module, "model", module)  # the root holds the objectives beside the model
    found = {id(m.weight): 1 for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    return found | {id(m.qkv.weight): 3 for m in model.modules() if isinstance(m, Attention)}


class Optimizer:
    """What to optimise with; ``build`` makes the torch optimiser.

    Args:
        lr: peak rate.
        kind: ``adamw``; ``sgd`` (with Nesterov-free momentum ``betas[0]``); ``muon``: Muon for the matrices of the model, AdamW for all
            else (see ``train/muon.py``), in none of the papers, see ``docs/log.md``; ``bert_adam``: Adam without bias correction, with
            decoupled decay (see ``train/bert_adam.py``).
        matrix_lr: peak rate of the matrices for ``muon``.
        betas, eps, weight_decay: as in torch; weight decay is decoupled for AdamW and BertAdam.
        decay: which parameters are decayed: ``standard``, ``vilt``, ``clip``, ``all``, ``uniter`` or ``swapped``, see the module.
        no_decay: further parts of parameter names that are not decayed.
        lr_mult: part of a parameter name -> factor of the rate; the first that fits wins (ViLBERT: 0.1 for what BERT's weights begin).
        foreach, fused: torch's implementation switches; None lets torch choose, but on CUDA ``fused``.
            ``bert_adam`` has none.
        clip_each: largest norm of the gradient of each tensor by itself, for ``bert_adam``; None: no such limit.
        parts: beginning of a parameter name, as in ``model.image.cnn`` -> an optimiser of its own for the parameters below it, with all its
            own options; the first that fits wins. All of them are stepped as one, so that a step counts once, gradients are clipped
            together and one schedule drives all rates (Pixel-BERT: SGD for the convolutions, AdamW for the transformer).

    Raises:
        ValueError: an unknown kind or policy, ``clip_each`` for a kind that has none, parts that have parts.
    """

    def __init__(
        self,
        lr: float = 1e-4,
        kind: Literal["adamw", "sgd", "muon", "bert_adam"] = "adamw",
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay: Literal["standard", "vilt", "clip", "all", "uniter", "swapped"] = "vilt",
        no_decay: Sequence[str] = (),
        lr_mult: Mapping[str, float] | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        matrix_lr: float = 0.02,
        clip_each: float | None = None,
        parts: Mapping[str, Optimizer] | None = None,
    ) -> None:
        if kind not in KINDS or decay not in POLICIES:
            known = f"kinds are {', '.join(KINDS)}, policies of decay {', '.join(POLICIES)}"
            raise ValueError(f"optimizer: kind={kind!r}, decay={decay!r}; {known}")
        if clip_each is not None and (kind != "bert_adam" or clip_each <= 0):
            raise ValueError(f"optimizer: clip_each={clip_each} is a positive norm, for kind=bert_adam; else trainer.gradient_clip_val")
        self.lr, self.kind, self.eps, self.weight_decay = lr, kind, eps, weight_decay
        self.betas: tuple[float, float] = (betas[0], betas[1])
        self.decay, self.no_decay, self.lr_mult = decay, tuple(no_decay), dict(lr_mult or {})
        self.foreach, self.fused, self.matrix_lr, self.clip_each = foreach, fused, matrix_lr, clip_each
        self.parts = dict(parts or {})
        if any(part.parts for part in self.parts.values()):
            raise ValueError("optimizer.parts: a part cannot have parts of its own")

    def groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups of ``module``: every trained parameter exactly once, in a fixed order, each group with the names it holds.

        Raises:
            ValueError: a pattern of ``lr_mult`` or ``no_decay``, or the name of a part, fits no parameter.
        """
        return [group for _, groups in self._shares(module) for group in groups]

    def _shares(self, module: nn.Module) -> list[tuple[Optimizer, list[dict[str, Any]]]]:
        """Each part's groups, in order, then what is left to this one."""
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        shares = []
        for beginning, part in self.parts.items():
            below = {name: p for name, p in named.items() if f"{name}.".startswith(f"{beginning.rstrip('.')}.")}
            if not below:
                like = next(iter(named), "")
                raise ValueError(f"optimizer.parts: no trained parameter is called {beginning!r}; names look like {like!r}")
            shares.append((part, part._groups(module, below)))
            named = {name: p for name, p in named.items() if name not in below}
        return shares + ([(self, self._groups(module, named))] if named or not shares else [])

    def _groups(self, module: nn.Module, named: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        for pattern in (*self.lr_mult, *self.no_decay):
            if not any(pattern in name for name in named):
                raise ValueError(f"optimizer: no trained parameter has {pattern!r} in its name; names look like {next(iter(named), '')!r}")
        norms, parts_of = norm_parameters(module), matrices(module) if self.kind == "muon" else {}
        groups: dict[tuple[float, float, int], dict[str, Any]] = {}
        for name, parameter in named.items():
            factor = next((factor for pattern, factor in self.lr_mult.items() if pattern in name), 1.0)
            decayed = is_decayed(name, parameter, id(parameter) in norms, self.decay, self.no_decay)
            parts = parts_of.get(id(parameter), 0)
            key = (factor, self.weight_decay if decayed else 0.0, parts)
            lr = (self.matrix_lr if parts else self.lr) * factor
            told = {"parts": parts} if self.kind == "muon" else {}
            group = groups.setdefault(key, {"params": [], "names": [], "lr": lr, "weight_decay": key[1], **told})
            group["params"].append(parameter)
            group["names"].append(name)
        return list(groups.values())

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """The torch optimiser over the trained parameters of ``module``."""
        shares = [(one, [{k: v for k, v in group.items() if k != "names"} for group in groups]) for one, groups in self._shares(module)]
        if not any(groups for _, groups in shares):
            raise ValueError("optimizer: nothing to train, every parameter is frozen")
        built = [one._made(groups) for one, groups in shares]
        made: Any = built[0] if len(built) == 1 else Composite(built)
        made._step_supports_amp_scaling = False  # a fused one would unscale after guard and clipping
        optimizer: torch.optim.Optimizer = made
        return optimizer

    def switches(self, parameters: Sequence[torch.Tensor]) -> dict[str, bool | None]:
        """torch's implementation switches. On CUDA the fused kernel is taken where nothing else was asked for: it alone leaves out a bad
        step without the host reading the numbers first (see ``train/guard.py``)."""
        if self.foreach is None and self.fused is None and all(p.is_cuda and p.is_floating_point() for p in parameters):
            return {"foreach": None, "fused": True}
        return {"foreach": self.foreach, "fused": self.fused}

    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        switches = self.switches([p for group in groups for p in group["params"]])
        if self.kind == "bert_adam":
            return BertAdam(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, clip_each=self.clip_each)
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=self.betas[0], weight_decay=self.weight_decay, **switches)
        adamw: type[torch.optim.AdamW] = Muon if self.kind == "muon" else torch.optim.AdamW
        return adamw(groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, **switches)


def trained(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """The parameters of an optimiser, in order."""
    return (p for group in optimizer.param_groups for p in group["params"])


def group_settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What each group says beside its parameters and its present rate."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def apply_settings(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put settings (of the configuration) over those that a checkpoint brought.

    Returns:
        a line for each kind of setting that the two disagreed on.
    """
    changes: dict[str, str] = {}
    for group, wanted in zip(optimizer.param_groups, settings, strict=True):
        for name, value in wanted.items():
            found = group.get(name)
            same = tuple(found) == tuple(value) if isinstance(value, tuple | list) and isinstance(found, tuple | list) else found == value
            if not same:
                changes[name] = f"{name} is {value}, the checkpoint had {found}"
            group[name] = value
    return list(changes.values())

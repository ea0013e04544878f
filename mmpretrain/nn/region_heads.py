"""Heads on the states of regions: classes, detector features, or several at once. Give them the rows that matter only."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import Init, LayerNorm, Linear


class HeadTransform(nn.Module):
    """What BERT puts before a decoder: dense, GELU, LayerNorm. (R, D) -> (R, D).

    Args:
        width: of the states.
        std: of the normal initialisation.
        eps: of the LayerNorm.
        norm: with the LayerNorm; VL-BERT's region head has none.
    """

    def __init__(self, width: int, std: float = 0.02, eps: float = 1e-12, norm: bool = True) -> None:
        super().__init__()
        self.dense = Linear(width, width, init=Init("normal", std))
        self.norm = LayerNorm(width, eps=eps) if norm else nn.Identity()

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x_RD)))


class RegionHead(nn.Module):
    """Transform and one linear layer: (R, D) -> (R, outputs).

    Args:
        width: of the states.
        outputs: classes or feature values.
        std, eps, norm: see ``HeadTransform``.
        transform: False: the linear layer alone (Unicoder-VL, ImageBERT).
    """

    def __init__(
        self, width: int, outputs: int, std: float = 0.02, eps: float = 1e-12, norm: bool = True, transform: bool = True
    ) -> None:
        super().__init__()
        self.transform = HeadTransform(width, std, eps, norm) if transform else nn.Identity()
        self.decoder = Linear(width, outputs, init=Init("normal", std))

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.decoder(self.transform(x_RD))


class TiedFeatureHead(nn.Module):
    """UNITER's regression of features: transform, then the transpose of the model's feature projection with a free bias. (R, D) -> (R, F).

    Args:
        projection: F -> D. The head keeps a reference to the module, as ``VocabularyHead`` does to the word table: its weight appears once
            in the state dict, and whatever replaces it (sharding, moving off the meta device) replaces it here too.
        std, eps, norm, transform: see ``RegionHead``.
    """

    def __init__(self, projection: nn.Linear, std: float = 0.02, eps: float = 1e-12, norm: bool = True, transform: bool = True) -> None:
        super().__init__()
        self.transform = HeadTransform(projection.out_features, std, eps, norm) if transform else nn.Identity()
        self._projection = (projection,)  # a tuple, so that the layer is not registered twice
        self.bias = nn.Parameter(torch.empty(projection.in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The free bias starts at zero."""
        nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        """(D, F): the very parameter of the projection."""
        return self._projection[0].weight

    def forward(self, x_RD: Tensor) -> Tensor:
        return F.linear(self.transform(x_RD), self.weight.t(), self.bias)


class RegionHeads(nn.Module):
    """LXMERT's object head: one transform, a linear layer for each kind of target.

    Args:
        width: of the states.
        outputs: kind of target -> outputs.
        std, eps: see ``HeadTransform``.
    """

    def __init__(self, width: int, outputs: Mapping[str, int], std: float = 0.02, eps: float = 1e-12) -> None:
        super().__init__()
        self.transform = HeadTransform(width, std, eps)
        self.decoders = nn.ModuleDict({name: Linear(width, count, init=Init("normal", std)) for name, count in outputs.items()})

    def forward(self, x_RD: Tensor, name: str) -> Tensor:
        """Transformed states (R, D) -> (R, outputs of ``name``)."""
        return self.decoders[name](x_RD)

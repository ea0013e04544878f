"""Runs a model on prepared inputs: batches of texts, pictures and regions cut to a budget, in evaluation mode, with whole parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from mmpretrain.evaluate.batching import as_visual, cut, size_of
from mmpretrain.evaluate.result import precision_of
from mmpretrain.nn.hidden import Fused, Paired
from mmpretrain.nn.ragged import Ragged
from mmpretrain.types import Batch, Collate, Pixels, RegionBatch, Regions, Text, Tokens, Visual

T = TypeVar("T")
Runner = Callable[[Callable[[nn.Module, Mapping[str, Any]], Any]], Any]


class Engine:
    """A model and its heads on prepared inputs.

    Results are float32 on the CPU, without gradients, the same for the same inputs in the same order.

    Args:
        model: maps ``(Batch, kind)`` to hidden states.
        objectives: by their name in the recipe; matching and masked-word heads live here.
        collate: pads texts and images as training did.
        runner: runs a function of (model, objectives) where their parameters are whole; sharded training passes the root's.
        autocast: dtype of mixed precision, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, Any],
        collate: Collate,
        runner: Runner | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model: Any = model  # with spec
        self.objectives, self.collate, self.autocast = objectives, collate, autocast
        self._runner = runner
        spec: Any = model.spec
        kinds = tuple(spec.kinds)
        self.kind = "paired" if "paired" in kinds else "fused" if "fused" in kinds else kinds[0]

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return next(self.model.parameters()).device

    def parameter_count(self) -> int:
        """Of the model and its heads, each parameter once."""
        parts = [self.model, *(self.objectives[name] for name in self.objectives)]
        return sum({id(p): p.numel() for part in parts for p in part.parameters()}.values())

    @property
    def precision(self) -> str:
        """The arithmetic of the forward, for stamps."""
        return precision_of(next(self.model.parameters()).dtype, self.autocast)

    @property
    def dual(self) -> bool:
        """True for dual encoders, whose score is the cosine of two vectors."""
        return self.kind == "paired"

    def objective(self, kind: str, method: str) -> Any | None:
        """The first objective that reads ``kind`` and has ``method``, or None."""
        for name in self.objectives:
            found = self.objectives[name]
            if getattr(found, "kind", None) == kind and hasattr(found, method):
                return found
        return None

    def can_match(self) -> bool:
        """Whether :meth:`score` works: a dual encoder, or a fusion model with a matching head."""
        return self.dual or self.objective("fused", "score") is not None

    @property
    def scorer(self) -> str:
        """By what pairs are scored, for protocols."""
        if self.dual:
            return "cosine"
        head = self.objective("fused", "score")
        name = next((name for name in self.objectives if self.objectives[name] is head), "itm")
        return f"matching head {'' if name == 'itm' else f'{name!r} '}on every pair"

    def logit_scale(self) -> tuple[float, float | None]:
        """Factor and bias that the loss applied to cosines; (1, None) for fusion models."""
        if not self.dual:
            return 1.0, None

        def read(model: Any, _: Mapping[str, Any]) -> tuple[float, float | None]:
            bias = getattr(model, "logit_bias", None)
            return float(model.logit_scale.float().exp()), None if bias is None else float(bias.float())

        return self.run(read)

    def encode_tokens(self, tokens: Sequence[Tokens]) -> Tensor:
        """Vectors of tokenised texts, float32 (n, width). Equal texts are encoded once.

        Raises:
            ValueError: the model reads no text, or none alone.
        """
        self.check_alone()
        if not self.model.spec.vocab_size:
            raise ValueError(f"{type(self.model).__name__} reads pictures alone, so there are no vectors of texts")
        unique = {item.ids: item for item in tokens}
        order = sorted(unique, key=lambda ids: (len(ids), ids))
        slot = {ids: i for i, ids in enumerate(order)}
        parts = [
            self._encode(Batch(keys=("",) * len(part), draw_keys_B=self._draws(len(part)), text=self.text([unique[ids] for ids in part])))
            for part in cut(order, [len(ids) for ids in order])
        ]
        return self._gather(parts)[[slot[item.ids] for item in tokens]]

    def encode_pixels(self, images: Sequence[Tensor | Visual]) -> Tensor:
        """Vectors of transformed images, or of whatever samples show, float32 (n, width).

        Raises:
            ValueError: the model reads no image alone.
        """
        self.check_alone()
        seen = [as_visual(image) for image in images]
        order = sorted(range(len(seen)), key=lambda i: size_of(seen[i]))
        parts = [
            self._encode(Batch(keys=("",) * len(part), draw_keys_B=self._draws(len(part)), **self.visuals([seen[i] for i in part])))
            for part in cut(order, [self.visual_tokens(seen[i]) for i in order])
        ]
        spec = self.model.spec
        width = spec.embed_dim or spec.visual_width or spec.width
        return self._gather(parts, (width,))[np.argsort(order)]

    def check_alone(self) -> None:
        """
        Raises:
            ValueError: the model reads text and image together only, so that there is no vector of one of them, or gives no vectors at all.
        """
        if self.kind not in ("paired", "fused"):
            raise ValueError(f"{type(self.model).__name__} gives {self.kind} states: it has no vector of a text or an image")
        if not self.model.spec.alone:
            name = type(self.model).__name__
            raise ValueError(f"{name} reads text and image together only, so neither has a vector of its own; score pairs instead")

    def told(self, tokens: Tokens, visual: Visual) -> Tokens:
        """A text as it is told of an image; here the text itself."""
        return tokens

    def match(
        self,
        images: Sequence[Tensor | Visual],
        tokens: Sequence[Tokens],
        image_P: np.ndarray,
        text_P: np.ndarray,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Log-odds of "image ``image_P[p]`` matches text ``text_P[p]``" by the matching head of a fusion model: float32 (P,).

        Images are transformed pictures, or whatever samples show, made once, by the caller. Texts are told of the image of their pair: with
        its tags, where the run tells them. Pairs are sorted by size, so that almost every batch is rectangular. ``progress`` is called with
        (pairs done, pairs) after each batch.
        """
        head = self.objective("fused", "score")
        if head is None:
            raise ValueError("this checkpoint has no matching head (objective ITM), so a fusion model cannot score pairs")
        seen = [as_visual(image) for image in images]
        told_P = [self.told(tokens[t], seen[i]) for i, t in zip(image_P, text_P, strict=True)]
        size_P = [size_of(seen[i], len(told.ids)) for i, told in zip(image_P, told_P, strict=True)]
        order = sorted(range(len(size_P)), key=size_P.__getitem__)
        cost = [self.visual_tokens(seen[image_P[p]]) + len(told_P[p].ids) for p in order]
        name = next(name for name in self.objectives if self.objectives[name] is head)

        def read(hidden: Any, objectives: Mapping[str, Any]) -> Tensor:
            return objectives[name].score(hidden)

        kind = "pooled" if "pooled" in self.model.spec.kinds else self.kind  # matching heads read the pooled state
        parts, done = [], 0
        for part in cut(order, cost):
            batch = Batch(
                keys=("",) * len(part),
                draw_keys_B=self._draws(len(part)),
                text=self.text([told_P[p] for p in part]),
                **self.visuals([seen[image_P[p]] for p in part]),
            )
            parts.append(self.forward(batch, read, kind))
            done += len(part)
            if progress is not None:
                progress(done, len(order))
        return self._gather(parts, width=())[np.argsort(order)]

    def text(self, tokens: Sequence[Tokens]) -> Text:
        """Padded texts on the device of the model."""
        text = self.collate.text(tokens)
        device = self.device
        fields: list[Any] = [field.to(device) if isinstance(field, Tensor) else field for field in text]
        return Text(*fields)

    def pixels(self, images: Sequence[Tensor]) -> Pixels:
        """Padded images on the device of the model."""
        pixels = self.collate.pixels(images)
        return pixels._replace(pixels_BCHW=pixels.pixels_BCHW.to(self.device))

    def regions(self, regions: Sequence[Regions]) -> RegionBatch:
        """Packed regions on the device of the model."""
        packed = self.collate.regions(regions)
        tensors: dict[str, Any] = {name: x.to(self.device) for name, x in packed._asdict().items() if isinstance(x, Tensor)}
        return packed._replace(**tensors)

    def visuals(self, visuals: Sequence[Visual]) -> dict[str, Any]:
        """The fields of a batch that hold what samples show."""
        images, regions, codes = [one.image for one in visuals], [one.regions for one in visuals], [one.codes for one in visuals]
        packed = self.collate.codes(codes) if codes and all(one is not None for one in codes) else None
        return {
            "image": self.pixels(images) if images and images[0] is not None else None,
            "regions": self.regions(regions) if regions and regions[0] is not None else None,
            "codes": packed._replace(ids_N=packed.ids_N.to(self.device)) if packed is not None else None,
        }

    def visual_tokens(self, visual: Visual) -> int:
        """Tokens that what a sample shows costs, for cutting batches."""
        regions, codes = 0 if visual.regions is None else len(visual.regions.boxes), 0 if visual.codes is None else visual.codes.numel()
        return regions + codes + (0 if visual.image is None else self.patches(visual.image))

    def patches(self, image: Tensor) -> int:
        """Tokens that an image costs, for cutting batches."""
        side = getattr(self.model.spec, "patch_size", None) or 32
        return (image.shape[-2] // side) * (image.shape[-1] // side) + 1

    def run(self, function: Callable[[nn.Module, Mapping[str, Any]], T]) -> T:
        """``function(model, objectives)`` in evaluation mode, without gradients, where the parameters are whole."""
        with torch.no_grad(), self.evaluation_mode(), self._precision():
            return self._runner(function) if self._runner is not None else function(self.model, self.objectives)

    def forward(self, batch: Batch, read: Callable[[Any, Mapping[str, Any]], T], kind: str | None = None) -> T:
        """``read(hidden, objectives)`` on the hidden states of a batch."""
        return self.run(lambda model, objectives: read(model(batch, kind or self.kind), objectives))

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Model and heads in evaluation mode inside, each module back in its own mode afterwards."""
        modules = [m for root in (self.model, *(self.objectives[n] for n in self.objectives)) for m in root.modules()]
        training = [module for module in modules if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def _precision(self) -> Any:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, dtype=self.autocast)

    def _draws(self, n: int) -> Tensor:
        return torch.zeros(n, dtype=torch.int64, device=self.device)

    def _encode(self, batch: Batch) -> Tensor:
        text = batch.image is None and batch.regions is None and batch.codes is None
        return self.forward(batch, lambda hidden, _: _vectors(hidden, text))

    def _gather(self, parts: Sequence[Tensor], width: tuple[int, ...] | None = None) -> Tensor:
        if parts:
            return torch.cat([part.float().cpu() for part in parts])
        return torch.zeros(0, *((self.model.spec.embed_dim or self.model.spec.width,) if width is None else width))


def _vectors(hidden: Paired | Fused, text: bool) -> Tensor:
    """One vector per sample of the modality that was given: the state of the token that stands for all of it, or, of an image without such
    a token, the mean."""
    if isinstance(hidden, Paired):
        return hidden.text_BE if text else hidden.image_BE
    states: Ragged = hidden.text if text else hidden.image
    device, layout = states.x_ND.device, states.layout
    if text or hidden.image_prefix:
        return states.x_ND.index_select(0, layout.first_B(device))
    if hidden.image_suffix:
        return states.x_ND.index_select(0, layout.last_B(device))
    total_BD = states.x_ND.new_zeros(layout.size, states.x_ND.shape[1]).index_add(0, layout.sample_N(device), states.x_ND)
    return total_BD / torch.tensor(layout.lengths, dtype=total_BD.dtype, device=device)[:, None]

"""``Pretrained``: a trained model with its tokenizer and transform, ready to encode images and texts and to score pairs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmpretrain.data.codes import MAX_KNOWN
from mmpretrain.data.collate import Collator
from mmpretrain.data.tags import Tagger
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.engine import Engine, Runner
from mmpretrain.evaluate.inputs import VisualLike, listed
from mmpretrain.evaluate.seeing import Seeing
from mmpretrain.types import Collate, Sample, Tokens, Visual, Vocabulary

IMAGES = 512  # decoded images, or regions of so many, held at a time


class Pretrained(Engine):
    """A model with everything that stands between it and files.

    Dual encoders (CLIP) place images and texts in one space: ``encode_*`` gives vectors of length 1 and ``score`` their cosine.
    Fusion models (ViLT, UNITER) read an image and a text together: ``score`` is the log-odds of "they match" by the matching head, and
    ``encode_*`` runs one modality alone and gives a state after the final norm: that of [CLS] of a text; that of the token that stands for
    the whole image, or, where there is none, the mean over patches or regions. The two kinds of vectors of a fusion model are **not**
    comparable with each other, and models of two streams that meet (ViLBERT) have none.

    An image is what the run showed of a sample: a picture, regions, both, or image codes; see :meth:`see`.

    All methods are batched, run without gradients and in evaluation mode, and are deterministic. Results are float32 on the CPU.

    Args:
        model: maps ``(Batch, kind)`` to hidden states.
        objectives: by their name in the recipe; matching and masked-word heads live here.
        tokenizer: has ``tokenize(text) -> Tokens``; None for a model without text.
        image_transform: maps a PIL image to uint8 (3, H, W); None for a model without images.
        vocabulary: of the tokenizer.
        collate: pads texts and images as training did.
        config: the resolved configuration of the run.
        weights: "raw" or "ema".
        source: where it came from, for stamps.
        place: the path that it was opened by, for messages; empty: it was not opened from a file.
        about: what the checkpoint says of itself beside the configuration: step, data_fingerprint, versions, ...
        shown: what the model is shown of a sample: its picture, its regions, its codes.
        by_source: the same of the sources of a mixture, by their names.
        tagger: makes the tags that texts are told with; None: texts stand alone.
        runner, autocast: see :class:`Engine`.
    """

    def __init__(
        self,
        model: nn.Module,
        objectives: Mapping[str, Any],
        tokenizer: Any,
        image_transform: Any,
        vocabulary: Vocabulary | None,
        *,
        collate: Collate,
        config: Mapping[str, Any] | None = None,
        weights: str = "raw",
        source: str = "",
        place: str = "",
        about: Mapping[str, Any] | None = None,
        shown: Shown = Shown(),  # noqa: B008  (immutable)
        by_source: Mapping[str, Shown] | None = None,
        tagger: Tagger | None = None,
        runner: Runner | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(model, objectives, collate, runner, autocast)
        self.tokenizer, self.image_transform, self.vocabulary = tokenizer, image_transform, vocabulary
        self.by_source = dict(by_source or {})
        self.seeing = self._seeing(shown, tagger)
        self.config, self.weights, self.about = dict(config or {}), weights, dict(about or {})
        self.source, self.place = source, place

    @classmethod
    def from_parts(
        cls,
        model: nn.Module,
        objectives: Mapping[str, Any],
        tokenizer: Any,
        transform: Any,
        vocabulary: Vocabulary | None,
        **kwargs: Any,
    ) -> Pretrained:
        """Of a live model, during training. ``transform`` has ``mean`` and ``std``; for ``kwargs`` see the class."""
        collate = Collator(vocabulary.pad if vocabulary is not None else 0, transform.mean, transform.std)
        return cls(model, objectives, tokenizer, transform, vocabulary, collate=collate, **kwargs)

    def to(self, device: torch.device | str) -> Pretrained:
        """Move the model and the heads."""
        for module in (self.model, *(self.objectives[name] for name in self.objectives)):
            module.to(device)
        return self

    @overload
    def tokenize(self, text: str) -> Tokens: ...  # type: ignore[overload-overlap]  # a str is a sequence of str too

    @overload
    def tokenize(self, text: Sequence[str]) -> list[Tokens]: ...

    def tokenize(self, text: str | Sequence[str]) -> Tokens | list[Tokens]:
        """Token ids with special tokens, as in training; one ``Tokens`` per text. Too long texts are cut.

        Raises:
            ValueError: the checkpoint has no tokenizer; something is no text, or cannot be written as UTF-8.
        """
        if self.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer: it was trained without text")
        texts = [text] if isinstance(text, str) else list(text)
        for one in texts:
            if not isinstance(one, str):
                raise ValueError(f"a text is a str, not {type(one).__name__}")
            if not one.isascii() and any("\ud800" <= letter <= "\udfff" for letter in one):
                raise ValueError(f"a text that is not UTF-8: {one[:60]!r}")
        made = [self.tokenizer.tokenize(one) for one in texts]
        return made[0] if isinstance(text, str) else made

    def _seeing(self, shown: Shown, tagger: Tagger | None) -> Seeing:
        known = self.vocabulary.codes if self.vocabulary is not None and self.vocabulary.codes else MAX_KNOWN
        spec = self.model.spec
        width = None if getattr(spec, "computes_features", False) else getattr(spec, "feature_width", None)
        return Seeing(self.image_transform, shown, width, tagger, known)

    @property
    def shown(self) -> Shown:
        """What the model is shown of a sample."""
        return self.seeing.shown

    @property
    def named(self) -> str:
        """How messages name the checkpoint."""
        return self.place or self.source

    @property
    def how(self) -> str:
        """What protocols add where an image is more than a picture, or a text more than itself."""
        said = {"regions": "; images are regions", "both": "; images are pictures and regions", "codes": "; images are codes"}
        return said.get(self.shown.show, "") + (
            "" if self.seeing.tagger is None else "; texts are told with the tags of the image of their pair"
        )

    def on(self, name: str) -> Pretrained:
        """The same model on samples of the set ``name``: shown as the run shows the source of that name, if it has one."""
        if name not in self.by_source:
            return self
        found = copy.copy(self)
        found.seeing = self._seeing(self.by_source[name], self.seeing.tagger)
        return found

    def told(self, tokens: Tokens, visual: Visual) -> Tokens:
        """A text as it is told of an image: paired with the tags of that image, where the run tells them."""
        return tokens if visual.tags is None else self.tokenizer.tokenize(tokens.text, visual.tags)

    def shows(self, sample: Sample) -> bool:
        """Whether a sample has what the model is shown, and no more than one picture."""
        return self.seeing.shows(sample)

    def see(self, image: VisualLike) -> Visual:
        """What the model is shown of an image, without augmentation: a transformed picture, the regions that are shown, or both.

        Takes a ``Sample`` of a shard, or

        - of a model over pictures: a PIL image, a path, the bytes of a JPEG, PNG or WebP file, or a tensor (3, H, W), uint8 or float in
          [0, 1];
        - of a model over regions: ``Regions``, or the path or the bytes of a ``KEY.regions.npz``;
        - of a model over image codes: the path or the bytes of a ``KEY.codes.npy``.

        Raises:
            ValueError: something else, or a file that cannot be read.
        """
        return self.seeing(image)

    def transform(self, image: VisualLike) -> Tensor | Visual:
        """As :meth:`see`; of a model over pictures alone the picture itself, uint8 (3, H, W)."""
        found = self.see(image)
        return found if found.image is None or found.regions is not None or found.codes is not None else found.image

    def encode_image(self, images: VisualLike | Sequence[VisualLike]) -> Tensor:
        """Vectors of images, float32 (n, width); of length 1 for dual encoders. For fusion models see the class."""
        images = listed(images)
        parts = [images[start : start + IMAGES] for start in range(0, len(images), IMAGES)] or [images]
        return torch.cat([self.encode_pixels([self.see(image) for image in part]) for part in parts])

    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Vectors of texts, float32 (n, width); of length 1 for dual encoders. For fusion models see the class."""
        return self.encode_tokens(self.tokenize([texts] if isinstance(texts, str) else texts))

    def score(
        self, images: VisualLike | Sequence[VisualLike], texts: str | Sequence[str], mode: str = "pairs", output: str = "score"
    ) -> Tensor:
        """How well texts fit images.

        Args:
            images: one image or n, see :meth:`see`.
            texts: one text or n for ``mode="pairs"``, m for ``mode="matrix"``.
            mode: "pairs" gives (n,), text i with image i; "matrix" gives (n, m).
            output: "score": cosine, or log-odds of matching for fusion models; "logit": what the loss saw (cosine times scale plus
                bias, or log-odds); "probability": its sigmoid, for fusion models and sigmoid-trained dual encoders.

        Raises:
            ValueError: the lists do not fit, or the checkpoint cannot give this output.
        """
        if mode not in ("pairs", "matrix"):
            raise ValueError(f"score: mode is 'pairs' or 'matrix', not {mode!r}")
        images, texts = listed(images), [texts] if isinstance(texts, str) else list(texts)
        if mode == "pairs" and len(images) != len(texts):
            raise ValueError(f"score: mode 'pairs' needs as many texts as images, not {len(texts)} and {len(images)}; use mode='matrix'?")
        visuals, tokens = [self.see(image) for image in images], self.tokenize(texts)
        if self.dual:
            image_nE, text_mE = self.encode_pixels(visuals), self.encode_tokens(tokens)
            scores = (image_nE * text_mE).sum(dim=1) if mode == "pairs" else image_nE @ text_mE.T
            return self._as(scores, output)
        n, m = len(visuals), len(tokens)
        if mode == "pairs":
            return self._as(self.match(visuals, tokens, np.arange(n), np.arange(m)), output)
        rows, columns = np.divmod(np.arange(n * m), max(m, 1))
        return self._as(self.match(visuals, tokens, rows, columns).view(n, m), output)

    def real_samples(self, n: int = 8) -> tuple[list[Image.Image] | list[Sample], list[str], str]:
        """Up to ``n`` images and texts of the data of the run, and where they come from."""
        from mmpretrain.evaluate.samples import real_samples

        return real_samples(self, n)

    def _as(self, scores: Tensor, output: str) -> Tensor:
        if output not in ("score", "logit", "probability"):
            raise ValueError(f"score: output is 'score', 'logit' or 'probability', not {output!r}")
        if output == "score":
            return scores
        if self.dual:
            scale, bias = self.logit_scale()
            if output == "probability" and bias is None:
                raise ValueError("score: this model was trained with a softmax over the batch, so a pair has no probability; use 'logit'")
            scores = scores * scale + (bias or 0.0)
        return scores.sigmoid() if output == "probability" else scores

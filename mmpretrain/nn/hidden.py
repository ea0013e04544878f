"""What models return: named hidden states, one NamedTuple per kind of model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from mmpretrain.nn.ragged import Ragged


class Fused(NamedTuple):
    """States after fusion. A modality that the batch lacks is None."""

    text: Ragged | None  # after the final norm, first token of each sample is [CLS]
    image: Ragged | None  # patches or regions after the final norm; the first ``image_prefix`` and the last ``image_suffix`` are neither
    pooled_BD: Tensor | None  # what image-text matching reads
    image_prefix: int = 0
    aux: Mapping[str, Tensor] = {}  # extra losses a model part produces (router losses and the like)
    image_suffix: int = 0


class Paired(NamedTuple):
    """One vector per image and per text, both of length 1, in one space. A modality that the batch lacks is None."""

    image_BE: Tensor | None
    text_BE: Tensor | None
    logit_scale: Tensor  # (1,), natural logarithm of the factor
    logit_bias: Tensor | None = None  # (1,)
    aux: Mapping[str, Tensor] = {}


class Coded(NamedTuple):
    """Pictures through a discrete autoencoder (dVAE). h, w: the grid of codes; K: codes."""

    logits_BKhw: Tensor  # of the encoder
    code_BKhw: Tensor | None  # what the decoder read: a relaxed or one-hot sample; None where it was not run
    output_BCHW: Tensor | None  # what the decoder gives
    pixels_BCHW: Tensor  # the picture that was read, in 0 to 1
    aux: Mapping[str, Tensor] = {}


class Causal(NamedTuple):
    """States of a left-to-right model over [text; image codes], each the one that predicts the token of its place."""

    text: Ragged | None  # for each text position, the state that predicts the token there
    image: Ragged | None  # for each code in raster order, the state that predicts it
    aux: Mapping[str, Tensor] = {}

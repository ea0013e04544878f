"""Every type that crosses a border between two packages of mmpretrain.

Shape legend, used as suffixes of tensor names everywhere (``x_BTD``):

====  =====================================================================
B     samples of a (micro-)batch
T     text tokens, padded to the longest text of the batch
V     visual tokens (patches or regions, with a class token or a global feature where the model has one)
R     rows: a selected subset of the batch
F     values of a region's feature, as the detector gave them
L     joint tokens, text and image one after another
N     packed tokens: the tokens of all samples one after another, no padding
D     model width
E     shared embedding space of a dual encoder
C H W channels, height and width of pixels
====  =====================================================================

All are NamedTuples: they pass Lightning's device transfer, torch's pytree and ``torch.compile``.
Lengths and sizes are tuples of Python ints, so that index tables are made on the host and no device is ever synchronised for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor


class Statement(NamedTuple):
    """A sentence about the image(s) of a sample, with a human or exact label."""

    text: str
    label: bool  # True: the sentence holds


class Regions(NamedTuple):
    """Regions of one picture: R of them, F feature values each. The file of them is described in ``mmpretrain.data.regions``."""

    features: np.ndarray  # float16 (R, F)
    boxes: np.ndarray  # float32 (R, 4): x1 y1 x2 y2 in pixels, inside the picture
    image_size: np.ndarray  # int32 (2,): height, width
    classes: np.ndarray | None = None  # int16 (R,), -1: none
    class_probs: np.ndarray | None = None  # float16 (R, C)
    attributes: np.ndarray | None = None  # int16 (R,), -1: none
    attribute_probs: np.ndarray | None = None  # float16 (R, A)
    scores: np.ndarray | None = None  # float32 (R,)
    global_feature: np.ndarray | None = None  # float16 (F,)


class Sample(NamedTuple):
    """One sample as it lies in a shard: still encoded, nothing drawn."""

    key: str
    captions: tuple[str, ...]  # true descriptions; may be empty
    images: tuple[bytes, ...]  # encoded files; two for NLVR2-like pairs (KEY.img0.png, KEY.img1.png)
    statements: tuple[Statement, ...] = ()
    meta: Mapping[str, Any] = {}  # the rest of KEY.json: objects, triples, questions, edits, ... (JSON types only)
    regions: bytes | None = None  # KEY.regions.npz; ``data.regions.decode_regions`` reads it
    codes: bytes | None = None  # KEY.codes.npy: the picture as tokens of a discrete autoencoder


class Tokens(NamedTuple):
    """One tokenised text, or a pair of texts: [CLS] first [SEP] second [SEP]."""

    ids: tuple[int, ...]  # with the special tokens of the tokenizer
    words: tuple[int, ...]  # the index of the word each token belongs to, -1 for special tokens
    text: str  # the first text
    segments: tuple[int, ...] | None = None  # of each token: 0 first text, 1 second; None: all 0
    second: str | None = None  # the second text of a pair
    offsets: tuple[tuple[int, int], ...] | None = None  # characters of each token in its own text, (0, 0) for special tokens


class Visual(NamedTuple):
    """What a sample shows. A form that the run does not read is None."""

    image: Tensor | None = None  # uint8, (3, H, W)
    regions: Regions | None = None
    tags: str | None = None  # names of its objects, where texts are told with them (data.tags)
    codes: Tensor | None = None  # int64 (h, w): tokens of a discrete autoencoder


class Example(NamedTuple):
    """One sample after the transform: text drawn and tokenised, image decoded, resized and augmented."""

    key: str
    position: int  # global position in the order of the epoch; -1 outside training
    draw_key: int  # int64 hash of (seed, epoch, position): the root of every random draw for this example
    text: Tokens | None
    image: Tensor | None  # uint8, (3, H, W)
    matched: bool = True  # False: the text is known to be false of the image
    meta: Mapping[str, Any] = {}
    targets: Mapping[str, Any] = {}  # written by the preparers of objectives, one entry each
    regions: Regions | None = None
    codes: Tensor | None = None  # int64 (h, w)

    @property
    def visual(self) -> Visual:
        return Visual(self.image, self.regions, codes=self.codes)


class Vocabulary(NamedTuple):
    """What corruption needs to know of a tokenizer. ``mask`` and ``cls`` are None where the tokenizer has none."""

    size: int
    pad: int
    mask: int | None
    cls: int | None
    sep: int | None
    special: tuple[int, ...]  # ids that are never masked and never drawn as random replacements
    function: tuple[int, ...] = ()  # ids of function words and punctuation: what a picture says little about
    answers: tuple[str, ...] = ()  # what questions are answered with (data.answers), by number
    codes: int = 0  # image codes that the data may hold; 0: the data hold none
    region_classes: int = 0  # columns of the class probabilities of the regions that are shown (regions.json); 0: not known
    region_background: int | None = None  # the one of them that means no class
    region_attributes: int = 0  # columns of their attribute probabilities; 0: not known


class Text(NamedTuple):
    """A batch of texts, padded on the right to the longest one."""

    ids_BT: Tensor  # int64
    lengths: tuple[int, ...]  # valid tokens per text
    words_BT: Tensor | None = None  # int64 word index, -1 for special tokens and padding
    segments_BT: Tensor | None = None  # int64
    delta_ND: Tensor | None = None  # added to the word embeddings of the valid tokens, packed, before anything else is (VILLA)


class Pixels(NamedTuple):
    """A batch of images, padded at the bottom and the right to the largest one."""

    pixels_BCHW: Tensor  # uint8 (then ``mean`` and ``std`` hold) or already normalised floats
    sizes: tuple[tuple[int, int], ...]  # valid (height, width) of each image, in pixels
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    delta_ND: Tensor | None = None  # added to the projected patches of each picture, packed in raster order, before anything else is
    masked_N: Tensor | None = None  # bool, packed likewise, written by a masker: patches that the model sees as its mask embedding

    def floats(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalised pixels (B, 3, H, W); padding has undefined values, masks say what is real."""
        if self.pixels_BCHW.is_floating_point():
            return self.pixels_BCHW.to(dtype)
        if self.mean is None or self.std is None:
            raise ValueError("Pixels of integer type need mean and std")
        mean = torch.tensor(self.mean, device=self.pixels_BCHW.device, dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(self.std, device=self.pixels_BCHW.device, dtype=torch.float32).view(3, 1, 1)
        # one multiply-add: (x / 255 - mean) / std
        return self.pixels_BCHW.to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std).to(dtype)


class RegionBatch(NamedTuple):
    """The regions of a batch, packed: those of the first sample, then those of the second, and so on. N counts regions here."""

    features_NF: Tensor  # float; zeros, or another region's feature, where a masker put that
    boxes_N4: Tensor  # float32: x1 y1 x2 y2 in pixels
    lengths: tuple[int, ...]  # regions of each sample, at least 1
    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels of the picture of each sample
    classes_N: Tensor | None = None  # int64, -1: none
    class_probs_NC: Tensor | None = None
    attributes_N: Tensor | None = None  # int64, -1: none
    attribute_probs_NA: Tensor | None = None
    scores_N: Tensor | None = None  # float32, the detector's confidence
    global_BF: Tensor | None = None  # feature of the whole picture
    chosen_N: Tensor | None = None  # bool, written by a masker: the regions whose content is to be predicted
    removed_N: Tensor | None = None  # bool, written by a masker: chosen regions whose feature was taken away (not kept, not swapped)
    delta_NF: Tensor | None = None  # added to the features after masking, before the model projects them (VILLA)


class CodeBatch(NamedTuple):
    """Pictures as tokens of a discrete autoencoder, packed: the grid of the first sample in raster order, then that of the second, ..."""

    ids_N: Tensor  # int64
    grids: tuple[tuple[int, int], ...]  # (rows, columns) of each sample

    def dense(self) -> Tensor:
        """(B, rows, columns). Raises ValueError where the grids differ."""
        if len(set(self.grids)) != 1:
            raise ValueError(f"pictures of a batch have grids of codes {sorted(set(self.grids))}; this model needs one size")
        return self.ids_N.view(len(self.grids), *self.grids[0])


class Replaced(NamedTuple):
    """A sample that could not be read or decoded, in whose place the batch has another."""

    shard: str
    key: str
    reason: str  # short, without numbers, to be counted by
    error: str  # the whole line


class Batch(NamedTuple):
    """What a model and the objectives of a micro-batch see. Fields that the data lack are None."""

    keys: tuple[str, ...]
    draw_keys_B: Tensor  # int64; the root of every random draw on the device (see nn.random)
    text: Text | None = None
    image: Pixels | None = None
    matched_B: Tensor | None = None  # bool
    targets: Mapping[str, Any] = {}  # one entry per objective: a NamedTuple that only this objective reads
    source: str = ""  # the one source of a mixture that all samples come from; "" where there is none or it has no name
    replaced: tuple[Replaced, ...] = ()
    regions: RegionBatch | None = None
    codes: CodeBatch | None = None

    @property
    def size(self) -> int:
        return len(self.keys)


class Spec(NamedTuple):
    """What a head needs to know of a model to size and tie itself. Never kept after ``bind``."""

    width: int  # of the token states
    kinds: tuple[str, ...]  # what forward(batch, kind) accepts
    vocab_size: int
    token_table: torch.nn.Embedding | None = None
    patch_size: int | None = None
    embed_dim: int | None = None  # of Paired outputs
    norm_eps: float = 1e-12  # of LayerNorms in heads
    visual_width: int | None = None  # of the visual token states; None: ``width``
    pooled_width: int | None = None  # of the pooled state; None: ``width``
    pooled_dropout: float = 0.0  # that heads on the pooled state put before their linear layer
    feature_width: int | None = None  # F of the regions that the model takes
    computes_features: bool = False  # of boxes, from pixels: those that are given are not read
    feature_projection: torch.nn.Linear | None = None  # F -> width, to which UNITER ties the head of feature regression
    std: float = 0.02  # of the normal initialisation of heads
    alone: bool = True  # whether forward takes text without an image and an image without text, too
    codes: int = 0  # image codes that the model knows (a discrete autoencoder, a transformer over its codes)
    code_grid: tuple[int, int] | None = None  # rows and columns of them
    text_pads: int = 0  # ids behind ``vocab_size`` that stand, one for each position, where a text has no token (DALL-E)
    masks_patches: bool = False  # whether the model has a mask embedding, which stands for the patches in ``Pixels.masked_N``


class Score(NamedTuple):
    """The loss of one objective on one micro-batch, as a sum and a count so that means are exact over ranks and micro-batches."""

    sum: Tensor  # scalar with gradient
    count: Tensor  # type: ignore[assignment]  # of a tuple's methods; scalar without gradient: equals Objective.count(corrupted batch)
    stats: Mapping[str, tuple[Tensor, Tensor]]  # name -> (sum, count), detached: accuracy and the like


class Draw(Protocol):
    """What a preparer may draw from, in the worker. Everything is a pure function of (seed, epoch, position)."""

    position: int

    def generator(self, stream: str, shared_by: int = 1) -> np.random.Generator:
        """A generator for one named use. ``shared_by=2``: the same one for positions 2i and 2i + 1 (exact halves)."""
        ...

    def other_visual(self, k: int) -> tuple[str, Visual]:
        """(key, what it shows) of the k-th other sample, drawn uniformly from the whole set, never the sample itself."""
        ...

    def other_text(self, k: int) -> tuple[str, Tokens]:
        """(key, text) of the k-th other sample, drawn uniformly from the whole set, never the sample itself."""
        ...

    def hard_text(self, k: int) -> tuple[str, Tokens] | None:
        """(key, text) of the k-th draw among the texts of other samples that are most like the shown one but not too like it; None where
        there are none. The preparer has ``neighbours`` among its ``wants``."""
        ...

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        """One text, or a pair."""
        ...


class Collate(Protocol):
    """How a preparer turns what it wrote into tensors, in the worker."""

    def text(self, texts: Sequence[Tokens]) -> Text: ...

    def pixels(self, images: Sequence[Tensor]) -> Pixels: ...

    def regions(self, regions: Sequence[Regions]) -> RegionBatch: ...

    def codes(self, codes: Sequence[Tensor]) -> CodeBatch: ...


class Preparer(Protocol):
    """The worker's half of an objective: parameter-free, picklable, defined at module level.

    It may have an attribute ``wants``, names of what the data module is to give beside the usual: ``graph`` (``meta["graph"]``, the scene
    graph of the shown text), ``captions`` (``meta["captions"]``, all captions of the sample), ``neighbours`` (``Draw.hard_text``), ``pair``
    (nothing; it may put another caption behind the text, which batches by length count).
    """

    def prepare(self, example: Example, draw: Draw) -> Any:
        """What goes into ``example.targets[name of the objective]``."""
        ...

    def collate(self, values: Sequence[Any], collate: Collate) -> Any:
        """The NamedTuple of tensors that goes into ``batch.targets[name of the objective]``."""
        ...

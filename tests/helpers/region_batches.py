"""Hand-made batches of packed regions, states over them and a small model that reads them, for the tests of region objectives."""

from __future__ import annotations

import torch
from helpers.objectives import keys, ragged, vocabulary
from torch import Tensor, nn

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.layers import Init, Linear
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Batch, RegionBatch, Spec, Text

WIDTH, FEATURES, CLASSES, ATTRIBUTES = 8, 12, 7, 5
SIDE = (480, 640)  # height and width of every picture
VOCABULARY = vocabulary()


def boxes(count: int, generator: torch.Generator) -> Tensor:
    """Boxes with whole corners inside the picture, at least 8 pixels wide and high: float32 (count, 4)."""
    height, width = SIDE
    low = torch.stack([torch.randint(0, side - 8, (count,), generator=generator) for side in (width, height)], 1)
    room = torch.tensor([width, height]) - low
    extent = 8 + (torch.rand(count, 2, generator=generator) * (room - 8 + 1)).long()
    return torch.cat([low, low + extent], 1).float()


def region_batch(lengths: tuple[int, ...], features: int = FEATURES, seed: int = 0, labels: bool = True) -> RegionBatch:
    """Random regions: every fifth has no class, every fourth no attribute. ``labels=False``: features and boxes alone."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    regions = RegionBatch(torch.randn(n, features, generator=generator), boxes(n, generator), lengths, (SIDE,) * len(lengths))
    if not labels:
        return regions
    class_probs, attribute_probs = (torch.randn(n, k, generator=generator).mul(2).softmax(-1) for k in (CLASSES, ATTRIBUTES))
    classes, attributes = class_probs.argmax(-1), attribute_probs.argmax(-1)
    classes[4::5], attributes[3::4] = -1, -1
    scores = torch.rand(n, generator=generator)
    return regions._replace(
        classes_N=classes,
        class_probs_NC=class_probs,
        attributes_N=attributes,
        attribute_probs_NA=attribute_probs,
        scores_N=scores,
    )


def region_sample_batch(lengths: tuple[int, ...], seed: int = 0, labels: bool = True, features: int = FEATURES) -> Batch:
    """A batch with regions, a short text of three or four tokens for each sample and nothing masked."""
    n = len(lengths)
    ids_BT = torch.randint(5, VOCABULARY.size, (n, 4), generator=torch.Generator().manual_seed(seed + 1))
    text = Text(ids_BT, tuple(3 + i % 2 for i in range(n)))
    return Batch(tuple(f"k{i}" for i in range(n)), keys(n, seed), text, regions=region_batch(lengths, features, seed, labels))


def rows_of(batch: Batch, samples: tuple[int, ...]) -> Batch:
    """The batch of these samples alone, in this order (text is cut to the longest, nothing else changes)."""
    regions, text = batch.regions, batch.text
    starts = Layout(regions.lengths).starts
    packed = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in samples])
    pick = lambda x: x.index_select(0, packed) if isinstance(x, Tensor) else x
    fields = {name: pick(value) for name, value in regions._asdict().items() if name not in ("lengths", "sizes", "global_BF")}
    index = torch.tensor(samples)
    lengths = tuple(text.lengths[i] for i in samples)
    return batch._replace(
        keys=tuple(batch.keys[i] for i in samples),
        draw_keys_B=batch.draw_keys_B[index],
        text=text._replace(ids_BT=text.ids_BT[index, : max(lengths)], lengths=lengths),
        matched_B=None if batch.matched_B is None else batch.matched_B[index],
        regions=regions._replace(
            lengths=tuple(regions.lengths[i] for i in samples),
            sizes=tuple(regions.sizes[i] for i in samples),
            global_BF=None if regions.global_BF is None else regions.global_BF[index],
            **fields,
        ),
    )


def region_spec(width: int = WIDTH, features: int | None = FEATURES, projection: bool = True) -> Spec:
    """What heads size themselves from; the projection has weights of its own."""
    torch.manual_seed(0)
    return Spec(
        width,
        ("fused",),
        VOCABULARY.size,
        nn.Embedding(VOCABULARY.size, width),
        visual_width=width,
        feature_width=features,
        feature_projection=Linear(features, width, init=Init("normal")) if projection and features is not None else None,
    )


def region_states(batch: Batch, prefix: int = 1, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> Fused:
    """Random states for the text and the regions of a batch, ``prefix`` visual tokens before the regions of each sample."""
    text = ragged(batch.text.lengths, width, seed=1, dtype=dtype)
    image = ragged(tuple(n + prefix for n in batch.regions.lengths), width, seed=2, dtype=dtype)
    return Fused(text, image, text.x_ND[text.layout.first_B(text.x_ND.device)], prefix)


def region_rows(batch: Batch, prefix: int) -> list[int]:
    """The row among the visual states of each packed region, by loops."""
    rows, at = [], 0
    for length in batch.regions.lengths:
        rows += range(at + prefix, at + prefix + length)
        at += prefix + length
    return rows


class RegionModel(nn.Module):
    """Regions and words meet in the mean of their sample: enough for gradients to reach everything. One prefix token, the mean itself."""

    def __init__(self, width: int = WIDTH, features: int = FEATURES) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY.size, width)
        self.project, self.mix = Linear(features, width, init=Init("normal", 0.2)), nn.Linear(width, width)
        self.features = features

    @property
    def spec(self) -> Spec:
        width = self.words.embedding_dim
        return Spec(
            width, ("fused", "pooled"), VOCABULARY.size, self.words, feature_width=self.features, feature_projection=self.project
        )

    def blocks(self) -> list[nn.Module]:
        return [self.mix]

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        regions, text = batch.regions, Layout(batch.text.lengths)
        device = regions.features_NF.device
        layout, features_NF = Layout(regions.lengths), regions.features_NF
        if regions.delta_NF is not None:
            features_NF = features_NF + regions.delta_NF
        words_ND, visual_ND = self.words(text.pack(batch.text.ids_BT)), self.project(features_NF)
        lengths = torch.tensor([a + b for a, b in zip(text.lengths, layout.lengths, strict=True)], device=device)
        total_BD = words_ND.new_zeros(text.size, words_ND.shape[1])
        total_BD = total_BD.index_add(0, text.sample_N(device), words_ND).index_add(0, layout.sample_N(device), visual_ND)
        mean_BD = torch.tanh(self.mix(total_BD / lengths[:, None]))
        joint = Layout(tuple(n + 1 for n in layout.lengths))
        rows_N = torch.arange(layout.total, device=device) + layout.sample_N(device) + 1
        image_ND = mean_BD.index_select(0, joint.sample_N(device)).index_add(0, rows_N, visual_ND)
        text_ND = words_ND + mean_BD.index_select(0, text.sample_N(device))
        return Fused(Ragged(text_ND, text), Ragged(image_ND, joint), mean_BD, image_prefix=1)

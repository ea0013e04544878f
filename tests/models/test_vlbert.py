"""VL-BERT: size, a padded reference, what is silent at first, masking, texts alone, order of batches, gradients, mistakes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny
from helpers.bert_block import encoder
from torch import Tensor, nn

from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged
from mmpretrain.nn.region_heads import RegionHead
from mmpretrain.nn.vlbert import VLBERTEmbedder, mean_of_kept, with_picture
from mmpretrain.train.pretraining import materialise
from mmpretrain.types import Batch, RegionBatch, Text

WIDTH, HEADS, FEATURES, GEOMETRY = 48, 4, 12, 64
TEXTS, COUNTS = (7, 4, 9), (3, 1, 5)
SIZES = ((480, 640), (300, 200), (64, 96))
REMOVED = (True, False, False, True, False, False, True, False, True)  # all of the second picture


def model(attention: str = "eager", **options) -> VLBERT:
    torch.manual_seed(1)
    embed = VLBERTEmbedder(60, WIDTH, FEATURES, positions=16, geometry=GEOMETRY)
    blocks = Transformer(WIDTH, 2, HEADS, norm="post", final_norm=False, eps=1e-12, attention=attention, init="normal")
    return tiny.shake(VLBERT(embed, blocks, **options))


def batch(masked: bool = True) -> Batch:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 60, (3, max(TEXTS)), generator=g)
    segments = torch.zeros_like(ids)
    segments[2, 5:] = 1
    corners = torch.rand(sum(COUNTS), 2, 2, generator=g).sort(1).values.flatten(1)
    sides = torch.tensor([[w, h, w, h] for (h, w), n in zip(SIZES, COUNTS, strict=True) for _ in range(n)]).float()
    removed = torch.tensor(REMOVED) if masked else None
    features = torch.rand(sum(COUNTS), FEATURES, generator=g)
    regions = RegionBatch(features, corners * sides, COUNTS, SIZES, chosen_N=removed, removed_N=removed)
    keys = torch.arange(3)
    return Batch(("a", "b", "c"), keys, Text(ids, TEXTS, segments_BT=segments), regions=regions)


def chosen(inputs: Batch, order: list[int], grow: int = 0) -> Batch:
    """The samples ``order``, with more padding of other content."""
    text, regions = inputs.text, inputs.regions
    starts = [sum(COUNTS[:i]) for i in range(3)]
    rows = torch.cat([torch.arange(starts[i], starts[i] + COUNTS[i]) for i in order])
    ids, segments = (F.pad(t[order], (0, grow), value=1) for t in (text.ids_BT, text.segments_BT))
    counts, sizes = (tuple(of[i] for i in order) for of in (COUNTS, SIZES))
    removed = regions.removed_N[rows]
    picked = RegionBatch(regions.features_NF[rows], regions.boxes_N4[rows], counts, sizes, removed_N=removed)
    words = Text(ids, tuple(TEXTS[i] for i in order), segments_BT=segments)
    return Batch(tuple(inputs.keys[i] for i in order), inputs.draw_keys_B[order], words, regions=picked)


def rows(x: Ragged, i: int) -> Tensor:
    return x.x_ND[x.layout.starts[i] : x.layout.starts[i + 1]]


def test_parameter_counts_of_the_release() -> None:
    with torch.device("meta"):
        made = VLBERT(VLBERTEmbedder(30522, 768), Transformer(768, 12, 12, norm="post", final_norm=False))
        heads = VocabularyHead(768, 30522, made.embed.words), RegionHead(768, 1601, norm=False)
        large = VLBERT(VLBERTEmbedder(30522, 1024), Transformer(1024, 24, 16, norm="post", final_norm=False))

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    embed = made.embed
    special = sum(p.numel() for p in (embed.object_word, embed.mask_visual, embed.mask_word, embed.text_visual))
    assert count(embed.projection) == 3_146_496
    assert special == 4_352
    assert count(made, *heads) - count(embed.projection) - special == 111_340_667
    assert count(made, *heads) == 114_491_515
    assert count(large) == 338_298_880


def place(box: Tensor, height: int, width: int) -> Tensor:
    """Sines and cosines of one box, as section 3.2 of the paper and its code have them."""
    x1, y1, x2, y2 = box.tolist()
    waves, found = GEOMETRY // 8, []
    for share in ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height):
        angles = torch.tensor([100 * share / 1000 ** (j / waves) for j in range(waves)], dtype=torch.float64)
        found += [angles.sin(), angles.cos()]
    return torch.cat(found).float()


def reference(m: VLBERT, inputs: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Every sample by hand into a padded batch, then BERT."""
    p, text, regions, removed = dict(m.embed.named_parameters()), inputs.text, inputs.regions, torch.tensor(REMOVED)
    norm = lambda x, name: F.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-12)
    samples = []
    for i, (t, n) in enumerate(zip(TEXTS, COUNTS, strict=True)):
        own = slice(sum(COUNTS[:i]), sum(COUNTS[: i + 1]))
        height, width = SIZES[i]
        left = regions.features_NF[own][~removed[own]]
        appearance = [left.sum(0) / (len(left) + 1e-5)]
        appearance += [p["mask_visual"][0] if gone else x for x, gone in zip(regions.features_NF[own], removed[own], strict=True)]
        limit = torch.tensor([width - 1.0, height - 1.0] * 2)
        boxes = [torch.cat([torch.zeros(2), limit[2:]]), *torch.minimum(regions.boxes_N4[own], limit)]
        seen = torch.stack([torch.cat([place(box, height, width), a]) for box, a in zip(boxes, appearance, strict=True)])
        seen = F.relu(F.linear(seen, p["projection.weight"], p["projection.bias"]))
        said = torch.cat([p["object_word"], *(p["mask_word"] if gone else p["object_word"] for gone in removed[own])])
        words = p["words.weight"][text.ids_BT[i, :t]] + norm(seen[0], "text_norm") + p["segments.weight"][text.segments_BT[i, :t]]
        objects = norm(seen, "object_norm") + said + p["segments.weight"][2]
        end = p["end"] + p["segments.weight"][2]
        at = [*range(t), *[t] * (n + 1), t + 1]
        samples.append(norm(torch.cat([words, objects, end]) + p["positions.weight"][at], "norm"))
    x = nn.utils.rnn.pad_sequence(samples, batch_first=True)
    mask = torch.arange(x.shape[1]) < torch.tensor([len(s) for s in samples])[:, None]
    x = encoder(m, x, mask, HEADS)
    return [x[i, :t] for i, t in enumerate(TEXTS)], [x[i, t : t + n + 1] for i, (t, n) in enumerate(zip(TEXTS, COUNTS, strict=True))]


@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-4)])
@torch.no_grad()
def test_states_are_those_of_a_padded_reference(attention: str, tolerance: float) -> None:
    m, inputs = model(attention), batch()
    out = m(inputs)
    texts, objects = reference(m, inputs)
    assert out.image_prefix == 1 and out.pooled_BD is None
    assert out.text.layout.lengths == TEXTS and out.image.layout.lengths == tuple(n + 1 for n in COUNTS)
    for i in range(3):
        torch.testing.assert_close(rows(out.text, i), texts[i], atol=tolerance, rtol=0)
        torch.testing.assert_close(rows(out.image, i), objects[i], atol=tolerance, rtol=0)


@torch.no_grad()
def test_company_order_and_padding_do_not_matter() -> None:
    m, inputs = model(), batch()
    whole = m(inputs)
    for order, grow in (([2, 0, 1], 0), ([1], 3), ([2, 1], 2)):
        part = m(chosen(inputs, order, grow))
        for at, i in enumerate(order):
            torch.testing.assert_close(rows(part.text, at), rows(whole.text, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows(part.image, at), rows(whole.image, i), atol=1e-5, rtol=0)


@torch.no_grad()
def test_regions_are_a_set_and_words_are_not() -> None:
    m, inputs = model(), batch()
    out, order = m(inputs), torch.tensor([2, 0, 1])
    own = {name: getattr(inputs.regions, name).clone() for name in ("features_NF", "boxes_N4", "removed_N")}
    for value in own.values():
        value[:3] = value[:3][order]
    turned = m(inputs._replace(regions=inputs.regions._replace(**own)))
    torch.testing.assert_close(turned.text.x_ND, out.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(rows(turned.image, 0)[1:], rows(out.image, 0)[1:][order], atol=1e-5, rtol=0)
    ids = inputs.text.ids_BT.clone()
    ids[0, [1, 2]] = ids[0, [2, 1]]
    assert not torch.allclose(m(inputs._replace(text=inputs.text._replace(ids_BT=ids))).text.x_ND[0], out.text.x_ND[0], atol=1e-3)


@torch.no_grad()
def test_a_new_model_does_not_see() -> None:
    """Zero gains: neither features nor boxes change anything; one gain away from zero, they do."""
    torch.manual_seed(0)
    embed = VLBERTEmbedder(60, WIDTH, FEATURES, positions=16, geometry=GEOMETRY)
    m = VLBERT(embed, Transformer(WIDTH, 2, HEADS, norm="post", final_norm=False)).eval()
    inputs = batch()
    other = inputs.regions._replace(features_NF=inputs.regions.features_NF + 3, boxes_N4=inputs.regions.boxes_N4 / 2)
    first, second = m(inputs), m(inputs._replace(regions=other))
    assert torch.equal(first.text.x_ND, second.text.x_ND) and torch.equal(first.image.x_ND, second.image.x_ND)
    embed.object_norm.weight.fill_(0.5)
    assert not torch.allclose(m(inputs).text.x_ND, m(inputs._replace(regions=other)).text.x_ND, atol=1e-4)


@torch.no_grad()
def test_texts_alone_and_pictures_alone() -> None:
    m, inputs = model(), batch()
    alone = m(inputs._replace(regions=None))
    assert alone.image is None and alone.image_prefix == 0 and alone.text.layout.lengths == TEXTS
    assert not torch.allclose(alone.text.x_ND, m(inputs).text.x_ND, atol=1e-3)
    m.embed.end.mul_(-3)  # [END] is not returned, and is read
    assert not torch.allclose(alone.text.x_ND, m(inputs._replace(regions=None)).text.x_ND, atol=1e-3)
    pictures = m(inputs._replace(text=None))
    assert pictures.text is None and pictures.image.layout.lengths == (4, 2, 6)


@torch.no_grad()
def test_what_was_removed_is_replaced_and_does_not_count() -> None:
    inputs = batch()
    regions = inputs.regions
    mean = mean_of_kept(regions)
    expected = (regions.features_NF[1] + regions.features_NF[2]) / (2 + 1e-5)
    torch.testing.assert_close(mean[0], expected)
    assert mean[1].abs().max() == 0
    objects = with_picture(regions)
    assert objects.removed_N.tolist() == [False, True, False, False, False, True, False, False, False, True, False, True]
    assert objects.boxes_N4[0].tolist() == [0, 0, 639, 479] and objects.lengths == (4, 2, 6)
    m = model()
    hidden = regions.features_NF.clone()
    hidden[regions.removed_N] = 99.0  # whatever the masker left there
    torch.testing.assert_close(m(inputs._replace(regions=regions._replace(features_NF=hidden))).text.x_ND, m(inputs).text.x_ND)
    plain = m(inputs._replace(regions=regions._replace(removed_N=None)))
    assert not torch.allclose(plain.text.x_ND, m(inputs).text.x_ND, atol=1e-3)


def test_deltas_are_read_where_they_belong() -> None:
    """A delta of features is the same as other features, but for the mean; one of words the same as other words."""
    m, inputs = model(), batch(masked=False)
    delta = torch.randn(sum(COUNTS), FEATURES, requires_grad=True)
    regions = inputs.regions._replace(delta_NF=delta)
    objects = m._objects(inputs, regions)
    torch.testing.assert_close(objects.features_NF[1:4], (inputs.regions.features_NF + delta)[:3])
    torch.testing.assert_close(objects.features_NF[0], inputs.regions.features_NF[:3].sum(0) / (3 + 1e-5))
    words = torch.randn(sum(TEXTS), WIDTH, requires_grad=True)
    out = m(inputs._replace(regions=regions, text=inputs.text._replace(delta_ND=words)))
    grads = torch.autograd.grad(out.text.x_ND.square().sum() + out.image.x_ND[:, 0].sum(), (delta, words))
    assert all(bool((g.abs().sum(1) > 0).all()) for g in grads)
    with pytest.raises(ValueError, match="delta_NF"):
        m(inputs._replace(regions=regions._replace(delta_NF=delta[1:])))
    with pytest.raises(ValueError, match="delta_ND"):
        m(inputs._replace(text=inputs.text._replace(delta_ND=words[1:])))


def test_gradients_reach_every_parameter() -> None:
    m = model(pooler=True).train()
    inputs = batch()
    first, second = m(inputs), m(inputs._replace(regions=None))
    loss = first.text.x_ND[:, 0].sum() + first.image.x_ND[:, 1].sum() + second.text.x_ND[:, 2].sum() + first.pooled_BD.sum()
    loss.backward()
    assert [name for name, p in m.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []


@torch.no_grad()
def test_the_pooler_is_an_option() -> None:
    m, inputs = model(pooler=True), batch()
    assert m.spec.kinds == ("fused", "pooled") and model().spec.kinds == ("fused",)
    torch.testing.assert_close(m(inputs, "pooled").pooled_BD, m(inputs).pooled_BD, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="pooler: true"):
        model()(inputs, "pooled")


def test_spec_birth_on_meta_and_mistakes() -> None:
    m, inputs = model(), batch()
    assert (m.spec.width, m.spec.feature_width, m.spec.vocab_size) == (WIDTH, FEATURES, 60)
    assert m.spec.token_table is m.embed.words and len(m.blocks()) == 2
    with torch.device("meta"):
        born = VLBERT(VLBERTEmbedder(9, 16, 8, geometry=16), Transformer(16, 1, 2, norm="post", final_norm=False))
    materialise(born)
    assert all(p.isfinite().all() and p.dim() > 0 for p in born.parameters())
    assert born.embed.object_norm.weight.abs().max() == 0 == born.embed.mask_visual.abs().max()
    with pytest.raises(ValueError, match="features of 5 values, the model takes 12"):
        m(inputs._replace(regions=inputs.regions._replace(features_NF=torch.zeros(9, 5))))
    with pytest.raises(Misfit, match=r"1 to 14 tokens .*: lower data.max_tokens"):
        m(inputs._replace(text=Text(torch.full((3, 15), 5), (15, 2, 2))))
    with pytest.raises(ValueError, match="text, regions or both"):
        m(inputs._replace(text=None, regions=None))
    with pytest.raises(ValueError, match="at least one region"):
        m(inputs._replace(regions=inputs.regions._replace(lengths=(8, 0, 1))))
    with pytest.raises(ValueError, match="mmpretrain data regions"):
        m(inputs._replace(regions=None, image=tiny.batch().image))
    with pytest.raises(ValueError, match="one width"):
        VLBERT(VLBERTEmbedder(9, 16, 8), Transformer(32, 1, 4))

"""What all single-stream models over regions have in common: invariances, one modality, deltas, gradients, published sizes."""

from pathlib import Path

import pytest
import torch
import yaml
from helpers.region_batches import rows_of
from helpers.single_stream import COUNTS, FEATURES, LENGTHS, MAKERS, WIDTH, WORDS, batch, shaken
from helpers.tiny import shake
from models.test_sizes import build
from torch import nn

from mmpretrain.nn.fusion import fuse
from mmpretrain.nn.ragged import Ragged
from mmpretrain.types import Batch, Pixels

NAMES = sorted(MAKERS)
SIZES = Path(__file__).parents[2] / "configs" / "sizes"


def chosen(whole: Batch, order: tuple[int, ...], grow: int) -> Batch:
    """The samples ``order`` of a batch, their texts with more padding of other content."""
    made = rows_of(whole, order)
    longest = made.text.ids_BT.shape[1]
    segments = whole.text.segments_BT[list(order), :longest]
    ids, segments = (torch.nn.functional.pad(x, (0, grow), value=1) for x in (made.text.ids_BT, segments))
    return made._replace(text=made.text._replace(ids_BT=ids, segments_BT=segments))


def rows(ragged: Ragged, i: int) -> torch.Tensor:
    return ragged.x_ND[ragged.layout.starts[i] : ragged.layout.starts[i + 1]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_company_order_and_padding_do_not_matter(name: str, attention: str) -> None:
    model, whole = shaken(name, attention), batch()
    full = model(whole)
    for order, grow in (((2, 0, 3, 1), 0), ((1,), 2), ((3, 2), 1)):
        part = model(chosen(whole, order, grow))
        for place, i in enumerate(order):
            torch.testing.assert_close(rows(part.text, place), rows(full.text, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows(part.image, place), rows(full.image, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(part.pooled_BD[place], full.pooled_BD[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_words_and_regions_meet_and_samples_do_not(name: str) -> None:
    model, whole = shaken(name), batch()
    delta = torch.zeros_like(whole.regions.features_NF, requires_grad=True)
    out = model(whole._replace(regions=whole.regions._replace(delta_NF=delta)))
    (grad,) = torch.autograd.grad(out.pooled_BD[0].sum(), delta)
    assert (grad[: COUNTS[0]].abs().amax(1) > 0).all()
    assert grad[COUNTS[0] :].abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_deltas_of_zero_change_nothing_and_others_are_features_and_words(name: str) -> None:
    model, whole = shaken(name), batch()
    plain = model(whole)
    words, features = torch.zeros(sum(LENGTHS), WIDTH), torch.zeros(sum(COUNTS), FEATURES)
    still = model(whole._replace(text=whole.text._replace(delta_ND=words), regions=whole.regions._replace(delta_NF=features)))
    for a, b in ((plain.text.x_ND, still.text.x_ND), (plain.image.x_ND, still.image.x_ND), (plain.pooled_BD, still.pooled_BD)):
        assert torch.equal(a, b)
    other = torch.randn_like(features)
    moved = model(whole._replace(regions=whole.regions._replace(delta_NF=other)))
    same = model(whole._replace(regions=whole.regions._replace(features_NF=whole.regions.features_NF + other)))
    torch.testing.assert_close(moved.pooled_BD, same.pooled_BD, atol=1e-5, rtol=0)
    assert (moved.pooled_BD - plain.pooled_BD).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lacking", [None, "text", "regions"])
def test_the_pooled_state_alone_is_the_same(attention: str, lacking: str | None) -> None:
    for name in NAMES:
        model, given = shaken(name, attention), batch()
        given = given if lacking is None else given._replace(**{lacking: None})
        alone = model(given, "pooled")
        assert alone.text is None and alone.image is None
        full = model(given)
        assert (full.text is None) == (lacking == "text") and (full.image is None) == (lacking == "regions")
        torch.testing.assert_close(alone.pooled_BD, full.pooled_BD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("first", [False, True])
def test_the_image_may_come_first(first: bool) -> None:
    """Without positions in the encoder the order is one of rows alone; a mask tells which order was taken."""
    model, whole = shaken("oscar"), batch()
    text, image, prefix = model.embed(whole)
    parts = (model.transformer, model.pooler, text, image)
    got = fuse(*parts, "fused", prefix, image_first=first)
    expected = model(whole)
    torch.testing.assert_close(got.text.x_ND, expected.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.image.x_ND, expected.image.x_ND, atol=1e-5, rtol=0)
    longest = max(a + b for a, b in zip(LENGTHS, COUNTS, strict=True))
    mask = torch.ones(4, longest, longest, dtype=torch.bool)
    lead = COUNTS if first else LENGTHS
    for i, n in enumerate(lead):
        mask[i, :n, n:] = mask[i, n:, :n] = False
    apart = fuse(*parts, "fused", prefix, image_first=first, mask=mask)
    alone = model(whole._replace(regions=None))
    torch.testing.assert_close(apart.text.x_ND, alone.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(apart.pooled_BD, alone.pooled_BD, atol=1e-5, rtol=0)
    cheap = fuse(*parts, "pooled", prefix, image_first=first, mask=mask)
    torch.testing.assert_close(cheap.pooled_BD, apart.pooled_BD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_born_on_meta_and_everything_is_trained(name: str) -> None:
    with torch.device("meta"):
        model = MAKERS[name]()
    model.to_empty(device="cpu")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        assert not own or hasattr(module, "reset_parameters"), type(module)
        if own:
            module.reset_parameters()
    assert all(p.dim() > 0 and p.isfinite().all() for p in model.parameters())
    shake(model).train()
    whole = batch()
    removed = torch.arange(sum(COUNTS)) % 2 == 0
    out = model(whole._replace(regions=whole.regions._replace(chosen_N=removed, removed_N=removed)))
    out = (out.text.x_ND, out.image.x_ND, out.pooled_BD)
    sum((x * torch.randn_like(x)).sum() for x in out).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", NAMES)
def test_spec_blocks_and_mistakes(name: str) -> None:
    model, whole = shaken(name), batch()
    spec = model.spec
    assert (spec.width, spec.vocab_size, spec.kinds, spec.feature_width) == (WIDTH, WORDS, ("fused", "pooled"), FEATURES)
    assert spec.token_table is model.text.words and spec.visual_width is None and spec.pooled_width is None
    assert spec.feature_projection is (None if name.startswith("oscar") else model.regions.projection)
    assert len(model.blocks()) == 2
    with pytest.raises(ValueError, match="offers kind 'fused' or 'pooled', not 'paired'"):
        model(whole, "paired")
    with pytest.raises(ValueError, match="text, regions or both"):
        model(whole._replace(text=None, regions=None))
    with pytest.raises(ValueError, match="mmpretrain data regions"):
        model(whole._replace(regions=None, image=Pixels(torch.zeros(4, 3, 8, 8), ((8, 8),) * 4)))
    with pytest.raises(ValueError, match="one width"):
        type(model)(model.text, nn.Module.__new__(type("Wide", (nn.Module,), {"width": 5})), model.transformer)


BASE = {  # without heads, then with those of pre-training
    "uniter-base": (109_898_752 - 2048, 112_938_887 - 2048),  # the release keeps a row of zeros beside the mask embedding
    "unicoder-vl-base": (111_062_016, 112_916_604),
    "imagebert-base": (111_062_016, 114_491_516),
    "oscar-base": (111_060_480, 111_684_668),
    "oscar-plus-base": (111_062_016, 111_686_973),
    "visualbert-base": (111_450_624, 112_074_812),
    "uniter-large": (335_695_872 - 2048, 340_524_935 - 2048),
    "unicoder-vl-large": (337_248_256, 339_972_476),
    "imagebert-large": (337_248_256, 342_071_676),
    "oscar-large": (337_246_208, 338_330_428),
    "oscar-plus-large": (337_248_256, 338_333_501),
}


def heads(name: str, width: int, words: int) -> int:
    """Parameters of the heads of pre-training, the word decoder and UNITER's regression being tied."""
    transform = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
    made: list[nn.Module] = [transform, nn.Linear(width, 3 if "plus" in name else 2)]
    free = words  # the bias of the decoder
    if name.startswith("uniter"):
        made += [nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(2)] + [nn.Linear(width, 1601)]
        free += 2048
    if name.startswith(("unicoder", "imagebert")):
        made.append(nn.Linear(width, 1600))
    if name.startswith("imagebert"):
        made.append(nn.Linear(width, 2048))
    return free + sum(p.numel() for module in made for p in module.parameters())


@pytest.mark.parametrize("name", sorted(BASE))
def test_parameter_counts_of_the_releases(name: str) -> None:
    with torch.device("meta"):
        model = build(yaml.safe_load((SIZES / f"{name}.yaml").read_text())["model"]["system"])
        count = sum(p.numel() for p in model.parameters())
        assert (count, count + heads(name, model.spec.width, model.spec.vocab_size)) == BASE[name]
    rates = {(b.mlp.dropout.p, b.dropout.p, b.attention.dropout, type(b.mlp.act_dropout)) for b in model.blocks()}
    assert rates == {(0.1, 0.1, 0.1, nn.Identity)}
    assert all(m.eps == 1e-12 for m in model.modules() if isinstance(m, nn.LayerNorm))

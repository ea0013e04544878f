"""MIM: what is masked, scored and counted, for BEiT and for ViLT; what does not fit is refused with the remedy."""

import pytest
import torch
from helpers import tiny
from helpers.beit_case import CODES, VOCABULARY, batch, beit, mim, part
from helpers.objectives import Drawer, example
from torch.nn import functional as F

from mmpretrain.data.collate import Collator
from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.nn.layers import LayerNorm
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mim import MIM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.patch_masking import PatchMasker
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, CodeBatch, Spec, Text


def vilt(mask_token: bool = True, patch_limit: int = -1) -> ViLT:
    text = TextEmbedder(60, 32, 12, segments=2)
    image = PatchEmbedder(32, 8, 4, patch_limit=patch_limit, mask_token=mask_token)
    model = ViLT(text, image, Transformer(32, 2, 4))
    tiny.shake(model)
    return model


def told(whole: Batch) -> Batch:
    """With texts."""
    n = whole.size
    ids = torch.randint(5, 59, (n, 9), generator=torch.Generator().manual_seed(3))
    return whole._replace(text=Text(ids, tuple(4 + i % 6 for i in range(n))))


@pytest.mark.parametrize("system", ["beit", "beit-cls", "vilt"])
def test_only_masked_patches_are_scored_with_the_codes_that_stand_there(system: str) -> None:
    model = vilt() if system == "vilt" else beit(pooling="cls" if system == "beit-cls" else "mean")
    objective, whole = mim(model), told(batch())
    corrupted = objective.corrupt(whole, {})
    masked, count = corrupted.image.masked_N, int(corrupted.image.masked_N.sum())
    assert whole.image.masked_N is None and 0 < count == int(objective.count(corrupted)) <= 0.4 * len(masked)
    hidden = model(corrupted)
    prefix = hidden.image_prefix
    patches = torch.cat([states[prefix:] for states in hidden.image.x_ND.split(hidden.image.layout.lengths)])
    logits = objective.head(patches[masked])
    torch.testing.assert_close(objective.logits(hidden, corrupted), logits)
    score = objective(hidden, corrupted)
    labels = whole.codes.ids_N[masked]
    torch.testing.assert_close(score.sum, F.cross_entropy(logits, labels, reduction="sum"))
    assert int(score.count) == count
    right, of = score.stats["accuracy"]
    assert int(right) == int((logits.argmax(-1) == labels).sum()) and int(of) == count
    assert [int(x) for x in score.stats["masked_share"]] == [count, len(masked)]
    (grad,) = torch.autograd.grad(score.sum, hidden.image.x_ND)
    scored = torch.cat([rows[prefix:] for rows in grad.abs().sum(1).split(hidden.image.layout.lengths)]) > 0
    assert torch.equal(scored, masked) and int((grad.abs().sum(1) > 0).sum()) == count


@pytest.mark.parametrize("system", ["beit", "vilt"])
def test_the_model_does_not_see_what_is_masked(system: str) -> None:
    model = vilt() if system == "vilt" else beit()
    objective, whole = mim(model), batch(((32, 32),))
    corrupted = objective.corrupt(whole, {})
    pixels = corrupted.image.pixels_BCHW.clone().requires_grad_()
    out = model(corrupted._replace(image=corrupted.image._replace(pixels_BCHW=pixels)))
    (grad,) = torch.autograd.grad(out.image.x_ND.square().sum(), pixels)
    seen = F.max_pool2d(grad.abs().sum(1), 8).view(-1) > 0
    assert torch.equal(seen, ~corrupted.image.masked_N)


def test_draws_do_not_depend_on_the_layout() -> None:
    """The loss of a batch is that of its parts; masks follow the sample."""
    model, whole = beit(), batch()
    objective = mim(model)
    together = objective(model(made := objective.corrupt(whole, {})), made)
    masks = made.image.masked_N.split([h * w for h, w in whole.codes.grids])
    total = count = 0.0
    for order in ([2, 0], [3], [1]):
        own = objective.corrupt(part(whole, order, grow=1), {})
        assert torch.equal(own.image.masked_N, torch.cat([masks[i] for i in order]))
        score = objective(model(own), own)
        total, count = total + score.sum, count + score.count
    torch.testing.assert_close(total, together.sum, rtol=1e-5, atol=1e-5)
    assert count == together.count


def test_pairs_that_do_not_match_are_masked_but_do_not_count() -> None:
    model = vilt()
    whole = told(batch())._replace(matched_B=torch.tensor([True, False, True, False]))
    every, matched = mim(model), mim(model, only_if_matched=True)
    one, other = every.corrupt(whole, {}), matched.corrupt(whole, {})
    assert torch.equal(one.image.masked_N, other.image.masked_N)
    own = [int(x.sum()) for x in one.image.masked_N.split([h * w for h, w in whole.codes.grids])]
    assert int(matched.count(other)) == own[0] + own[2] < sum(own) == int(every.count(one))
    nothing = matched.corrupt(whole._replace(matched_B=torch.zeros(4, dtype=torch.bool)), {})
    score = matched(model(nothing), nothing)
    assert score.sum.item() == 0 == score.count.item()


def test_codes_go_with_a_picture_that_is_swapped() -> None:
    """ITM first: what is masked and predicted is of the picture that is shown."""

    class Codes(Drawer):
        def other_visual(self, k):
            key, visual = super().other_visual(k)
            number = int(key[1:])
            return key, visual._replace(image=torch.full((3, 16, 16), number, dtype=torch.uint8), codes=torch.full((2, 2), number))

    examples = []
    for i in range(8):
        image = torch.full((3, 16, 16), i, dtype=torch.uint8)
        examples.append(example(i)._replace(image=image, codes=torch.full((2, 2), i)))
    for both in (False, True):
        itm, objective = ITM({"image": 1.0}, both=both, view="both"), MIM(view="both", only_if_matched=True)
        root = Pretraining(vilt(), {"itm": itm, "mim": objective})
        root.bind(VOCABULARY)
        preparer = itm.preparer()
        prepared = [one._replace(targets={"itm": preparer.prepare(one, Codes(i, 8))}) for i, one in enumerate(examples)]
        corrupted = root.corrupt(Collator(0, (0.5,) * 3, (0.5,) * 3).batch(prepared, {"itm": preparer}))["both"]
        shown = corrupted.image.pixels_BCHW[:, 0, 0, 0].long()
        assert torch.equal(corrupted.codes.dense()[:, 0, 0], shown) and len(set(shown.tolist())) > 4
        assert corrupted.size == (16 if both else 8) and int(objective.count(corrupted)) == int(corrupted.matched_B.sum())


def test_beside_other_objectives_in_one_view_and_in_others() -> None:
    model = vilt()
    objectives = {"mlm": MLM(view="main", prob=0.5), "mim": MIM(masker=PatchMasker(kind="uniform")), "alone": MIM(view="alone")}
    root = Pretraining(model, objectives)
    root.bind(VOCABULARY)
    views = root.corrupt(told(batch()))
    assert not torch.equal(views["main"].image.masked_N, views["alone"].image.masked_N)  # draws of each objective's own name
    scores = root(views)
    assert all(torch.isfinite(score.sum) and score.count > 0 for score in scores.values())
    sum(score.sum for score in scores.values()).backward()
    assert model.image.mask_token.grad.abs().sum() > 0
    again = Pretraining(vilt(), {"a": MIM(), "b": MIM()})
    again.bind(VOCABULARY)
    with pytest.raises(ValueError, match="b: patches of view 'main' are masked already; give this objective a view of its own"):
        again.corrupt(batch())


def test_the_mask_token_is_off_by_default_and_changes_no_name() -> None:
    off, on = vilt(mask_token=False), vilt()
    assert set(on.state_dict()) - set(off.state_dict()) == {"image.mask_token"}
    assert {name for name, _ in off.named_parameters()} == {name for name, _ in tiny.vilt().named_parameters() if ".2." not in name}
    with torch.no_grad():
        on.load_state_dict({**on.state_dict(), **off.state_dict()})
        whole = told(batch())
        torch.testing.assert_close(on(whole).image.x_ND, off(whole).image.x_ND, atol=0, rtol=0)
    with pytest.raises(ValueError, match="set mask_token: true of its PatchEmbedder"):
        MIM().bind(off.spec, VOCABULARY)
    with pytest.raises(ValueError, match="set mask_token: true of its PatchEmbedder"):
        off(mim(on).corrupt(whole, {}))


def test_sampled_patches_are_refused() -> None:
    model = vilt(patch_limit=6)
    corrupted = mim(model).corrupt(told(batch()), {})
    assert model(corrupted).image.layout.lengths == (17, 9, 7, 13)  # evaluation takes all
    with pytest.raises(Misfit, match=r"patch_limit=6 drops patches at random, masked ones too.* set patch_limit: -1"):
        model.train()(corrupted)


def test_what_does_not_fit_the_codes() -> None:
    objective, whole = mim(beit()), batch()
    for field, what in (("image", "pictures"), ("codes", "codes")):
        with pytest.raises(ValueError, match=f"mim: the batch has no {what}: set data.show: image\\+codes"):
            objective.corrupt(whole._replace(**{field: None}), {})
    square = batch(((32, 32),))
    twice = square._replace(codes=CodeBatch(torch.zeros(64, dtype=torch.int64), ((8, 8),)))
    said = r"sample 's0' has 4 x 4 patches \(32 x 32 pixels by patch_size=8\) and 8 x 8 codes; each patch needs one code: take pictures of "
    with pytest.raises(ValueError, match=said + r"64 x 64 pixels \(data.image.size\), or patch_size: 4, or make codes"):
        objective.corrupt(twice, {})
    odd = square._replace(codes=CodeBatch(torch.zeros(15, dtype=torch.int64), ((5, 3),)))
    with pytest.raises(ValueError, match=r"40 x 24 pixels \(data.image.size\), or make codes of pictures of another size"):
        objective.corrupt(odd, {})


def test_binding() -> None:
    spec = beit().spec
    assert mim(beit()).head.decoder.out_features == CODES
    for codes, known, size in ((None, 50, 50), (64, 64, 64), (64, 0, 64)):
        objective = MIM(codes)
        objective.bind(spec, VOCABULARY._replace(codes=known))
        assert objective.head.decoder.out_features == size and objective.head.dense is None
    deep = MIM(transform=True)
    deep.bind(spec, VOCABULARY)
    assert isinstance(deep.head.norm, LayerNorm) and deep.head(torch.zeros(2, 32)).shape == (2, CODES)
    for options, changed, known, match in (
        ({}, {}, 0, "mim: the data hold no codes of pictures: set data.show: image\\+codes, or `codes`"),
        ({"codes": 30}, {}, 40, "the codebook of the data has 40 codes, the head 30: set codes: 40, or null"),
        ({"codes": 50}, {}, 40, "the codebook of the data has 40 codes, the head 50: set codes: 40, or null"),
        ({}, {"patch_size": None}, 40, "cuts pictures into patches"),
        ({}, {"kinds": ("paired",)}, 40, "needs a model with the kind 'fused'"),
    ):
        with pytest.raises(ValueError, match=match):
            MIM(**options).bind(spec._replace(**changed), VOCABULARY._replace(codes=known))
    with pytest.raises(ValueError, match="codes=1 must be at least 2"):
        MIM(1)
    assert isinstance(spec, Spec) and spec.vocab_size == 0


def test_misuse() -> None:
    model, whole = beit(), batch()
    with pytest.raises(ValueError, match="no head yet"):
        MIM().corrupt(whole, {})
    objective = mim(model)
    with pytest.raises(ValueError, match="call corrupt"):
        objective.count(whole)
    corrupted = objective.corrupt(whole, {})
    changed = corrupted._replace(image=corrupted.image._replace(masked_N=corrupted.image.masked_N.clone()))
    with pytest.raises(ValueError, match="put ITM before it"):
        objective.count(changed)
    hidden = model(corrupted)
    fewer = Ragged(hidden.image.x_ND[:8], type(hidden.image.layout)((2, 2, 2, 2)))
    with pytest.raises(ValueError, match="one state for every patch of the batch: set patch_limit: -1"):
        objective.logits(hidden._replace(image=fewer), corrupted)
    flags = corrupted.image._replace(masked_N=corrupted.image.masked_N[:-1])
    with pytest.raises(ValueError, match="one flag for each of"):
        model(corrupted._replace(image=flags))

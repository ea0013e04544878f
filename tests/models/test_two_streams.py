"""What every two-stream model holds to: company, order and padding do not matter, streams meet, the pooled state alone is the same."""

import pytest
import torch
from helpers import official, two_streams
from helpers.two_streams import SYSTEMS
from torch import Tensor

from mmpretrain.nn.ragged import Ragged
from mmpretrain.types import Batch


def rows(ragged: Ragged, i: int) -> Tensor:
    return ragged.x_ND[ragged.layout.starts[i] : ragged.layout.starts[i + 1]]


def chosen(batch: Batch, order: list[int], grow: int = 0) -> Batch:
    """The samples ``order`` of a batch, with more padding of the text."""
    text, regions = batch.text, batch.regions
    ends = torch.tensor((0, *regions.lengths)).cumsum(0).tolist()
    packed = torch.cat([torch.arange(ends[i], ends[i + 1]) for i in order])
    pad = lambda x: torch.nn.functional.pad(x[order], (0, grow), value=1)
    return Batch(
        tuple(batch.keys[i] for i in order),
        batch.draw_keys_B[order],
        text._replace(ids_BT=pad(text.ids_BT), segments_BT=pad(text.segments_BT), lengths=tuple(text.lengths[i] for i in order)),
        regions=regions._replace(
            features_NF=regions.features_NF[packed],
            boxes_N4=regions.boxes_N4[packed],
            lengths=tuple(regions.lengths[i] for i in order),
            sizes=tuple(regions.sizes[i] for i in order),
        ),
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_company_order_and_padding_do_not_matter(system: str, attention: str) -> None:
    model, batch = two_streams.shaken(system, attention), two_streams.batch()
    whole = model(batch)
    for order, grow in (([2, 0, 3, 1], 0), ([1], 2), ([3, 2], 1)):
        part = model(chosen(batch, order, grow))
        for place, i in enumerate(order):
            torch.testing.assert_close(rows(part.text, place), rows(whole.text, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(rows(part.image, place), rows(whole.image, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(part.pooled_BD[place], whole.pooled_BD[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_order_of_regions_does_not_matter(system: str) -> None:
    """Regions have no positions: their states move with them, everything else stays."""
    model, batch = two_streams.shaken(system), two_streams.batch(regions=(4, 3, 6, 5))
    turned = torch.cat([torch.arange(4).flip(0), torch.tensor([5, 4, 6]), torch.arange(7, 13).roll(2), torch.arange(13, 18)])
    regions = batch.regions._replace(features_NF=batch.regions.features_NF[turned], boxes_N4=batch.regions.boxes_N4[turned])
    a, b = model(batch), model(batch._replace(regions=regions))
    torch.testing.assert_close(b.text.x_ND, a.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(b.pooled_BD, a.pooled_BD, atol=1e-5, rtol=0)
    inner = lambda out: torch.cat([rows(out.image, i)[out.image_prefix :] for i in range(4)])
    torch.testing.assert_close(inner(b), inner(a)[turned], atol=1e-5, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_streams_meet_and_no_sample_sees_another(system: str) -> None:
    model, batch = two_streams.shaken(system), two_streams.batch()
    features = batch.regions.features_NF.clone().requires_grad_()
    delta = torch.zeros(sum(batch.text.lengths), model.spec.width, requires_grad=True)
    out = model(batch._replace(text=batch.text._replace(delta_ND=delta), regions=batch.regions._replace(features_NF=features)))
    samples = [torch.repeat_interleave(torch.arange(4), torch.tensor(n)) for n in (two_streams.TEXTS, two_streams.REGIONS)]
    for states in (out.text, out.image):
        loss = rows(states, 2).square().sum()
        for grad, of in zip(torch.autograd.grad(loss, (delta, features), retain_graph=True), samples, strict=True):
            assert grad[of == 2].abs().max() > 0
            assert grad[of != 2].abs().max() == 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_pooled_state_alone_is_the_same(system: str, attention: str) -> None:
    model, batch = two_streams.shaken(system, attention), two_streams.batch()
    alone = model(batch, "pooled")
    assert alone.text is None and alone.image is None
    torch.testing.assert_close(alone.pooled_BD, model(batch).pooled_BD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_parameter_can_be_born_on_meta_and_is_trained(system: str) -> None:
    with torch.device("meta"):
        model = SYSTEMS[system](dropout=0.1)
    model.to_empty(device="cpu")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        assert not own or hasattr(module, "reset_parameters"), type(module)
        if own:
            module.reset_parameters()
    assert all(p.dim() > 0 for p in model.parameters())
    out = model.train()(two_streams.batch())
    (out.pooled_BD.square().sum() + out.text.x_ND.square().sum() + out.image.x_ND[:, 0].square().sum()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert dead == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_are_not_zero(system: str) -> None:
    """Of every parameter as a whole; rows that no token reads have none, nor has the third of a bias that belongs to keys."""
    model = two_streams.shaken(system)
    out = model(two_streams.batch())
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) for x in (out.text.x_ND, out.image.x_ND, out.pooled_BD)]
    sum((x * w).sum() for x, w in zip((out.text.x_ND, out.image.x_ND, out.pooled_BD), weights, strict=True)).backward()
    assert [name for name, p in model.named_parameters() if p.grad.abs().max() < 1e-7] == []


@pytest.mark.parametrize("system", SYSTEMS)
def test_dropout_acts_in_training_only(system: str) -> None:
    torch.manual_seed(5)
    model, batch = two_streams.shaken(system, dropout=0.2), two_streams.batch()
    plain = SYSTEMS[system]().eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(batch).pooled_BD, plain(batch).pooled_BD, atol=1e-6, rtol=0)
    model.train()
    assert not torch.equal(model(batch).text.x_ND, model(batch).text.x_ND)
    assert not torch.equal(model(batch).image.x_ND, model(batch).image.x_ND)


@pytest.mark.parametrize("system", SYSTEMS)
def test_bf16_autocast_is_near(system: str) -> None:
    model, batch = two_streams.shaken(system), two_streams.batch()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(batch)
    assert mixed.text.x_ND.dtype == mixed.image.x_ND.dtype == torch.float32
    assert (mixed.text.x_ND - model(batch).text.x_ND).abs().max() < 0.2


@pytest.mark.parametrize("system", SYSTEMS)
def test_spec_blocks_and_mistakes(system: str) -> None:
    model, batch = SYSTEMS[system](), two_streams.batch()
    spec = model.spec
    assert spec.token_table is model.text.words and spec.feature_projection is model.regions.projection
    image = {"lxmert": 24, "interbert": 24}.get(system, official.VILBERT.image)
    assert (spec.width, spec.visual_width, spec.feature_width, spec.vocab_size) == (24, image, 10, 30)
    assert (spec.pooled_width or spec.width) == model(batch).pooled_BD.shape[1]
    assert spec.pooled_dropout == (0.0 if system == "lxmert" else 0.1)
    assert spec.norm_eps == (1e-5 if system == "ernie_vil" else 1e-12)
    assert len(model.blocks()) == 7
    for kind in ("fused", "pooled"):
        with pytest.raises(ValueError, match="text and regions"):
            model(batch._replace(regions=None), kind)
        with pytest.raises(ValueError, match="text and regions"):
            model(batch._replace(text=None), kind)
    with pytest.raises(ValueError, match="'fused' or 'pooled'"):
        model(batch, "paired")

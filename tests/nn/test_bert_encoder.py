"""A post-norm stack is BERT's encoder, dropout included; masks of query and key pairs; dropout of attention probabilities."""

import pytest
import torch
from helpers.tiny import shake
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from mmpretrain.nn.attention import Attention
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged

WIDTH, HEADS, DEPTH = 48, 4, 2
LENGTHS = (7, 3, 9, 1)


def bert(dropout: float = 0.0, attention: str = "eager") -> tuple[Transformer, BertEncoder]:
    """Ours and theirs with the same weights; theirs has dropouts on the states and on the probabilities."""
    config = BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        attn_implementation="eager",
    )
    theirs = shake(BertEncoder(config))
    options = {"dropout": dropout, "attention_dropout": dropout, "activation_dropout": 0.0, "init": "normal"}
    ours = Transformer(WIDTH, DEPTH, HEADS, norm="post", eps=1e-12, final_norm=False, attention=attention, **options).eval()
    for block, layer in zip(ours.blocks, theirs.layer, strict=True):
        read = layer.attention.self
        with torch.no_grad():
            for kind in ("weight", "bias"):
                qkv = [getattr(part, kind) for part in (read.query, read.key, read.value)]
                getattr(block.attention.qkv, kind).copy_(torch.cat(qkv))
        block.attention.out.load_state_dict(layer.attention.output.dense.state_dict())
        block.norm1.load_state_dict(layer.attention.output.LayerNorm.state_dict())
        block.mlp.up.load_state_dict(layer.intermediate.dense.state_dict())
        block.mlp.down.load_state_dict(layer.output.dense.state_dict())
        block.norm2.load_state_dict(layer.output.LayerNorm.state_dict())
    return ours, theirs


def run(theirs: BertEncoder, x_BLD: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Their states; ``allowed`` is bool (B, 1 or L, L)."""
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return theirs(x_BLD, attention_mask=bias[:, None]).last_hidden_state


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
def test_is_berts_encoder_with_padding(attention: str, atol: float) -> None:
    ours, theirs = bert(attention=attention)
    layout = Layout(LENGTHS)
    x = torch.randn(layout.total, WIDTH, requires_grad=True)
    expected = layout.pack(run(theirs, layout.pad(x), layout.mask_BL(x.device)[:, None]))
    got = ours(Ragged(x, layout)).x_ND
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)
    weights = torch.randn_like(expected)
    (a,), (b,) = (torch.autograd.grad((y * weights).sum(), x) for y in (got, expected))
    torch.testing.assert_close(a, b, atol=atol * b.abs().max().item(), rtol=0)


def test_drops_where_bert_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal lengths, so that both draw the same masks from one generator: a dropout too many or at another place would show."""
    monkeypatch.setattr("mmpretrain.nn.dropout._slow", lambda x: False)  # torch's own draws
    ours, theirs = bert(dropout=0.3)
    layout = Layout((6, 6, 6))
    x = torch.randn(layout.total, WIDTH)
    everything = layout.mask_BL(x.device)[:, None]
    torch.manual_seed(5)
    expected = run(theirs.train(), layout.pad(x), everything)
    torch.manual_seed(5)
    got = ours.train()(Ragged(x, layout)).pad()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    torch.manual_seed(5)
    ours.blocks[0].mlp.act_dropout = torch.nn.Dropout(0.3)  # what ViT has and BERT has not
    assert (ours(Ragged(x, layout)).pad() - expected).abs().max() > 0.1


@pytest.mark.parametrize("attention", ["eager", "sdpa", "auto"])
@pytest.mark.parametrize("lengths", [LENGTHS, (5, 5, 5)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_of_pairs(attention: str, lengths: tuple[int, ...], causal: bool) -> None:
    """What each query may see, on top of padding, equals the padded encoder with a 3-d mask; so does one row per sample."""
    ours, theirs = bert(attention=attention)
    ours.causal = causal
    layout = Layout(lengths)
    n = layout.max_len
    mask = (torch.rand(layout.size, n, n) < 0.6) | torch.eye(n, dtype=torch.bool)
    x = torch.randn(layout.total, WIDTH, requires_grad=True)
    allowed = (mask & layout.mask_BL(x.device)[:, None]) | torch.eye(n, dtype=torch.bool)
    allowed = allowed.tril() if causal else allowed
    expected = layout.pack(run(theirs, layout.pad(x), allowed))
    got = ours(Ragged(x, layout), mask=mask).x_ND
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (got - ours(Ragged(x, layout)).x_ND).abs().max() > 0.05
    for only in ("last",) if causal else ("first", "last"):
        rows = layout.first_B(x.device) if only == "first" else layout.last_B(x.device)
        torch.testing.assert_close(ours(Ragged(x, layout), only, mask).x_ND, got[rows], atol=1e-5, rtol=0)
    (grad,) = torch.autograd.grad(got.square().sum(), x)
    assert grad.isfinite().all()


def test_a_hidden_key_has_no_influence() -> None:
    ours, _ = bert()
    layout = Layout((4, 2))
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, :3, 3] = False
    x = torch.randn(6, WIDTH, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(Ragged(x, layout), mask=mask).x_ND[:3].sum(), x)
    assert grad[3].abs().max() == 0 and (grad[:3].abs().amax(1) > 0).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_probabilities_are_dropped_in_training_only(attention: str) -> None:
    """The mean over many draws is the undropped output, and its variance is that of dropping keys with probability p."""
    layer = shake(Attention(8, 1, dropout=0.25))
    from mmpretrain.nn.attention import plan

    layout = Layout((3,))
    table = plan(layout, torch.device("cpu"), attention, dropping=True)
    x = torch.randn(3, 8)
    still = layer(x, table)
    assert torch.equal(layer(x, table), still)
    layer.train()
    draws = torch.stack([layer(x, table) for _ in range(4000)])
    q, k, v = layer.qkv(x).chunk(3, dim=1)
    parts = (q @ k.T / 8**0.5).softmax(-1)[:, :, None] * (v @ layer.out.weight.T)[None]  # what each key adds
    variance = (parts.square() * (0.25 / 0.75)).sum(1)
    assert ((draws.mean(0) - still).abs() < 4.5 * (variance / 4000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.15, atol=1e-6)


def test_what_cannot_be_done_is_named() -> None:
    ours = Transformer(16, 1, 2, attention="varlen", attention_dropout=0.1)
    x = Ragged(torch.randn(4, 16), Layout((4,)))
    with pytest.raises(Misfit, match="attention_dropout in training: use auto"):
        ours(x)
    with pytest.raises(ValueError, match="mask of query and key pairs: use auto"):
        ours.eval()(x, mask=torch.ones(1, 4, 4, dtype=torch.bool))
    ours.attention = "auto"
    for wrong in (torch.ones(1, 4, 3, dtype=torch.bool), torch.ones(1, 4, 4)):
        with pytest.raises(ValueError, match=r"torch.bool \(1, 4, 4\)"):
            ours(x, mask=wrong)

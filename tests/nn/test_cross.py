"""Packed cross-attention equals a padded one written the plain way; co-attention and cross-modality layers have the published order."""

import math

import pytest
import torch
from torch import Tensor, nn

from mmpretrain.nn.attention import Plan
from mmpretrain.nn.cross import CoAttention, CrossLayers, attend, plans
from mmpretrain.nn.layers import LayerNorm
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged

TEXT, IMAGE = (5, 1, 9, 3), (2, 6, 1, 4)
LENGTHS = [(TEXT, IMAGE), ((4, 4, 4), (3, 3, 3)), (TEXT, (3, 3, 3, 3)), ((2, 2, 2, 2), IMAGE)]


def shaken(module: nn.Module) -> nn.Module:
    """Gains around one and biases off zero, so that a wrong path cannot pass."""
    for part in module.modules():
        if isinstance(part, LayerNorm):
            nn.init.normal_(part.weight, 1.0, 0.2)
        for name, parameter in part.named_parameters(recurse=False):
            if name == "bias":
                nn.init.normal_(parameter, 0.0, 0.1)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.15)
    return module


def streams(lengths: tuple[tuple[int, ...], tuple[int, ...]], widths: tuple[int, int]) -> tuple[Ragged, Ragged]:
    text, image = (Layout(n) for n in lengths)
    return Ragged(torch.randn(text.total, widths[0]), text), Ragged(torch.randn(image.total, widths[1]), image)


def read(q_BTD: Tensor, k_BLD: Tensor, v_BLD: Tensor, mask_BL: Tensor, heads: int) -> Tensor:
    """Multi-head attention on a padded batch."""
    split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = split(q_BTD), split(k_BLD), split(v_BLD)
    bias = torch.zeros(mask_BL.shape).masked_fill(~mask_BL, -torch.inf)[:, None, None]
    return ((q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)


def thirds(linear: nn.Linear, x: Tensor) -> tuple[Tensor, ...]:
    return linear(x).chunk(3, -1)


def mlp(part: nn.Module, x: Tensor) -> Tensor:
    return part.down(torch.nn.functional.gelu(part.up(x)))


def padded_co(stack: CoAttention, t: Tensor, v: Tensor, masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    for block in stack.blocks:
        tq, tk, tv = thirds(block.text.qkv, t)
        vq, vk, vv = thirds(block.image.qkv, v)
        t = block.text.norm1(t + block.text.out(read(tq, vk, vv, masks[1], stack.heads)))
        v = block.image.norm1(v + block.image.out(read(vq, tk, tv, masks[0], stack.heads)))
        t, v = block.text.norm2(t + mlp(block.text.mlp, t)), block.image.norm2(v + mlp(block.image.mlp, v))
    return t, v


def padded_cross(stack: CrossLayers, t: Tensor, v: Tensor, masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    for layer in stack.blocks:
        (tq, tk, tv), (vq, vk, vv) = thirds(layer.qkv, t), thirds(layer.qkv, v)
        t, v = (
            layer.norm(t + layer.out(read(tq, vk, vv, masks[1], stack.heads))),
            layer.norm(v + layer.out(read(vq, tk, tv, masks[0], stack.heads))),
        )
        for block, mask, own in ((layer.text, masks[0], "t"), (layer.image, masks[1], "v")):
            x = t if own == "t" else v
            q, k, w = thirds(block.attention.qkv, x)
            x = block.norm1(x + block.attention.out(read(q, k, w, mask, stack.heads)))
            x = block.norm2(x + mlp(block.mlp, x))
            t, v = (x, v) if own == "t" else (t, x)
    return t, v


def through(stack: CoAttention | CrossLayers, text: Ragged, image: Ragged) -> tuple[Tensor, Tensor]:
    if isinstance(stack, CrossLayers):
        return stack(text, image)
    tables, states = stack.plans(text, image), (text.x_ND, image.x_ND)
    for block in stack.blocks:
        states = block(*states, *tables)
    return states


def made(kind: str, **options) -> tuple[CoAttention | CrossLayers, tuple[int, int]]:
    if kind == "co":
        return shaken(CoAttention(16, 24, 32, 2, 4, text_hidden=40, image_hidden=24, **options)), (16, 24)
    return shaken(CrossLayers(16, 2, 4, **options)), (16, 16)


@pytest.mark.parametrize("kind", ["co", "cross"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_padded_twin_with_gradients(kind: str, attention: str, lengths) -> None:
    stack, widths = made(kind, attention=attention)
    text, image = streams(lengths, widths)
    twin = padded_co if kind == "co" else padded_cross
    got = through(stack, text, image)
    masks = tuple(x.layout.mask_BL(x.x_ND.device) for x in (text, image))
    padded = twin(stack, text.pad(), image.pad(), masks)
    expected = [x.layout.pack(y) for x, y in zip((text, image), padded, strict=True)]
    weights = [torch.randn_like(y) for y in expected]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    losses = [sum((y * w).sum() for y, w in zip(ys, weights, strict=True)) for ys in (got, expected)]
    for a, b in zip(*(torch.autograd.grad(loss, list(stack.parameters())) for loss in losses), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_first_text_state_alone_is_the_same(attention: str) -> None:
    stack, widths = made("cross", attention=attention)
    text, image = streams((TEXT, IMAGE), widths)
    full, _ = stack(text, image)
    short, no_image = stack(text, image, first=True)
    assert no_image is None
    torch.testing.assert_close(short, full[text.layout.first_B(full.device)], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["co", "cross"])
def test_no_sample_sees_another_and_both_streams_meet(kind: str) -> None:
    stack, widths = made(kind)
    text, image = streams((TEXT, IMAGE), widths)
    text.x_ND.requires_grad_()
    image.x_ND.requires_grad_()
    out = through(stack, text, image)
    samples = [x.layout.sample_N(x.x_ND.device) for x in (text, image)]
    for i in range(len(TEXT)):
        for states, sample in zip(out, samples, strict=True):
            grads = torch.autograd.grad(states[sample == i].square().sum(), (text.x_ND, image.x_ND), retain_graph=True)
            for grad, of in zip(grads, samples, strict=True):
                assert grad[of != i].abs().max() == 0
                assert (grad[of == i].abs().amax(1) > 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["co", "cross"])
def test_attention_dropout_acts_in_training_only(kind: str, attention: str) -> None:
    stack, widths = made(kind, attention=attention, attention_dropout=0.3)
    text, image = streams((TEXT, IMAGE), widths)
    stack.train()
    assert not torch.equal(through(stack, text, image)[0], through(stack, text, image)[0])
    stack.eval()
    plain, _ = made(kind, attention=attention)
    plain.load_state_dict(stack.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(through(stack, text, image), through(plain, text, image), strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_dropped_probabilities_have_the_right_mean(attention: str) -> None:
    text, image = streams(((5, 2), (3, 4)), (8, 8))
    q, kv = torch.randn(text.layout.total, 8), torch.randn(image.layout.total, 16)
    tables = plans(text, image, attention, True)
    draws = torch.stack([attend(q, kv, *tables, 2, 0.3) for _ in range(1500)])
    spread = draws.std(0) / 1500**0.5
    assert ((draws.mean(0) - attend(q, kv, *tables, 2)).abs() <= 5 * spread + 1e-6).all()


def test_the_variable_length_kernel_gets_queries_and_keys_of_their_own_layouts(monkeypatch) -> None:
    """The kernel is CUDA's; here a loop over samples stands for it, and what it is given must lead to the same numbers."""
    import torch.nn.attention.varlen as kernels

    def loop(q, k, v, starts_q, starts_k, max_q, max_k, window_size):
        assert (max_q, max_k, window_size) == (int(starts_q.diff().max()), int(starts_k.diff().max()), (-1, -1))
        rows = []
        for i in range(len(starts_q) - 1):
            a, b = slice(starts_q[i], starts_q[i + 1]), slice(starts_k[i], starts_k[i + 1])
            scores = torch.einsum("qhd,khd->hqk", q[a], k[b]) / math.sqrt(q.shape[-1])
            rows.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[b]))
        return torch.cat(rows)

    monkeypatch.setattr(kernels, "varlen_attn", loop)
    text, image = streams((TEXT, IMAGE), (8, 8))
    q, kv = torch.randn(text.layout.total, 8), torch.randn(image.layout.total, 16)
    table = lambda of: Plan("varlen", False, of.size, of.max_len, None, None, of.cumulative_B1(q.device), None)
    packed = [table(text.layout), table(image.layout)]
    expected = attend(q, kv, *plans(text, image, "eager", False), 2)
    torch.testing.assert_close(attend(q, kv, *packed, 2), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["co", "cross"])
@pytest.mark.parametrize("init", ["normal", "torch", "trunc_normal"])
def test_meta_built_stack_initialises_like_a_built_one(kind: str, init: str) -> None:
    build = lambda: CoAttention(16, 24, 32, 2, 4, init=init) if kind == "co" else CrossLayers(16, 2, 4, init=init)
    torch.manual_seed(3)
    expected = build().state_dict()
    with torch.device("meta"):
        stack = build()
    stack.to_empty(device="cpu")
    torch.manual_seed(3)
    for module in stack.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    for name, value in stack.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        CoAttention(16, 24, 30, 1, 4)
    with pytest.raises(ValueError, match="does not divide"):
        CrossLayers(15, 1, 4)
    with pytest.raises(ValueError, match="choose one of auto"):
        CrossLayers(16, 1, 4, attention="fast")
    with pytest.raises(ValueError, match="at least 1"):
        CrossLayers(16, 0, 4)
    with pytest.raises(ValueError, match="unknown init"):
        CoAttention(16, 24, 32, 1, 4, init="he")
    with pytest.raises(ValueError, match="same samples"):
        CrossLayers(16, 1, 4)(*streams(((2, 3), (1,)), (16, 16)))
    with pytest.raises(Misfit, match=r"needs CUDA.*: use auto"):
        CrossLayers(16, 1, 4, attention="varlen")(*streams((TEXT, IMAGE), (16, 16)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["co", "cross"])
def test_compiled_blocks_recompile_a_bounded_number_of_times(kind: str) -> None:
    import torch._dynamo.testing

    generator = torch.Generator().manual_seed(0)
    draw = lambda size: tuple(torch.randint(1, 12, (size,), generator=generator).tolist())
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    stack, widths = made(kind)
    batches = [streams((draw(size), draw(size)), widths) for size in (3, 4, 4, 5, 6, 4, 3, 8)]
    plain = [through(stack, *batch) for batch in batches]
    for block in stack.blocks:
        block.compile(backend=counter)
    for batch, expected in zip(batches, plain, strict=True):
        for a, b in zip(through(stack, *batch), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert counter.frame_count <= 8, counter.frame_count

"""The packed transformer equals a padded one written the plain way, and nothing leaks between samples."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmpretrain.nn import attention as attention_module
from mmpretrain.nn.attention import plan
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention, CrossLayers
from mmpretrain.nn.layers import LayerNorm
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.streams import TwoStreams
from mmpretrain.nn.vit import VisionTransformer

LENGTHS = (5, 1, 9, 3)
CASES = [{"causal": c, "norm": n, "activation": a} for c in (False, True) for n, a in (("pre", "gelu"), ("post", "quick_gelu"))]


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Gains around one and biases off zero, so that a wrong path cannot pass."""
    for part in module.modules():
        if isinstance(part, LayerNorm):
            torch.nn.init.normal_(part.weight, 1.0, 0.2)
        for name, parameter in part.named_parameters(recurse=False):
            if name == "bias":
                torch.nn.init.normal_(parameter, 0.0, 0.1)
            elif parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0.0, 0.15)
    return module


def padded_twin(stack: Transformer, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """The same stack on a padded batch: every layer sees padding, attention is spelt out."""
    b, length, width = x_BLD.shape
    bias = torch.zeros(b, 1, length, length).masked_fill(~mask_BL[:, None, None, :], -torch.inf)
    if stack.causal:
        bias = bias + torch.full((length, length), -torch.inf).triu(1)
    quick = stack.activation == "quick_gelu"
    for block in stack.blocks:
        def attend(y, block=block):
            q, k, v = block.attention.qkv(y).view(b, length, 3, stack.heads, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
            return block.attention.out((weights @ v).transpose(1, 2).reshape(b, length, width))

        def mlp(y, block=block):
            h = block.mlp.up(y)
            return block.mlp.down(h * torch.sigmoid(1.702 * h) if quick else F.gelu(h))

        if block.post:
            x_BLD = block.norm1(x_BLD + attend(x_BLD))
            x_BLD = block.norm2(x_BLD + mlp(x_BLD))
        else:
            x_BLD = x_BLD + attend(block.norm1(x_BLD))
            x_BLD = x_BLD + mlp(block.norm2(x_BLD))
    return stack.norm(x_BLD)


@pytest.fixture(params=[None, 3])
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Groups of samples of about one length that attention is made to form; None: none, these batches are too small."""
    if request.param:
        monkeypatch.setattr(attention_module, "WORTH", 1)
        monkeypatch.setattr(attention_module, "GROUPS", request.param)
    return request.param


def test_groups_leave_padding_out_and_are_made_where_they_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    here, layout = torch.device("cpu"), Layout((40, 3, 38, 5, 4, 39, 2, 37))
    monkeypatch.setattr(attention_module, "GROUPS", 2)
    worth = 8 * 40**2 - 4 * 5**2 - 4 * 40**2
    enough = 2**23 // worth + 1
    for width, backend, wanted in ((enough - 1, "sdpa", False), (enough, "sdpa", True), (2**23, "eager", False), (0, "sdpa", False)):
        table = plan(layout, here, backend, width=width)
        assert bool(table.groups) is wanted and (table.mask_BL is None) is wanted
    table = plan(layout, here, width=2**23)
    assert [(group.size, group.max_len) for group in table.groups] == [(4, 5), (4, 40)] and table.rows == 4 * 45
    assert table.order_B.tolist() == [6, 1, 4, 3, 7, 2, 5, 0] and table.order_B[table.place_B].tolist() == list(range(8))
    starts = {6: 0, 1: 5, 4: 10, 3: 15, 7: 20, 2: 60, 5: 100, 0: 140}
    expected = [starts[i] + slot for i, length in enumerate(layout.lengths) for slot in range(length)]
    assert table.flat_N.tolist() == expected
    assert not plan(Layout((9,) * 8), here, width=2**23).groups
    assert not plan(layout, here, width=2**23, mask=torch.ones(8, 40, 40, dtype=torch.bool)).groups


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", [LENGTHS, (4, 4, 4)])
def test_equals_padded_twin_with_gradients(case: dict, attention: str, lengths: tuple[int, ...], groups: int | None) -> None:
    stack = shaken(Transformer(16, 3, 4, attention=attention, **case))
    layout = Layout(lengths)
    x = torch.randn(layout.total, 16)
    weights = torch.randn(layout.total, 16)
    got = stack(Ragged(x, layout)).x_ND
    expected = layout.pack(padded_twin(stack, layout.pad(x), layout.mask_BL(x.device)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    ours = torch.autograd.grad((got * weights).sum(), list(stack.parameters()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(stack.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("only", "causal"), [("first", False), ("last", False), ("last", True)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_row_per_sample_is_the_same_row(only: str, causal: bool, attention: str, groups: int | None) -> None:
    stack = shaken(Transformer(16, 2, 4, causal=causal, attention=attention))
    layout = Layout(LENGTHS)
    x = Ragged(torch.randn(layout.total, 16), layout)
    rows = layout.first_B(x.x_ND.device) if only == "first" else layout.last_B(x.x_ND.device)
    full, short = stack(x).x_ND[rows], stack(x, only=only)
    assert short.layout.lengths == (1, 1, 1, 1)
    torch.testing.assert_close(short.x_ND, full, atol=1e-5, rtol=0)
    a = torch.autograd.grad(full.square().sum(), list(stack.parameters()))
    b = torch.autograd.grad(short.x_ND.square().sum(), list(stack.parameters()))
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_no_sample_sees_another(groups: int | None) -> None:
    stack = shaken(Transformer(16, 2, 4))
    layout = Layout(LENGTHS)
    x = torch.randn(layout.total, 16, requires_grad=True)
    out = stack(Ragged(x, layout)).x_ND
    sample = layout.sample_N(x.device)
    for i in range(layout.size):
        (grad,) = torch.autograd.grad(out[sample == i].sum(), x, retain_graph=True)
        assert grad[sample != i].abs().max() == 0
        assert grad[sample == i].abs().max() > 0


def test_causal_rows_see_only_the_past(groups: int | None) -> None:
    stack = shaken(Transformer(16, 2, 4, causal=True))
    layout = Layout(LENGTHS)
    x = torch.randn(layout.total, 16, requires_grad=True)
    out = stack(Ragged(x, layout)).x_ND
    row = 6 + 4  # the fifth of nine tokens of the third sample
    (grad,) = torch.autograd.grad(out[row].sum(), x)
    assert grad[row + 1 :].abs().max() == 0
    assert grad[:6].abs().max() == 0
    assert (grad[6 : row + 1].abs().amax(1) > 0).all()


def test_bf16_autocast_keeps_norms_in_fp32() -> None:
    stack = shaken(Transformer(16, 2, 4))
    x = Ragged(torch.randn(18, 16), Layout(LENGTHS))
    plain = stack(x).x_ND
    with torch.autocast("cpu", torch.bfloat16):
        mixed = stack(x).x_ND
    assert mixed.dtype == torch.float32
    assert (mixed - plain).abs().max() < 0.15
    half = LayerNorm(16).bfloat16()
    y = torch.randn(4, 16).mul(50).bfloat16()
    torch.testing.assert_close(half(y), F.layer_norm(y.float(), (16,)).bfloat16(), atol=0, rtol=0)


def test_meta_built_model_initialises_like_a_built_one() -> None:
    torch.manual_seed(3)
    expected = Transformer(16, 2, 4, init="clip").state_dict()
    with torch.device("meta"):
        stack = Transformer(16, 2, 4, init="clip")
    stack.to_empty(device="cpu")
    torch.manual_seed(3)
    for module in stack.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    for name, value in stack.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "does not divide"),
        ({"norm": "sandwich"}, "pre or post"),
        ({"attention": "fast"}, "attention"),
        ({"activation": "relu6"}, "activation"),
        ({"init": "he"}, "init"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_mistakes_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**{"width": 16, "depth": 1, "heads": 4, **arguments})


@pytest.mark.parametrize(
    ("capability", "dtype", "head", "runs"),
    [
        ((8, 0), torch.bfloat16, 64, True),
        ((9, 0), torch.float16, 256, True),
        ((7, 5), torch.float16, 64, False),  # Turing
        ((8, 0), torch.bfloat16, 12, False),
        ((8, 0), torch.bfloat16, 264, False),
        ((8, 0), torch.float32, 64, False),
    ],
)
def test_where_the_variable_length_kernel_runs(
    capability: tuple[int, int], dtype: torch.dtype, head: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert attention_module.runs_varlen(torch.device("cuda"), dtype, head) is runs
    assert not attention_module.runs_varlen(torch.device("cpu"), dtype, head)


def test_every_stack_tells_the_width_of_its_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(attention_module, "runs_varlen", lambda device, dtype, head: bool(asked.append(head)))
    x, y = (Ragged(torch.randn(5, 24), Layout((2, 3))) for _ in range(2))
    Transformer(24, 1, 2)(x)
    VisionTransformer(24, 1, 3, relative="none")(x, ((1, 1), (1, 2)))
    CrossLayers(24, 1, 4)(x, y)
    CoAttention(24, 24, 20, 1, 4).plans(x, y)
    stack, other = Transformer(24, 1, 1), Transformer(24, 1, 12)
    TwoStreams(x, y, stack, other, CoAttention(24, 24, 6, 1, 2))
    assert asked == [12, 8, 6, 6, 5, 5, 24, 2, 3, 3]


def test_first_row_of_a_causal_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="last"):
        Transformer(16, 1, 4, causal=True)(Ragged(torch.randn(4, 16), Layout((4,))), only="first")


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_compiled_blocks_recompile_a_bounded_number_of_times(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo.testing

    if grouped:
        monkeypatch.setattr(attention_module, "WORTH", 1)
        monkeypatch.setattr(attention_module, "GROUPS", 3)

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    stack = shaken(Transformer(16, 2, 4))
    plain = [stack(Ragged(x, Layout(n))).x_ND for x, n in _batches()]
    for block in stack.blocks:
        block.compile(backend=counter)
    for (x, lengths), expected in zip(_batches(), plain, strict=True):
        torch.testing.assert_close(stack(Ragged(x, Layout(lengths))).x_ND, expected, atol=1e-5, rtol=0)
    assert counter.frame_count <= 8, counter.frame_count


def _batches() -> list[tuple[torch.Tensor, tuple[int, ...]]]:
    generator = torch.Generator().manual_seed(0)
    out = []
    for size in (3, 4, 4, 4, 5, 6, 4, 3, 7, 8):
        lengths = tuple(torch.randint(2, 12, (size,), generator=generator).tolist())
        out.append((torch.randn(sum(lengths), 16, generator=generator), lengths))
    return out

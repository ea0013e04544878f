"""Heads: the tie holds by construction, poolers do what their options say."""

import pytest
import torch

from mmpretrain.nn.heads import PairPooler, Pooler, VocabularyHead
from mmpretrain.nn.layers import Embedding


def test_tied_head_follows_its_table() -> None:
    with torch.device("meta"):
        table = Embedding(20, 8)
        head = VocabularyHead(8, 20, table)
    root = torch.nn.ModuleDict({"table": table, "head": head}).to_empty(device="cpu")
    for module in root.modules():
        if list(module.parameters(recurse=False)):
            module.reset_parameters()
    assert head.weight is table.weight
    assert "decoder.weight" not in head.state_dict()
    assert sum(p.numel() for p in head.parameters()) == 8 * 8 + 8 + 2 * 8 + 20
    head(torch.randn(3, 8)).sum().backward()
    assert table.weight.grad is not None


def test_untied_head_owns_its_decoder() -> None:
    head = VocabularyHead(8, 20, None)
    assert head(torch.randn(3, 8)).shape == (3, 20)
    assert "decoder.weight" in head.state_dict()


def test_wrong_table_is_refused() -> None:
    with pytest.raises(ValueError, match="tie"):
        VocabularyHead(8, 20, Embedding(21, 8))


def test_a_pooler_of_old_is_bert_s() -> None:
    pooler, x = Pooler(8, 0.3), torch.randn(3, 8)
    torch.testing.assert_close(pooler(x), torch.tanh(x @ pooler.dense.weight.T + pooler.dense.bias), atol=1e-6, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("fusion", ["mul", "sum", "text"])
def test_two_poolers_and_what_becomes_of_them(fusion: str, activation: str) -> None:
    pooler = PairPooler(8, 6, 5, fusion, activation, std=0.5)
    text, image = torch.randn(3, 8), torch.randn(3, 6)
    act = {"tanh": torch.tanh, "relu": torch.relu}[activation]
    a = act(text @ pooler.text.dense.weight.T + pooler.text.dense.bias)
    if fusion == "text":
        assert pooler.image is None
        expected = a
    else:
        b = act(image @ pooler.image.dense.weight.T + pooler.image.dense.bias)
        expected = a * b if fusion == "mul" else a + b
    out = pooler(text, image)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
    out.sum().backward()
    assert all(p.grad is not None for p in pooler.parameters())
    assert sum(p.numel() for p in pooler.parameters()) == 5 * 9 + (0 if fusion == "text" else 5 * 7)


def test_mistakes_of_poolers_are_named() -> None:
    with pytest.raises(ValueError, match="choose tanh or relu"):
        Pooler(8, activation="gelu")
    with pytest.raises(ValueError, match="choose one of mul, sum, text"):
        PairPooler(8, 6, 5, "concat")

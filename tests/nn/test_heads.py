"""Heads: the tie holds by construction."""

import pytest
import torch

from mmpretrain.nn.heads import VocabularyHead
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

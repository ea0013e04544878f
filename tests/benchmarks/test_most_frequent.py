"""The share of the most frequent target."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import torch
from helpers.scripts import script


def test_targets_of_all_views_are_counted_by_objective() -> None:
    batches = [[(5, 7), (5,)], [(9, 5), ()]]  # labels of two objectives, each in a view of its own
    tokens = lambda ids: SimpleNamespace(labels_R=torch.tensor(ids, dtype=torch.int64))
    view = lambda name, ids: SimpleNamespace(targets={name: tokens(ids), "match": torch.ones(2)})
    root = SimpleNamespace(corrupt=lambda batch: {"main": view("mlm", batch[0]), "graph": view("graph", batch[1])})
    assert script("most_frequent").counted(root, batches) == {"mlm": Counter({5: 2, 7: 1, 9: 1}), "graph": Counter({5: 1})}

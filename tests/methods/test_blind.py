"""``Blind``: heads that see nothing learn the frequencies of their labels, and the model stays as it was."""

from __future__ import annotations

import torch
from train.fakes import FakeData, sample_batch
from train.runs import build, run

from mmpretrain.methods.blind import Blind


def test_heads_learn_frequencies() -> None:
    module = build(transforms=[Blind()])
    module.vocabulary = FakeData().vocabulary
    module.configure_model()
    root = module.root
    views = root.corrupt(sample_batch(list(range(64))))
    optimizer = torch.optim.Adam([p for p in root.parameters() if p.requires_grad], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        scores = root(views)
        sum(score.sum / score.count for score in scores.values()).backward()
        optimizer.step()
    labels_R = views["main"].targets["mlm"][views["main"].targets["mlm"] >= 0]
    shares = torch.bincount(labels_R).double() / len(labels_R)
    unigram = -torch.xlogy(shares, shares).sum().item()
    found = scores["mlm"]
    assert abs((found.sum / found.count).item() - unigram) < 1e-3
    assert abs((found.stats["accuracy"][0] / found.stats["accuracy"][1]).item() - shares.max().item()) < 1e-6


def test_only_heads_are_trained() -> None:
    module = build(transforms=[Blind()])
    module.vocabulary = FakeData().vocabulary
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.root.named_parameters()}
    after = run(module, 3).parameters
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("objectives.") for name in changed)

"""Scene graph prediction: what may be masked by brute force, numbers of nodes, parts, empty graphs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers.objectives import MASK, keys, ragged, spec, vocabulary
from helpers.pairs import PairStack, words

from mmpretrain.data.scenegraph_parse import parse
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.scenegraph import PARTS, SceneGraph, node_tokens
from mmpretrain.types import Batch, Example

THINGS, COLOURS, LINKS = ("dog", "umbrella", "tennis racket", "bench"), ("red", "wooden", "striped"), ("next to", "riding", "behind")
CAPTIONS = [
    f"the {a} {x} {link} a {b} {y}"
    for a, b in itertools.permutations(COLOURS, 2) for x, y in itertools.permutations(THINGS, 2) for link in LINKS
]  # fmt: skip


def bound(**options) -> SceneGraph:
    torch.manual_seed(0)
    objective = SceneGraph(**options)
    objective.name = "graph"
    objective.bind(spec(vocab=400), vocabulary(400))
    return objective


def batch_for(texts, graphs=None, seconds=None, matched=None) -> Batch:
    graphs = [parse(text) for text in texts] if graphs is None else graphs
    tokens = [words(text, None if seconds is None else seconds[i]) for i, text in enumerate(texts)]
    preparer, examples = SceneGraph().preparer(), []
    for i, (token, graph) in enumerate(zip(tokens, graphs, strict=True)):
        examples.append(preparer.prepare(Example(f"k{i}", i, 0, token, None, meta={} if graph is None else {"graph": graph}), None))
    target = preparer.collate(examples, PairStack())
    text, matched_B = PairStack().text(tokens), None if matched is None else torch.tensor(matched)
    return Batch(tuple(map(str, range(len(texts)))), keys(len(texts)), text, matched_B=matched_B, targets={"graph": target})


def chosen_of(out: Batch) -> torch.Tensor:
    layout, target = Layout(out.text.lengths), out.targets["graph"]
    return layout.pad(torch.zeros(layout.total, dtype=torch.bool).index_fill(0, target.rows_R, True))


def in_spans(text: str, spans) -> list[set[int]]:
    """The tokens of each span, by the characters that they cover."""
    tokens = words(text)
    cover = lambda start, end: {t for t, (a, b) in enumerate(tokens.offsets) if b > a and a < end and b > start}
    return [cover(span[0], span[1]) for span in spans]


def test_every_node_is_whole_and_objects_stay_visible():
    texts = CAPTIONS[:300]
    graphs = [parse(text) for text in texts]
    assert all(graph["attributes"] and graph["relations"] for graph in graphs)
    for part in PARTS:
        out = bound(parts=(part,), mask=1.0, random=0.0).corrupt(batch_for(texts), {})
        for text, graph, chosen, ids in zip(texts, graphs, chosen_of(out), out.text.ids_BT):
            picked = set(chosen.nonzero().squeeze(1).tolist())
            nodes = in_spans(text, graph[part])
            hit = [node for node in nodes if node & picked]
            assert all(node <= picked for node in hit) and picked == set().union(*hit)
            assert len(hit) == max(1, round(0.3 * len(nodes)))
            if part != "objects":
                assert not picked & set().union(*in_spans(text, graph["objects"]))
            assert set((ids == MASK).nonzero().squeeze(1).tolist()) == picked
    assert any(len(node) > 1 for node in in_spans("the red tennis racket", parse("the red tennis racket")["objects"]))


def test_spans_that_overlap_are_taken_once_and_objects_win():
    text = "an orange on the red orange table"
    graph = {"objects": [[3, 9], [21, 33], [21, 27]], "attributes": [[17, 20, 1], [21, 27, 1], [17, 20, 0]], "relations": [[10, 12, 0, 1]]}
    objects, attributes, relations = node_tokens(words(text), graph)
    assert objects == (-1, -1, 0, -1, -1, -1, 1, 1, -1)  # the third shares a token with the second
    assert attributes == (-1, -1, -1, -1, -1, 0, -1, -1, -1)  # "orange" is an object, and "red" is one node
    assert relations == (-1, -1, -1, 0, -1, -1, -1, -1, -1)


def test_nodes_behind_the_end_of_a_cut_text_are_left_out():
    text, graph = "red dog and tennis racket", {"objects": [[4, 7], [12, 25]], "attributes": [[0, 3, 0]], "relations": []}
    whole = words(text)
    cut = whole._replace(ids=whole.ids[:5] + whole.ids[-1:], words=whole.words[:5] + (-1,), offsets=whole.offsets[:5] + ((0, 0),))
    assert [max(nodes) for nodes in node_tokens(whole, graph)] == [1, 0, -1]
    assert node_tokens(cut, graph)[0] == (-1, -1, 0, -1, -1, -1)  # "tennis racket" lost its second word
    assert all(set(nodes) == {-1} for nodes in node_tokens(whole._replace(offsets=None), graph))


def test_tags_behind_the_caption_are_no_nodes():
    texts = CAPTIONS[:50]
    out = bound().corrupt(batch_for(texts, seconds=["dog bench umbrella dog"] * 50), {})
    chosen = chosen_of(out)
    assert chosen.any(1).all() and not (chosen & (out.text.segments_BT == 1)).any()


def test_parts_are_drawn_alike_from_those_that_are_there():
    n = 6000
    texts = [CAPTIONS[0]] * (n // 2) + ["a dog behind the bench"] * (n // 2)
    target = bound().corrupt(batch_for(texts), {}).targets["graph"]
    layout = Layout(batch_for(texts).text.lengths)
    part_B = torch.full((n,), -1).index_put((layout.sample_N(torch.device("cpu"))[target.rows_R],), target.groups_R)
    for rows, kinds in ((part_B[: n // 2], (0, 1, 2)), (part_B[n // 2 :], (0, 2))):
        counts = np.array([(rows == kind).sum().item() for kind in kinds])
        mean = n / 2 / len(kinds)
        assert counts.sum() == n // 2 and ((counts - mean) ** 2 / mean).sum() < 16
    only = bound(parts=("attributes",)).corrupt(batch_for(texts), {}).targets["graph"]
    assert set(layout.sample_N(torch.device("cpu"))[only.rows_R].tolist()) == set(range(n // 2))


def test_masked_as_words_are():
    texts = CAPTIONS * 20
    out = bound(parts=("objects",)).corrupt(batch_for(texts), {})
    target, ids_N = out.targets["graph"], Layout(out.text.lengths).pack(out.text.ids_BT)
    now, n = ids_N[target.rows_R], target.rows_R.numel()
    share = 0.1 * (1 - 1 / 395)
    for hits, p in (((now == MASK).sum(), 0.8), (((now != MASK) & (now != target.labels_R)).sum(), share)):
        assert abs(hits.item() - n * p) < 4 * (n * p * (1 - p)) ** 0.5
    assert target.maskable == sum(len(set().union(*in_spans(t, parse(t)["objects"]))) for t in CAPTIONS) * 20


def test_no_graph_no_loss_and_no_gradient():
    objective, texts = bound(), CAPTIONS[:4]
    for graphs in ([{}] * 4, [None] * 4, [{"objects": [], "attributes": [], "relations": []}] * 4):
        batch = batch_for(texts, graphs)
        out = objective.corrupt(batch, {})
        assert torch.equal(out.text.ids_BT, batch.text.ids_BT)
        states = ragged(batch.text.lengths)
        states.x_ND.requires_grad_()
        score = objective(Fused(states, None, None), out)
        assert score.sum.item() == 0 and score.count.item() == 0
        score.sum.backward()
        assert not states.x_ND.grad.any() and all(not p.grad.any() for p in objective.parameters() if p.grad is not None)
    mixed = objective.corrupt(batch_for(CAPTIONS[:2], [parse(CAPTIONS[0]), {}]), {})
    assert chosen_of(mixed).any(1).tolist() == [True, False]


def test_false_texts_and_unknown_words_stay():
    texts = CAPTIONS[:60]
    batch = batch_for(texts, matched=[i % 2 == 0 for i in range(60)])
    assert chosen_of(bound().corrupt(batch, {})).any(1).tolist() == [i % 2 == 0 for i in range(60)]
    assert chosen_of(bound(only_if_matched=False).corrupt(batch, {})).any(1).all()
    unknown = batch._replace(text=batch.text._replace(ids_BT=batch.text.ids_BT.clone().masked_fill_(batch.text.words_BT >= 0, 1)))
    assert not chosen_of(bound(only_if_matched=False).corrupt(unknown, {})).any()


def test_same_draws_in_parts_and_with_more_padding():
    whole = chosen_of(bound().corrupt(batch_for(CAPTIONS[:20]), {}))
    longer = batch_for([*CAPTIONS[:20], "a dog " * 30])
    again = chosen_of(bound().corrupt(longer, {}))
    assert torch.equal(whole, again[:20, : whole.shape[1]])


def test_loss_and_the_head_of_mlm():
    objective, mlm, specification = SceneGraph(head_of="mlm"), MLM(), spec(vocab=400)
    objectives = torch.nn.ModuleDict({"mlm": mlm, "graph": objective})
    objective.name = "graph"
    for one in (objective, mlm):
        one.bind(specification, vocabulary(400))
        one.connect(objectives)
    out = objective.corrupt(batch_for(CAPTIONS[:30]), {})
    states = ragged(out.text.lengths)
    score, target = objective(Fused(states, None, None), out), out.targets["graph"]
    logits = mlm.head(states.x_ND[target.rows_R]).double()
    loss = -logits.log_softmax(-1).gather(1, target.labels_R[:, None]).sum()
    assert score.sum.item() == pytest.approx(loss.item(), rel=1e-5) and score.count == target.rows_R.numel()
    assert sum(score.stats[f"accuracy_{part}"][1] for part in PARTS) == score.count
    assert sum(score.stats[f"accuracy_{part}"][0] for part in PARTS) == score.stats["accuracy"][0]


def test_clear_errors():
    for wrong in ({"parts": ("verbs",)}, {"parts": ()}, {"parts": ("objects", "objects")}, {"prob": 0.0}, {"mask": 1.2}):
        with pytest.raises(ValueError, match="SceneGraph"):
            SceneGraph(**wrong)
    batch = batch_for(CAPTIONS[:3])
    with pytest.raises(ValueError, match="its preparer must run"):
        bound().corrupt(batch._replace(targets={}), {})
    with pytest.raises(ValueError, match="a view of its own"):
        bound().corrupt(batch._replace(text=PairStack().text([words("another text")] * 3)), {})
    with pytest.raises(ValueError, match="has no text"):
        SceneGraph().preparer().prepare(Example("k", 0, 0, None, None), None)

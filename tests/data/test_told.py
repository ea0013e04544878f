"""What is told of samples: captions, statements, questions and their mixture; answers, graphs and captions that objectives ask for."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.shards import picture, write_shards, write_tar

from mmpretrain.data import answers
from mmpretrain.data.answers import AnswerOptions
from mmpretrain.data.decode import questions
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import open_reader
from mmpretrain.data.scenegraph_parse import parse
from mmpretrain.data.text import Tokenizer
from mmpretrain.data.told import telling, texts
from mmpretrain.data.units import Units
from mmpretrain.data_tools import scenes
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.scenegraph import PARTS, SceneGraph
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.vqa import VQA
from mmpretrain.types import Sample, Spec

COLOURS = ("red", "green", "blue", "yellow")


def asked(i: int) -> list[dict]:
    """One to three questions of sample i; every seventh sample has none."""
    made = [
        {"question": f"what colour is thing {i}?", "answer": COLOURS[i % 4].upper()},
        {"question": "is it bigger?", "answers": {"yes": 1.0, "maybe not": 0.3, "unheard of": 0.6}},
        {"question": f"how many are there in number {i} here?", "answer": i},
    ]
    return [] if i % 7 == 6 else made[: 1 + i % 3]


def write(folder, n: int = 42, captions: int = 2):
    members = []
    for i in range(n):
        meta = {"captions": [f"caption {j} of {i} é" for j in range(captions + i % 2)], "questions": asked(i)}
        members += [(f"k{i:03d}.png", picture(i)), (f"k{i:03d}.json", json.dumps(meta).encode())]
    write_tar(folder / "00000.tar", members)
    return folder


def test_only_what_asks_is_a_question():
    found = [{"question": "  a? "}, {"question": " "}, {"question": 3}, "b?", {"answer": "c"}, {"question": "\ud800"}, {"question": "d\0?"}]
    assert questions({"questions": found}) == [{"question": "a?"}] and not questions({"questions": "a?"}) and not questions({})


def test_questions_are_counted(tmp_path):
    reader = open_reader(str(write(tmp_path)), "val")
    index = reader.indexes[0]
    assert index.questions_S.tolist() == [len(asked(i)) for i in range(42)]
    assert index.question_bytes_C.tolist() == [len(one["question"].encode()) for i in range(42) for one in asked(i)]


@pytest.mark.parametrize("text_from", ["captions", "questions", "captions+questions"])
@pytest.mark.parametrize("every", [False, True])
def test_units_and_the_lengths_of_their_texts(tmp_path, text_from, every):
    reader = open_reader(str(write(tmp_path)), "val")
    units, samples = Units(reader, text_from, every), [reader.read(i) for i in range(42)]
    told = {i: texts(sample, text_from) for i, sample in enumerate(samples) if texts(sample, text_from)}
    assert units.samples == len(told) == (42 if "captions" in text_from else 36)
    assert units.total == (sum(map(len, told.values())) if every else len(told))
    numbers = np.arange(units.total)
    rows = units.lengths(0, numbers, np.random.default_rng(0).integers(1 << 62, size=len(numbers)).astype(np.uint64))
    seen = set()
    for number, size, text in zip(numbers, rows[2], rows[4], strict=True):
        sample, own, _ = units.resolve(0, int(number))
        assert own in (None, text) and size == len(told[sample][text].encode())
        seen.add((sample, int(text)))
    assert not every or len(seen) == units.total


def test_a_set_without_questions_says_so(tmp_path):
    with pytest.raises(DataError, match=r"has a picture and questions; 12 samples have captions: set data\.text_from=captions"):
        data(write_shards(tmp_path), text_from="questions")
    with pytest.raises(DataError, match="text_from is 'answers'; take one of captions, statements, questions"):
        Units(open_reader(str(tmp_path), "val"), "answers")


def test_what_is_said_of_a_text():
    graph = {"objects": [[0, 3]], "attributes": [], "relations": []}
    about = {"questions": [{"question": "q?", "answers": {"Yes": 1, "no": 0.3}}], "scene_graph": [graph], "statements": []}
    sample = Sample("k", ("cat sat", "a red dog"), (), meta=about)
    first = telling(sample, "captions+questions", 0, ("graph", "captions"), {"yes": 4})
    assert first == (True, {"caption_index": 0, "captions": sample.captions, "graph": graph})
    assert telling(sample, "captions", 1, ("graph",), {}).about == {"caption_index": 1, "graph": parse("a red dog")}
    question = telling(sample, "captions+questions", 2, (), {"yes": 4, "maybe": 1})
    assert question.about == {"question_index": 0, "answer_scores": {4: 1.0}}
    for wrong in ({"objects": [[0, 99]]}, {"attributes": [[0, 2]]}, {"objects": 3}, []):
        with pytest.raises(BadSample, match="scene_graph"):
            telling(sample._replace(meta={"scene_graph": [wrong]}), "captions", 0, ("graph",), {})


def test_scores_of_answers():
    assert answers.scores({"answer": " Two  Dogs "}) == {"two dogs": 1.0} and answers.scores({"answer": 3}) == {"3": 1.0}
    assert answers.scores({"answers": {"A": 0.3, "a": 0.9, "b": 0}, "answer": "c"}) == {"a": 0.9} and answers.scores({}) == {}
    for wrong in (["a"], {"a": "x"}, {"a": 3.0}):
        with pytest.raises(BadSample, match="answers"):
            answers.scores({"answers": wrong})


def test_answers_are_counted_read_and_kept(tmp_path, own_cache):
    shards = write(tmp_path / "shards")
    reader = open_reader(str(shards), "val")
    made = answers.make(AnswerOptions(), reader)
    counts = {name: sum(name in answers.scores(one) for i in range(42) for one in asked(i)) for name in made}
    assert list(made) == sorted(counts, key=lambda name: (-counts[name], name)) and {"red", "yes", "maybe not", "2"} <= set(made)
    assert answers.make(AnswerOptions(most=3), reader) == made[:3] and min(counts.values()) == 1
    assert answers.make(AnswerOptions(min_count=2), reader) == tuple(name for name in made if counts[name] > 1)
    assert len(list((own_cache / "answers").iterdir())) == 3
    (tmp_path / "a.txt").write_text("Yes\n\nno\nyes\n two  dogs\n")
    (tmp_path / "a.json").write_text('["Yes", "no", "two dogs"]')
    for name in ("a.txt", "a.json"):
        assert answers.make(AnswerOptions(str(tmp_path / name)), reader) == ("yes", "no", "two dogs")
    (tmp_path / "b.txt").write_text("yes\n")
    for name, what in (("none.txt", "no such file"), ("b.txt", "no two answers")):
        with pytest.raises(DataError, match=what):
            answers.make(AnswerOptions(str(tmp_path / name)), reader)
    with pytest.raises(DataError, match="hold no two answers"):
        answers.make(AnswerOptions(), open_reader(str(write_shards(tmp_path / "plain")), "val"))
    tokenizer = data(shards, text_from="questions", answers=AnswerOptions(most=5), preparers={}).tokenizer
    assert tokenizer.vocabulary.answers == made[:5]
    for again in (Tokenizer.from_json(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer)), tokenizer.with_max_tokens(9)):  # noqa: S301  (own bytes)
        assert again.vocabulary == tokenizer.vocabulary
    assert "answers" not in data(shards, preparers={}).tokenizer.to_json()


def test_batches_of_captions_and_questions(tmp_path):
    shards = write(tmp_path)
    vqa = VQA()
    made = data(
        shards, text_from="captions+questions", answers=AnswerOptions(), max_tokens=40, preparers={"vqa": vqa.preparer()}, batch_size=6
    )
    names, seen = made.tokenizer.vocabulary.answers, {"caption": 0, "question": 0}
    for _ in range(2):
        for item in made.train_dataloader():
            for batch in item:
                made.advance()
                target = batch.targets["vqa"]
                for row, key in enumerate(batch.keys):
                    text = made.tokenizer.decode(batch.text.ids_BT[row, : batch.text.lengths[row]].tolist())
                    question = next(
                        (one for one in asked(int(key[1:])) if one["question"].replace("?", " ?") in (text, text[:-1] + " ?")), None
                    )
                    seen["question" if question else "caption"] += 1
                    assert (row in target.rows) == (question is not None) and (question or text.startswith("caption"))
                    if question:
                        place = target.rows.index(row)
                        found = dict(zip((names[i] for i in target.ids_RK[place]), target.scores_RK[place].tolist()))
                        assert {k: pytest.approx(v) for k, v in answers.scores(question).items()} == {k: v for k, v in found.items() if v}
    assert all(count > 10 for count in seen.values())
    tokens = made.tokenizer.tokenize("what colour is thing 3?")
    assert made.tokenizer.vocabulary.special[1] not in tokens.ids  # the tokenizer has read the questions


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return scenes.write(tmp_path_factory.mktemp("told") / "scenes", 48, 0, "train", workers=1)


def test_scene_graphs_of_what_is_shown(generated):
    """Through the data module: tokens of nodes spell the words of the parser's spans."""
    objective = SceneGraph(prob=1.0, mask=1.0, random=0.0)
    objective.name = "graph"
    made = data(generated, preparers={"graph": objective.preparer()}, max_tokens=60)
    nodes_seen = 0
    for batch in next(iter(made.train_dataloader())):
        target = batch.targets["graph"]
        assert target.lengths == batch.text.lengths
        for row, n in enumerate(batch.text.lengths):
            ids = batch.text.ids_BT[row, :n]
            sample = next(one for one in (made.reader.read(i) for i in range(48)) if one.key == batch.keys[row])
            text = next(one for one in sample.captions if made.tokenizer.tokenize(one).ids == tuple(ids.tolist()))
            graph = parse(text)
            for part, of in zip(PARTS, target.of_PBT[:, row, :n]):
                said = [made.tokenizer.decode(ids[of == number].tolist()) for number in range(int(of.max()) + 1)]
                spans = dict.fromkeys(text[span[0] : span[1]].lower() for span in graph[part])
                assert set(said) <= set(spans), (text, part)
                nodes_seen += len(said)
                if part == "objects":
                    assert len(said) == len({tuple(span[:2]) for span in graph[part]})
    assert nodes_seen > 20


def test_pairs_of_captions(generated):
    made = data(generated, preparers={"sip": SIP().preparer()}, max_tokens=80)
    samples = {one.key: one for one in (made.reader.read(i) for i in range(48))}
    labels = []
    for item in made.train_dataloader():
        for batch in item:
            target = batch.targets["sip"]
            assert target.rows == tuple(range(batch.size))
            texts_BT, segments_BT = target.swaps.texts.ids_BT, target.swaps.texts.segments_BT
            for row, key in enumerate(batch.keys):
                n = target.swaps.texts.lengths[row]
                first, second = (made.tokenizer.decode(texts_BT[row, :n][segments_BT[row, :n] == s].tolist()) for s in (0, 1))
                own = [made.tokenizer.decode(made.tokenizer.tokenize(one).ids) for one in samples[key].captions]
                assert first in own and first != second and (second in own) == bool(target.classes_R[row])
            labels += target.classes_R.tolist()
    assert 0.2 < np.mean(labels) < 0.8


def test_masked_words_of_a_real_batch(generated):
    """MLM by words and spans on batches of the data module: whole words, in the words of the tokenizer."""
    made = data(generated, preparers={}, max_tokens=60)
    size = made.tokenizer.size
    for unit, prob in (("word", 0.5), ("span", 0.3), ("geometric", 0.5)):
        mlm = MLM(prob, unit=unit, mask=1.0, random=0.0)
        mlm.bind(Spec(8, ("fused",), size, torch.nn.Embedding(size, 8)), made.vocabulary)
        for batch in next(iter(made.train_dataloader())):
            masked = mlm.corrupt(batch, {}).text.ids_BT == made.vocabulary.mask
            assert masked.any()
            for words, hit in zip(batch.text.words_BT, masked):
                assert not set(words[hit].tolist()) & set(words[~hit].tolist())

"""Retrieval, matching and zero-shot classification on a model whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import evaluation as fakes
from rich.console import Console

from mmpretrain.cli import summary
from mmpretrain.evaluate import suite
from mmpretrain.evaluate.batching import cut
from mmpretrain.evaluate.matching import edit_pairs, matching, random_pairs
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.retrieval import retrieval
from mmpretrain.evaluate.samples import choose
from mmpretrain.evaluate.suite import Limits, evaluate
from mmpretrain.evaluate.zeroshot import Classes, classifier, fill, zeroshot


def table(results) -> dict[str, float]:
    return {result.name: result.value for result in results}


@pytest.mark.parametrize("fusion", [False, True])
def test_perfect_retrieval(fusion: bool) -> None:
    found = table(retrieval(fakes.pretrained(fusion), fakes.coloured()))
    assert found["retrieval/fake/i2t_R@1"] == 1.0
    assert found["retrieval/fake/t2i_R@1"] == 1.0
    assert found["retrieval/fake/i2t_median_rank"] == pytest.approx(1.0)


@pytest.mark.parametrize("fusion", [False, True])
def test_duplicates_share_the_credit(fusion: bool) -> None:
    """Two equal rounds: half of the first places, although every score is right."""
    found = table(retrieval(fakes.pretrained(fusion), fakes.coloured(rounds=2)))
    assert found["retrieval/fake/t2i_R@1"] == pytest.approx(0.5)
    # two of the four tied captions are right
    assert found["retrieval/fake/i2t_R@1"] == pytest.approx(0.5)


@pytest.mark.parametrize("fusion", [False, True])
def test_a_constant_model_scores_chance(fusion: bool) -> None:
    for result in retrieval(fakes.pretrained(fusion, constant=True), fakes.coloured(rounds=5)):
        if result.chance is not None:
            assert result.value == pytest.approx(result.chance, abs=1e-9), result.name


@pytest.mark.parametrize("fusion", [False, True])
def test_progress_ends_at_the_total_and_changes_nothing(fusion: bool) -> None:
    told: dict[str, list[tuple[int, int]]] = {}
    report = lambda what, done, total: told.setdefault(what, []).append((done, total))
    model, data = fakes.pretrained(fusion), fakes.coloured(rounds=8)
    found = evaluate(model, [data], limits=Limits(matching=9), progress=report)
    assert found == evaluate(model, [data], limits=Limits(matching=9))
    size, parts = len(data.samples), ("retrieval, samples", "retrieval, pairs", "matching, samples", "matching, pairs")
    assert [one for one in told if one.startswith("fake: ")][:4] == [f"fake: {part}" for part in parts] and len(told) >= 4
    for steps in told.values():
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)
        assert steps[-1][0] == steps[-1][1] and len({total for _, total in steps}) == 1
    assert told["fake: retrieval, samples"] == [(1 + i, size) for i in range(size)] and told["fake: matching, samples"][-1] == (9, 9)
    texts = sum(len(sample.captions) for sample in data.samples)
    assert told["fake: retrieval, pairs"][-1][1] == size * texts + (texts if fusion else 0)


def test_stamp_says_what_was_measured() -> None:
    result = retrieval(fakes.pretrained(), fakes.coloured(rounds=4), limit=6)[0]
    assert result.stamp.count == 6 and result.stamp.data == "fake@f00"
    assert result.stamp.precision == "float32" and result.stamp.weights == "raw"
    assert result.row()["stamp"]["protocol"].startswith("6 images, 12 captions")


def test_fusion_reads_each_image_once_and_batches_pairs() -> None:
    model, data = fakes.pretrained(fusion=True), fakes.coloured(rounds=8)
    fakes.Transform.calls = 0
    retrieval(model, data)
    assert fakes.Transform.calls == 24
    assert model.model.batches <= 4


def test_captions_of_a_fusion_model_are_cut_to_the_pairs_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fakes.coloured(rounds=3)
    assert retrieval(fakes.pretrained(fusion=True), data)[0].stamp.protocol.startswith("9 images, 18 captions")
    assert retrieval(fakes.pretrained(), data, captions=1)[0].stamp.protocol.startswith("9 images, 9 captions")
    monkeypatch.setattr("mmpretrain.evaluate.retrieval.FUSION_PAIRS", 100)
    assert retrieval(fakes.pretrained(fusion=True), data)[0].stamp.protocol.startswith("9 images, 9 captions")
    assert retrieval(fakes.pretrained(), data)[0].stamp.protocol.startswith("9 images, 18 captions")


@pytest.mark.parametrize("fusion", [False, True])
def test_a_fusion_model_may_rank_the_first_sets_only(fusion: bool) -> None:
    sets = [fakes.coloured(), fakes.coloured()._replace(name="second")]
    results = evaluate(fakes.pretrained(fusion), sets, ["retrieval"], Limits(fusion_sets=1).at_most(4))
    assert {result.name.split("/")[1] for result in results} == ({"fake"} if fusion else {"fake", "second"})
    made = Limits(fusion_sets=1).at_most(4)._asdict()
    assert (made.pop("captions"), made.pop("fusion_sets")) == (None, 1) and set(made.values()) == {4}


def test_matching_numbers() -> None:
    found = table(matching(fakes.pretrained(fusion=True), fakes.coloured(rounds=3, statements=True)))
    assert found["matching/fake/edits/accuracy"] == 1.0
    assert found["matching/fake/edits/colour/preferred"] == 1.0
    assert found["matching/fake/statements/accuracy"] == 1.0
    assert found["matching/fake/random/accuracy"] == 1.0
    dual = table(matching(fakes.pretrained(), fakes.coloured(rounds=3)))
    assert dual["matching/fake/edits/preferred"] == 1.0 and "matching/fake/edits/accuracy" not in dual


def test_a_constant_model_is_right_half_of_the_time() -> None:
    for result in matching(fakes.pretrained(fusion=True, constant=True), fakes.coloured(rounds=3, statements=True)):
        assert result.value == pytest.approx(0.5), result.name


def test_random_negatives_are_never_own_captions() -> None:
    samples = list(fakes.coloured(rounds=4).samples)
    pairs = random_pairs(samples)
    assert len(pairs.image) >= 10 and random_pairs(samples) == pairs
    for i, true, false in zip(pairs.image, pairs.true, pairs.false, strict=True):
        assert true in samples[i].captions and false not in samples[i].captions
    edits = edit_pairs(samples)
    assert set(edits.kind) == {"colour"} and all(t != f for t, f in zip(edits.true, edits.false, strict=True))


@pytest.mark.parametrize("fusion", [False, True])
def test_zeroshot(fusion: bool) -> None:
    names = list(fakes.COLOURS)
    label = lambda sample: [names.index(sample.key[:-1])]
    result = zeroshot(fakes.pretrained(fusion), fakes.coloured(), names, label, templates=("{}", "a {} cube"))[0]
    assert result.value == 1.0 and result.chance == pytest.approx(1 / 3)
    several = zeroshot(fakes.pretrained(fusion), fakes.coloured(), names, lambda sample: [0, 1, 2])[0]
    assert several.value == several.chance == 1.0


@pytest.mark.parametrize("fusion", [False, True])
def test_zeroshot_on_classes_of_the_data(fusion: bool) -> None:
    names = tuple(fakes.COLOURS)
    plain = fakes.coloured()
    for value in (lambda name: name, names.index, lambda name: [name]):
        told = plain._replace(samples=[sample._replace(meta={"category": value(sample.key[:-1])}) for sample in plain.samples])
        (result,) = evaluate(fakes.pretrained(fusion), [told], ["zeroshot"], templates=("{}",), classes=Classes(names, "category"))
        assert (result.name, result.value) == ("zeroshot/fake/top1", 1.0)
    assert not evaluate(fakes.pretrained(fusion), [told], ["zeroshot"], classes=Classes(names, "other"))
    with pytest.raises(ValueError, match="category='red', which is none of the 2 classes"):
        evaluate(fakes.pretrained(fusion), [told], ["zeroshot"], classes=Classes(("x", "y"), "category"))


def test_prompts_and_class_vectors() -> None:
    assert fill(("{}", "a {}", "photo of a {} here"), "orange") == ["orange", "an orange", "photo of an orange here"]
    with pytest.raises(ValueError, match=r"no \{\}"):
        fill(("nothing",), "x")
    vectors = classifier(fakes.pretrained(), ["red", "blue"], ("{}", "a {}"))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_subset_is_spread_evenly() -> None:
    assert choose(10, 5).tolist() == [0, 2, 4, 6, 8]
    assert choose(3, None).tolist() == [0, 1, 2] == choose(3, 9).tolist()
    with pytest.raises(ValueError, match="at least one"):
        choose(3, 0)


def test_batches_keep_the_budget() -> None:
    cost = sorted(np.random.default_rng(0).integers(1, 60, 200).tolist())
    groups = list(cut(range(200), cost, budget=100))
    assert [i for group in groups for i in group] == list(range(200))
    assert all(len(group) * max(cost[i] for i in group) <= 100 for group in groups)
    assert list(cut([], [], 10)) == [] and list(cut([7], [99], 10)) == [[7]]


def test_names_of_sets_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    made = [Result("retrieval/a[/b]/i2t_R@1", 0.5, 0.1, Stamp("a[/b]@0", "images of [red]", "fp32", 4, "raw"))]
    suite.show(made)
    shown = capsys.readouterr().out
    assert "retrieval/a[/b]/i2t_R@1" in shown and "a[/b]@0: images of [red]; fp32" in shown
    Console().print(summary.table(made, []))
    assert "retrieval/a[/b]/i2t_R@1" in capsys.readouterr().out

"""Models over regions: what they are shown, how pairs are scored, what is measured and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import region_fakes as fakes
from helpers.region_checkpoints import CLASSES, FEATURES, INFO, WIDTH, checkpoint, region_samples, shake
from helpers.regions import of_sample, write_regions
from helpers.shards import picture

import mmpretrain
from mmpretrain.data.regions import encode_regions
from mmpretrain.data.regions_info import write_info
from mmpretrain.evaluate import suite
from mmpretrain.evaluate.embed import embed
from mmpretrain.evaluate.matching import matching
from mmpretrain.evaluate.mlm import masked_accuracy
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.rebuild import RefusedCheckpoint
from mmpretrain.evaluate.retrieval import retrieval
from mmpretrain.evaluate.samples import EvalSet, open_set
from mmpretrain.evaluate.suite import evaluate
from mmpretrain.evaluate.zeroshot import Classes
from mmpretrain.types import Batch, Regions, Sample
from mmpretrain.weights.export import export

TEXTS = ("a red cube", "two blue balls above a cube", "a cone")


def opened(folder: Path, system: str, **about) -> Pretrained:
    path = checkpoint(folder / f"{system}.ckpt", system, **about)
    shake(path)
    return mmpretrain.load(path)


def values(results) -> dict[str, float]:
    return {result.name: result.value for result in results}


def test_regions_in_any_form(tmp_path: Path) -> None:
    model = opened(tmp_path, "uniter")
    many = next(n for n in range(20) if len(of_sample(n).boxes) == 5)
    regions = of_sample(many)
    file = tmp_path / "a.regions.npz"
    file.write_bytes(encode_regions(regions))
    forms = [regions, file, str(file), file.read_bytes(), Sample("k", (), (), regions=file.read_bytes())]
    for form in forms:
        found = model.see(form)
        assert found.image is None and found.tags is None
        assert np.array_equal(found.regions.scores, np.sort(regions.scores)[::-1][:3])  # data.regions of the run
        assert found.regions.class_probs is None and np.array_equal(found.regions.image_size, regions.image_size)
    scores = model.score([*forms, model.transform(regions)], [TEXTS[0]] * 6)
    torch.testing.assert_close(scores, scores[:1].expand(6), atol=1e-6, rtol=0)


def test_what_is_no_image_of_the_model_is_said(tmp_path: Path) -> None:
    model = opened(tmp_path, "uniter")
    for given in (picture(0), Sample("k", (), (picture(0),)), torch.zeros(3, 8, 8), 7):
        with pytest.raises(ValueError, match=r"reads regions, no pictures: give Regions.*mmpretrain data regions \(docs/regions.md\)"):
            model.score([given], TEXTS[:1])
    with pytest.raises(ValueError, match="features of 7 values, the model takes 5; make regions with the extractor of the run"):
        model.score([of_sample(0, 7)], TEXTS[:1])
    none = Regions(np.zeros((0, 5), np.float16), np.zeros((0, 4), np.float32), np.array([8, 8], np.int32), scores=np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="there is no region"):
        model.score([none], TEXTS[:1])
    from helpers.checkpoints import checkpoint as plain

    for given in (of_sample(0), encode_regions(of_sample(0))):
        with pytest.raises(ValueError, match=r"this checkpoint reads pictures$"):
            mmpretrain.load(plain(tmp_path / "vilt.ckpt")).score([given], TEXTS[:1])


@pytest.mark.parametrize("system", ["uniter", "oscar", "vilbert"])
def test_pairs_do_not_depend_on_their_batch(tmp_path: Path, system: str) -> None:
    """1 to 3 regions, texts of three lengths: sorted, cut and packed, each pair has its own score."""
    model, samples = opened(tmp_path, system), region_samples(6)
    matrix = model.score(samples, TEXTS, mode="matrix")
    single = torch.stack([torch.cat([model.score([sample], [text]) for text in TEXTS]) for sample in samples])
    torch.testing.assert_close(matrix, single, atol=1e-5, rtol=0)
    assert matrix.std(0).min() > 1e-3 and matrix.std(1).min() > 1e-3  # of picture and text


def test_texts_are_told_with_the_tags_of_the_image_they_are_scored_with(tmp_path: Path) -> None:
    model, samples = opened(tmp_path, "oscar"), region_samples(5)
    matrix = model.score(samples, TEXTS, mode="matrix")
    tags = [model.see(sample).tags for sample in samples]
    assert len(set(tags)) > 1 and set(" ".join(tags).split()) <= set(CLASSES)
    for i, sample in enumerate(samples):
        for j, text in enumerate(TEXTS):
            told = model.tokenizer.tokenize(text, tags[i])
            assert told.second == tags[i] and 1 in told.segments
            batch = Batch(("",), torch.zeros(1, dtype=torch.int64), model.text([told]), **model.visuals([model.see(sample)]))
            log_odds = model.forward(batch, lambda hidden, objectives: objectives["itm"].score(hidden), "pooled")
            assert float(matrix[i, j]) == pytest.approx(float(log_odds), abs=1e-5)
    untold = model.match([model.see(one)._replace(tags=None) for one in samples], model.tokenize(list(TEXTS)), np.arange(3), np.arange(3))
    assert (untold - matrix.diagonal()[:3]).abs().max() > 1e-3
    result = retrieval(model, EvalSet("s", samples, "f"))[0]
    assert result.stamp.protocol.endswith("images are regions; texts are told with the tags of the image of their pair")


@pytest.mark.parametrize("tags", [False, True])
def test_perfect_measurements(tags: bool) -> None:
    """A model that reads the colour from regions, or from tags alone, is right everywhere; masked words need the own image."""
    model, data = fakes.pretrained(tags), fakes.coloured(rounds=3)
    found = values(evaluate(model, [data], classes=Classes(tuple(fakes.COLOURS), "colour"), templates=("{}",)))
    assert found["retrieval/fake/i2t_R@5"] == 1.0 and found["retrieval/fake/t2i_R@5"] == 1.0  # three images of each colour
    assert found["matching/fake/edits/accuracy"] == found["matching/fake/edits/colour/preferred"] == 1.0
    assert found["matching/fake/statements/accuracy"] == found["zeroshot/fake/top1"] == 1.0
    if not tags:
        assert found["mlm/fake/accuracy"] == 1.0 and found["mlm/fake/accuracy_without_image"] == 0.0
        assert found["mlm/fake/accuracy_other_image"] < 0.5


def test_protocols_name_another_scorer_than_matching() -> None:
    model, data = fakes.pretrained(), fakes.coloured()
    assert "ranked by matching head on every pair, ties in random order; images are regions" in retrieval(model, data)[0].stamp.protocol
    model.objectives = {"tags": model.objectives["itm"]}
    assert "ranked by matching head 'tags' on every pair" in retrieval(model, data)[0].stamp.protocol


def test_the_other_image_is_never_the_own() -> None:
    data = fakes.coloured()  # three colours: every other image is of another colour
    for batch_size in (2, 3, 8):  # 2: the last batch has one sample, whose other image is of the batch before
        found = {result.name.rpartition("/")[2]: result for result in masked_accuracy(fakes.pretrained(), data, batch_size=batch_size)}
        assert found["accuracy"].value == 1.0 and found["accuracy_other_image"].value == 0.0
        assert {result.stamp.count for result in found.values()} == {3}
        assert {result.chance for result in found.values()} == {1 / 3}  # of three tokens, each once
    alone = masked_accuracy(fakes.pretrained(), data._replace(samples=data.samples[:1]))
    assert [result.name for result in alone] == ["mlm/fake/accuracy", "mlm/fake/accuracy_without_image"]


def test_models_that_need_both_have_no_number_without_image(tmp_path: Path) -> None:
    data = EvalSet("s", region_samples(6), "f")
    found = values(masked_accuracy(opened(tmp_path, "vilbert"), data))
    assert set(found) == {"mlm/s/accuracy", "mlm/s/accuracy_other_image"}
    found = values(evaluate(opened(tmp_path, "vlbert"), [data]))  # no matching head: masked words are all
    assert set(found) == {"mlm/s/accuracy", "mlm/s/accuracy_other_image", "mlm/s/accuracy_without_image"}


def test_vectors_of_regions_and_texts(tmp_path: Path) -> None:
    """Without a token for the whole image the vector is the mean over regions; of models of two streams there is none."""
    model, data = opened(tmp_path, "uniter"), EvalSet("s", region_samples(5), "f")
    data.samples[2] = data.samples[2]._replace(regions=None)
    with np.load(embed(model, data, tmp_path / "v.npz", part_size=2)) as arrays:
        assert arrays["image"].shape == arrays["text"].shape == (5, WIDTH)
        assert np.isnan(arrays["image"]).all(axis=1).tolist() == [i == 2 for i in range(5)] and not np.isnan(arrays["text"]).any()
        image = arrays["image"][4]
    seen = model.see(data.samples[4])
    batch = Batch(("",), torch.zeros(1, dtype=torch.int64), **model.visuals([seen]))
    states = model.forward(batch, lambda hidden, _: hidden.image.x_ND)
    torch.testing.assert_close(torch.from_numpy(image), states.mean(0), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="ViLBERT reads text and image together only, so neither has a vector of its own; score pairs"):
        embed(opened(tmp_path, "vilbert"), data, tmp_path / "w.npz")
    assert not (tmp_path / "w.npz.parts").exists()


def test_export_refuses_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^export: transformers has no UNITER[^\n]*$"):
        export(opened(tmp_path, "uniter"), "transformers", tmp_path / "out")


def test_sets_without_regions_or_of_another_extractor_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = opened(tmp_path, "uniter")
    own = write_regions(tmp_path / "own", (4,), image=False, without=(2,))
    write_info(own, INFO)
    assert "retrieval/own/i2t_R@1" in values(evaluate(model, [open_set("own", str(own))]))
    other = write_regions(tmp_path / "other", (4,))
    write_info(other, INFO._replace(fingerprint="b" * 64, source="a detector"))
    with pytest.raises(ValueError, match=r"other: its regions were made by a detector \(b{12}\).*trained on by tests \(a{12}\)"):
        evaluate(model, [open_set("other", str(other))])
    with pytest.raises(ValueError, match=r"none: no sample has KEY\.regions\.npz, which this checkpoint reads"):
        evaluate(model, [open_set("none", str(write_regions(tmp_path / "none", (3,), without=(0, 1, 2))))])
    samples = region_samples(4)
    samples[1] = samples[1]._replace(regions=b"PK" + samples[1].regions[:50])
    with caplog.at_level(logging.WARNING, "mmpretrain"):
        assert matching(model, EvalSet("s", samples, "f"))[0].stamp.count == 6
    assert "left out of the evaluation: sample k1: regions" in caplog.text


def test_a_set_of_a_source_is_shown_as_that_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "a.ckpt", "uniter")
    found = torch.load(path, weights_only=True)
    found["mmpretrain"]["config"]["data"]["train"] = {"few": {"sources": "x", "regions": {"most": 1}}, "plain": {"sources": "y"}}
    torch.save(found, path)
    model = mmpretrain.load(path)
    sample = next(sample for sample in region_samples(9) if len(of_sample(int(sample.key[1:])).boxes) > 3)
    counts = {name: len(model.on(name).see(sample).regions.boxes) for name in ("few", "plain", "val")}
    assert counts == {"few": 1, "plain": 3, "val": 3} and len(model.see(sample).regions.boxes) == 3
    shown = []
    monkeypatch.setattr(suite, "matching", lambda one, data, limit, _: shown.append((data.name, one.shown.regions.most)) or [])
    evaluate(model, [EvalSet(name, [sample], "f") for name in ("few", "val")], only=["matching"])
    assert shown == [("few", 1), ("val", 3)]
    for train in ({"few": {"sources": "x", "show": "boxes"}}, {"few": {"colour": 3}}):
        found["mmpretrain"]["config"]["data"]["train"] = train
        torch.save(found, path)
        with pytest.raises(RefusedCheckpoint, match=r"few|colour|boxes"):
            mmpretrain.load(path)


def test_pictures_and_regions_together(tmp_path: Path) -> None:
    """Pictures stand as the transform of the run gives them, beside the regions."""
    path = checkpoint(tmp_path / "a.ckpt", "uniter")
    found = torch.load(path, weights_only=True)
    found["mmpretrain"]["config"]["data"] |= {"show": "both", "image": {"mode": "squash", "size": 32}}
    torch.save(found, path)
    model, samples = mmpretrain.load(path), region_samples(3, image=True)
    seen = model.see(samples[0])
    assert seen.image.shape == (3, 32, 32) and seen.regions is not None and model.transform(samples[0]).regions is not None
    lacking = (samples[0]._replace(images=()), samples[0]._replace(regions=None), samples[0]._replace(images=samples[0].images * 2))
    assert model.shows(samples[0]) and not any(map(model.shows, lacking))
    matrix = model.score(samples, TEXTS, mode="matrix")
    torch.testing.assert_close(matrix[1:2, 2], model.score([model.see(samples[1])], [TEXTS[2]]), atol=1e-5, rtol=0)
    for given, message in ((samples[0].images[0], "give a Sample with both; make regions"), (of_sample(0), "give a Sample with both$")):
        with pytest.raises(ValueError, match=f"reads pictures and regions: {message}"):
            model.see(given)
    assert FEATURES == seen.regions.features.shape[1]

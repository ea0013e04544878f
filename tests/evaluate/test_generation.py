"""Measures of generated pictures: by hand on three prompts, chance by a double loop, a probe that learns, and the whole on a tiny chain."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import evaluation, tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import dalle

from mmpretrain.cli.errors import UserError
from mmpretrain.cli.generate import _judges, _reference
from mmpretrain.evaluate import probe_training
from mmpretrain.evaluate.claims import Beside, Claims, Placed
from mmpretrain.evaluate.generation import Prompted, attributes, clip_features, clip_scores, distances, reference
from mmpretrain.evaluate.probe import Maps, Options, Probe, labelled
from mmpretrain.evaluate.samples import EvalSet, open_set
from mmpretrain.generate.choosing import Sampling
from mmpretrain.generate.generator import Generator
from mmpretrain.generate.measure import Judges, Task, collect, measure

RED, BLUE, STAR = ("red", "circle"), ("blue", "square"), ("red", "star")


def told(*things, beside=()) -> Claims:
    return Claims(Counter(things), tuple(beside))


def seen(*things) -> list[Placed]:
    return [Placed(thing, 0.1 + 0.2 * i, 0.5) for i, thing in enumerate(things)]


def test_attributes_by_hand():
    prompts = [told(RED, RED, BLUE, beside=[Beside(BLUE, "left", RED)]), told(STAR), told(BLUE, STAR, beside=[Beside(BLUE, "left", STAR)])]
    pictures = [seen(RED, BLUE, STAR), seen(STAR), seen(RED), seen(BLUE, STAR)]
    found = attributes(pictures, [0, 1, 1, 2], prompts)
    value = {name: one.value for name, one in found.items()}
    assert value["recall"] == pytest.approx((2 + 1 + 0 + 2) / (3 + 1 + 1 + 2)) and value["precision"] == pytest.approx(5 / (3 + 1 + 1 + 2))
    assert value["all_named"] == 2 / 4 and value["exact"] == 2 / 4 and value["count"] == 4 / 4
    assert value["colour_recall"] == pytest.approx((3 + 1 + 1 + 2) / 7) and value["shape_recall"] == pytest.approx((2 + 1 + 0 + 2) / 7)
    # picture 0 has the blue square right of a red circle; picture 3 has it left of the star
    assert value["beside"] == 1 / 2 and value["beside_if_shown"] == 1 / 2
    assert found["recall"].terms == 7 and found["beside"].terms == 2


def test_chance_is_that_of_other_prompts():
    rng = np.random.default_rng(0)
    kinds = [RED, BLUE, STAR, ("blue", "star")]
    draw = lambda: [kinds[i] for i in rng.integers(0, 4, rng.integers(1, 4))]
    prompts = [told(*draw()) for _ in range(9)]
    owner = [p for p in range(9) for _ in range(2)]
    pictures = [seen(*draw()) for _ in owner]
    found = attributes(pictures, owner, prompts)
    above = {"recall": 0, "exact": 0, "all_named": 0}
    below = Counter()
    for things, mine in zip(pictures, owner, strict=True):
        have = Counter(p.thing for p in things)
        for p, prompt in enumerate(prompts):
            if p != mine:
                above["recall"] += (have & prompt.things).total()
                above["exact"] += have == prompt.things
                above["all_named"] += not prompt.things - have
                below.update(recall=prompt.things.total(), exact=1, all_named=1)
    for name, total in above.items():
        assert found[name].chance == pytest.approx(total / below[name]), name


def test_what_has_no_term_is_left_out():
    found = attributes([[], []], [0, 1], [told(), told()])
    assert "recall" not in found and "precision" not in found and "beside" not in found and found["exact"].value == 1


def test_clip_scores():
    clip = evaluation.pretrained()
    red, blue = (torch.tensor(evaluation.COLOURS[c], dtype=torch.uint8).view(3, 1, 1).expand(3, 6, 6) for c in ("red", "blue"))
    prompts = ["red cube", "blue ball", "red cube"]
    found = clip_scores(clip, Prompted([red, blue, blue], [0, 1, 2]), prompts)
    assert found["clip_score"].value == pytest.approx(2 / 3, abs=0.01) and found["clip_score"].chance == pytest.approx(1 / 4, abs=0.01)
    assert found["clip_preferred"].value == 3 / 4 and found["clip_preferred"].terms == 4  # equal texts are not other captions
    real = reference("clip", clip_features(clip), [red, blue])
    same = distances([red, blue], real)
    assert same["frechet_clip"].value == pytest.approx(0, abs=1e-9) and "kernel_clip" in same
    assert distances([red, red], real)["frechet_clip"].value > 0.1
    with pytest.raises(ValueError, match="two rows"):
        distances([red], real)


# ---------------------------------------------------------------- the probe


SMALL = Options(side=32, samples=96, steps=30, batch=16)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> EvalSet:
    from mmpretrain.data_tools import scenes

    folder = tmp_path_factory.mktemp("scenes")
    scenes.write(folder, n=96, seed=5, split="train", workers=1, progress=False)
    return open_set("few", str(folder))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_cells_hold_what_is_labelled(few):
    """Maps made of the labels are read back as the labels."""
    data = labelled(few, 40, 64)
    words = probe_training.words_of(data)
    probe = Probe(torch.nn.Identity(), words, Options(), "none")
    shape = (len(data.things), 16, 16)
    centre, place = torch.full(shape, -9.0), torch.zeros(shape[0], 2, 16, 16)
    colour, form = torch.zeros(shape[0], len(words.colours), 16, 16), torch.zeros(shape[0], len(words.shapes), 16, 16)
    for i, things in enumerate(data.things):
        for (c, s), x, y in things:
            column, row = int(x * 16), int(y * 16)
            centre[i, row, column] = 9.0 - 0.1 * column
            place[i, :, row, column] = torch.tensor([x * 16 - column, y * 16 - row])
            colour[i, words.colours.index(c), row, column] = form[i, words.shapes.index(s), row, column] = 1.0
    found = probe._read(Maps(centre, place, colour, form))
    for things, read in zip(data.things, found, strict=True):
        assert sorted(p.thing for p in things) == sorted(p.thing for p in read)
        for one in things:
            assert any(p.thing == one.thing and abs(p.x - one.x) < 1e-5 and abs(p.y - one.y) < 1e-5 for p in read)


def test_training_is_deterministic_kept_and_learns(few, tmp_path, monkeypatch):
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path))
    data = labelled(few, SMALL.samples, SMALL.side)
    words = probe_training.words_of(data)
    pixels = data.pixels_NCHW[:32].float() / 255
    things = list(data.things[:32])
    before = probe_training.fit(data, words, SMALL._replace(steps=1), "few")
    probe = probe_training.trained(few, SMALL)
    losses = [float(probe_training.loss_of(one.net(pixels), things, words).detach()) for one in (before, probe)]
    assert losses[1] < 0.5 * losses[0]
    assert probe_training.fit(data, words, SMALL, "few").fingerprint == probe.fingerprint
    (file,) = (tmp_path / "probes").iterdir()
    stamp = file.stat().st_mtime_ns
    assert probe_training.trained(few, SMALL).fingerprint == probe.fingerprint and file.stat().st_mtime_ns == stamp
    file.write_bytes(b"torn")
    assert probe_training.trained(few, SMALL).fingerprint == probe.fingerprint
    measured = probe.measured(few, 20)
    assert set(measured) == {"recall", "precision", "exact", "pictures"} and measured["pictures"] == 20


def test_bad_probes(few):
    with pytest.raises(ValueError, match="side=30 must be a multiple of 4"):
        probe_training.trained(few, SMALL._replace(side=30))
    bare = EvalSet("bare", [few.samples[0]._replace(meta={})], "f00")
    with pytest.raises(ValueError, match="bare: no sample has one picture and 'objects'"):
        probe_training.trained(bare, SMALL)


def test_distorted_pictures_stay_pictures():
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = [probe_training.distorted(pixels, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*made) and made[0].shape == pixels.shape and 0 <= float(made[0].min()) and float(made[0].max()) <= 1
    rough = lambda x: float((x[..., 1:] - x[..., :-1]).abs().mean())
    assert rough(made[0][::2]) < 0.8 * rough(pixels[::2])


# ---------------------------------------------------------------- the whole


class Seer:
    """A probe that knows the real pictures of a set, and sees nothing in others."""

    def __init__(self, few: EvalSet) -> None:
        held = labelled(few, None, 64)
        self.words, self.source = probe_training.words_of(held), "labels"
        self.known = {row.numpy().tobytes(): list(things) for row, things in zip(held.pixels_NCHW, held.things, strict=True)}

    def __call__(self, pictures):
        return [self.known.get(picture.contiguous().numpy().tobytes(), []) for picture in pictures]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Generator:
    folder: Path = tmp_path_factory.mktemp("chain")
    tiny_dvae.make(folder / "dvae.ckpt")
    dalle(folder / "dalle.ckpt", folder / "dvae.ckpt")
    found = Generator.load(folder / "dalle.ckpt", folder / "dvae.ckpt", checkpoint(folder / "clip.ckpt", "clip"))
    for model in (found.dalle, found.scorer.pretrained):  # letters are tokens to these tokenizers
        model.tokenizer = model.tokenizer.with_max_tokens(24)
    return found


def test_pictures_that_cannot_be_read_are_left_out_with_a_warning(few, caplog):
    samples = [few.samples[i] for i in range(4)]
    samples[1] = samples[1]._replace(images=(b"no picture",))
    found = labelled(few._replace(samples=samples), None, 64)
    assert len(found.pixels_NCHW) == len(found.things) == 3
    (record,) = caplog.records
    assert record.getMessage().startswith(f"left out of the probe: sample {samples[1].key}: picture cannot be decoded")


def test_the_whole_table(chain, few, monkeypatch):
    monkeypatch.setattr("mmpretrain.generate.checks.counter", lambda model: (lambda text: 0, 24))
    clip = chain.scorer.pretrained
    found = measure(chain, few, Judges(Seer(few), clip, real=few), Task(n=2, limit=6, sampling=Sampling(seed=3)))
    names = {result.name: result for result in found}
    value = lambda name: names[f"generation/few/{name}"].value
    assert value("real/recall") == value("real/precision") == value("real/exact") == value("real/all_named") == 1
    assert names["generation/few/real/exact"].chance < 0.5
    assert value("generated/recall") == value("reconstructed/recall") == 0 and "generation/few/generated/precision" not in names
    assert names["generation/few/generated/clip_score"].stamp.count == 12 and names["generation/few/reranked/clip_score"].stamp.count == 6
    assert value("reranked/clip_score") > value("generated/clip_score")
    assert value("real/frechet_clip") > 0 and value("generated/frechet_clip") > 0
    protocol = names["generation/few/generated/recall"].stamp.protocol
    real = f"clip distances from few@{few.fingerprint}"
    for part in ("6 captions, 2 pictures of each", "seed 3", "probe of labels", "which re-ranks too", real):
        assert part in protocol
    own = measure(chain, few, Judges(clip=clip), Task(n=2, limit=6, sampling=Sampling(seed=3)))
    assert not any("real/frechet" in result.name or "recall" in result.name for result in own)
    assert all(r.stamp.protocol.endswith("; clip distances from few") for r in own)
    assert [r.value for r in own if r.name.endswith("generated/clip_score")] != []


def test_features_of_a_file_are_named_and_real_pictures_are_compared_with_them(chain, few, tmp_path, monkeypatch):
    monkeypatch.setattr("mmpretrain.evaluate.inception.WIDTH", 8)
    np.save(tmp_path / "real.npy", np.random.default_rng(0).random((9, 8)))
    inception = SimpleNamespace(features=lambda pictures: np.stack([np.resize(one.numpy().ravel(), 8) for one in pictures]) / 255)
    judges = Judges(inception=inception, features=_reference(tmp_path / "real.npy", inception))
    short = few._replace(samples=[few.samples[i]._replace(captions=("a ball",)) for i in range(3)])
    found = {result.name: result for result in measure(chain, short, judges, Task(n=1))}
    assert found["generation/few/real/frechet_inception"].value > 0
    assert "; inception distances from real.npy@" in found["generation/few/generated/frechet_inception"].stamp.protocol
    assert "distances from few" not in found["generation/few/generated/frechet_inception"].stamp.protocol


def test_captions_without_a_known_word_are_left_out(chain, few, monkeypatch):
    monkeypatch.setattr("mmpretrain.generate.checks.has_word", lambda text, _: text != "snow")
    captions = [("snow",), ("snow", "two blue balls"), ("a ball",)]
    samples = [few.samples[i]._replace(captions=told) for i, told in enumerate(captions)]
    found = collect(chain, few._replace(samples=samples), Judges(clip=chain.scorer.pretrained), None)
    assert [prompt.text for prompt in found.prompts] == ["two blue balls", "a ball"]


def test_what_cannot_be_compared_is_refused_before_anything_is_drawn(chain, few, tmp_path):
    drawn, judges = [], Judges(clip=chain.scorer.pretrained, real=few._replace(samples=[few.samples[0]]))
    short = few._replace(samples=[few.samples[i]._replace(captions=("a ball",)) for i in range(2)])
    with pytest.raises(ValueError, match="a distance needs two rows"):
        measure(chain, short, judges, Task(n=1), lambda *done: drawn.append(done))
    assert drawn == []
    np.save(tmp_path / "narrow.npy", np.eye(3))
    with pytest.raises(UserError, match=r"narrow\.npy: features of 3 values, FID's Inception gives 2048"):
        _reference(tmp_path / "narrow.npy", SimpleNamespace(features=None))


def test_the_training_of_the_probe_is_told(monkeypatch, capsys):
    def train(data, report):
        report(1, 800)
        return f"probe of {data}"

    ticks = itertools.count(0, 100)
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    monkeypatch.setattr(probe_training, "trained", train)
    monkeypatch.setattr("mmpretrain.evaluate.samples.open_set", lambda _, source: source)
    options = SimpleNamespace(judge=None, inception=None, features=None, real=None, probe=None)
    assert _judges(options, SimpleNamespace(scorer=None)).probe == "probe of scenes:train"
    assert "training the probe, steps: 1 of 800" in capsys.readouterr().err


def test_nothing_to_measure(chain, few):
    with pytest.raises(ValueError, match="nothing to measure by"):
        measure(chain, few, Judges())
    bare = EvalSet("bare", [sample._replace(meta={}) for sample in (few.samples[0], few.samples[1])], "f00")
    with pytest.raises(ValueError, match="bare: fewer than two samples have a picture and a caption that names all objects"):
        measure(chain, bare, Judges(Seer(few)))

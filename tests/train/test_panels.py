"""Panels on tiny ViLT and CLIP models inside a real Trainer: what is written, what it says, and that no failure stops training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from train import spawn

from mmpretrain.data_tools import scenes
from mmpretrain.models.clip import CLIP, TextTower, ViTTower
from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.wpa import WPA
from mmpretrain.report import panels_schema as schema
from mmpretrain.report.run import Run
from mmpretrain.train import panel_bodies, panel_pictures
from mmpretrain.train.panels import Panels
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Pixels, Text, Vocabulary

WORDS = ["[PAD]", "[MASK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, 30))]
VOCABULARY = Vocabulary(len(WORDS), 0, 1, 2, 3, (0, 1, 2, 3))
PLAIN = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
PLAIN |= {"accelerator": "cpu", "devices": 1}


def make_batch(n: int = 5, side: int = 16, uneven: bool = True, matched: list[bool] | None = None) -> Batch:
    rng = np.random.default_rng(0)
    lengths = tuple(int(x) for x in (rng.integers(5, 9, n) if uneven else np.full(n, 8)))
    ids, words = torch.zeros(n, max(lengths), dtype=torch.int64), torch.full((n, max(lengths)), -1)
    for i, length in enumerate(lengths):
        ids[i, :length] = torch.tensor([2, *rng.integers(4, 30, length - 2), 3])
        words[i, 1 : length - 1] = torch.tensor([0, 0, *range(1, length - 3)])  # the first word has two pieces
    sizes = tuple((side, side - 8 * (i % 2)) if uneven else (side, side) for i in range(n))
    pixels = torch.from_numpy(rng.integers(0, 255, (n, 3, side, side), dtype=np.uint8))
    image = Pixels(pixels, sizes, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    flags = None if matched is None else torch.tensor(matched)
    return Batch(tuple(f"k{i}" for i in range(n)), torch.arange(n), Text(ids, lengths, words), image, flags)


def vilt() -> Pretraining:
    torch.manual_seed(0)
    model = ViLT(TextEmbedder(30, 16, 12), PatchEmbedder(16, 8, 2), Transformer(16, 1, 2))
    root = Pretraining(model, {"mlm": MLM(view="mlm", prob=0.5), "itm": ITM(), "wpa": WPA()})
    root.bind(VOCABULARY)
    return root


def clip() -> Pretraining:
    torch.manual_seed(0)
    model = CLIP(ViTTower(16, 8, 16, 1, 2), TextTower(30, 12, 16, 1, 2), 8)
    root = Pretraining(model, {"contrastive": Contrastive()})
    root.bind(None)
    return root


class Module(pl.LightningModule):
    """Trains nothing real; its validation enters the root as a real one does."""

    def __init__(self, root: Pretraining) -> None:
        super().__init__()
        self.root, self.vocabulary, self.ema = root, VOCABULARY, None

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return sum(p.sum() for p in self.parameters()) * 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(pl.LightningDataModule):
    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch
        self.tokenizer = SimpleNamespace(token=WORDS.__getitem__)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 8, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], batch_size=None)


def fit(root: Pretraining, batch: Batch, folder: Path, callback: Panels | None = None, steps: int = 2) -> pl.Trainer:
    options = {"max_steps": steps, "val_check_interval": 1, "num_sanity_val_steps": 1, "default_root_dir": str(folder)}
    trainer = pl.Trainer(callbacks=[callback or Panels(samples=4, queries=3)], **options, **PLAIN)
    trainer.fit(Module(root), datamodule=Data(batch))
    return trainer


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """A panel that could not be made fails the test that did not expect it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be made.*")
        yield


def _panels(folder: Path, kind: str) -> list[schema.Panel]:
    run = Run(folder)
    found = [stored.panel for stored in run.panels() if stored.panel.kind == kind]
    assert run.warnings == []
    return found


def test_a_fusion_model_gets_all_three(tmp_path: Path) -> None:
    fit(vilt(), make_batch(), tmp_path)
    for kind in ("retrieval", "masked", "alignment"):
        assert [panel.step for panel in _panels(tmp_path, kind)] == [1, 2]
    assert not _panels(tmp_path, "regions")
    body = _panels(tmp_path, "retrieval")[-1].body
    assert (body.images, body.texts, body.scorer, len(body.text_to_image), len(body.image_to_text)) == (4, 4, "itm", 3, 3)
    for query in body.text_to_image:
        scores = [hit.score for hit in query.hits]
        assert scores == sorted(scores, reverse=True) and query.hits[query.rank - 1].right
        assert all(Image.open(tmp_path / "panels" / "2" / hit.image).size[1] == panel_pictures.SIDE for hit in query.hits)
    assert len(list((tmp_path / "panels" / "images").glob("*.png"))) == 4  # each sample once, whatever the steps
    assert len(list((tmp_path / "panels" / "2").glob("alignment-*.png"))) == 3


def test_a_dual_encoder_gets_its_gallery(tmp_path: Path) -> None:
    batch = make_batch(uneven=False)
    root = clip()
    fit(root, batch, tmp_path, steps=1)
    body = _panels(tmp_path, "retrieval")[0].body
    with torch.no_grad():
        hidden = root.model.eval()(panel_bodies.select(batch, range(4)), "paired")
    cosine_nn = hidden.image_BE @ hidden.text_BE.T
    assert body.scorer == "cosine" and body.image_to_text[1].hits[0].score == pytest.approx(float(cosine_nn[1].max()), abs=1e-4)
    assert not _panels(tmp_path, "masked") and not _panels(tmp_path, "alignment")


def test_masked_words_show_the_true_word_and_glue_its_pieces(tmp_path: Path) -> None:
    batch = make_batch()
    fit(vilt(), batch, tmp_path, steps=1)
    examples = _panels(tmp_path, "masked")[0].body.examples
    assert 1 <= len(examples) <= 4
    texts = {tuple(WORDS[i] for i in ids[1 : n - 1]) for ids, n in zip(batch.text.ids_BT.tolist(), batch.text.lengths, strict=True)}
    for example in examples:
        assert tuple(word.text for word in example.words) in texts  # special tokens are not shown, hidden words are
        assert [word.glued for word in example.words][:3] == [False, True, False]
        hidden = [word for word in example.words if word.guesses]
        assert hidden and all(len(word.guesses) == 5 and word.guesses[0].probability >= word.guesses[1].probability for word in hidden)


def test_heat_maps_are_the_plan_on_the_patch_grid(tmp_path: Path) -> None:
    batch, root = make_batch(), vilt()
    fit(root, batch, tmp_path, steps=1)
    example = _panels(tmp_path, "alignment")[0].body.examples[1]
    part = panel_bodies.select(batch, range(3))
    with torch.no_grad():
        plan_TV = root.objectives["wpa"].plan(root.model.eval()(part, "fused"))[1]
    first_V = plan_TV[0] + plan_TV[1]  # two pieces of one word
    assert len(example.words) == plan_TV.shape[0] - 1 and "".join(WORDS[i] for i in part.text.ids_BT[1, 1:3]) == example.words[0].word
    assert np.allclose(np.array(example.words[0].weights), (first_V / first_V.max()).view(2, 1).numpy(), atol=1e-3)
    assert example.words[0].share == pytest.approx(float(first_V.max() / first_V.sum()), abs=1e-3)


def test_every_and_statements_that_are_false(tmp_path: Path) -> None:
    fit(vilt(), make_batch(6, matched=[False, True, True, False, True, False]), tmp_path, Panels(every=3, samples=8), steps=5)
    panels = _panels(tmp_path, "retrieval")
    assert [panel.step for panel in panels] == [1, 4, 5]  # the last one always
    assert panels[0].body.images == 3


def test_a_batch_without_images_or_without_text_is_fine(tmp_path: Path) -> None:
    batch = make_batch()
    fit(vilt(), batch._replace(image=None), tmp_path / "text", steps=1)
    assert len(_panels(tmp_path / "text", "masked")) == 1 and not _panels(tmp_path / "text", "retrieval")
    fit(vilt(), batch._replace(text=None), tmp_path / "image", steps=1)
    assert not (tmp_path / "image" / "panels" / "1").exists()


def test_a_failing_panel_is_reported_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    root = vilt()
    monkeypatch.setattr(WPA, "plan", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = fit(root, make_batch(), tmp_path, steps=3)
    told = [str(w.message) for w in caught if "could not be made" in str(w.message)]
    assert told == ["the panel 'alignment' could not be made, training goes on: RuntimeError: no such kernel"]
    assert trainer.global_step == 3 and len(_panels(tmp_path, "masked")) == 3
    assert all(module.training for module in root.modules())  # modes are put back


def test_panels_change_neither_parameters_nor_random_numbers(tmp_path: Path) -> None:
    root = vilt()
    before = {name: value.clone() for name, value in root.state_dict().items()}
    trainer = pl.Trainer(max_steps=1, default_root_dir=str(tmp_path), **PLAIN)
    callback, module = Panels(samples=4, folder=tmp_path), Module(root)
    trainer.fit(module, datamodule=Data(make_batch()))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    callback.on_validation_batch_end(trainer, module, None, make_batch(), 0)
    callback.on_validation_epoch_end(trainer, module)
    assert (tmp_path / "panels" / "1" / "masked.json").is_file()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in root.state_dict().items())


def test_nothing_is_written_outside_a_run(tmp_path: Path) -> None:
    trainer = pl.Trainer(callbacks=[Panels()], default_root_dir=str(tmp_path), **PLAIN)
    trainer.validate(Module(vilt()), datamodule=Data(make_batch()), verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_select_trims_and_repeats() -> None:
    batch = make_batch()
    shortest = min(range(5), key=batch.text.lengths.__getitem__)
    part = panel_bodies.select(batch, [shortest, shortest])
    assert part.keys == (batch.keys[shortest],) * 2 and part.text.ids_BT.shape == (2, batch.text.lengths[shortest])
    assert part.image.pixels_BCHW.shape[2:] == batch.image.sizes[shortest]


def test_punctuation_follows_its_word() -> None:
    spelt = [
        ("", False),
        ("a", False),
        ("pur", False),
        ("ple", True),
        ("star", False),
        (",", False),
        ("here", False),
        (".", False),
        ("", False),
    ]
    assert panel_bodies.sentence(spelt) == "a purple star, here."


def test_a_panel_says_what_is_wrong_with_it() -> None:
    good = json.loads(schema.dumps(schema.Panel("masked", 3, schema.MaskedPanel((schema.MaskedExample((schema.Word("a"),)),)))))
    assert schema.loads(json.dumps(good)).body.examples[0].words[0] == schema.Word("a")
    good["body"]["examples"][0]["words"][0]["text"] = 5
    with pytest.raises(ValueError, match=r"body\.examples\[0\]\.words\[0\]\.text: expected str"):
        schema.loads(json.dumps(good))
    with pytest.raises(TypeError, match="cannot hold"):
        schema.dumps(schema.Panel("masked", 3, schema.AlignmentPanel(())))


def test_pictures_of_normalised_floats_are_the_pictures() -> None:
    pixels = torch.randint(0, 256, (3, 160, 160), dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    floats = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    same = [np.asarray(panel_pictures.thumbnail(x, mean, std)) for x in (pixels, floats)]
    assert np.array_equal(*same) and np.array_equal(same[0], pixels.permute(1, 2, 0).numpy())
    hot = np.asarray(panel_pictures.heat(Image.new("RGB", (40, 20)), np.array([[0.0, 1.0]])), dtype=int)
    assert hot.shape == (20, 40, 3) and hot[10, 38, 0] > hot[10, 2, 0] + 50


@pytest.mark.slow
@pytest.mark.parametrize(("system", "kinds"), [("vilt", {"retrieval", "masked"}), ("clip", {"retrieval"})])
def test_two_sharded_processes_write_one_set_of_panels(system: str, kinds: set[str], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    scenes.write(shards, 24, 0, "val", shard_size=24, progress=False)
    for process in spawn.ranks(Path(__file__).with_name("panels_run.py"), str(tmp_path / "run"), str(shards), system, "fsdp2", "2"):
        assert process.returncode == 0 and "could not be made" not in process.stdout, process.stdout[-3000:]
    (step,) = (folder for folder in (tmp_path / "run" / "panels").iterdir() if folder.name != "images")
    assert {file.stem for file in step.glob("*.json")} == kinds
    for kind in kinds:
        assert len(_panels(tmp_path / "run", kind)) == 1

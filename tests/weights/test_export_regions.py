"""LXMERT and VisualBERT open in transformers with the same numbers; every system opens in ``mmpretrain.load`` from a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import region_checkpoints, tiny
from helpers.checkpoints import TEXTS, checkpoint, node
from helpers.checkpoints import config as pictures
from helpers.region_checkpoints import FEATURES, INFO, REGIONS, WIDTH, region_samples
from helpers.regions import write_regions

import mmpretrain
from mmpretrain.data.regions import decode_regions
from mmpretrain.models.lxmert import LXMERT
from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CrossLayers
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.vqa import VQA
from mmpretrain.weights.export import ExportError, export

SAMPLES = region_samples(5)


def config(system: str, vocab: int, tied: bool = True, **options: Any) -> dict[str, Any]:
    """The resolved configuration of a run of ``lxmert`` or ``visualbert``; ``trunk``: without masked words."""
    stack = lambda depth: node(Transformer, width=WIDTH, depth=depth, heads=2, norm="post", final_norm=False, eps=1e-12)
    norm = 1e-12 if system.startswith("lxmert") else None
    text = node(TextEmbedder, vocab_size=vocab, width=WIDTH, positions=24, segments=2, norm_eps=norm)
    mlm = {} if system.endswith("trunk") else {"mlm": node(MLM, tied=tied, view="mlm")}
    if system.startswith("lxmert"):
        regions = node(
            RegionEmbedder, width=WIDTH, features=FEATURES, box="xyxy", combine="mean", branch_eps=1e-12, norm_eps=None
        )
        parts = {"text_blocks": stack(2), "image_blocks": stack(1), "cross": node(CrossLayers, width=WIDTH, depth=2, heads=2)}
        model = node(LXMERT, text=text, regions=regions, **parts)
        objectives = {**mlm, "itm": node(ITM), "objects": node(Objects, classes=3, attributes=4)}
    else:
        regions = node(RegionEmbedder, width=WIDTH, features=FEATURES, box="none", norm_eps=None, positions=24, types=2)
        model = node(VisualBERT, text=text, regions=regions, blocks=stack(2))
        objectives = {"sip": node(SIP), **mlm, "itm": node(ITM)}
    return {"model": {"system": model, "objectives": objectives}, "data": {"show": "regions", "regions": REGIONS}}


def opened(path: Path, system: str, **options: Any) -> Any:
    known = region_checkpoints.config if system in ("uniter", "oscar", "vilbert", "vlbert") else config
    made = checkpoint(path, system, config=known, regions=INFO.to_json(), **options)
    region_checkpoints.shake(made)
    return mmpretrain.load(made)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("system", ["lxmert", "visualbert"])
def test_transformers(system: str, tied: bool, tmp_path: Path) -> None:
    model = opened(tmp_path / "a.ckpt", system, tied=tied)
    report = json.loads(export(model, "transformers", tmp_path / "out", SAMPLES, TEXTS).read_text())
    assert report["largest_difference"] <= 1e-5 and report["tokenizer_equal"] and report["samples"]["images"] == 5
    names = {output["name"] for output in report["outputs"]}
    assert {"states of the text", "states of the regions", "pooled state", "masked-word logits"} <= names
    wanted = {"logits of itm", "logits of obj", "logits of attr", "logits of feat"} if system == "lxmert" else {"logits of sip"}
    assert wanted <= names
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "ForPreTraining.from_pretrained" in card and f"made by {INFO.source} (aaaaaaaaaaaa): {FEATURES} values" in card
    assert written["visual_loss_normalizer"] == 1 / 0.15 if system == "lxmert" else "visual_token_type_ids=types" in card
    heads = (tmp_path / "out" / "mmpretrain_heads.safetensors").is_file()
    assert heads == (system == "visualbert") and heads == ("no place for: itm" in card)  # matching of pictures is none of its heads
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["regions"]["fingerprint"] == INFO.fingerprint


def test_answers_of_lxmert(tmp_path: Path) -> None:
    model = opened(tmp_path / "a.ckpt", "lxmert")
    model.vocabulary = model.vocabulary._replace(answers=("red", "two", "yes"))
    vqa = VQA()
    vqa.bind(model.model.spec, model.vocabulary)
    model.objectives["vqa"] = tiny.shake(vqa)
    report = json.loads(export(model, "transformers", tmp_path / "out", SAMPLES, TEXTS).read_text())
    assert "logits of vqa" in {output["name"] for output in report["outputs"]} and report["largest_difference"] <= 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_qa_labels"] == 3
    assert json.loads((tmp_path / "out" / "answers.json").read_text()) == {"0": "red", "1": "two", "2": "yes"}


@pytest.mark.parametrize("system", ["lxmert-trunk", "visualbert-trunk"])
def test_without_masked_words(system: str, tmp_path: Path) -> None:
    """The model alone, and every head beside it."""
    path = export(opened(tmp_path / "a.ckpt", system), "transformers", tmp_path / "out", SAMPLES, TEXTS)
    assert len(json.loads(path.read_text())["outputs"]) == 3
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Model.from_pretrained" in card and "ForPreTraining" not in card
    assert "no place for: itm, objects" in card or "no place for: itm, sip" in card


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mmpretrain":
            raise ImportError("mmpretrain is blocked")
sys.meta_path.insert(0, Block())
import torch
from transformers import AutoTokenizer, LxmertForPreTraining, VisualBertForPreTraining
folder, system = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
words, mask = tokenizer(["a red cube", "two"], padding=True, return_tensors="pt"), torch.ones(2, 4)
if system == "lxmert":
    model = LxmertForPreTraining.from_pretrained(folder).eval()
    out = model(**words, visual_feats=torch.rand(2, 4, 5), visual_pos=torch.rand(2, 4, 4), visual_attention_mask=mask)
else:
    model = VisualBertForPreTraining.from_pretrained(folder).eval()
    types = torch.zeros(2, 4, dtype=torch.long)
    out = model(**words, visual_embeds=torch.rand(2, 4, 5), visual_attention_mask=mask, visual_token_type_ids=types)
print(tuple(out.prediction_logits.shape))
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["lxmert", "visualbert"])
def test_folders_open_without_this_suite(system: str, tmp_path: Path) -> None:
    export(opened(tmp_path / "a.ckpt", system), "transformers", tmp_path / "out", SAMPLES, TEXTS)
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "out"), system]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("(2, ")


SYSTEMS = ["lxmert", "visualbert", "uniter", "oscar", "vilbert", "vlbert"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_folder_of_our_own(system: str, tmp_path: Path) -> None:
    first = opened(tmp_path / "a.ckpt", system, ema=system == "uniter")
    report = json.loads(export(first, "safetensors", tmp_path / "out", SAMPLES, TEXTS).read_text())
    assert report["largest_difference"] == 0 and len(report["outputs"]) >= 2
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "mmpretrain.json", "README.md", "provenance.json", "export_report.json"}
    assert 'mmpretrain.load("DIR")' in (tmp_path / "out" / "README.md").read_text()
    second = mmpretrain.load(tmp_path / "out")
    assert second.weights == first.weights == ("ema" if system == "uniter" else "raw")
    assert second.config == first.config and second.vocabulary == first.vocabulary
    assert json.dumps(second.about) == json.dumps(first.about)
    regions = [decode_regions(sample.regions) for sample in SAMPLES[:3]]
    if first.can_match():
        assert torch.equal(first.score(regions, list(TEXTS[:3])), second.score(regions, list(TEXTS[:3])))
    with pytest.raises(ValueError, match="weights alone; load it with weights="):
        mmpretrain.load(tmp_path / "out", weights="raw" if system == "uniter" else "ema")


@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_pictures_too(system: str, tmp_path: Path) -> None:
    from PIL import Image

    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 90, 3), dtype=np.uint8)) for i in range(3)]
    first = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", system, config=pictures))
    assert json.loads(export(first, "safetensors", tmp_path / "out", images, TEXTS).read_text())["largest_difference"] == 0
    second = mmpretrain.load(tmp_path / "out")
    assert torch.equal(first.score(images, list(TEXTS[:3])), second.score(images, list(TEXTS[:3])))


def test_a_folder_that_was_altered(tmp_path: Path) -> None:
    export(opened(tmp_path / "a.ckpt", "uniter"), "safetensors", tmp_path / "out", SAMPLES, TEXTS)
    file = tmp_path / "out" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"does not match mmpretrain\.json, so it is torn or altered"):
        mmpretrain.load(tmp_path / "out")
    file.unlink()
    with pytest.raises(ValueError, match="no such file; export the run once more"):
        mmpretrain.load(tmp_path / "out")
    (tmp_path / "out" / "mmpretrain.json").write_text('{"version": 2}')
    with pytest.raises(ValueError, match="not of this version"):
        mmpretrain.load(tmp_path / "out")


def test_impossible_targets_are_refused_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mmpretrain.cli.main import main

    model = opened(tmp_path / "a.ckpt", "uniter")
    for to in ("transformers", "open_clip", "timm"):
        with pytest.raises(ExportError, match=f"^export: {to} has no UNITER; export it to safetensors$"):
            export(model, to, tmp_path / "out", SAMPLES, TEXTS)
    with pytest.raises(ExportError, match="open_clip has no LXMERT; export it to transformers or safetensors"):
        export(opened(tmp_path / "b.ckpt", "lxmert"), "open_clip", tmp_path / "out", SAMPLES, TEXTS)
    changed = opened(tmp_path / "c.ckpt", "visualbert")
    changed.model.norm.eps = 1e-3
    with pytest.raises(ExportError, match="export to transformers: transformers' VisualBERT has one eps of norms"):
        export(changed, "transformers", tmp_path / "out", SAMPLES, TEXTS)
    assert main(["export", str(tmp_path / "a.ckpt"), "--to", "transformers", "--out", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "transformers has no UNITER" in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "c.ckpt"]


def test_noise_stands_in_for_data_that_are_not_here(tmp_path: Path) -> None:
    report = json.loads(export(opened(tmp_path / "a.ckpt", "oscar"), "safetensors", tmp_path / "out").read_text())
    assert report["samples"] == {"from": report["samples"]["from"], "images": 8, "texts": 8}
    assert report["samples"]["from"].startswith("noise")


def test_samples_with_regions_of_the_run(tmp_path: Path) -> None:
    shards = write_regions(tmp_path / "val", (3, 2))
    model = opened(tmp_path / "a.ckpt", "lxmert")
    model.config["data"]["val"] = {"few": str(shards)}
    report = json.loads(export(model, "transformers", tmp_path / "out").read_text())
    assert report["samples"] == {"from": str(shards), "images": 5, "texts": 5} and report["largest_difference"] <= 1e-5

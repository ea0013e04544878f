"""Exported folders open in the library they were written for, without this suite, and give the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import TEXTS, checkpoint, config
from PIL import Image

import mmpretrain
from mmpretrain.weights.export import ExportError, export

CASES = [("clip", "transformers"), ("clip", "open_clip"), ("clip", "timm"), ("clip-rn", "open_clip"), ("vilt", "transformers")]


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((5, 7, 3), (8, 5, 3), (6, 6, 3))]
    return [Image.fromarray(x).resize((x.shape[1] * 17, x.shape[0] * 15), Image.Resampling.BICUBIC) for x in small]


@pytest.mark.parametrize(("system", "to"), CASES)
def test_export_is_proved(system: str, to: str, tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", system))
    path = export(model, to, tmp_path / "out", pictures(), TEXTS)
    report = json.loads(path.read_text())
    assert report["largest_difference"] <= 1e-5 and report["outputs"]
    assert report["tokenizer_equal"] in (True, None if to == "timm" else True)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "provenance.json", "export_report.json"} <= names and set(report["files"]) == names - {"export_report.json"}
    assert not list(tmp_path.glob(".out*"))
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["step"] == 7


@pytest.mark.parametrize("tied", [True, False])
def test_vilt_decoder_and_matching_head(tied: bool, tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt", tied=tied))
    report = json.loads(export(model, "transformers", tmp_path / "out", pictures(), TEXTS).read_text())
    assert {"masked-word logits", "matching log-odds"} <= {output["name"] for output in report["outputs"]}
    assert (tmp_path / "out" / "mmpretrain_heads.safetensors").is_file()


def test_a_difference_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mmpretrain.cli.main import main
    from mmpretrain.weights import clip

    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "clip"))
    right = clip.to_open_clip

    def wrong(state):
        found = right(state)
        return {**found, "visual.proj": found["visual.proj"] + 0.05 * torch.randn_like(found["visual.proj"])}

    monkeypatch.setattr(clip, "to_open_clip", wrong)
    with pytest.raises(ExportError, match=r"(encode_image|logits) differs by") as caught:
        export(model, "open_clip", tmp_path / "out", pictures(), TEXTS)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    words = ["export", str(tmp_path / "a.ckpt"), "--to", "open_clip", "--out", str(tmp_path / "out")]
    assert main(words) == 2 and "nothing was written (reasons: docs/export.md, Limits; --tolerance" in capfd.readouterr().err
    assert main([*words, "--tolerance", "10"]) == 0
    report = json.loads((tmp_path / "out" / "export_report.json").read_text())
    assert report["largest_difference"] > 1e-4 and report["tolerance"] == 10


def test_refusals(tmp_path: Path) -> None:
    vilt = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt"))
    with pytest.raises(ExportError, match="timm has no ViLT; export it to transformers"):
        export(vilt, "timm", tmp_path / "out", pictures(), TEXTS)
    with pytest.raises(ExportError, match="unknown target 'onnx'"):
        export(vilt, "onnx", tmp_path / "out", pictures(), TEXTS)
    resnet = mmpretrain.load(checkpoint(tmp_path / "b.ckpt", "clip-rn"))
    with pytest.raises(ExportError, match="ResNet CLIP"):
        export(resnet, "timm", tmp_path / "out", pictures(), TEXTS)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(ExportError, match="exists already"):
        export(vilt, "transformers", tmp_path / "out", pictures(), TEXTS)
    with pytest.raises(ExportError, match="at least one image"):
        export(vilt, "transformers", tmp_path / "new", [], TEXTS)


def test_what_has_no_home_there_is_named_with_one_that_it_has(tmp_path: Path) -> None:
    def masked(system: str, vocab: int, tied: bool) -> dict[str, Any]:
        made = config(system, vocab, tied)
        made["model"]["system"]["init_args"]["image"]["init_args"]["mask_token"] = True
        return made

    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "vilt", config=masked))
    with pytest.raises(ExportError, match=r"for: image\.mask_token; export it to safetensors$"):
        export(model, "transformers", tmp_path / "out", pictures(), TEXTS)
    assert export(model, "safetensors", tmp_path / "out", pictures(), TEXTS).is_file()


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What needs it says so in one line and leaves nothing; what does not need it works."""
    import torchmetrics  # noqa: F401 - takes transformers where its version is known

    from mmpretrain.cli.main import main
    from mmpretrain.data import tokenizer_files

    path = checkpoint(tmp_path / "a.ckpt", "clip")
    monkeypatch.setattr("helpers.checkpoints.train", lambda *_: tokenizer_files.clip(24))
    own = mmpretrain.load(checkpoint(tmp_path / "b.ckpt", "clip"))  # with the tokenizer that open_clip has itself
    monkeypatch.setitem(sys.modules, "transformers", None)
    for to in ("transformers", "open_clip"):
        assert main(["export", str(path), "--to", to, "--out", str(tmp_path / "out")]) == 2
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and f"export to {to}: " in error and "pip install 'mmpretrain-vl[export]'" in error
    assert export(mmpretrain.load(path), "timm", tmp_path / "timm", pictures(), TEXTS).is_file()
    assert export(own, "open_clip", tmp_path / "open_clip", pictures(), TEXTS).is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt", "open_clip", "timm"]


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mmpretrain":
            raise ImportError("mmpretrain is blocked")
sys.meta_path.insert(0, Block())
folder, to = sys.argv[1:]
if to == "clip-transformers":
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor
    model = CLIPModel.from_pretrained(folder)
    assert CLIPProcessor.from_pretrained(folder)(text=["a cube"], return_tensors="pt").input_ids.shape[0] == 1
elif to == "clip-open_clip":
    import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + folder)
    assert open_clip.get_tokenizer("local-dir:" + folder)(["a cube"]).shape == (1, 24)
elif to == "clip-timm":
    import timm
    model = timm.create_model("local-dir:" + folder, pretrained=True)
else:
    from transformers import ViltForMaskedLM, ViltProcessor
    from PIL import Image
    model = ViltForMaskedLM.from_pretrained(folder)
    inputs = ViltProcessor.from_pretrained(folder)(Image.new("RGB", (70, 64)), "a cube", return_tensors="pt")
    assert model(**inputs).logits.shape[0] == 1
try:
    import mmpretrain
except ImportError:
    print(sum(p.numel() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("system", "to"), [case for case in CASES if case[0] != "clip-rn"])
def test_folders_open_without_this_suite(system: str, to: str, tmp_path: Path) -> None:
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", system))
    export(model, to, tmp_path / "out", pictures(), TEXTS)
    command = [sys.executable, "-c", BLOCKED, str(tmp_path / "out"), f"{system}-{to}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 1000


def test_samples_come_from_the_data_of_the_run(tmp_path: Path) -> None:
    from mmpretrain.data_tools import scenes

    shards = scenes.write(tmp_path / "val", n=4, seed=0, split="val", progress=False)
    model = mmpretrain.load(checkpoint(tmp_path / "a.ckpt", "clip"))
    report = json.loads(export(model, "open_clip", tmp_path / "noise").read_text())
    assert report["samples"]["from"].startswith("noise") and report["samples"]["images"] == 8
    model.config["data"]["val"] = {"gone": str(tmp_path / "gone"), "scenes": str(shards)}
    report = json.loads(export(model, "open_clip", tmp_path / "real").read_text())
    assert report["samples"] == {"from": str(shards), "images": 4, "texts": 4}

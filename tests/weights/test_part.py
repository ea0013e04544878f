"""Parts of models filled from files: torchvision's network, detectors with a prefix, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmpretrain.nn.cnn import ResNet
from mmpretrain.weights.files import WeightsError, read_state
from mmpretrain.weights.part import FromFile


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.ModuleDict({"cnn": ResNet("tiny")}), nn.Linear(2, 2)


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    state = {name: torch.randn(t.shape) if t.is_floating_point() else t for name, t in ResNet("tiny").state_dict().items()}
    return {f"{prefix}{name}": value for name, value in state.items()}


def filled(model: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.image["cnn"].state_dict().items())


def test_files_of_torch_and_of_safetensors(tmp_path: Path) -> None:
    state = weights()
    torch.save({**state, "fc.weight": torch.zeros(3, 3)}, tmp_path / "a.pth")
    torch.save({"state_dict": {f"module.backbone.{name}": value for name, value in state.items()} | {"step": 3}}, tmp_path / "b.pth")
    save_file({f"rpn.{name}": value for name, value in state.items()} | {"roi.a": torch.zeros(2)}, tmp_path / "c.safetensors")
    for one in (
        FromFile(str(tmp_path / "a.pth"), "image.cnn", skip=["fc."]),
        FromFile(str(tmp_path / "b.pth"), "image.cnn", prefix="backbone."),
        FromFile(str(tmp_path / "c.safetensors"), "image.cnn", prefix="rpn."),
    ):
        model = Model()
        before = model.text.weight.clone()
        assert one(model) is model and filled(model, state) and torch.equal(model.text.weight, before)


def test_counters_may_be_missing(tmp_path: Path) -> None:
    state = {name: value for name, value in weights().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "a.pth")
    model = FromFile(str(tmp_path / "a.pth"), "image.cnn")(Model())
    assert torch.equal(model.image["cnn"].conv1.weight, state["conv1.weight"])


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        FromFile(str(tmp_path / "none.pth"), "image.cnn")(Model())
    state = weights()
    torch.save({**state, "fc.weight": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"has 'fc\.weight' and 0 more that find no place"):
        FromFile(str(tmp_path / "a.pth"), "image.cnn")(Model())
    with pytest.raises(ValueError, match=r"no part 'cnn'; its parts are image, text"):
        FromFile(str(tmp_path / "a.pth"), "cnn")(Model())
    with pytest.raises(ValueError, match=r"lacks 'conv1\.weight'"):
        FromFile(str(tmp_path / "a.pth"), "image.cnn", prefix="backbone.")(Model())
    torch.save({**state, "conv1.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight is \(3,\), the model takes \(8, 3, 7, 7\)"):
        FromFile(str(tmp_path / "b.pth"), "image.cnn")(Model())
    for name, content in (("c.pth", b"nothing"), ("d.safetensors", b"nothing")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: (holds more|cannot be read)"):
            FromFile(str(tmp_path / name), "image.cnn")(Model())
    torch.save(torch.zeros(3), tmp_path / "e.pth")
    with pytest.raises(ValueError, match="no state dict"):
        FromFile(str(tmp_path / "e.pth"), "image.cnn")(Model())


def test_from_yaml_and_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named in ``model.transforms``, it fills the network of a Pixel-BERT before training."""
    from cli.test_optimizers import PIXELBERT, module_of

    from mmpretrain.types import Vocabulary

    monkeypatch.chdir(tmp_path)
    state = weights()
    torch.save(state, tmp_path / "a.pth")
    transform = '[{class_path: mmpretrain.weights.part.FromFile, init_args: {path: a.pth, part: image.cnn, skip: ["fc."]}}]'
    module = module_of(f"{PIXELBERT}  transforms: {transform}\n")
    module.vocabulary = Vocabulary(60, 0, 1, 2, 3, (0, 1, 2, 3))
    module.configure_model()
    found = module.root.model.image.cnn.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


@pytest.mark.parametrize("named", [3, "../model.safetensors", "part.bin"])
def test_an_index_names_files_of_its_folder_alone(named: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(WeightsError, match="which is no safetensors file of this folder"):
        read_state(tmp_path)

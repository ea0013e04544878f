"""Every size file builds on the meta device and has the number of parameters that its header says."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

FILES = sorted((Path(__file__).parents[2] / "configs" / "sizes").glob("*.yaml"))


def build(node):
    if not isinstance(node, dict) or "class_path" not in node:
        return node
    module, name = node["class_path"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**{k: build(v) for k, v in node.get("init_args", {}).items()})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_header_count_is_true(path: Path) -> None:
    text = path.read_text()
    expected = int(re.search(r"Parameters: ([\d,]+)", text)[1].replace(",", ""))
    with torch.device("meta"):
        model = build(yaml.safe_load(text)["model"]["system"])
    assert sum(p.numel() for p in model.parameters()) == expected

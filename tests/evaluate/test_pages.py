"""The Python of ``docs/python.md`` runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.checkpoints import checkpoint
from PIL import Image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.mark.parametrize("system", ["vilt", "clip"])
def test_examples_run(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "runs" / "vilt-20260101-120000" / "checkpoints" / "last.ckpt", system)
    for name in ("one.png", "two.png"):
        Image.new("RGB", (80, 64), (200, 30, 30)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
    assert "torch.Size([2, " in capsys.readouterr().out

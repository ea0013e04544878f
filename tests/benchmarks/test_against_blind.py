"""The table of recipes beside what their heads reach without looking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.scripts import script


def run(folder: Path, ended: bool = True, **values: float) -> None:
    """A run whose last validation found these values."""
    folder.mkdir()
    row = {"step": 2, "val/loss": 1.0, "val/compositional/mlm/accuracy": 0.9} | {f"val/{name}": value for name, value in values.items()}
    lines = [{"step": 1, "val/loss": 2.0, "val/mlm/accuracy": 0.0}, row, {"step": 3, "train/loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended:
        (folder / "result.json").write_text("{}")


def test_accuracies_and_losses_beside_the_blind_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("mlm/accuracy", "mlm/loss", "objects/attr_accuracy", "objects/feat", "mrfr/loss")
    for which, numbers in (("blind", (0.1, 3.0, 0.2, 0.5, 8.0)), ("0", (0.4, 2.0, 0.3, 0.2, 9.0)), ("1", (0.05, 2.0, 0.3, 0.1, 4.0))):
        run(tmp_path / f"lxmert-{which}", **dict(zip(names, numbers, strict=True)))
    run(tmp_path / "lxmert-2", ended=False, **{"mlm/accuracy": 1.0})
    monkeypatch.setattr("sys.argv", ["against_blind.py", str(tmp_path)])
    script("against_blind").main()
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        "| lxmert | blind | 0 | 1 | better |",
        "|---|---|---|---|---|",
        "| mlm/accuracy | 10.0 % | 40.0 % | 5.0 % | no |",
        "| objects/attr_accuracy | 20.0 % | 30.0 % | 30.0 % | yes |",
        "| objects/feat | 0.500 | 0.200 | 0.100 | yes |",
        "| mrfr/loss | 8.000 | 9.000 | 4.000 | no |",
    ]

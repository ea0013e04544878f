"""mypy finds nothing in the package, as ``[tool.mypy]`` in pyproject.toml asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_types_hold(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "mmpretrain", "data_tools", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

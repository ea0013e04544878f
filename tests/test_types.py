"""mypy finds nothing in the package, as ``[tool.mypy]`` in pyproject.toml asks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_types_hold(tmp_path: Path) -> None:
    """Of the files as the wheel lays them out, so that every module has the one name that its users import."""
    package = tmp_path / "mmpretrain"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TREE / "mmpretrain", package, ignore=ignore)
    for name in ("data_tools", "configs"):
        shutil.copytree(TREE / name, package / name, ignore=ignore)
    command = [sys.executable, "-m", "mypy", "--config-file", str(TREE / "pyproject.toml"), "-p", "mmpretrain", "--cache-dir", "cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

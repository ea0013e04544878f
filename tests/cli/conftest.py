"""Lightning makes its log handler for the stderr of the moment when it is imported: here, and not inside a test that captures it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch  # noqa: F401
import pytest

from mmpretrain.data_tools import scenes
from mmpretrain.train import run_dir


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of eight scenes."""
    return scenes.write(tmp_path_factory.mktemp("scenes"), 8, 0, "train", shard_size=8, progress=False)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working folder and a cache of the test's own; what a run leaves in the environment is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(run_dir.VARIABLE, raising=False)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    yield
    os.environ.pop(run_dir.VARIABLE, None)

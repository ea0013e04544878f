"""Fixtures for all tests. Test files import helpers as ``helpers.NAME``: pytest puts this folder on the path."""

from __future__ import annotations

import logging
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.shards import write_shards

# One thread in this process as in those that tests start: sums are cut alike, so that equal runs are equal to the last bit.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# What the terminal or the job around the tests says of itself is not about the terminals and jobs that they make.
for name in [*os.environ]:
    if name in ("COLUMNS", "LINES", "TERM", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE") or name.startswith("SLURM_"):
        del os.environ[name]
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"  # servers of tests are reached without one
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under ``nohup``: processes that tests start would not hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def real_shards() -> Path:
    """The folder of the real shards; the test is skipped without it."""
    named = os.environ.get("MMPRETRAIN_REAL_SHARDS")
    if not named or not Path(named).is_dir():
        pytest.skip("MMPRETRAIN_REAL_SHARDS does not name the folder of the real shards")
    return Path(named)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """Every test draws the same numbers, whatever ran before it in its process."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def loggers_speak() -> None:
    """What a test, or the fixture of a file, made quiet speaks again."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone."""
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards with 5, 4 and 3 captioned samples. Not to be changed."""
    return write_shards(tmp_path_factory.mktemp("tiny"))

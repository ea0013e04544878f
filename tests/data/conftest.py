"""Tests of the data path never touch the user's cache."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_cache_for_all(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MMPRETRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()

"""A checkpoint can be saved again whatever became of its manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmpretrain.train.atomic import fault, load, manifest_path, save


@pytest.mark.fault(46)
@pytest.mark.parametrize("garbled", [b"", b"{", b"{}", b"[]", b"null", b'{"sha256": 3}', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_step_whose_manifest_is_garbled_is_saved_again(tmp_path: Path, garbled: bytes) -> None:
    path = tmp_path / "step-00000003.ckpt"
    save({"global_step": 3, "weights": torch.zeros(4)}, path)
    manifest_path(path).write_bytes(garbled)
    assert fault(path) is not None
    save({"global_step": 3, "weights": torch.ones(4)}, path)
    assert fault(path) is None and torch.equal(load(path)["weights"], torch.ones(4))

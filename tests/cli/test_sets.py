"""How the sets of evaluate are named."""

from __future__ import annotations

import pytest

from mmpretrain.cli.commands import named_sets


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("held=scenes:val?seed=7", "held", "scenes:val?seed=7"),
        ("scenes:val?seed=7", "scenes_val_seed_7", "scenes:val?seed=7"),
        ("/a/b/coco_val", "coco_val", "/a/b/coco_val"),
        ("s3://bucket/x/?versionId=1", "versionId_1", "s3://bucket/x/?versionId=1"),
    ],
)
def test_a_name_is_what_stands_before_the_sign(text, name, source, monkeypatch):
    monkeypatch.setattr("mmpretrain.evaluate.samples.open_set", lambda *given: given)
    assert named_sets([text], None) == [(name, source)]

"""A mixture and buckets as YAML: parsed into typed sources, replaced whole by a later file, refused in one line."""

from __future__ import annotations

import pytest
from helpers.shards import write_shards
from train.mixtures import write

from mmpretrain.cli.main import main
from mmpretrain.cli.train import prepare
from mmpretrain.data.buckets import Buckets
from mmpretrain.data.mixture import TrainSource

MIXTURE = """\
defaults: [clip.yaml]
data:
  train:
    web: {{sources: {0}/pairs, weight: 2.5, max_epochs: 3}}
    clean: {{sources: [{0}/more], weight: 1, captions: all}}
  mix: batch
  buckets: {{window: 4, by: [text]}}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))


def test_yaml_names_typed_sources(tmp_path):
    (tmp_path / "a.yaml").write_text(MIXTURE.format("data"))
    (tmp_path / "b.yaml").write_text("data: {train: {other: {sources: x, reads: texts}}}\n")
    made = prepare("fit", ["--config", "a.yaml", "--loggers", "[]"]).datamodule
    assert made.set.specs["web"] == TrainSource("data/pairs", 2.5, 3) and made.mix == "batch"
    assert made.set.specs["clean"] == TrainSource(["data/more"], 1.0, captions="all")
    assert made.buckets == Buckets(window=4, by=("text",))
    later = prepare("fit", ["--config", "a.yaml", "--config", "b.yaml", "--loggers", "[]"])
    assert list(later.datamodule.set.specs) == ["other"]  # a mixture is stated whole
    assert later.resolved["data"]["train"]["other"]["reads"] == "texts"


def test_what_is_wrong_with_a_mixture_is_one_line(tmp_path, capfd):
    write(tmp_path / "data")
    write_shards(tmp_path / "data" / "more", (4,))
    for text, message in [
        (MIXTURE.replace("batch\n", "batch\n  batch_size: 999\n"), "source 'web' of data.train"),
        (MIXTURE.replace(", weight: 1,", ","), "clean have no weight and others have"),
        (MIXTURE.replace("weight: 1,", "weight: 1, reads: sounds,"), "reads"),
    ]:
        (tmp_path / "a.yaml").write_text(text.format("data"))
        assert main(["fit", "--config", "a.yaml", "--loggers", "[]", "--data.val", "{}", "--data.text.vocab_size", "200"]) == 2
        shown = capfd.readouterr().err
        assert message in shown and "Traceback" not in shown

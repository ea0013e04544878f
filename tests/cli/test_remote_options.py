"""The options of remote shards on the command line; what is saved of a run holds no credentials."""

from __future__ import annotations

import json

import pytest
from helpers.servers import http_server

from mmpretrain.cli.train import prepare
from mmpretrain.data.retry import RemoteOptions
from mmpretrain.train import run_dir


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))


def test_options_reach_the_readers_and_credentials_are_not_saved(monkeypatch):
    train = "https://me:hunter2@host/{000..003}.tar?token=s3cret"
    words = [
        "--config",
        "vilt.yaml",
        "--loggers",
        "[]",
        "--data.train",
        train,
        "--data.remote.mode",
        "ranges",
        "--data.remote.cache_gb",
        "3",
    ]
    made = prepare("fit", [*words, "--data.allow_pipe", "true"])
    assert made.datamodule.train_sources == train
    assert made.datamodule.open_reader.keywords == {"remote": RemoteOptions("ranges", cache_gb=3), "allow_pipe": True}
    assert made.resolved["data"]["train"] == "https://***@host/{000..003}.tar?token=***"
    monkeypatch.setattr("sys.argv", ["mmpretrain", "fit", "--data.train", train])
    saved = json.dumps([made.resolved, made.model.config, run_dir.environment()], default=str)
    assert "hunter2" not in saved and "s3cret" not in saved


def test_an_address_is_kept_as_it_is_and_not_read_as_a_value(tmp_path):
    """Lightning lets its parser fetch addresses: a folder's page of links would be the name of a source, a YAML file a mixture."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "page.yaml").write_text("{mine: {sources: elsewhere}}")
    with http_server(tmp_path / "served") as http:
        for address in (http.url(), http.url("page.yaml")):
            made = prepare("fit", ["--config", "vilt.yaml", "--loggers", "[]", "--data.train", address])
            assert made.datamodule.train_sources == address
        assert not http.seen

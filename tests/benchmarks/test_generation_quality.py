"""The table of generation quality on a tiny chain: every column is there, and gains are differences seed by seed."""

from __future__ import annotations

import json
import re

import pytest
from helpers import run_folder, tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import dalle
from helpers.scripts import script

from mmpretrain.data_tools import scenes
from mmpretrain.evaluate.probe import Options


@pytest.fixture
def benchmark():
    return script("generation_quality")


def test_means_over_seeds(benchmark):
    values = {
        "generated": {"recall": [0.2, 0.4], "frechet_clip": [0.5, 0.7]},
        "reranked": {"recall": [0.5, 0.5]},
        "real": {"recall": [1.0]},
    }
    lines = benchmark.table(values, {"recall": 0.1}, {"recall": 80, "frechet_clip": 16}).splitlines()
    assert lines[0] == "| measure | terms | chance | generated | reranked | gain | real |"
    assert lines[2] == "| recall | 80 | 10.0 % | 30.0 % ± 14.1 | 50.0 % ± 0.0 | 20.0 % ± 14.1 | 100.0 % |"
    assert lines[3].startswith("| frechet_clip | 16 |  | 0.6000 ± 0.1414 |  |  |  |")


def test_a_tiny_chain(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(benchmark, "trained", lambda data: _quick(data))
    monkeypatch.setattr("mmpretrain.generate.checks.counter", lambda model: (lambda text: 0, 24))
    scenes.write(tmp_path / "few", n=24, seed=3, split="val", workers=1, progress=False)
    dvae = run_folder.make(tmp_path / "dvae", lambda file, seed: tiny_dvae.make(file, seed=seed))
    dalle(tmp_path / "dalle.ckpt", dvae)  # whose codes are of the best checkpoint, as data tokens makes them
    checkpoint(tmp_path / "clip.ckpt", "clip")
    words = [f"--dvae={dvae}", f"--ckpt={tmp_path}/dalle.ckpt", f"--rerank={tmp_path}/clip.ckpt"]
    words += [f"--{name}={tmp_path}/few" for name in ("data", "probe", "real")]
    words += ["--n=2", "--limit=6", "--device=cpu", f"--json={tmp_path}/out.json", "--seeds", "0", "5"]
    assert benchmark.main(words) == 0
    out = capsys.readouterr().out
    assert re.search(r"probe of .* on 24 real pictures .*: recall \d+\.\d\d %", out) and "seeds [0, 5]" in out
    for name in ("recall", "precision", "exact", "clip_score", "frechet_clip", "kernel_clip"):
        assert f"| {name} |" in out
    kept = json.loads((tmp_path / "out.json").read_text())
    names = [{row["name"].split("/")[-2] for row in one["rows"]} for one in kept["seeds"]]
    assert names == [{"generated", "reranked", "reconstructed", "real"}, {"generated", "reranked"}]


def _quick(data):
    from mmpretrain.evaluate.probe_training import trained

    return trained(data, Options(side=32, samples=24, steps=4, batch=8, threshold=0.0))

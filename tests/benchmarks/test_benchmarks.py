"""Every benchmark runs with tiny models and prints its table, and the outputs of both sides agree. No speed is asserted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import scripts

TREE = Path(__file__).resolve().parents[2]
STEPS = ("clip_step.py", "vilt_step.py")


def run(script: str, *arguments: str, **environment: str) -> str:
    """What a benchmark prints; its folder is the first of the path, as when a user starts it."""
    path = os.pathsep.join([str(TREE), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, str(TREE / "benchmarks" / script), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", STEPS)
def test_steps_agree_and_are_timed(script: str) -> None:
    shown = run(script, "--tiny", "--batch", "4", "--pairs", "1", "--threads", "1")
    difference = re.search(r"largest difference ([\d.e+-]+)", shown)
    assert difference and float(difference[1]) < 1e-4
    for text in ("ceiling", "ours", "theirs", "measured ratio", "peak memory"):
        assert text in shown


@pytest.mark.slow
@pytest.mark.parametrize(("system", "paddings"), [("visualbert", 2), ("uniter", 1), ("lxmert", 1)])
def test_steps_over_regions_agree_and_are_timed(system: str, paddings: int) -> None:
    words = ["--tiny", "--system", system, "--batch", "4", "--pairs", "1", "--threads", "1"]
    shown = run("region_step.py", *words, "--padding", *("fixed", "longest")[:paddings], MMPRETRAIN_REAL_SHARDS="")
    differences = re.findall(r"largest difference ([\d.e+-]+)", shown)
    assert len(differences) == paddings and all(float(one) < 1e-4 for one in differences)
    slots = "20 + 36" if system == "lxmert" else "60 + 100"
    assert f"padded to {slots} slots" in shown and ("padded to the longest of the batch" in shown) is (paddings == 2)
    ceilings = [float(one) for one in re.findall(r"ceiling ([\d.]+)x", shown)]
    assert ceilings == sorted(ceilings, reverse=True) and min(ceilings) > 1
    for text in ("measured ratio", "of process time", "peak memory"):
        assert shown.count(text) == paddings


@pytest.mark.slow
def test_sparse_and_dense_attention_and_ways_to_sample_are_timed() -> None:
    shown = run("dalle_step.py", "--tiny", "--batch", "2", "--pairs", "1", "--threads", "1", "--places", "2", MMPRETRAIN_REAL_SHARDS="")
    difference = re.search(r"largest difference ([\d.e+-]+)", shown)
    assert difference and float(difference[1]) < 1e-5
    sparse, dense = (float(one) for one in re.findall(r"(?:sparse|dense) ([\d.]+) GFLOP", shown))
    assert sparse <= dense  # of so few tokens about as many
    for text in ("measured ratio", "of process time", "peak memory", "without a cache", "the text for each picture", "the text once"):
        assert text in shown


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_loaders_deliver_the_same(workers: str) -> None:
    shown = run("loader.py", "--samples", "32", "--batch", "4", "--size", "32", "--passes", "1", "--workers", workers, "--decoder", "pil")
    assert "scenes, 32 samples" in shown and "100% of the pictures are equal" in shown and "measured ratio" in shown


@pytest.mark.slow
def test_decoders_are_timed() -> None:
    shown = run("decode.py", "--passes", "1", "--size", "32", MMPRETRAIN_REAL_SHARDS="")
    assert "generated, 32 JPEGs" in shown and re.search(r"ratio [\d.]+x", shown) and re.search(r"largest \d, mean 0\.\d+", shown)


@pytest.mark.slow
def test_data_tools_are_timed() -> None:
    shown = run("data_tools.py", "--samples", "4", "--passes", "1", MMPRETRAIN_REAL_SHARDS="")
    for name in ("build --check full", "index", "check"):
        assert re.search(rf"  {name} +\d+ samples/s +[\d.]+ MB/s", shown)


def test_the_plan_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan_scale = scripts.script("plan_scale")
    monkeypatch.setattr(sys, "argv", ["plan_scale.py", "--samples", "4000", "--shard", "500", "--batch", "16"])
    plan_scale.main()
    shown = capsys.readouterr().out
    assert "4,000 samples in 8 shards, batches of 16" in shown and "250 steps in an epoch" in shown
    assert all(f"{kind}: resumed in the middle of epoch 3" in shown for kind in ("plain", "buckets", "tokens"))


@pytest.mark.slow
def test_damaged_pictures_are_counted() -> None:
    shown = run("bad_samples.py", "--samples", "200", "--percent", "2", "--passes", "1", "--size", "16")
    counted = re.search(r"200 samples, 4 damaged; (\d)\.0 replacements counted in a pass", shown)
    assert counted and 2 <= int(counted[1]) <= 5 and "measured ratio" in shown


def test_every_script_has_its_command_in_the_page() -> None:
    page = (TREE / "benchmarks" / "README.md").read_text(encoding="utf-8")
    for script in (TREE / "benchmarks").glob("*.py"):
        assert script.name in page
        if "__main__" in script.read_text(encoding="utf-8"):
            assert f"python benchmarks/{script.name}" in page

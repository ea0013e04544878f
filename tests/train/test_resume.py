"""A run that was stopped and resumed ends bit-identical to one that was not."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.resume import go
from train.spawn import environment

SCRIPT = Path(__file__).with_name("resume.py")


def end(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return torch.load(folder / "end.pt", weights_only=True)


def assert_identical(a: Path, b: Path) -> None:
    first, second = end(a), end(b)
    for part in ("parameters", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])


def lines(folder: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["train/loss"]) for entry in entries if "train/loss" in entry]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    go(folder, 13)
    return folder


@pytest.mark.fault(34)
@pytest.mark.parametrize("stop", [3, 5, 8, 10], ids=lambda n: f"after-{n}-of-5-per-epoch")
def test_stopped_and_resumed(tmp_path: Path, unbroken: Path, stop: int) -> None:
    go(tmp_path, stop)
    fitter = go(tmp_path, 13)
    assert fitter.global_step == 13
    assert_identical(tmp_path, unbroken)
    assert lines(tmp_path) == lines(unbroken)


@pytest.mark.fault(37)
def test_three_resumes_in_one_epoch(tmp_path: Path, unbroken: Path) -> None:
    for stop in (6, 7, 8, 13):
        go(tmp_path, stop)
    assert_identical(tmp_path, unbroken)


def test_resume_from_a_file_and_from_the_run_folder(tmp_path: Path, unbroken: Path) -> None:
    go(tmp_path, 4)
    go(tmp_path, 13, ckpt_path=str(tmp_path / "checkpoints" / "step-00000002.ckpt"))
    assert_identical(tmp_path, unbroken)
    go(tmp_path, 13, ckpt_path=str(tmp_path))
    assert_identical(tmp_path, unbroken)


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(folder), "13", "0.3"]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(folder: Path, process: subprocess.Popen[str], step: int) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        metrics = folder / "metrics.jsonl"
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed(tmp_path: Path, unbroken: Path) -> None:
    for step in (3, 8):
        process = start(tmp_path)
        wait_for_step(tmp_path, process, step)
        time.sleep(random.Random(step).random() * 0.2)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    go(tmp_path, 13)
    assert_identical(tmp_path, unbroken)
    assert lines(tmp_path) == lines(unbroken)


@pytest.mark.slow
def test_sigterm_saves_at_a_step_boundary(tmp_path: Path, unbroken: Path) -> None:
    process = start(tmp_path)
    wait_for_step(tmp_path, process, 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output
    saved = sorted((tmp_path / "checkpoints").glob("step-*.ckpt"))
    assert int(saved[-1].stem.split("-")[1]) == lines(tmp_path)[-1][0]
    go(tmp_path, 13)
    assert_identical(tmp_path, unbroken)

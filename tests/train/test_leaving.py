"""The end of a program with a process group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from train.spawn import environment, ranks

from mmpretrain.train import distributed


def test_threads_that_still_work_do_not_abort_a_program_that_ends() -> None:
    for rank, done in enumerate(ranks(Path(__file__).with_name("leaving.py"), "whole")):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"


def test_after_an_error_nobody_is_waited_for() -> None:
    done = ranks(Path(__file__).with_name("leaving.py"), "failed", timeout=200)
    assert all(one.returncode and "the run failed" in one.stdout for one in done)


def test_leaving_is_harmless_without_a_group_and_comes_after_a_run() -> None:
    distributed.leave()
    assert not dist.is_initialized()
    program = (
        "import atexit; from unittest import mock; from train.runs import build, run\n"
        "from mmpretrain.train import distributed\n"
        "atexit.register(lambda: print('was left' if distributed.leave.called else 'was not left'))\n"
        "distributed.leave = mock.Mock(); run(build(), 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "was left" in done.stdout, done.stdout + done.stderr


def test_threads_that_work_are_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([["S"], ["S", "R"], ["S"]])
    monkeypatch.setattr(distributed, "_states", lambda: next(answers))
    distributed.let_rest()
    assert next(answers, None) is None
    monkeypatch.setattr(distributed, "_states", lambda: ["R"])
    distributed.let_rest(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the threads of a process are read from /proc")
def test_threads_of_gloo_are_told_by_name(tmp_path: Path) -> None:
    program = (
        "import torch.distributed as dist; from mmpretrain.train import distributed\n"
        "assert distributed._states() == []\n"
        f"dist.init_process_group('gloo', store=dist.FileStore({str(tmp_path / 'store')!r}, 1), rank=0, world_size=1)\n"
        "dist.barrier(); found = distributed._states(); assert found and set(found) <= {'R', 'S'}, found\n"
        "distributed.leave(); assert distributed._states() == []\n"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(), check=True, timeout=300)

"""Workers that die, raise or stall, and steps that do not end: the run says which worker, shard and key, and ends."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers.child import child
from helpers.shards import write_shards
from train.runs import quiet, trainer
from train.spawn import ranks
from train.systems import build, data

from mmpretrain.data.reader import ShardReader
from mmpretrain.train import watchdog
from mmpretrain.train.watchdog import Watchdog


def happens(what: str) -> None:
    """What goes wrong in a worker."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "raise":
        raise ZeroDivisionError("a defect of a preparer")
    else:
        time.sleep(300)


def fit(shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, timeout: float = 600.0) -> BaseException:
    """A run in which reading one sample goes wrong; the error that ends it."""
    read_at = ShardReader.read_at

    def reads(self: ShardReader, shard: int, sample: int, *rest: Any, **more: Any) -> Any:
        found = read_at(self, shard, sample, *rest, **more)
        if found.key == bad and multiprocessing.parent_process() is not None:
            happens(what)
        return found

    source = data(shards, "clip")
    source.workers, source.timeout = 1, timeout
    bad = source.reader.indexes[1].key(2)
    monkeypatch.setattr(ShardReader, "read_at", reads)
    quiet()
    folder.mkdir()
    fitter = trainer(20, [Watchdog()], default_root_dir=folder, num_sanity_val_steps=0)
    began = time.monotonic()
    with pytest.raises((RuntimeError, ZeroDivisionError)) as caught:
        fitter.fit(build("clip"), datamodule=source)
    assert time.monotonic() - began < 300
    return caught.value


class Fails(pl.Callback):
    def on_validation_batch_end(self, *_: Any) -> None:
        raise RuntimeError("an error in a validation")


def test_an_error_in_a_validation_leaves_no_worker_and_no_open_shard(tmp_path: Path) -> None:
    """Lightning ends the workers of the loop that it is in."""

    before = set(multiprocessing.active_children())  # of other tests

    def runs() -> None:
        quiet()
        source = data(write_shards(tmp_path / "shards", (12, 12)), "clip")
        source.workers = 1
        fitter = trainer(4, [Fails()], default_root_dir=tmp_path, num_sanity_val_steps=0, val_check_interval=1)
        with pytest.raises(RuntimeError, match="in a validation"):
            fitter.fit(build("clip"), datamodule=source)
        assert set(multiprocessing.active_children()) <= before
        opened = [os.readlink(name) for name in Path("/proc/self/fd").iterdir() if name.is_symlink()]
        assert not [name for name in opened if name.startswith(str(tmp_path)) and name.endswith(".tar")]

    ended = child(runs)
    assert ended.code == 0, ended.output[-2000:]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", sizes=(12, 12))


@pytest.mark.fault(30)
def test_a_killed_worker_ends_the_run_and_is_named(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = fit(shards, tmp_path / "run", monkeypatch, "kill")
    (note,) = error.__notes__
    assert re.search(r"worker 0 \(pid \d+\) was killed by SIGKILL at .*\.tar key '", note)
    event = json.loads((tmp_path / "run" / "events.jsonl").read_text())
    assert event["event"] == "worker_failed" and event["report"][0] in note


@pytest.mark.fault(31)
def test_an_exception_in_a_worker_keeps_its_traceback_and_names_the_sample(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = fit(shards, tmp_path / "run", monkeypatch, "raise")
    assert isinstance(error, ZeroDivisionError) and "a defect of a preparer" in str(error) and "test_watchdog.py" in str(error)
    assert re.search(r"mmpretrain: while at .*00001\.tar key 'k00014'", str(error))


@pytest.mark.fault(29)
def test_a_silent_worker_is_named_with_its_stack(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    error = fit(shards, tmp_path / "run", monkeypatch, "stall", timeout=8.0)
    assert "timed out" in str(error) and any(re.search(r"worker 0 .* is at .*\.tar key '.* for \d", note) for note in error.__notes__)
    shown = capfd.readouterr().err
    assert "is at " in shown and "in happens" in shown  # the line where the worker stands


LONG = re.compile(r"rank 0: a step has not ended for \d+ s after step 2")


class Stands(pl.Callback):
    """One step that takes long: until that was said."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def on_train_batch_start(self, fitter: pl.Trainer, *_: Any) -> None:
        until = time.monotonic() + 60
        while fitter.global_step == 2 and not any(map(LONG.match, self.said)) and time.monotonic() < until:
            time.sleep(0.05)


def test_a_step_that_takes_long_is_said_and_goes_on(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(watchdog, "say", said.extend)
    monkeypatch.setattr(watchdog, "_DUMP", 0.0)
    quiet()
    fitter = trainer(4, [Watchdog(seconds=0.4), Stands(said)], default_root_dir=tmp_path, num_sanity_val_steps=0)
    fitter.fit(build("clip"), datamodule=data(shards, "clip"))
    # a slow machine may make the loader late as well, before or after
    (at,) = [at for at, line in enumerate(said) if LONG.match(line)][:1]
    assert fitter.global_step == 4 and "the sample read last: " in said[at + 1]
    with pytest.raises(ValueError, match="positive"):
        Watchdog(seconds=0)


HANGS = """
import sys, time, os
sys.path.insert(0, {tests!r})
import lightning.pytorch as pl
from train.fakes import FakeData
from train.runs import build, quiet, trainer
from mmpretrain.train.watchdog import Watchdog

class Hangs(pl.Callback):
    def on_train_batch_start(self, fitter, *_):
        if fitter.global_step == 2 and fitter.global_rank == 1:
            time.sleep(300)

quiet()
fitter = trainer(5, [Watchdog(seconds=8.0, stop=True), Hangs()], strategy="ddp", devices=2, default_root_dir={folder!r})
fitter.fit(build(), datamodule=FakeData())
"""


@pytest.mark.slow
@pytest.mark.fault(29)
def test_a_rank_that_hangs_ends_the_run(tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS.format(tests=str(Path(__file__).resolve().parents[1]), folder=str(tmp_path)))
    done = ranks(script, timeout=200)
    assert [one.returncode for one in done] == [1, 1]
    assert any("rank 1: a step has not ended" in one.stdout for one in done)


def test_a_worker_dies_with_the_training_process(shards: Path) -> None:
    """Workers do not take SIGTERM of others, but leave when the training process is gone."""

    def leaves() -> None:
        source = data(shards, "clip")
        source.workers = 1
        iterator = iter(source.train_dataloader())
        next(iterator)
        print(iterator._workers[0].pid, flush=True)
        os._exit(0)

    pid = int(child(leaves).output.split()[-1])
    until = time.monotonic() + 120
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone
        while " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < until
            time.sleep(0.1)

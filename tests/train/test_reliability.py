"""Disks that are full, slow clocks, trackers that fail: a run goes on where it can, and says what it could not do."""

from __future__ import annotations

import ast
import collections
import json
import resource
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.child import child, few_descriptors
from helpers.shards import write_shards
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from train.fakes import FakeData
from train.runs import build, quiet, trainer

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.train import atomic, checkpoint, events
from mmpretrain.train.atomic import CheckpointError, fault, load, save
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.events import Journal

TREE = Path(__file__).resolve().parents[2]


def fit(folder: Path, steps: int = 8, every: int | None = 2, logger: Any = False, **options: Any) -> pl.Trainer:
    quiet()
    callbacks = [*options.pop("callbacks", []), Metrics(), Checkpoints(every_n_steps=every, **options)]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=1, logger=logger)
    fitter.fit(build(), datamodule=FakeData(steps_per_epoch=100), ckpt_path="last")
    return fitter


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return [path.name for path in atomic.steps_in(folder / "checkpoints")]


@pytest.mark.fault(44)
def test_no_room_for_twice_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**12, 10**4, 10**4, 10**12, 10**4])
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage(next(free, 10**4)))
    fit(tmp_path, 8)
    assert names(tmp_path) == ["step-00000008.ckpt", "step-00000002.ckpt"]
    failed = [one for one in lines(tmp_path / "events.jsonl") if one["event"] == "checkpoint_failed"]
    assert [(one["step"], one["in_a_row"]) for one in failed] == [(4, 1), (6, 2)] and "twice the last checkpoint" in failed[0]["reason"]
    assert [line.get("events/checkpoint_failed") for line in lines(tmp_path / "metrics.jsonl") if "train/lr" in line][-3:] == [1, 2, 2]
    with pytest.raises(CheckpointError, match=r"3 saves in a row failed.*MiB are free"):
        fit(tmp_path, 20)
    assert all(fault(path) is None for path in atomic.steps_in(tmp_path / "checkpoints"))


@pytest.mark.fault(44)
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The disk refuses in the middle of a file (RLIMIT_FSIZE): the old one stays, nothing else is left."""
    path = tmp_path / "step-00000001.ckpt"
    save({"global_step": 1, "weights": torch.zeros(1000)}, path)
    before = path.read_bytes()

    def grows() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(OSError, match="File too large"):
            save({"global_step": 1, "weights": torch.ones(1_000_000)}, path)

    ended = child(grows)
    assert ended.code == 0, ended.output
    assert path.read_bytes() == before and fault(path) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]


@pytest.mark.fault(45)
def test_a_folder_that_takes_no_files_is_an_error_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint, "write_text", refuses)  # root may write anywhere
    with pytest.raises(PermissionError, match="checkpoints"):
        fit(tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        fit(tmp_path / "file")


def test_a_save_is_read_again_before_older_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that change on their way to the disk: the save does not count, ``last`` stays, nothing is removed."""
    written = atomic.save

    def damaging(content: dict, path: Path) -> None:
        written(content, path)
        if content["global_step"] in (6, 8):
            with path.open("r+b") as file:
                file.seek(2000)
                file.write(b"\xff\xff\xff\xff")

    monkeypatch.setattr(atomic, "save", damaging)
    fit(tmp_path, 8, keep_last=2, max_failures=9)
    folder = tmp_path / "checkpoints"
    assert names(tmp_path) == [f"step-0000000{step}.ckpt" for step in (8, 6, 4, 2)]
    assert (folder / "last.ckpt").resolve().name == "step-00000004.ckpt"
    assert "do not match its manifest" in lines(tmp_path / "events.jsonl")[0]["reason"]
    monkeypatch.undo()
    assert fit(tmp_path, 14, keep_last=2).global_step == 14
    assert [name for name in names(tmp_path) if fault(folder / name) is None] == ["step-00000014.ckpt", "step-00000012.ckpt"]


@pytest.mark.fault(53)
def test_minutes_between_saves_are_those_of_a_clock_that_does_not_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 25))  # seconds; every look at it takes 25
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time", lambda: 1e9 - next(clock) * 1e5)  # the wall clock runs backwards
    fit(tmp_path, 9, every=None, every_minutes=2.0, keep_last=9)
    assert names(tmp_path) == [f"step-0000000{step}.ckpt" for step in (9, 4)] or len(names(tmp_path)) in (2, 3)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl") if "train/lr" in line] == list(range(1, 10))
    with pytest.raises(ValueError, match="must be positive"):
        Checkpoints(every_minutes=0)


@pytest.mark.fault(52)
def test_parts_of_two_saves_do_not_pass_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint is one file with one manifest; the file of one save with the manifest of another is passed over."""
    older, newer = (tmp_path / f"step-0000000{step}.ckpt" for step in (1, 2))
    for step, path in ((1, older), (2, newer)):
        save({"global_step": step, "weights": torch.arange(100.0) + step}, path)
        atomic.point(tmp_path / "last.ckpt", path)
    content = newer.read_bytes()
    save({"global_step": 3, "weights": torch.arange(100.0)}, newer)
    newer.write_bytes(content)
    assert "do not match" in str(fault(newer))
    assert atomic.choose(tmp_path / "last.ckpt") == older and "trying the checkpoint before it" in capsys.readouterr().out


@pytest.mark.fault(46)
def test_a_torn_file_without_manifest_is_passed_over(tmp_path: Path) -> None:
    fit(tmp_path, 4)
    newest, older = atomic.steps_in(tmp_path / "checkpoints")
    Path(f"{newest}.json").unlink()
    assert fault(newest) is None  # a whole archive
    newest.write_bytes(newest.read_bytes()[:5000])
    assert "not a readable checkpoint" in str(fault(newest)) and atomic.choose(tmp_path / "checkpoints" / "last.ckpt") == older


class Refuses(DummyLogger):
    """A tracker of which nothing works."""

    calls = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        type(self).calls += 1
        raise ConnectionError("no route to host")

    log_hyperparams = save = finalize = log_metrics


@pytest.mark.fault(54)
def test_a_tracker_that_fails_is_counted_and_given_up(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    Refuses.calls = 0
    fit(tmp_path, 20, logger=Refuses())
    assert Refuses.calls == 10
    failed = [one for one in lines(tmp_path / "events.jsonl") if one["event"] == "logger_failed"]
    assert len(failed) == 10 and failed[0]["error"] == "ConnectionError: no route to host" and failed[0]["logger"] == "Refuses"


@pytest.mark.fault(54)
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_files_of_trackers_that_cannot_be_written(tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = kind(tmp_path / "log")
    broken = logger.experiment

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("save", "flush", "add_scalar", "close"):
        if hasattr(broken, name):
            monkeypatch.setattr(broken, name, full)
    assert fit(tmp_path, 4, logger=logger).global_step == 4
    assert {one["event"] for one in lines(tmp_path / "events.jsonl")} == {"logger_failed"}


@pytest.mark.fault(54)
def test_metrics_wait_in_memory_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    assert journal.append({"step": 1})
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, soft[1]))
    try:
        assert not journal.append({"step": 2}) and not journal.append({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
        signal.signal(signal.SIGXFSZ, before)
    assert journal.append({"step": 4}) and journal.failures == 2
    assert lines(journal.path) == [{"step": step} for step in (1, 2, 3, 4)]  # the torn line is cut off, none is lost
    other = Journal(journal.path)  # of another rank, at an error
    assert other.append({"rank": 1}) and journal.append({"step": 5}) and lines(journal.path)[-2:] == [{"rank": 1}, {"step": 5}]
    with journal.path.open("ab") as file:
        file.write(b'{"step": 5')  # of a process that was killed on a full disk
    assert Journal(journal.path).append({"step": 6})
    assert journal.path.read_bytes().splitlines()[-2:] == [b'{"step": 5', b'{"step": 6}']
    fitter = trainer(1, default_root_dir=tmp_path / "nowhere")
    events.note(fitter, "spike", loss=float("nan"))  # without a folder: counted alone
    assert events.counts(fitter) == {"spike": 1}


@pytest.mark.fault(53)
def test_a_run_with_few_file_descriptors_and_many_shards(tmp_path: Path) -> None:
    """256 descriptors, 300 shards, every one of them read in the first epoch, by workers too."""
    write_shards(tmp_path, sizes=[1] * 300)
    text = TextOptions(tokenizer="wordpiece", vocab_size=96)

    def reads() -> None:
        few_descriptors(240)  # of 256
        data = ShardData(str(tmp_path), batch_size=50, text=text, image=ImageTransform(mode="clip", size=16), workers=1, timeout=300)
        data.setup("fit")
        keys = [key for (batch,) in data.train_dataloader() for key in batch.keys]
        assert len(set(keys)) == 300

    ended = child(reads)
    assert ended.code == 0, ended.output[-2000:]


@pytest.mark.fault(51)
def test_nothing_is_loaded_but_plain_types() -> None:
    """Every ``torch.load`` says ``weights_only=True``; nothing unpickles, runs a shell or evaluates text."""
    forbidden = {"pickle.load", "pickle.loads", "pickle.Unpickler", "os.system", "os.popen", "eval", "exec", "yaml.unsafe_load"}
    found = []
    for path in [file for folder in ("mmpretrain", "data_tools") for file in (TREE / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "yaml.load" and words.get("Loader") not in ("yaml.SafeLoader", "_Loader"):  # our own is a SafeLoader
                found.append(f"{path.relative_to(TREE)}:{node.lineno} {name}")
            if name in forbidden or words.get("shell") == "True" or words.get("allow_pickle") == "True":
                found.append(f"{path.relative_to(TREE)}:{node.lineno} {name}")
            if name == "torch.load" and words.get("weights_only") != "True":
                found.append(f"{path.relative_to(TREE)}:{node.lineno} torch.load without weights_only=True")
    assert found == []


def test_a_checkpoint_of_this_suite_loads_with_plain_torch(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["guard"]["spikes"]["seen"] == 2 and load(path)["meter"] == {}

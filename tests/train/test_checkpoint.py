"""Checkpoints are whole or absent, plain, pruned, and found again."""

from __future__ import annotations

import collections
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.fakes import FakeData
from train.resume import go
from train.runs import build, quiet, trainer
from train.spawn import environment

from mmpretrain.train import atomic, places
from mmpretrain.train.atomic import CheckpointError, choose, fault, load, save
from mmpretrain.train.checkpoint import Checkpoints, resolve
from mmpretrain.train.payload import plain


def written(folder: Path, *steps: int) -> list[Path]:
    paths = [folder / f"step-{step:08d}.ckpt" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        save({"global_step": step, "weights": torch.arange(1000.0) + step}, path)
        atomic.point(folder / "last.ckpt", path)
    return paths


def test_round_trip_with_a_manifest(tmp_path: Path) -> None:
    (path,) = written(tmp_path, 3)
    entry = json.loads(Path(f"{path}.json").read_text())
    assert entry["bytes"] == path.stat().st_size and entry["step"] == 3 and len(entry["sha256"]) == 64
    assert torch.equal(load(path)["weights"], torch.arange(1000.0) + 3)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.fault(46)
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "manifest"])
def test_a_damaged_last_falls_back_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    first, second = written(tmp_path, 1, 2)
    data = second.read_bytes()
    if damage == "cut":
        second.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        second.write_bytes(data[:1500] + bytes([data[1500] ^ 1]) + data[1501:])
    elif damage == "empty":
        second.write_bytes(b"")
    elif damage == "gone":
        second.unlink()
    else:
        Path(f"{second}.json").write_text("{")
    assert choose(tmp_path / "last.ckpt").name == first.name
    if damage != "gone":
        assert second.name in capsys.readouterr().out
        with pytest.raises(CheckpointError, match=second.name):
            load(second)


def test_nothing_usable_is_one_clear_error(tmp_path: Path) -> None:
    (only,) = written(tmp_path, 1)
    only.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        choose(tmp_path / "last.ckpt")


def test_only_plain_types_are_saved(tmp_path: Path) -> None:
    for bad in (Path("x"), {1, object()}, lambda: 0, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=r"checkpoint\['extra'\]"):
            save({"extra": bad}, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())
    assert plain({"a": (Path("x"), None), 3: collections.OrderedDict(b=True)}) == {"a": ["x", None], 3: {"b": True}}


@pytest.mark.fault(51)
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(44)
def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = written(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save({"global_step": 1}, path)
    assert fault(path) is None and load(path)["global_step"] == 1 and not list(tmp_path.glob(".*"))


@pytest.mark.fault(44)
def test_a_full_disk_does_not_end_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, calls = atomic.save, []

    def sometimes(checkpoint: dict, path: Path) -> None:
        calls.append(path)
        if len(calls) <= 2:
            raise OSError(28, "No space left on device")
        kept(checkpoint, path)

    monkeypatch.setattr(atomic, "save", sometimes)
    go(tmp_path, 8)
    assert [p.name for p in atomic.steps_in(tmp_path / "checkpoints")] == ["step-00000008.ckpt", "step-00000006.ckpt"]
    calls.clear()
    monkeypatch.setattr(atomic, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="3 saves in a row failed"):
        go(tmp_path / "again", 12)


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    quiet()
    keeper = Checkpoints(every_n_steps=3, keep_last=2, monitor="val/match/loss")
    fitter = trainer(12, [keeper], default_root_dir=tmp_path, enable_checkpointing=True)
    fitter.fit(build(), datamodule=FakeData(steps_per_epoch=4))
    folder = tmp_path / "checkpoints"
    names = [p.name for p in atomic.steps_in(folder)]
    best = resolve("best", folder).resolve().name
    assert names[0] == "step-00000012.ckpt" and best in names and len(names) <= 3
    assert (folder / "last.ckpt").resolve().name == names[0]
    assert sorted(p.name for p in folder.glob("*.json")) == sorted(f"{name}.json" for name in names)
    saved = load(folder / best)
    assert saved["mmpretrain"]["step"] == saved["global_step"] == int(best[5:13])
    again = trainer(12, [Checkpoints(monitor="val/match/loss")], default_root_dir=tmp_path, enable_checkpointing=True)
    (found,) = again.validate(build(), datamodule=FakeData(), ckpt_path="best")
    assert found["val/match/loss"] == pytest.approx(keeper.best[0], abs=1e-6)


def test_a_run_that_is_made_longer_keeps_its_epochs(tmp_path: Path) -> None:
    """The last checkpoint of a run that ended in the middle of an epoch does not count that epoch as finished."""
    quiet()
    for steps in (2, 7, 12):
        fitter = trainer(steps, [Checkpoints(every_n_steps=None)], default_root_dir=tmp_path, enable_checkpointing=True, max_epochs=3)
        fitter.fit(build(), datamodule=FakeData(steps_per_epoch=4), ckpt_path="last")
        assert fitter.global_step == steps
    assert fitter.current_epoch == 3


def test_resuming_from_the_best_checkpoint_is_exact(tmp_path: Path) -> None:
    """It is written during validation, at another place of the loop than the periodic ones."""
    quiet()

    def fit(folder: Path, steps: int, ckpt_path: str | None = None) -> dict[str, torch.Tensor]:
        keeper = Checkpoints(every_n_steps=None, monitor="val/match/loss")
        module = build(dropout=0.1)
        fitter = trainer(steps, [keeper], default_root_dir=folder, enable_checkpointing=True)
        fitter.fit(module, datamodule=FakeData(steps_per_epoch=4), ckpt_path=ckpt_path)
        assert fitter.global_step == steps
        return module.root.state_dict()

    whole = fit(tmp_path / "a", 10)
    for name in ("step-00000004.ckpt", "best.ckpt"):
        resumed = fit(tmp_path / "b", 10, str(tmp_path / "a" / "checkpoints" / name))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_paths_a_user_may_write(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert resolve("last", folder) is None
    with pytest.raises(CheckpointError, match="monitor"):
        resolve("best", folder)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        resolve(str(tmp_path / "nothing.ckpt"), folder)
    with pytest.raises(CheckpointError, match="no checkpoint in this folder"):
        resolve(str(tmp_path), folder)
    (path,) = written(folder, 5)
    assert resolve("last", folder) == resolve(str(tmp_path), folder) == resolve(str(folder), folder) == folder / "last.ckpt"
    assert resolve(str(path), folder) == path


def test_checkpoints_elsewhere_are_found_by_the_run(tmp_path: Path) -> None:
    quiet()
    run, elsewhere = tmp_path / "runs" / "vilt-20261127-120000", tmp_path / "big disk"
    for steps, ckpt_path in ((2, None), (4, "last")):
        keeper = Checkpoints(every_n_steps=1, directory=str(elsewhere))
        fitter = trainer(steps, [keeper], default_root_dir=run, enable_checkpointing=True)
        last = None if ckpt_path is None else str(places.named(newest(tmp_path)))
        fitter.fit(build(), datamodule=FakeData(steps_per_epoch=4), ckpt_path=last)
    assert fitter.global_step == 4 and (run / "checkpoints").is_symlink()
    assert (run / "checkpoints" / "last.ckpt").resolve() == (elsewhere / "step-00000004.ckpt").resolve()


def newest(tmp_path: Path) -> Path:
    """The newest run, as ``--ckpt_path last`` finds it."""
    found = places.latest(tmp_path / "runs", "vilt")
    assert found is not None
    return found


def test_everything_load_needs_is_inside(tmp_path: Path) -> None:
    quiet()
    module = build()
    module.config = {"model": {"system": {"class_path": "x.Y", "init_args": {"width": 16}}}}
    fitter = trainer(2, [Checkpoints()], default_root_dir=tmp_path, enable_checkpointing=True)
    fitter.fit(module, datamodule=FakeData())
    entry = load(tmp_path / "checkpoints" / "last.ckpt")["mmpretrain"]
    assert entry["config"] == module.config and entry["step"] == 2 and entry["global_batch"] == 8
    assert entry["vocabulary"]["mask"] == 1 and "torch" in entry["versions"]


@pytest.mark.slow
@pytest.mark.fault(43)
@pytest.mark.parametrize(
    "how",
    [["--tmpdir", "beside"], ["--tmpdir", "/dev/shm"], ["--shards", "--alone"]],
    ids=["tmpdir-beside", "tmpdir-on-another-filesystem", "shards-and-one-rank-alone"],
)
def test_a_training_of_two_ranks_is_killed_ten_times(tmp_path: Path, how: list[str]) -> None:
    """At random moments and inside saves; see ``chaos.py``, which does the same a hundred times."""
    script = str(Path(__file__).with_name("chaos.py"))
    command = [sys.executable, script, "--kills", "10", *how, "--folder", str(tmp_path / "chaos")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["kills"] == 10 and found["in_saves"] > 0
    assert found["unreadable"] == found["lost"] == found["hung"] == found["different"] == []


@pytest.mark.slow
@pytest.mark.fault(43)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["tmpdir-beside", "tmpdir-on-another-filesystem"])
def test_kill_during_saves_never_loses_the_last_checkpoint(tmp_path: Path, elsewhere: bool) -> None:
    temporary = "/dev/shm" if elsewhere and Path("/dev/shm").is_dir() else str(tmp_path)
    dice = random.Random(0)
    for trial in range(8):
        folder = tmp_path / str(trial)
        folder.mkdir()
        command = [sys.executable, str(Path(__file__).with_name("saver.py")), str(folder)]
        process = subprocess.Popen(command, env=environment(TMPDIR=temporary), stdout=subprocess.PIPE, text=True)
        done = -1
        for _ in range(3):
            done = int(process.stdout.readline())
        time.sleep(dice.random() * 0.08)
        process.kill()
        rest = process.communicate()[0].split()
        done = int(rest[-1]) if rest else done
        checkpoint = load(choose(folder / "last.ckpt"))
        assert checkpoint["global_step"] >= done
        assert torch.equal(checkpoint["weights"], torch.full((1_000_000,), float(checkpoint["global_step"])))
        for path in atomic.steps_in(folder):
            assert fault(path) is None, path

"""What Lightning's Trainer does by default with faults of the matrix: what the columns of ``docs/faults.md`` say of it, run."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.child import Ended, child
from lightning.fabric.utilities.cloud_io import _atomic_save
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from train.runs import quiet
from train.spawn import free_port


class Net(pl.LightningModule):
    """One parameter vector; five steps of two numbers in an epoch, shuffled."""

    def __init__(self, size: int = 10, bad: int = -1) -> None:
        super().__init__()
        self.weight, self.bad = torch.nn.Parameter(torch.ones(size)), bad
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        self.seen += batch.tolist()
        loss = (self.weight.mean() - 0.1 * batch.mean()) ** 2
        self.log("loss", loss)
        return loss * float("nan") if self.bad in batch.tolist() else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(torch.arange(10.0), batch_size=2, shuffle=True)


def fit(folder: Path, net: Net, steps: int, *callbacks: pl.Callback, ckpt_path: str | None = None, **flags: Any) -> pl.Trainer:
    quiet()
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    defaults = {"logger": False, "enable_checkpointing": bool(callbacks), "default_root_dir": folder, "log_every_n_steps": 1}
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **{**defaults, **silent, **flags})
    trainer.fit(net, ckpt_path=ckpt_path)
    return trainer


def every(folder: Path, steps: int = 1) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=steps, save_top_k=-1, save_last=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files on another file system than the checkpoints."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    folder = Path(tempfile.mkdtemp(dir=shm))
    yield folder
    shutil.rmtree(folder)


def killed_in_save(path: Path, temporary: Path) -> None:
    """Overwrite the checkpoint at ``path`` and die on the way, as early as the move of the temporary file allows: before it is renamed, or,
    where it cannot be renamed, when a part of it is copied."""
    _atomic_save({"weights": torch.zeros(100_000)}, path)
    sends, renames = os.sendfile, os.rename

    def part(out: int, source: int, offset: int, count: int) -> int:
        sends(out, source, offset, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def rename(source: Any, target: Any, **more: Any) -> None:
        if os.stat(source).st_dev == path.parent.stat().st_dev:
            os.kill(os.getpid(), signal.SIGKILL)
        renames(source, target, **more)

    def saves() -> None:
        tempfile.tempdir, os.sendfile, os.rename = str(temporary), part, rename
        _atomic_save({"weights": torch.ones(100_000)}, path)

    assert child(saves).code == -signal.SIGKILL


@pytest.mark.fault(43)
def test_a_kill_in_a_save_leaves_the_old_file_on_one_file_system(tmp_path: Path) -> None:
    killed_in_save(tmp_path / "a.ckpt", tmp_path)
    assert not torch.load(tmp_path / "a.ckpt", weights_only=True)["weights"].any()


@pytest.mark.fault(43)
def test_a_kill_in_a_save_destroys_the_old_file_with_tmpdir_on_another(tmp_path: Path, elsewhere: Path) -> None:
    killed_in_save(tmp_path / "a.ckpt", elsewhere)
    assert (tmp_path / "a.ckpt").stat().st_size == 1000
    with pytest.raises(RuntimeError, match="zip archive"):
        torch.load(tmp_path / "a.ckpt", weights_only=True)


@pytest.mark.fault(44)
def test_a_full_disk_ends_the_run_at_the_first_save(tmp_path: Path) -> None:
    def fills() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        fit(tmp_path, Net(100_000), 4, every(tmp_path, 2))

    ended = child(fills)
    assert ended.code == 1 and "File too large" in ended.output and not list(tmp_path.glob("*.ckpt"))


@pytest.mark.fault(45)
def test_a_folder_that_takes_no_file_is_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "move", refuses)  # root may write anywhere
    assert fit(tmp_path, Net(), 4, every(tmp_path)).global_step == 4
    assert not list(tmp_path.glob("*.ckpt"))


@pytest.mark.fault(46)
def test_last_that_is_torn_ends_the_run_beside_whole_ones(tmp_path: Path) -> None:
    fit(tmp_path, Net(), 3, every(tmp_path))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(RuntimeError, match="zip archive"):
        fit(tmp_path, Net(), 5, every(tmp_path), ckpt_path="last")
    assert len(list(tmp_path.glob("epoch*.ckpt"))) == 3


class Told(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.fault(47)
def test_sigterm_ends_the_run_without_a_checkpoint(tmp_path: Path) -> None:
    ended = child(lambda: fit(tmp_path, Net(), 8, Told(), every(tmp_path, 100)))
    assert ended.code != 0 and not list(tmp_path.glob("*.ckpt"))


@pytest.mark.fault(49)
def test_nan_goes_into_the_weights_and_the_run_goes_on(tmp_path: Path) -> None:
    net = Net(bad=4)
    assert fit(tmp_path, net, 8).global_step == 8 and net.weight.isnan().all()


@pytest.mark.fault(50)
def test_a_spike_of_the_loss_is_a_step_like_others(tmp_path: Path) -> None:
    class Spiking(Net):
        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return super().training_step(batch, index) * (1e6 if self.global_step == 3 else 1)

    net = Spiking()
    assert fit(tmp_path, net, 8).global_step == 8 and net.weight.abs().min() > 100


@pytest.mark.fault(51)
def test_a_pickle_in_a_local_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        fit(tmp_path, Net(), 1, ckpt_path=str(tmp_path / "evil.ckpt"))
    assert not (tmp_path / "canary").exists()


@pytest.mark.fault(54)
def test_a_tracker_that_fails_ends_the_run(tmp_path: Path) -> None:
    class Refuses(DummyLogger):
        def log_metrics(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError, match="no route"):
        fit(tmp_path, Net(), 3, logger=Refuses())


@pytest.mark.fault(34)
def test_an_epoch_that_is_resumed_shows_samples_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plain loader: the epoch of five steps is begun again in another order after its third step."""
    torch.manual_seed(0)
    first, rest = Net(), Net()
    trainer = fit(tmp_path, first, 3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.manual_seed(1)
    monkeypatch.setitem(globals(), "quiet", lambda: None)
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        fit(tmp_path, rest, 5, ckpt_path=str(tmp_path / "a.ckpt"))
    epoch = first.seen + rest.seen[: 10 - len(first.seen)]
    assert len(epoch) == 10 and len(set(epoch)) < 10


@pytest.mark.fault(38)
def test_other_data_are_accepted(tmp_path: Path) -> None:
    fit(tmp_path, Net(), 5).save_checkpoint(tmp_path / "a.ckpt")
    net = Net()
    net.train_dataloader = lambda: torch.utils.data.DataLoader(torch.arange(100.0, 103.0))
    assert fit(tmp_path, net, 8, ckpt_path=str(tmp_path / "a.ckpt")).global_step == 8 and min(net.seen) == 100


@pytest.mark.fault(52)
def test_parts_of_two_saves_pass_for_one(tmp_path: Path) -> None:
    fit(tmp_path, Net(), 3, every(tmp_path))
    first, last = (torch.load(tmp_path / f"epoch=0-step={step}.ckpt", weights_only=True) for step in (1, 3))
    torch.save({**last, "state_dict": first["state_dict"]}, tmp_path / "mixed.ckpt")
    assert fit(tmp_path, Net(), 5, ckpt_path=str(tmp_path / "mixed.ckpt")).global_step == 5


class Failing(torch.utils.data.Dataset):
    """A worker that raises at its third item."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        if index == 2:
            raise ZeroDivisionError("a defect")
        return torch.tensor(float(index))


@pytest.mark.fault(31)
def test_a_worker_that_fails_ends_the_run_without_its_sample(tmp_path: Path) -> None:
    """This is torch's loader, which webdataset and open_clip use too."""
    net = Net()
    net.train_dataloader = lambda: torch.utils.data.DataLoader(Failing(), num_workers=1)
    with pytest.raises(ZeroDivisionError, match="a defect") as caught:
        fit(tmp_path, net, 10)
    assert not getattr(caught.value, "__notes__", []) and "Traceback" in str(caught.value)


def two_ranks(act: Callable[[int], object]) -> Ended:
    """Two processes with gloo, whose outputs are one; the code is that of rank 0."""
    port = str(free_port())

    def both() -> None:
        rank = int(os.fork() == 0)
        signal.alarm(300)  # nothing here waits for ever
        os.environ.update(NODE_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        try:
            act(rank)
        finally:
            if rank == 0:
                print("rank 1 ended with", os.waitstatus_to_exitcode(os.wait()[1]))

    return child(both)


@pytest.mark.fault(32, 33)
def test_ranks_train_with_other_data_and_validate_some_samples_twice(tmp_path: Path) -> None:
    class Validated(Net):
        def validation_step(self, batch: Tensor, index: int) -> None:
            print(f"validated {batch.tolist()}")

    def act(rank: int) -> None:
        net = Validated()
        net.train_dataloader = lambda: torch.utils.data.DataLoader(torch.arange(10.0) + 100 * rank, batch_size=2 - rank)
        net.val_dataloader = lambda: torch.utils.data.DataLoader(torch.arange(3.0))
        fit(tmp_path, net, 2, strategy="ddp", num_nodes=2, num_sanity_val_steps=0, val_check_interval=2)
        print(f"rank {rank} saw {len(net.seen)}, {min(net.seen) >= 100}")

    ended = two_ranks(act)
    assert ended.code == 0 and "rank 0 saw 4, False" in ended.output and "rank 1 saw 2, True" in ended.output
    assert sorted(re.findall(r"validated \[(\d)", ended.output)) == ["0", "0", "1", "2"]


@pytest.mark.fault(48)
def test_sigterm_to_one_rank_hangs_in_its_handler(tmp_path: Path) -> None:
    """The handler broadcasts, while the other rank reduces its gradients: a step takes milliseconds, these ranks wait for seconds."""

    class Told(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2 and trainer.global_rank == 1:
                faulthandler.dump_traceback_later(3, file=sys.stderr, exit=True)
                os.kill(os.getpid(), signal.SIGTERM)

    ended = two_ranks(lambda rank: fit(tmp_path, Net(), 5, Told(), strategy="ddp", num_nodes=2))
    assert "Timeout" in ended.output and "_sigterm_notifier_fn" in ended.output and "rank 1 ended with 1" in ended.output

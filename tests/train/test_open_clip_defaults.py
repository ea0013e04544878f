"""What open_clip's training does by default with faults of the matrix: what the columns of ``docs/faults.md`` say of it, run.

Every run is a fork: ``main`` changes the levels and handlers of all loggers. The pictures are those of ``--dataset-type synthetic``, but
each of its own colour, and every one that is shown is logged.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.child import Ended, child
from helpers.shards import picture, write_shards

main = pytest.importorskip("open_clip_train.main")  # with open-clip-torch
data, train, open_clip = (pytest.importorskip(name) for name in ("open_clip_train.data", "open_clip_train.train", "open_clip"))

TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
FLAGS = "--model tiny --dataset-type synthetic --train-num-samples 8 --epochs 2 --batch-size 2 --warmup 1 --workers 0"
FLAGS += " --device cpu --precision fp32 --log-every-n-steps 1 --name run"
SHAPE = (3, 32, 32)


@pytest.fixture(autouse=True)
def towers(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(TOWERS))


def nothing(*_: Any) -> None: ...


def trains(folder: Path, *flags: str, fault: Callable[[int], Any] = nothing, before: Callable[[], Any] = nothing) -> None:
    """One call of ``main`` in this process, which ``before`` may change. ``fault`` acts before a picture is given out, or changes it."""

    def item(dataset: Any, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        logging.info(f"shown {index}")
        changed = fault(index)
        own = torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))
        return own if changed is None else changed, dataset.preprocess_txt(f"number {index}")

    open_clip.add_model_config(folder / "tiny.json")
    data.SyntheticDataset.__getitem__ = item
    faulthandler.disable()
    before()
    main.main([*FLAGS.split(), "--logs", str(folder), *flags])


def trained(folder: Path, *flags: str, **changes: Callable) -> Ended:
    return child(lambda: trains(folder, *flags, **changes))


def nth(number: int, act: Callable[[], Any]) -> Callable[[int], Any]:
    """A fault of the picture that is the ``number``-th to be shown."""
    calls = count(1)
    return lambda index: act() if next(calls) == number else None


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run" / "checkpoints").glob("*.pt"))


def load(folder: Path, epoch: int) -> dict[str, Any]:
    return torch.load(folder / "run" / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)


def steps(ended: Ended) -> list[int]:
    """The epoch of every step that was logged."""
    return [int(epoch) for epoch in re.findall(r"Train Epoch: (\d+) ", ended.output)]


def shown(ended: Ended) -> list[int]:
    return [int(index) for index in re.findall(r"shown (\d+)", ended.output)]


def warnings(ended: Ended) -> list[str]:
    """Lines that warn, but for the one of every start."""
    return [line for line in ended.output.splitlines() if re.search(r"\| (WARNING|ERROR)", line) and "No pretrained weights" not in line]


def second_save_stops(action: Any) -> Callable[[], None]:
    """The second save meets a limit on the size of files in the middle of its file."""
    save, calls = torch.save, []

    def limited(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            signal.signal(signal.SIGXFSZ, action)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
        save(*args)

    return lambda: setattr(torch, "save", limited)


def refuses(*_: Any, **__: Any) -> None:
    raise OSError("refused")


def two_ranks(folder: Path, *flags: str, fault: Callable[[int, int], Any] = nothing, last: tuple[str, ...] = ()) -> Ended:
    """Two processes with gloo, whose outputs are one; the code is that of rank 0. ``last``: flags of rank 1 alone."""
    parallel, wrapper = torch.nn.parallel, torch.nn.parallel.DistributedDataParallel
    on_a_cpu = lambda: setattr(parallel, "DistributedDataParallel", lambda model, device_ids: wrapper(model))  # torch refuses device_ids
    meet = f"file://{folder}/meet?world_size=2&rank="

    def both() -> None:
        rank = int(os.fork() == 0)
        signal.alarm(300)  # nothing here waits for ever
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            more = (*flags, *last) if rank else flags
            trains(folder, "--dist-url", meet + str(rank), *more, fault=lambda index: fault(rank, index), before=on_a_cpu)
        finally:
            if rank == 0:
                logging.info(f"rank 1 ended with {os.waitstatus_to_exitcode(os.wait()[1])}")

    return child(both)


@pytest.mark.fault(43, 46)
def test_a_kill_in_a_save_leaves_a_torn_file_which_latest_picks(tmp_path: Path) -> None:
    assert trained(tmp_path, before=second_save_stops(signal.SIG_DFL)).code == -signal.SIGXFSZ
    assert load(tmp_path, 1)["epoch"] == 1 and (tmp_path / "run" / "checkpoints" / "epoch_2.pt").stat().st_size == 5_000_000
    again = trained(tmp_path, "--resume", "latest")
    assert again.code == 1 and "epoch_2.pt" in again.output and "zip archive" in again.output and not steps(again)


@pytest.mark.fault(43)
def test_a_kill_in_a_save_leaves_the_most_recent_file(tmp_path: Path) -> None:
    flags = "--epochs", "3", "--save-most-recent", "--save-frequency", "0"
    assert trained(tmp_path, *flags, before=second_save_stops(signal.SIG_DFL)).code == -signal.SIGXFSZ
    again = trained(tmp_path, *flags, "--resume", "latest")
    assert again.code == 0 and steps(again) == [1] * 4 + [2] * 4


@pytest.mark.fault(44)
def test_a_full_disk_ends_the_run_and_leaves_a_torn_file(tmp_path: Path) -> None:
    ended = trained(tmp_path, "--epochs", "3", before=second_save_stops(signal.SIG_IGN))
    assert ended.code == 1 and steps(ended)[-1] == 1 and saved(tmp_path) == ["epoch_1.pt", "epoch_2.pt"]
    with pytest.raises(RuntimeError, match="zip archive"):
        load(tmp_path, 2)


@pytest.mark.fault(45)
def test_a_folder_that_takes_no_file_ends_the_run_at_the_start_or_after_an_epoch(tmp_path: Path) -> None:
    at_start = trained(tmp_path, "--logs", "/proc")  # takes no files, not even of root
    assert at_start.code == 1 and "makedirs" in at_start.output and not shown(at_start)
    after = trained(tmp_path, before=lambda: setattr(torch, "save", refuses))
    assert after.code == 1 and "refused" in after.output and steps(after) == [0] * 4


@pytest.mark.fault(47)
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, -15), (signal.SIGINT, 1), (signal.SIGUSR1, -10)])
def test_a_signal_ends_the_run_without_a_checkpoint(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    ended = trained(tmp_path, fault=nth(12, lambda: os.kill(os.getpid(), sent)))
    assert ended.code == code and steps(ended) == [0] * 4 + [1] and saved(tmp_path) == ["epoch_1.pt"]


@pytest.mark.fault(48)
def test_sigterm_to_one_rank_ends_the_other_with_an_error_of_gloo(tmp_path: Path) -> None:
    ended = two_ranks(tmp_path, fault=lambda rank, index: os.kill(os.getpid(), signal.SIGTERM) if rank and index == 5 else None)
    assert ended.code == 1 and "rank 1 ended with -15" in ended.output and "gloo" in ended.output and not saved(tmp_path)


@pytest.mark.fault(49)
def test_nan_on_one_rank_goes_into_the_weights_and_the_run_goes_on(tmp_path: Path) -> None:
    ended = two_ranks(tmp_path, fault=lambda rank, index: torch.full(SHAPE, float("nan")) if rank and index == 5 else None)
    assert ended.code == 0 and not warnings(ended) and steps(ended) == [0, 0, 1, 1]
    assert load(tmp_path, 2)["state_dict"]["module.text_projection"].isnan().all()


@pytest.mark.fault(50)
def test_a_spike_of_the_loss_is_a_step_like_others(tmp_path: Path) -> None:
    forward, calls = open_clip.ClipLoss.forward, []

    def spiked(*args: Any, **outputs: Any) -> dict[str, torch.Tensor]:
        calls.append(outputs)
        return {name: value * (1e6 if len(calls) == 3 else 1) for name, value in forward(*args, **outputs).items()}

    ended = trained(tmp_path, before=lambda: setattr(open_clip.ClipLoss, "forward", spiked))
    assert ended.code == 0 and not warnings(ended) and re.search(r" Loss: [4-9]\.\d+e\+05", ended.output)


@pytest.mark.fault(51)
def test_a_pickle_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"epoch": 1, "state_dict": Evil()}, tmp_path / "evil.pt")
    ended = trained(tmp_path, "--resume", str(tmp_path / "evil.pt"))
    assert ended.code == 1 and "Weights only load failed" in ended.output and not (tmp_path / "canary").exists()


@pytest.mark.fault(52)
def test_weights_and_optimizer_of_two_epochs_pass_for_one(tmp_path: Path) -> None:
    trained(tmp_path)
    torch.save({**load(tmp_path, 1), "optimizer": load(tmp_path, 2)["optimizer"]}, tmp_path / "mixed.pt")
    ended = trained(tmp_path, "--resume", str(tmp_path / "mixed.pt"), "--name", "other")
    assert ended.code == 0 and not warnings(ended) and steps(ended) == [1] * 4


@pytest.mark.fault(53)
def test_a_clock_that_stands_still_ends_the_run_and_one_that_runs_back_gives_negative_rates(tmp_path: Path) -> None:
    still, back = (SimpleNamespace(time=iter(seconds).__next__) for seconds in ([7.0] * 100, range(100, 0, -1)))
    ended = trained(tmp_path, before=lambda: setattr(train, "time", still))
    assert ended.code == 1 and "ZeroDivisionError" in ended.output and not steps(ended)
    ended = trained(tmp_path, "--name", "other", before=lambda: setattr(train, "time", back))
    assert ended.code == 0 and not warnings(ended) and "-1.00000/s" in ended.output


@pytest.mark.fault(54)
def test_a_tracker_that_fails_ends_the_run(tmp_path: Path) -> None:
    def tracks() -> None:
        main.wandb = train.wandb = SimpleNamespace(init=lambda **_: None, save=lambda *_: None, log=refuses)

    ended = trained(tmp_path, "--report-to", "wandb", before=tracks)
    assert ended.code == 1 and "refused" in ended.output and steps(ended) == [0] and not saved(tmp_path)


@pytest.mark.fault(34, 36, 37)
def test_a_stopped_epoch_begins_again_in_the_order_of_the_first(tmp_path: Path) -> None:
    stopped = trained(tmp_path, fault=nth(13, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    again = trained(tmp_path, "--resume", "latest")
    assert steps(again) == [1] * 4
    assert shown(again) == shown(stopped)[:8] != shown(stopped)[8:]  # resumed where the first epoch ended


@pytest.mark.fault(30)
def test_a_killed_worker_ends_the_run_without_its_sample(tmp_path: Path) -> None:
    def killed() -> None:
        time.sleep(0.5)  # until the loop waits for it
        os.kill(os.getpid(), signal.SIGKILL)

    ended = trained(tmp_path, "--workers", "1", fault=nth(7, killed))
    assert ended.code == 1 and "DataLoader worker (pid" in ended.output


def table(path: Path, *numbers: int) -> str:
    """What ``--dataset-type csv`` reads."""
    for number in numbers:
        (path.parent / f"{number}.png").write_bytes(picture(number))
    path.write_text("filepath\ttitle\n" + "".join(f"{path.parent}/{number}.png\tnumber {number}\n" for number in numbers))
    return str(path)


@pytest.mark.fault(35, 38)
def test_other_data_and_batches_are_accepted_without_a_word(tmp_path: Path) -> None:
    flags = "--dataset-type", "csv", "--train-data"
    trained(tmp_path, *flags, table(tmp_path / "a.csv", 0, 1, 2, 3), "--epochs", "1")
    ended = trained(tmp_path, *flags, table(tmp_path / "b.csv", 4, 5, 6), "--batch-size", "1", "--resume", "latest")
    assert ended.code == 0 and not warnings(ended) and steps(ended) == [1] * 3


@pytest.mark.fault(40)
def test_other_factors_of_the_sources_are_accepted_without_a_word(tmp_path: Path) -> None:
    whole = partial(data.tar_file_expander, eof_value=None)  # without the marker of webdataset 1.0, which its loader does not know
    change = {"before": lambda: setattr(data, "tar_file_expander", whole)}
    shards = "::".join(map(str, sorted(write_shards(tmp_path / "shards", (4, 4)).glob("*.tar"))))
    flags = "--dataset-type", "webdataset", "--train-data", shards, "--dataset-resampled", "--train-data-upsampling-factors"
    trained(tmp_path, *flags, "1::0", "--epochs", "1", **change)
    ended = trained(tmp_path, *flags, "0::1", "--resume", "latest", **change)
    assert ended.code == 0 and not warnings(ended) and steps(ended) == [1] * 4


@pytest.mark.fault(29)
def test_a_slow_rank_is_waited_for_without_a_word(tmp_path: Path) -> None:
    ended = two_ranks(tmp_path, fault=lambda rank, index: time.sleep(0.5) if rank and index == 5 else None)
    assert ended.code == 0 and not warnings(ended) and steps(ended) == [0, 0, 1, 1]


@pytest.mark.fault(32)
def test_a_rank_of_another_batch_size_ends_the_first_step_in_gloo(tmp_path: Path) -> None:
    ended = two_ranks(tmp_path, last=("--batch-size", "1"))
    assert ended.code != 0 and "gloo" in ended.output and "Start epoch 0" in ended.output and not steps(ended)


@pytest.mark.fault(33)
def test_the_first_rank_alone_validates(tmp_path: Path) -> None:
    flags = "--dataset-type", "csv", "--train-data", table(tmp_path / "a.csv", 0, 1, 2, 3), "--val-data", table(tmp_path / "b.csv", 4)
    assert two_ranks(tmp_path, *flags, "--epochs", "1").code == 0
    (line,) = (tmp_path / "run" / "checkpoints" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["num_samples"] == 1

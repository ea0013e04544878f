"""Bad samples of a run: the sliding window, and that nothing counted is lost or written twice."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.shards import sample, write_tar
from train.mixtures import data, module, write
from train.runs import quiet, trainer

from mmpretrain.data.bad import WINDOW, BadWindow
from mmpretrain.data.errors import DataError
from mmpretrain.train.data_health import FILE, DataHealth
from mmpretrain.types import Batch, Replaced

BAD = Replaced("/data/7.tar", "k1", "picture cannot be decoded", "7.tar key 'k1': picture cannot be decoded (0 bytes)")


def test_the_window_slides():
    judge = BadWindow(0.001)
    for _ in range(WINDOW // 100 - 1):
        judge.add(100, [])
    judge.add(100, [BAD] * 10)  # the end of the first ten thousand
    with pytest.raises(DataError, match="20 of the last 10000 samples"):
        judge.add(100, [BAD] * 10)  # the start of the next
    apart = BadWindow(0.001)
    for n in range(3 * WINDOW // 100):
        apart.add(100, [BAD] * 10 if n % 100 == 0 else [])
    assert apart.total == 30 and apart.samples == WINDOW


def test_a_verdict_waits_until_it_is_asked_for():
    judge = BadWindow(0.0001)
    judge.count(10, [BAD] * 2)
    for _ in range(3):
        judge.count(WINDOW, [])
    with pytest.raises(DataError, match="2 of the last 10 samples are bad"):
        judge.judge()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def begun(folder: Path, step: int = 0, total: int = 0) -> tuple[DataHealth, SimpleNamespace]:
    run = SimpleNamespace(
        datamodule=SimpleNamespace(bad=BadWindow(1.0)), default_root_dir=folder, log_every_n_steps=50, global_step=step,
        is_global_zero=True, max_steps=99, max_epochs=None,
    )  # fmt: skip
    health = DataHealth()
    health.load_state_dict({"total": total})
    health.on_train_start(run, SimpleNamespace(device=torch.device("cpu")))
    return health, run


def step(health: DataHealth, run: SimpleNamespace, *bad: Replaced) -> None:
    run.global_step += 1
    batch = Batch(keys=("a", "b"), draw_keys_B=torch.zeros(2, dtype=torch.int64), replaced=bad)
    health.on_train_batch_end(run, None, None, (batch,), 0)


def test_saves_ends_and_errors_write_down_what_has_come(tmp_path):
    health, run = begun(tmp_path)
    step(health, run, BAD)
    step(health, run, BAD._replace(key="k2"), BAD._replace(key="k3"))
    assert not (tmp_path / FILE).exists()
    assert health.state_dict() == {"total": 3} and run.datamodule.bad.total == 3
    step(health, run, BAD._replace(key="k4"))
    health.on_train_end(run, None)
    step(health, run, BAD._replace(key="k5"))
    health.on_exception(run, None, SystemExit(143))
    assert [(one["step"], one["key"]) for one in lines(tmp_path)] == [(1, "k1"), (2, "k2"), (2, "k3"), (3, "k4"), (4, "k5")]


def test_a_resumed_run_drops_what_it_will_count_again(tmp_path):
    health, run = begun(tmp_path)
    for n in range(2):
        step(health, run, BAD._replace(key=f"k{n}"))
    saved = health.state_dict()
    for n in range(2, 4):
        step(health, run, BAD._replace(key=f"k{n}"))
    health.on_exception(run, None, KeyboardInterrupt())
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 5, "to')  # torn by the kill
    health, run = begun(tmp_path, step=2, **saved)
    for n in range(2, 4):
        step(health, run, BAD._replace(key=f"k{n}"))
    health.on_train_end(run, None)
    assert [(one["step"], one["key"]) for one in lines(tmp_path)] == [(n + 1, f"k{n}") for n in range(4)]
    assert run.datamodule.bad.total == health.state_dict()["total"] == 4


def test_validation_says_what_it_replaced(tmp_path):
    folder, out = write(tmp_path / "d"), tmp_path / "run"
    out.mkdir()
    members = [member for n in range(8) for member in sample(n)]
    members[3 * 5] = ("k00005.png", b"<html>")
    write_tar(folder / "val" / "0.tar", members)
    made = data(folder)
    made.val_sources = {"held_out": str(folder / "val")}
    quiet()
    fitter = trainer(2, [DataHealth()], default_root_dir=out, log_every_n_steps=50, check_val_every_n_epoch=None, val_check_interval=2)
    with pytest.warns(UserWarning, match="validation: 1 samples cannot be read and were replaced by others .*k00005"):
        fitter.fit(module(), datamodule=made)
    (line,) = lines(out)
    assert (line["split"], line["step"], line["key"]) == ("val", 2, "k00005") and made.bad.total == 0
    (event,) = [json.loads(one) for one in (out / "events.jsonl").read_text().splitlines()]
    assert (event["event"], event["samples"]) == ("bad_in_validation", 1)

"""``mmpretrain fit`` on two processes that it starts itself: one run folder, the table at its end, and the same again from ``last``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from train.spawn import environment

from mmpretrain.data_tools import scenes

WORDS = ["--config", "vilt.yaml", "--config", "debug.yaml", "--data.batch_size", "8", "--data.val_batch_size", "8", "--data.workers", "0"]
WORDS += ["--data.text.vocab_size", "120", "--loggers", "[csv]", "--final.samples", "4", "--measure.samples", "4", "--panels.samples", "2"]
WORDS += ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.val_check_interval", "2"]

UNMEASURED = ["--final.measure", "false", "--measure.only", "[]"]


def fit(folder: Path, strategy: str, *words: str) -> subprocess.CompletedProcess[str]:
    shards = {"few": str(folder / "shards" / "val")}
    command = [sys.executable, "-m", "mmpretrain_cli_entry", "fit", *WORDS, "--trainer.strategy", strategy, *words]
    command += ["--data.train", str(folder / "shards" / "train"), "--data.val", json.dumps(shards)]
    env = environment(MMPRETRAIN_CACHE=str(folder / "cache"), CUDA_VISIBLE_DEVICES="")
    for name in ("MMPRETRAIN_RUN_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        env.pop(name, None)
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, check=False, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_make_one_run(tmp_path: Path, strategy: str) -> None:
    scenes.write(tmp_path / "shards" / "train", 16, 0, "train", shard_size=8, progress=False)
    scenes.write(tmp_path / "shards" / "val", 8, 0, "val", shard_size=8, progress=False)
    for steps, more in ((2, []), (3, ["--ckpt_path", "last", *UNMEASURED])):
        done = fit(tmp_path, strategy, "--trainer.max_steps", str(steps), *more)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]
        (run,) = (tmp_path / "runs").iterdir()
        assert run.name.startswith("vilt-") and (run / "report.html").is_file() and (run / "config.yaml").is_file()
        result = json.loads((run / "result.json").read_text())
        assert (tmp_path / result["checkpoint"]).resolve().name == f"step-{steps:08d}.ckpt"
        names = {row["name"] for row in result["rows"]}
        assert more or {"retrieval/few/i2t_R@1", "mlm/few/accuracy"} <= names
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, steps + 1))  # rank 0 alone writes
        (run / "result.json").unlink()

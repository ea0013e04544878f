"""``fit`` with its defaults on shards with too many bad samples: they are listed, and the run ends in one line that counts them."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

from helpers.shards import encoded, sample, write_tar
from PIL import Image

from mmpretrain.cli.main import main

SMALL = ["--config", "clip.yaml", "--data.batch_size", "8", "--data.workers", "0", "--data.text.vocab_size", "300"]
SHORT = [
    "--loggers",
    "[csv]",
    "--trainer.log_every_n_steps",
    "1",
    "--trainer.max_steps",
    "8",
    "--data.val",
    "{}",
    "--trainer.accelerator",
    "cpu",
]
UNREAD, LARGE = "picture cannot be decoded", "picture of N x N has more than N pixels"


def damaged(folder: Path) -> dict[str, str]:
    """Write a shard of 32 samples; key -> what is wrong with every other one of them."""
    content = {UNREAD: b"<html>", LARGE: encoded(Image.new("1", (8000, 7000)))}
    bad = {f"k{n:05d}": LARGE if n % 3 else UNREAD for n in range(0, 32, 2)}
    members = [member for n in range(32) for member in sample(n)]
    write_tar(
        folder / "00000.tar", [(name, content[bad[name[:6]]] if name[:6] in bad and "png" in name else data) for name, data in members]
    )
    return bad


def test_too_many_bad_samples_end_a_run_with_defaults(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # set by the run, taken back at the end
        monkeypatch.setenv(name, "0")
    bad = damaged(tmp_path / "shards")
    assert main(["fit", *SMALL, *SHORT, "--data.train", str(tmp_path / "shards")]) == 2

    shown = capfd.readouterr().err
    (said,) = re.findall(r"^mmpretrain: error: (.*)$", shown, re.MULTILINE)
    found = re.match(
        r"data: (\d+) of the last (\d+) samples are bad, more than data\.max_bad_fraction=0\.001 of 10000: (.*); in 00000\.tar", said
    )
    assert found and "Traceback" not in shown, shown
    lines = [json.loads(line) for line in Path("run/bad_samples.jsonl").read_text().splitlines()]
    assert all(bad[line["key"]] == line["reason"] for line in lines)
    counts = Counter(line["reason"] for line in lines)
    assert len(counts) == 2 and 10 < len(lines) == int(found[1]) < int(found[2])  # 0.001 of 10,000 are tolerated
    assert dict(reversed(one.split(" x ", 1)) for one in found[3].split(", ")) == {reason: str(n) for reason, n in counts.items()}
    assert {line["step"] for line in lines} <= {1, 2, 3} and {Path(line["shard"]).name for line in lines} == {"00000.tar"}

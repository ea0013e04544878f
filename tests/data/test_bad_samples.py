"""Bad samples: reasons, the tolerated fraction, the quarantine list, and their way from a worker into the folder of the run."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.batches import data
from helpers.shards import sample, write_shards, write_tar

from mmpretrain.data import quarantine
from mmpretrain.data.bad import WINDOW, BadWindow, reason_of, record
from mmpretrain.data.errors import BadSample, DataError, ResumeError
from mmpretrain.data.reader import ShardReader
from mmpretrain.train.data_health import FILE, DataHealth
from mmpretrain.types import Replaced

BAD = Replaced("/data/7.tar", "k1", "picture cannot be decoded", "7.tar key 'k1': picture cannot be decoded (0 bytes)")


def shard_with_bad(folder, bad: set[int], total: int = 40, data: bytes = b"<html>"):
    members = [member for n in range(total) for member in sample(n)]
    for n in bad:
        members[3 * n] = (f"k{n:05d}.png", data)
    write_tar(folder / "00000.tar", members)
    return folder


def test_reasons_are_short_and_countable():
    name = "/data/00001.tar key 'k00007'"
    for text, reason in [
        ("picture cannot be decoded (UnidentifiedImageError: ...)", "picture cannot be decoded"),
        (
            "the bytes of txt at offset 5120 changed since the shard was indexed; copy it",
            "the bytes of txt at offset N changed since the shard",
        ),
        ("text of 70000 bytes is longer than 65536", "text of N bytes is longer than N"),
    ]:
        assert reason_of(BadSample(f"{name}: {text}"), name).startswith(reason)


def test_a_fraction_of_a_window_is_tolerated():
    judge = BadWindow(0.001)
    for _ in range(3):  # ten in each window of 10,000
        judge.add(WINDOW, [BAD] * 10)
    assert judge.total == 30
    judge.add(10, [BAD] * 7)
    with pytest.raises(DataError) as caught:
        judge.add(10, [BAD] * 2 + [BAD._replace(shard="/data/9.tar", reason="text is not UTF-N")] * 2)
    line = str(caught.value)
    assert line.startswith("data: 11 of the last 20 samples are bad, more than data.max_bad_fraction=0.001 of 10000: ")
    assert "9 x picture cannot be decoded, 2 x text is not UTF-N; in 7.tar (9), 9.tar (2); mend the shards" in line
    BadWindow(1.0).add(100, [BAD] * 100)
    with pytest.raises(DataError):
        BadWindow(0.0).add(100, [BAD])
    with pytest.raises(DataError, match="max_bad_fraction=2"):
        BadWindow(2)


def test_a_replaced_sample_travels_with_its_batch(tmp_path):
    folder = shard_with_bad(tmp_path, {3, 20})
    found = [one for (batch,) in data(folder, batch_size=20, preparers={}, workers=1).train_dataloader() for one in batch.replaced]
    assert sorted(one.key for one in found) == ["k00003", "k00020"]
    assert {one.reason for one in found} == {"picture cannot be decoded"} and found[0].shard.endswith("00000.tar")


def test_a_bad_sample_that_another_one_draws_is_recorded_as_itself(tmp_path):
    """``Probe`` draws a picture and a text of other samples at each position."""
    folder = shard_with_bad(tmp_path, {3})
    made = data(folder, batch_size=40, max_bad_fraction=1.0)
    assert made.tokenizer.vocabulary.size  # made of the texts while they are whole
    content = bytearray((folder / "00000.tar").read_bytes())
    content[content.index(b"k00007.txt") + 512] ^= 1  # of the text, after indexing
    (folder / "00000.tar").write_bytes(bytes(content))
    found = [one for (batch,) in itertools.islice(made.train_dataloader(), 3) for one in batch.replaced]
    assert len(found) > 6  # each of the two at its own position and at those that draw it
    reasons = {"k00003": "picture cannot be decoded", "k00007": "the bytes of txt at offset N changed since the shard was indexed"}
    assert {(Path(one.shard).name, one.key, one.reason) for one in found} == {("00000.tar", *pair) for pair in reasons.items()}
    assert all(one.error.startswith(f"{one.shard} key {one.key!r}: ") for one in found)


def test_an_error_keeps_its_sample_between_processes():
    error = pickle.loads(pickle.dumps(BadSample.of("/data/7.tar", "k1", "picture cannot be decoded (0 bytes)")))  # noqa: S301  (our own bytes)
    assert record(error, "/data/9.tar", "k2") == BAD._replace(error="/data/7.tar key 'k1': picture cannot be decoded (0 bytes)")
    unknown = record(BadSample("the preparer refuses it"), "/data/9.tar", "k2")
    assert unknown == Replaced("/data/9.tar", "k2", "the preparer refuses it", "the preparer refuses it")


@pytest.mark.parametrize("on_bad", ["stop", "replace"])
def test_a_set_of_one_has_no_other_sample(tmp_path, on_bad):
    with pytest.raises(DataError, match=r"^data: another sample is to be drawn, but the set has only one"):
        next(iter(data(write_shards(tmp_path, (1,)), batch_size=1, on_bad=on_bad).train_dataloader()))


@pytest.mark.fault(4)
def test_a_flipped_bit_is_replaced_and_counted(tmp_path):
    shard = write_tar(tmp_path / "00000.tar", [member for n in range(20) for member in sample(n)])
    made = data(tmp_path, batch_size=20, preparers={})
    content = bytearray(shard.read_bytes())
    content[content.index(b"k00007.png") + 512 + 100] ^= 1  # of the picture, after indexing
    shard.write_bytes(bytes(content))
    (batch,) = next(iter(made.train_dataloader()))
    assert batch.size == 20 and "k00007" not in batch.keys
    assert [(one.key, one.reason.split(" at ")[0]) for one in batch.replaced] == [("k00007", "the bytes of png")]


def test_a_hundred_failures_in_a_row_are_fatal(tmp_path):
    folder = shard_with_bad(tmp_path, set(range(6)), total=6)
    with pytest.raises(DataError, match=r"100 samples in a row cannot be read; check the shards \(the last: .*key 'k0000\d'"):
        next(iter(data(folder, batch_size=2, preparers={}).train_dataloader()))


def test_a_run_writes_counts_and_stops(tmp_path):
    made = data(shard_with_bad(tmp_path / "d", set(range(0, 40, 4))), batch_size=10, preparers={}, max_bad_fraction=0.0012)
    trainer = SimpleNamespace(
        datamodule=made, default_root_dir=tmp_path, log_every_n_steps=2, global_step=0, is_global_zero=True, max_steps=9, max_epochs=None
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    health = DataHealth()
    health.on_train_start(trainer, module)
    with pytest.raises(DataError, match=r"1[3-9] of the last \d+ samples are bad, .*picture cannot be decoded; in 00000.tar"):
        for _ in range(3):
            for batch in made.train_dataloader():
                trainer.global_step += 1
                health.on_train_batch_end(trainer, module, None, batch, 0)
                made.advance()
    lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(lines) == made.metrics()["data/bad"] == health.state_dict()["total"] >= 13
    assert set(lines[0]) == {"step", "shard", "key", "reason", "error"} and int(lines[0]["key"][1:]) % 4 == 0


def test_quarantined_samples_are_left_out_counted_and_named(tmp_path, caplog):
    folder = write_shards(tmp_path, (6, 6))
    before = data(folder, batch_size=5, preparers={})
    entries = [{"shard": "00000.tar", "key": f"k{n:05d}", "reason": "half a picture"} for n in (1, 4)]
    entries += [{"shard": "00001.tar", "key": "k00007"}, {"shard": "00001.tar", "key": "gone"}, {"shard": "9.tar", "key": "k00000"}]
    (folder / quarantine.FILE).write_text("".join(json.dumps(one) + "\n" for one in entries) + "\n")
    with caplog.at_level("INFO"):
        made = data(folder, batch_size=3, preparers={})
    assert "3 samples are in quarantine and left out: half a picture (2), no reason given (1)" in caplog.text
    keys = [key for (batch,) in made.train_dataloader() for key in batch.keys]
    assert sorted(keys) == [f"k{n:05d}" for n in range(12) if n not in (1, 4, 7)]
    assert made.feed.parts[0].units.left_out == 0 and made.fingerprint != before.fingerprint
    with pytest.raises(ResumeError, match="their quarantine list included"):
        data(folder, batch_size=5, preparers={}).load_state_dict(before.state_dict())


def test_validation_leaves_out_what_is_in_quarantine(tmp_path, caplog):
    folder = write_shards(tmp_path, (6,))
    (folder / quarantine.FILE).write_text('{"shard": "00000.tar", "key": "k00002"}\n')
    made = data(folder, batch_size=5, preparers={}, val={"held_out": str(folder)}, val_batch_size=3)
    with caplog.at_level("INFO"):
        keys = [key for loader in made.val_dataloader() for batch in loader for key in batch.keys]
    assert sorted(keys) == [f"k{n:05d}" for n in range(6) if n != 2]
    assert "1 samples of the validation set 'held_out' are in quarantine and left out" in caplog.text


@pytest.mark.parametrize("line", ["{", '["a"]', '{"shard": "0.tar"}', '{"shard": 1, "key": "a"}'])
def test_a_torn_list_is_an_error_that_names_the_line(tmp_path, line):
    folder = write_shards(tmp_path, (6,))
    (folder / quarantine.FILE).write_text('{"shard": "00000.tar", "key": "k00001"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"quarantine\.jsonl, line 2: "):
        quarantine.of(ShardReader([folder / "00000.tar"]))

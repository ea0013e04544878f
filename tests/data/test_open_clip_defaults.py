"""What the loader of open_clip's training does by default with faults of the matrix: what ``docs/faults.md`` says of it, run.

open_clip 3.3.0 was written for an older webdataset: 1.0 adds a marker behind every shard, at which its loader raises. The marker is left
out here, so that the rest can be seen.
"""

from __future__ import annotations

import gzip
import logging
import pickle
import re
import shutil
import sys
import tarfile
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers.servers import http_server
from helpers.shards import encoded, picture, sample, write_shards, write_tar
from PIL import Image

data = pytest.importorskip("open_clip_train.data")  # with open-clip-torch; reads tables by pandas


@pytest.fixture(autouse=True)
def without_marker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "marker" not in request.node.name:
        monkeypatch.setattr(data, "tar_file_expander", partial(data.tar_file_expander, eof_value=None))


def test_the_marker_behind_a_shard_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="fname"):
        texts(write_tar(tmp_path / "0.tar", sample(0)), count=1)


def loader(*shards: Path | str, count: int, batch: int = 1, rank: int = 0, world: int = 1, workers: int = 0, seed: int = 0) -> Any:
    """The loader of ``--dataset-type webdataset``, without a tokenizer and a transform; ``count``: the value of --train-num-samples."""
    urls = "::".join(str(shard) for shard in shards)
    told = {"train_data": urls, "val_data": urls, "train_num_samples": count, "val_num_samples": count}
    told |= {"train_data_upsampling_factors": None, "dataset_resampled": False, "seed": seed}
    args = Namespace(**told, batch_size=batch, workers=workers, world_size=world, rank=rank)
    return data.get_wds_dataset(args, lambda image: image.size[0], is_train=True, tokenizer=lambda text: [text]).dataloader


def texts(*shards: Path | str, count: int, **options: Any) -> list[str]:
    """The captions that one epoch shows."""
    return [text for _, found in loader(*shards, count=count, **options) for text in found]


def captions(*numbers: int) -> set[str]:
    return {dict(sample(number))[f"k{number:05d}.txt"].decode() for number in numbers}


def members(*numbers: int) -> list[tuple[str, bytes]]:
    return [member for number in numbers for member in sample(number)]


def ranks(monkeypatch: pytest.MonkeyPatch, *shards: Path, count: int, seeds: tuple[int, int] = (0, 0)) -> list[list[str]]:
    """The captions that one epoch shows on each of two ranks."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen = []
    for rank, seed in enumerate(seeds):
        monkeypatch.setenv("RANK", str(rank))
        seen.append(texts(*shards, count=count, rank=rank, world=2, seed=seed))
    return seen


@pytest.mark.fault(1)
def test_the_rest_of_a_cut_shard_is_dropped_and_others_are_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut, whole = write_tar(tmp_path / "0.tar", members(0, 1, 2, 3)), write_tar(tmp_path / "1.tar", members(4, 5))
    content = cut.read_bytes()
    cut.write_bytes(content[: content.index(sample(2)[0][1]) + 20])  # within the picture of the third
    with caplog.at_level(logging.WARNING):
        found = texts(cut, whole, count=6)
    assert len(found) == 6 and set(found) == captions(0, 1, 4, 5)  # six were promised: some come twice
    assert "Ignoring" in caplog.text and "k00002" not in caplog.text


@pytest.mark.fault(2, 3)
def test_what_lies_behind_a_damaged_header_is_left_out_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "0.tar", members(0, 1, 2, 3))
    with tarfile.open(path) as archive:
        at, after = [member.offset for member in archive][6:8]  # of the picture and of the text of the third
    whole = path.read_bytes()
    flipped = whole[: at + 3] + bytes([whole[at + 3] ^ 1]) + whole[at + 4 :]
    with caplog.at_level(logging.WARNING):
        for content in whole[: at + 100], whole[:at], whole[:after], flipped:
            path.write_bytes(content)
            assert set(texts(path, count=4)) == captions(0, 1)
    assert caplog.text == ""


@pytest.mark.fault(4)
def test_a_flipped_bit_of_a_caption_is_delivered(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample(0))
    content = bytearray(path.read_bytes())
    content[content.index(b"a red")] ^= 1
    path.write_bytes(bytes(content))
    assert texts(path, count=1)[0].startswith("` red")


@pytest.mark.fault(6, 7)
def test_members_twice_or_apart_are_samples_of_their_own(tmp_path: Path) -> None:
    png, txt, _ = sample(0)
    twice = write_tar(tmp_path / "0.tar", [png, txt, txt, *sample(1)])
    assert set(texts(twice, count=2)) == captions(0, 1)  # the second text is half a sample, and left out
    apart = write_tar(tmp_path / "1.tar", [png, *sample(1), txt])
    assert set(texts(apart, count=1)) == captions(1)


@pytest.mark.fault(5)
def test_equal_keys_begin_a_new_sample(tmp_path: Path) -> None:
    png, txt, _ = sample(0)
    other = [(png[0], picture(9)), (txt[0], b"another text")]
    first = write_tar(tmp_path / "0.tar", [png, txt])
    content = first.read_bytes()
    first.write_bytes(content[: content.index(txt[1])])  # cut before the text
    found = list(data.tarfile_to_samples_nothrow(iter([{"url": str(first)}, {"url": str(write_tar(tmp_path / "1.tar", other))}])))
    assert [one.get("txt") for one in found if "txt" in one] == [b"another text"]


@pytest.mark.fault(8, 18)
def test_a_dot_in_a_key_loses_the_sample_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = ["v1.5_img", "folder/ключ", "x" * 90, "../../k"]
    shard = write_tar(tmp_path / "set" / "0.tar", [member for number, key in enumerate(keys) for member in sample(number, key)])
    with caplog.at_level(logging.WARNING):
        assert set(texts(shard, count=4)) == captions(1, 2, 3)
    assert caplog.text == "" and [path.name for path in tmp_path.rglob("*")] == ["set", "0.tar"]


@pytest.mark.fault(10, 11)
def test_an_empty_shard_alone_is_an_epoch_without_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty, one = write_tar(tmp_path / "0.tar", []), write_tar(tmp_path / "1.tar", sample(0))
    with caplog.at_level(logging.WARNING):
        assert texts(empty, count=2) == [] and set(texts(empty, one, count=2)) == captions(0)
    assert caplog.text == ""


@pytest.mark.fault(19)
def test_a_caption_that_is_no_utf8_is_logged_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = [("a.png", picture(0)), ("a.txt", b"caf\xe9"), ("b.png", picture(1)), ("b.txt", b"\xef\xbb\xbfone\0")]
    with caplog.at_level(logging.WARNING):
        assert set(texts(write_tar(tmp_path / "0.tar", odd), count=2)) == {"\ufeffone\0"}
    assert "Ignoring" in caplog.text


@pytest.mark.fault(9)
def test_half_a_sample_is_left_out_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_tar(tmp_path / "0.tar", [sample(0)[0], *sample(1)])
    with caplog.at_level(logging.WARNING):
        assert set(texts(path, count=2)) == captions(1)
    assert caplog.text == ""


@pytest.mark.fault(13, 31)
def test_pictures_that_cannot_be_decoded_are_logged_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = [("a.jpg", b"<html>"), ("a.txt", b"page"), ("b.jpg", encoded(Image.new("RGB", (64, 64)), "JPEG")[:300]), ("b.txt", b"half")]
    odd += [("c.jpg", encoded(Image.new("RGB", (8, 4)), "JPEG", exif=turned)), ("c.txt", b"turned")]
    with caplog.at_level(logging.WARNING):
        ((widths, found),) = list(loader(write_tar(tmp_path / "0.tar", odd), count=1))
    assert list(found) == ["turned"] and list(widths) == [8]  # as it lies in the file
    assert caplog.text.count("Ignoring") >= 2


@pytest.mark.fault(14)
def test_a_member_is_inflated_whatever_its_size(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [*sample(0), ("k00000.more.gz", gzip.compress(bytes(20_000_000)))])
    pipeline = data.wds.DataPipeline(data.wds.SimpleShardList(str(path)), data.tarfile_to_samples_nothrow, data.wds.decode("pilrgb"))
    (found,) = [one for one in pipeline if "more.gz" in one]
    assert len(found["more.gz"]) == 20_000_000


@pytest.mark.fault(15)
def test_pickles_beside_a_sample_are_run(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> Any:
            return exec, ("import sys; sys.canary_of_open_clip = 1",)

    path = write_tar(tmp_path / "0.tar", [*sample(0), ("k00000.pyd", pickle.dumps(Canary()))])
    assert set(texts(path, count=1)) == captions(0)
    assert sys.__dict__.pop("canary_of_open_clip") == 1


@pytest.mark.fault(16)
def test_pipe_runs_its_command(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample(0))
    assert set(texts(f"pipe:touch {tmp_path}/ran; cat {path}", count=1)) == captions(0)
    assert (tmp_path / "ran").exists()


@pytest.mark.fault(12)
def test_fewer_shards_than_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="number of shards must be >= total workers"):
        loader(write_tar(tmp_path / "0.tar", members(0, 1, 2)), count=3, workers=1, world=2)


@pytest.mark.fault(21, 22)
def test_a_shard_that_is_cut_or_not_found_is_logged_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads http with curl, which is not here")
    here = write_tar(tmp_path / "0.tar", sample(0))
    write_tar(tmp_path / "served" / "1.tar", [*sample(1), ("z.png", bytes(200_000)), *sample(2)])
    with http_server(tmp_path / "served") as http, caplog.at_level(logging.WARNING):
        http.cuts = 100  # in the middle: within the large member
        assert set(texts(here, http.url("1.tar"), count=2)) == captions(0, 1) and http.gets("1.tar") == 1
        assert "Ignoring" in caplog.text
        caplog.clear()
        assert set(texts(here, http.url("2.tar"), count=2)) == captions(0)
    assert "Ignoring" in caplog.text and not re.search(r"\b404\b", caplog.text)


@pytest.mark.fault(27)
def test_three_shards_give_two_ranks_equal_steps_by_repetition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sorted(write_shards(tmp_path, (10, 10, 10)).glob("*.tar"))
    with pytest.raises(AssertionError, match="number of shards must be >= total workers"):
        loader(*shards, count=30, workers=2, world=2)
    seen = ranks(monkeypatch, *shards, count=30)
    assert [len(one) for one in seen] == [15, 15] and sorted(len(set(one)) for one in seen) == [10, 15]


@pytest.mark.fault(32)
def test_ranks_of_other_seeds_show_some_shards_twice_and_some_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sorted(write_shards(tmp_path, (2,) * 4).glob("*.tar"))
    for seed, samples in (0, 8), (1, 6):
        first, second = ranks(monkeypatch, *shards, count=8, seeds=(0, seed))
        assert len({*first, *second}) == samples


@pytest.mark.fault(28)
def test_ranks_have_equal_steps_and_unequal_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sorted(write_shards(tmp_path, (9, 1)).glob("*.tar"))
    seen = ranks(monkeypatch, *shards, count=10)
    assert [len(one) for one in seen] == [5, 5]
    assert sorted(len(set(one)) for one in seen) == [1, 5]  # one sample five times; four of the ten are never shown


@pytest.mark.fault(34, 36)
def test_there_is_no_position_to_save(tmp_path: Path) -> None:
    found = loader(write_tar(tmp_path / "0.tar", sample(0)), count=1)
    assert not hasattr(found, "state_dict") and not hasattr(found.pipeline[0], "state_dict")


@pytest.mark.fault(36)
def test_equal_seeds_and_epochs_have_other_orders(tmp_path: Path) -> None:
    shard = next(write_shards(tmp_path, (20,)).glob("*.tar"))
    first, second = (texts(shard, count=20) for _ in range(2))
    assert sorted(first) == sorted(second) and first != second  # its shuffling of samples has no seed

"""What plain webdataset does by default with faults of the matrix: what the columns of ``docs/faults.md`` say of it, run.

The damaged archives are in ``test_index.py``, the canaries in ``test_safety.py``.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.servers import Http, http_server
from helpers.shards import encoded, picture, sample, write_shards, write_tar
from PIL import Image

wds = pytest.importorskip("webdataset")


def read(*shards: Path | str, **options: Any) -> list[dict[str, Any]]:
    return list(wds.WebDataset([str(shard) for shard in shards], shardshuffle=False, **options))


@pytest.mark.fault(4)
def test_a_flipped_bit_of_a_caption_is_delivered(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", sample(0))
    data = bytearray(path.read_bytes())
    data[data.index(b"a red")] ^= 1
    path.write_bytes(bytes(data))
    (found,) = read(path)
    assert found["txt"].startswith(b"` red")


@pytest.mark.fault(9)
def test_half_a_sample_is_delivered(tmp_path: Path) -> None:
    half, whole = read(write_tar(tmp_path / "0.tar", [sample(0)[0], *sample(1)]))
    assert "png" in half and "txt" not in half and "txt" in whole


@pytest.mark.fault(10, 11)
def test_an_empty_shard_alone_is_an_error_and_among_others_is_not(tmp_path: Path) -> None:
    empty, one = write_tar(tmp_path / "0.tar", []), write_tar(tmp_path / "1.tar", sample(0))
    with pytest.raises(ValueError, match="No samples found"):
        read(empty)
    assert len(read(empty, one)) == 1


class Steps:
    """Batches of four that a rank with its workers gets."""

    def __init__(self, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shards, self.patch = sorted(map(str, shards.glob("*.tar"))), monkeypatch

    def __call__(self, rank: int, world: int, workers: int, **options: Any) -> int:
        self.patch.setenv("RANK", str(rank))
        self.patch.setenv("WORLD_SIZE", str(world))
        source = wds.WebDataset(self.shards, shardshuffle=False, nodesplitter=wds.split_by_node, **options).batched(4)
        return len(list(torch.utils.data.DataLoader(source, batch_size=None, num_workers=workers)))


@pytest.mark.fault(27)
def test_three_shards_give_two_ranks_other_numbers_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(write_shards(tmp_path, (10, 10, 10)), monkeypatch)
    assert [steps(rank, 2, 2, empty_check=False) for rank in range(2)] == [6, 3]  # the first would wait for the second for ever


@pytest.mark.fault(12)
def test_a_worker_without_a_shard_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(write_shards(tmp_path, (3,)), monkeypatch)
    with pytest.raises(ValueError, match="perhaps you have fewer shards than workers"):
        steps(0, 1, 2)


@pytest.mark.fault(28)
def test_shards_of_unlike_sizes_give_ranks_other_numbers_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(write_shards(tmp_path, (40, 4)), monkeypatch)
    assert [steps(rank, 2, 1) for rank in range(2)] == [10, 1]


@pytest.mark.fault(13)
def test_odd_pictures(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures = {
        "half": encoded(Image.new("RGB", (64, 64), (9, 9, 9)), "JPEG")[:300],
        "html": b"<html>",
        "clear": encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG"),
        "turned": encoded(Image.new("RGB", (8, 4)), "JPEG", exif=turned),
    }
    found: dict[str, Any] = {}
    for name, data in pictures.items():
        path = write_tar(tmp_path / f"{name}.tar", [("k.jpg", data)])
        try:
            (one,) = wds.WebDataset(str(path), shardshuffle=False).decode("pil")
            found[name] = one["jpg"].size, one["jpg"].getpixel((0, 0))
        except Exception as error:  # noqa: BLE001  (of several kinds)
            found[name] = type(error).__name__
    assert found["half"] == found["html"] == "DecodingError"
    assert found["clear"][1] == (9, 9, 9)  # the colour under full transparency, where ours is white
    assert found["turned"][0] == (8, 4)  # as it lies in the file


@pytest.mark.fault(18)
def test_names_stay_as_they_are(tmp_path: Path) -> None:
    (found,) = read(write_tar(tmp_path / "set" / "0.tar", [("../../k.png", picture(0))]))
    assert found["__key__"] == "../../k" and [path.name for path in tmp_path.rglob("*")] == ["set", "0.tar"]


@pytest.mark.fault(19)
def test_texts_that_are_no_utf8_are_errors_when_decoded(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("k.txt", b"caf\xe9")])
    with pytest.raises(wds.DecodingError):
        list(wds.WebDataset(str(path), shardshuffle=False).decode())


@pytest.mark.fault(14)
def test_a_member_is_inflated_whatever_its_size(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", [("k.txt.gz", gzip.compress(bytes(20_000_000)))])
    assert path.stat().st_size < 40_000
    (found,) = wds.WebDataset(str(path), shardshuffle=False).decode()
    assert len(found["txt.gz"]) == 20_000_000


@pytest.mark.fault(20)
def test_arrays_of_objects_are_refused_and_nan_is_delivered(tmp_path: Path) -> None:
    def decoded(array: np.ndarray) -> Any:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)  # written to see what webdataset does with it; nothing here reads it
        path = write_tar(tmp_path / "0.tar", [("k.npy", buffer.getvalue())])
        (found,) = wds.WebDataset(str(path), shardshuffle=False).decode()
        return found["npy"]

    assert np.isnan(decoded(np.full((4, 3), np.nan))).all()
    with pytest.raises(wds.DecodingError):
        decoded(np.array([{}], dtype=object))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Http]:
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads http with curl, which is not here")
    for name in "ab":
        write_shards(tmp_path / "served" / name, (2,), more={"who": name})
    with http_server(tmp_path / "served") as http:
        yield http


@pytest.mark.fault(21)
def test_a_download_that_is_cut_is_an_error(served: Http) -> None:
    write_tar(served.folder / "c" / "00000.tar", [*sample(0), ("k.png", bytes(200_000))])
    served.cuts = 1  # in the middle: within the second picture
    with pytest.raises(
        (OSError, tarfile.ReadError), match=r"exit 18|unexpected end of data"
    ):  # whichever is seen first; nothing is tried again
        read(served.url("c/00000.tar"))
    assert served.gets("c/00000.tar") == 1


@pytest.mark.fault(22)
def test_a_shard_that_is_not_found_is_an_error_without_the_status(served: Http) -> None:
    with pytest.raises((OSError, tarfile.ReadError), match=r"exit 22|empty file") as caught:
        read(served.url("none.tar"))
    assert not re.search(r"\b404\b", str(caught.value))


@pytest.mark.fault(23)
def test_equal_base_names_share_a_copy(served: Http, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    found = read(served.url("a/00000.tar"), served.url("b/00000.tar"), cache_dir=str(tmp_path / "cache"))
    assert [json.loads(one["json"])["who"] for one in found] == ["a"] * 4


@pytest.mark.fault(26)
def test_a_copy_hides_what_the_server_has_now(served: Http, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for _ in range(2):
        found = read(served.url("a/00000.tar"), cache_dir=str(tmp_path / "cache"))
        write_shards(served.folder / "a", (2,), more={"who": "new"})
    assert [json.loads(one["json"])["who"] for one in found] == ["a"] * 2


@pytest.mark.fault(34)
def test_there_is_no_position_to_save(tmp_path: Path) -> None:
    source = wds.WebDataset(str(write_tar(tmp_path / "0.tar", sample(0))), shardshuffle=False)
    assert not hasattr(source, "state_dict") and not hasattr(wds.WebLoader(source), "state_dict")


@pytest.mark.fault(36)
def test_a_seed_gives_every_epoch_the_same_order(tmp_path: Path) -> None:
    shards = [str(path) for path in sorted(write_shards(tmp_path, (2,) * 6).glob("*.tar"))]
    for options, same in ({}, True), ({"detshuffle": True}, False):
        source = wds.WebDataset(shards, shardshuffle=10, seed=3, **options)
        first, second = ([one["__key__"] for one in source] for _ in range(2))
        assert sorted(first) == sorted(second) and (first == second) == same


@pytest.mark.fault(40)
def test_a_mixture_is_drawn_anew_in_every_run(tmp_path: Path) -> None:
    sources = [wds.WebDataset(str(path), shardshuffle=False) for path in sorted(write_shards(tmp_path, (30, 30)).glob("*.tar"))]
    first, second = ([one["__key__"] for one in wds.RandomMix(sources, [0.5, 0.5])] for _ in range(2))
    assert first != second and not hasattr(wds.RandomMix(sources), "state_dict")


@pytest.mark.fault(30, 31)
@pytest.mark.parametrize(
    ("act", "message"), [(lambda _: 1 / 0, "division by zero"), (lambda _: os.kill(os.getpid(), 9), "DataLoader worker")]
)
def test_a_worker_that_fails_ends_the_run_without_its_sample(tmp_path: Path, act: Callable, message: str) -> None:
    source = wds.WebDataset(str(write_tar(tmp_path / "0.tar", sample(0))), shardshuffle=False).map(act)
    with pytest.raises((ZeroDivisionError, RuntimeError), match=message) as caught:
        list(torch.utils.data.DataLoader(source, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert "k00000" not in str(caught.value)

"""``regions.json``: what is written is read back, other files are refused, and sets that are rewritten keep it or refuse to mix."""

from __future__ import annotations

import json

import pytest
from helpers.batches import data
from helpers.regions import made
from helpers.servers import http_server
from helpers.shards import sample, write_shards, write_tar

from mmpretrain.data.errors import DataError
from mmpretrain.data.regions import encode_regions
from mmpretrain.data.regions_info import NAME, Group, RegionsInfo, Width, check_model, read_info, same_extractor, write_info
from mmpretrain.data_tools.rewrite import rewrite
from mmpretrain.types import Spec

INFO = RegionsInfo(
    "extractor",
    "a" * 64,
    16,
    "extractor x",
    "auto",
    ("cat", "dog"),
    0,
    ("red", "big"),
    (Group("colour", 0, 1),),
    True,
    {"n": 1},
    {"m": [2]},
)


def test_round_trip(tmp_path):
    assert read_info(tmp_path) is None
    for info in (INFO, RegionsInfo("grid", "b", 4, "resnet")):
        write_info(tmp_path, info)
        assert read_info(tmp_path) == info


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"version": 1}',
        '{"version": 2}',
        json.dumps({**INFO.to_json(), "width": 0}),
        json.dumps({**INFO.to_json(), "groups": [1]}),
    ],
)
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(DataError, match=NAME):
        read_info(tmp_path)


def test_one_extractor_for_all_folders(tmp_path):
    for name, mark in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        write_info(tmp_path / name, INFO._replace(fingerprint=mark * 64, options={"n": name}))
    (tmp_path / "texts").mkdir()
    assert same_extractor([tmp_path / "texts", tmp_path / "a", tmp_path / "b"]).fingerprint == "1" * 64
    assert same_extractor([tmp_path / "texts"]) is None
    with pytest.raises(DataError, match=r"/a were made by extractor x \(111111111111\) and those of .*/c .* cannot be mixed"):
        same_extractor([tmp_path / "a", tmp_path / "c"])


def test_rewritten_shards_keep_it(tmp_path):
    inputs = [write_shards(tmp_path / name, (2,)) / "00000.tar" for name in ("a", "b")]
    rows = {"": [[0, 0], [1, 1, {"key": "other"}]]}
    for folder, mark in (("a", "1"), ("b", "1")):
        write_info(tmp_path / folder, INFO._replace(fingerprint=mark * 64))
    rewrite(tmp_path / "out", rows, inputs, {"tool": "test"}, 10, {"workers": 1, "progress": False})
    assert read_info(tmp_path / "out").fingerprint == "1" * 64
    write_info(tmp_path / "b", INFO._replace(fingerprint="2" * 64))
    with pytest.raises(DataError, match="cannot be mixed"):
        rewrite(tmp_path / "no", rows, inputs, {"tool": "test"}, 10, {"workers": 1, "progress": False})
    assert not (tmp_path / "no").exists()


def with_regions(folder, mark: str | None, first: int = 0):
    """A shard of four samples with regions of the extractor ``mark``."""
    regions = encode_regions(made())
    members = [member for n in range(first, first + 4) for member in [*sample(n), (f"k{n:05d}.regions.npz", regions)]]
    write_tar(folder / "00000.tar", members)
    if mark:
        write_info(folder, INFO._replace(fingerprint=mark * 64, source=f"extractor {mark}"))
    return folder


SAYS = r"the regions of \S+/a were made by extractor 1 \(111111111111\) and those of \S+/b by extractor 2 .* cannot be mixed; make both"


def test_training_on_two_extractors_is_refused(tmp_path):
    a, b = with_regions(tmp_path / "a", "1"), with_regions(tmp_path / "b", "2", 10)
    plain = write_shards(tmp_path / "plain", (4,))
    write_info(plain, INFO._replace(fingerprint="3" * 64))  # a list without regions is of no account
    for train, more in [
        (f"{a}::{b}", {}),
        (str(a), {"val": {"v": str(b)}}),
    ]:
        with pytest.raises(DataError, match=SAYS) as caught:
            data(train, batch_size=4, preparers={}, **more)
        assert "\n" not in str(caught.value)
    data(f"{a}::{plain}", batch_size=4, preparers={}, val={"v": str(with_regions(tmp_path / "c", "1")), "p": str(plain)})
    data(f"{a}::{with_regions(tmp_path / 'd', None, 20)}", batch_size=4, preparers={})  # nothing is known of these
    (tmp_path / "b" / NAME).write_text("{")
    with pytest.raises(DataError, match=rf"b/{NAME}: it is no JSON"):
        data(str(b), batch_size=4, preparers={})


def test_sources_of_a_mixture_and_servers_too(tmp_path, own_cache):
    from mmpretrain.data.mixture import TrainSource
    from mmpretrain.data.module import ShardData

    with_regions(tmp_path / "served" / "a", "1"), with_regions(tmp_path / "served" / "b", "2", 10)
    with http_server(tmp_path / "served") as http:
        sources = {"one": TrainSource(http.url("a/00000.tar")), "two": TrainSource(http.url("b/00000.tar"))}
        with pytest.raises(DataError, match=SAYS):
            ShardData(sources, batch_size=4, workers=0).setup("fit")


def test_the_vocabulary_says_how_many_classes_and_attributes_there_are(tmp_path):
    from helpers.regions import write_regions

    folder = write_regions(tmp_path / "regions", (4,))
    known = lambda made: (made.vocabulary.region_classes, made.vocabulary.region_background, made.vocabulary.region_attributes)
    assert known(data(folder, batch_size=2, show="regions")) == (0, None, 0)  # nobody names them
    write_info(folder, INFO)
    assert known(data(folder, batch_size=2, show="regions")) == (2, 0, 2)
    assert known(data(folder, batch_size=2)) == (0, None, 0)  # they are not shown
    write_info(folder, INFO._replace(attributes=None, background=None))
    assert known(data(folder, batch_size=2, show="regions")) == (2, None, 0)


FIVE = Width(5, "a/00000.tar key 'k0'")


@pytest.mark.parametrize(
    ("width", "computes", "found", "pictures", "says"),
    [
        (2048, False, FIVE, True, r"^a/0.*k0': the regions have 5 values, but the model takes 2048: set `features` of .* to 5, or"),
        (5, False, None, True, r"none are read: set data\.show=regions$"),
        (5, True, None, True, r"none are read: set data\.show=both$"),
        (5, True, FIVE, False, r"computes the features of regions from pixels, but no pictures are read: set data\.show=both$"),
        (5, False, FIVE, False, None),
        (2048, True, FIVE, True, None),  # features that are given are not read
        (None, False, None, True, None),
    ],
)
def test_what_a_model_takes(width, computes, found, pictures, says):
    spec = Spec(8, ("fused",), 9, feature_width=width, computes_features=computes)
    if says is None:
        return check_model(spec, found, pictures)
    with pytest.raises(DataError, match=says):
        check_model(spec, found, pictures)

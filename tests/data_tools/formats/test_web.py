"""Conceptual Captions, SBU and img2dataset's output: pictures that somebody downloaded."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib

import pytest
from helpers.building import put, run
from helpers.shards import picture, write_tar

from mmpretrain.data.errors import DataError

URLS = [f"http://host{n}.example.com/a/photo%20{n % 3}.jpg?x={n}" for n in range(5)]
CAPTIONS = [f"a caption of row {n}" for n in range(5)]


def tsv(first, second, rows=range(5)):
    columns = {"caption": CAPTIONS, "url": URLS}
    return "".join(f"{columns[first][n]}\t{columns[second][n]}\n" for n in rows)


def test_cc3m_with_names_by_row_and_crc32(tmp_path, capsys):
    """The names of DownloadConceptualCaptions: ROW_CRC32, without an ending."""
    files = {f"training/{n}_{zlib.crc32(URLS[n].encode())}": picture(n, kind="JPEG") for n in (0, 1, 3)}
    put(tmp_path, {**files, "Train_GCC-training.tsv": tsv("caption", "url")})
    made = run(tmp_path, "conceptual", "--tsv", "Train_GCC-training.tsv", "--images", "training")
    assert "named by row-crc32 (3 of the first 5 rows are there)" in capsys.readouterr().err
    assert made.code == 0 and list(made.samples) == ["cc-000000000", "cc-000000001", "cc-000000003"]
    assert [(one["name"], one["reason"], one["detail"]) for one in made.skipped] == [
        (f"cc-{n:09d}", "picture is missing", URLS[n]) for n in (2, 4)
    ]
    assert made.samples["cc-000000003"].captions == (CAPTIONS[3],) and list(made.members["cc-000000003"]) == ["jpg", "json", "txt"]
    expected = {"id": 3, "image_id": 3, "url": URLS[3], "caption_ids": [3], "width": 24, "height": 20}
    assert made.meta("cc-000000003") == expected


def test_cc12m_has_the_url_first_and_other_names(tmp_path):
    rows = [0, 1, 2, 1]  # one URL twice: its captions go together
    text = tsv("url", "caption", rows) + "no url here\tat all\n\n"
    files = {f"images/{hashlib.md5(URLS[n].encode(), usedforsecurity=False).hexdigest()}.jpg": n for n in (0, 1)}
    put(tmp_path, {**files, "cc12m.tsv.gz": gzip.compress(text.encode())})
    made = run(tmp_path, "conceptual", "--tsv", "cc12m.tsv.gz", "--images", "images", "--max-missing", "40%")
    assert made.code == 1 and list(made.samples) == ["cc-000000000", "cc-000000001"]  # 2 of 4 left out
    assert made.samples["cc-000000001"].captions == (CAPTIONS[1],) * 2 and made.meta("cc-000000001")["caption_ids"] == [1, 3]
    assert made.skipped[1] == {"name": "cc12m.tsv.gz:5", "reason": "line is not a caption and a URL with a tab between them"}


def test_urls_that_can_be_no_file_are_missing_pictures(tmp_path):
    urls = ["http://h/a.jpg", f"http://h/{'x' * 300}.jpg", "http://[h/b.jpg"]
    put(tmp_path, {"img/a.jpg": 1, "t.tsv": "".join(f"a caption\t{url}\n" for url in urls)})
    made = run(tmp_path, "conceptual", "--tsv", "t.tsv", "--images", "img")
    assert list(made.samples) == ["cc-000000000"] and [one["reason"] for one in made.skipped] == ["picture is missing"] * 2


def test_row_numbers_must_be_asked_for(tmp_path):
    put(tmp_path, {**{f"img/{n:07d}.jpg": n for n in range(1, 6)}, "t.tsv": "caption\turl\n" + tsv("caption", "url")})
    with pytest.raises(DataError, match=r"no file is named by the URL of one of the first 5 rows.*--names"):
        run(tmp_path, "conceptual", "--tsv", "t.tsv", "--images", "img")
    made = run(tmp_path, "conceptual", "--tsv", "t.tsv", "--images", "img", "--names", "row1")
    assert len(made.samples) == 5 and made.members["cc-000000000"]["jpg"] == picture(1, kind="JPEG")
    zero = run(tmp_path, "conceptual", "--tsv", "t.tsv", "--images", "img", "--names", "row0", out="zero")
    assert len(zero.samples) == 4 and zero.members["cc-000000001"]["jpg"] == picture(1, kind="JPEG")


def test_pairs_of_names_and_captions_as_vilt_has_them(tmp_path):
    files = {f"images_train/{name[:4]}/{name}": picture(int(name), kind="JPEG") for name in ("0000000", "0001000")}
    pairs = [["images_train/0000/0000000", "first"], ["0001000", "second"], ["0002000", "gone"]]
    put(tmp_path, {**files, "train_annot.json": pairs})
    for format in ("conceptual", "sbu"):
        made = run(tmp_path, format, "--pairs", "train_annot.json", "--images", "images_train", out=format)
        assert [sample.captions for sample in made.samples.values()] == [("first",), ("second",)]
        assert [sample.meta["file_name"] for sample in made.samples.values()] == ["images_train/0000/0000000", "0001000"]
        assert made.code == 0 and [one["detail"] for one in made.skipped] == ["0002000"]


def sbu_urls():
    return [f"http://static.flickr.com/2723/438{n}_b0f291553e.jpg" for n in range(3)]


def test_sbu_json(tmp_path):
    urls = [*sbu_urls(), "http://static.flickr.com/9999/4380_b0f291553e.jpg"]  # ends as the first does
    found = {"image_urls": urls, "user_ids": ["47889917@N08", "a", "b", "c"], "captions": [*CAPTIONS[:3], "another"]}
    put(tmp_path, {"sbu-captions-all.json": found, **{f"images/438{n}_b0f291553e.jpg": n for n in range(3)}})
    made = run(tmp_path, "sbu", "--json", "sbu-captions-all.json", "--images", "images")
    assert made.code == 0 and list(made.samples) == ["sbu-000000001", "sbu-000000002"]
    assert {one["reason"] for one in made.skipped} == {"several URLs end in this name"} and len(made.skipped) == 2
    size = {"width": 24, "height": 20}
    assert made.meta("sbu-000000001") == {"id": 1, "image_id": 1, "url": urls[1], "user_id": "a", "caption_ids": [1], **size}


def test_sbu_text_files(tmp_path):
    captions = "\n".join(CAPTIONS[:3]) + "\n"
    put(tmp_path, {"u.txt": "\n".join(sbu_urls()), "c.txt": captions, "short.txt": "one\n", "images/4382_b0f291553e.jpg": 2})
    made = run(tmp_path, "sbu", "--urls", "u.txt", "--captions", "c.txt", "--images", "images")
    assert list(made.samples) == ["sbu-000000002"] and made.samples["sbu-000000002"].captions == (CAPTIONS[2],)
    with pytest.raises(DataError, match="different numbers of lines"):
        run(tmp_path, "sbu", "--urls", "u.txt", "--captions", "short.txt", "--images", "images", out="short")


def told(n, **more):
    known = {
        "caption": CAPTIONS[n],
        "url": URLS[n],
        "key": f"{n:09d}",
        "status": "success",
        "error_message": None,
        "width": 24,
        "height": 20,
    }
    return {**known, "original_width": 640, "original_height": 480, "exif": "{}", "sha256": "00", **more}


def sample(n, data=None):
    key = f"{n:09d}"
    image = picture(n, kind="JPEG") if data is None else data
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps(told(n)).encode()), (f"{key}.txt", CAPTIONS[n].encode())]


def check_img2dataset(made):
    assert made.code == 0 and list(made.samples) == ["000000000", "000000001"]
    assert made.samples["000000001"].captions == (CAPTIONS[1],)
    expected = {name: value for name, value in told(1).items() if name not in ("caption", "error_message")}
    assert made.meta("000000001") == {"id": "000000001", **expected}


def test_img2dataset_shards_packed_by_hand(tmp_path):
    members = [(f"./{name}", data) for n in range(2) for name, data in sample(n)]  # as tar cf 00000.tar ./ does
    write_tar(tmp_path / "src/00000.tar", members)
    check_img2dataset(run(tmp_path, "img2dataset", "--source", "src"))


def test_img2dataset_shards(tmp_path):
    write_tar(tmp_path / "src/00000.tar", [*sample(0), *sample(1), *sample(2, b"")])
    write_tar(tmp_path / "src/00001.tar", [*sample(3), *sample(4)])
    (tmp_path / "src/00000_stats.json").write_text("{}")
    whole = (tmp_path / "src/00001.tar").read_bytes()
    (tmp_path / "src/00001.tar").write_bytes(whole[:700])  # cut inside the first picture
    made = run(tmp_path, "img2dataset", "--source", "src")
    check_img2dataset(made)
    assert [(one["name"], one["reason"]) for one in made.skipped] == [
        ("00001.tar", "rest of a damaged shard"),
        ("000000002", "picture is empty"),
    ]


def test_img2dataset_files(tmp_path):
    put(tmp_path, {f"src/00000/{name}": data for n in (0, 1) for name, data in sample(n)})
    put(tmp_path, {"src/00000_stats.json": {"count": 2}, "src/00000.parquet": b"PAR1"})
    made = run(tmp_path, "img2dataset", "--source", "src")
    assert list(made.samples) == ["00000/000000000", "00000/000000001"] and made.samples["00000/000000001"].captions == (CAPTIONS[1],)

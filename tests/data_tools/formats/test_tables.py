"""ViLT's Arrow files, tables, folders and texts."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.building import put, run
from helpers.shards import picture

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.formats.text import cut
from mmpretrain.types import Statement

SIZE = {"width": 24, "height": 20}


def arrow(path, columns, batch=2):
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, table.schema) as writer:
        writer.write_table(table, batch)
    return path


def jpeg(n):
    return picture(n, kind="JPEG")


def test_vilt_arrow_captions(tmp_path):
    names = [f"COCO_val2014_{n:012d}.jpg" for n in range(3)]
    columns = {"image": [jpeg(0), jpeg(1), None], "caption": [["a", "b"], ["c"], ["d"]], "image_id": names, "split": ["val"] * 3}
    arrow(tmp_path / "coco_caption_karpathy_val.arrow", {**columns, "__index_level_0__": [5, 6, 7]})
    made = run(tmp_path, "vilt-arrow", "--source", "coco_caption_karpathy_val.arrow", "--max-missing", "1")
    key = "coco_caption_karpathy_val-COCO_val2014_000000000000"
    assert made.code == 0 and made.samples[key].captions == ("a", "b") and made.members[key]["jpg"] == jpeg(0)
    source = "coco_caption_karpathy_val"
    assert made.meta(key) == {"id": names[0], "image_id": names[0], "source": source, "split": "val", **SIZE}
    assert [one["reason"] for one in made.skipped] == ["picture is missing"] and len(made.samples) == 2


def test_vilt_arrow_visual_genome(tmp_path):
    boxes = {name: [[1, 2], [3]] for name in ("x", "y", "width", "height")}
    columns = {"image": [jpeg(0), jpeg(1)], "caption": [["a wall", "a man"], ["b"]], **boxes, "image_id": ["10", "11"]}
    arrow(tmp_path / "vg.arrow", columns)
    made = run(tmp_path, "vilt-arrow", "--source", "vg.arrow")
    assert made.meta("vg-10")["caption_boxes"] == [[1, 1, 1, 1], [2, 2, 2, 2]] and made.samples["vg-10"].captions == ("a wall", "a man")


def test_vilt_arrow_vqa_and_nlvr2(tmp_path):
    questions = {"questions": [["Is it?", "What?"]], "question_id": [[7, 8]], "image_id": [42], "split": ["train"]}
    answers = {"answers": [[["yes", "no"], ["net"]]], "answer_labels": [[[3, 9], [4]]], "answer_scores": [[[1.0, 0.3], [0.9]]]}
    arrow(tmp_path / "vqav2_train.arrow", {"image": [jpeg(0)], **questions, **answers})
    arrow(tmp_path / "vqav2_test.arrow", {"image": [jpeg(0)], **questions})
    pairs = {"image_0": [jpeg(1)], "image_1": [jpeg(2)], "questions": [["left", "right"]], "answers": [["True", "False"]]}
    arrow(tmp_path / "nlvr2_dev.arrow", {**pairs, "identifier": ["dev-850-0"]})
    made = run(tmp_path, "vilt-arrow", "--source", "vqav2_train.arrow", "vqav2_test.arrow", "nlvr2_dev.arrow")
    assert list(made.samples) == ["vqav2_train-42", "vqav2_test-42", "dev-850-0"]
    assert made.meta("vqav2_train-42")["questions"] == [
        {"id": 7, "question": "Is it?", "answer": "yes", "answers": {"yes": 1.0, "no": 0.3}},
        {"id": 8, "question": "What?", "answer": "net", "answers": {"net": 0.9}},
    ]
    assert made.meta("vqav2_test-42")["questions"] == [{"id": 7, "question": "Is it?"}, {"id": 8, "question": "What?"}]
    assert made.samples["dev-850-0"].statements == (Statement("left", True), Statement("right", False))
    assert made.samples["dev-850-0"].images == (jpeg(1), jpeg(2))


def test_other_arrow_files_are_refused(tmp_path):
    arrow(tmp_path / "other.arrow", {"x": [1]})
    put(tmp_path, {"broken.arrow": b"ARROW1 and no more"})
    for name, says in (("other.arrow", r"its columns \(x\) are not those"), ("broken.arrow", "not an Arrow file")):
        with pytest.raises(DataError, match=says):
            run(tmp_path, "vilt-arrow", "--source", name)


def test_csv_as_open_clip_has_it(tmp_path):
    rows = "filepath\ttitle\tlang\nimg/1.jpg\tone\ten\nimg/2.jpg\ttwo\tde\nimg/1.jpg\tone again\tfr\nimg/3.jpg\t \ten\nbroken\n"
    put(tmp_path, {"train.csv": rows, "img/1.jpg": 1, "img/2.jpg": 2, "img/3.jpg": 3})
    words = ["--source", "train.csv", "--delimiter", "\t", "--image", "filepath", "--caption", "title"]
    made = run(tmp_path, "table", *words)
    assert list(made.samples) == ["row-000000000", "row-000000001"] and made.samples["row-000000000"].captions == ("one", "one again")
    expected = {"lang": "en", "id": 0, "image_id": 0, "file_name": "img/1.jpg", "caption_ids": [0, 2], **SIZE}
    assert made.meta("row-000000000") == expected
    assert [(one["name"], one["reason"]) for one in made.skipped] == [
        ("row-000000003", "no caption"),
        ("train.csv:5", "row has another number of cells than the first line"),
    ]
    with pytest.raises(DataError, match="no column 'titel'; it has filepath, title, lang"):
        run(tmp_path, "table", *words[:-1], "titel", out="typo")
    under = run(tmp_path, "table", *words, "--images", str(tmp_path), "--id", "lang", out="under")
    assert list(under.samples) == ["en", "de"]


def test_columns_of_a_table_with_the_names_of_ours(tmp_path):
    """Sizes are numbers though they were text; captions are those that were asked for; each row without a picture counts."""
    rows = [{"image": f"img/{n}.jpg", "title": "mine", "captions": "a, b", "width": "24", "height": "20"} for n in (1, 2)]
    put(tmp_path, {"t.json": [{**rows[0], "width": 24.0}, {**rows[1], "height": "?"}, {"title": "x"}, {"title": "y"}], "img/1.jpg": 1})
    put(tmp_path, {"img/2.jpg": 2})
    made = run(tmp_path, "table", "--source", "t.json", "--image", "image", "--caption", "title")
    assert [one.captions for one in made.samples.values()] == [("mine",)] * 2 and made.manifest["made"]["resized"] == 0
    assert [(one.meta["width"], one.meta["height"]) for one in made.samples.values()] == [(24, 20)] * 2
    assert made.manifest["made"]["skipped"]["row has no picture"] == {"count": 2, "first": ["t.json:3", "t.json:4"]}


def test_a_row_with_a_url_and_no_caption_is_told(tmp_path):
    rows = [{"url": "https://h/0.jpg", "texts": ["a"]}, {"url": "https://h/1.jpg", "texts": []}]
    put(tmp_path, {"t.jsonl": "\n".join(map(json.dumps, rows)), "img/0.jpg": 0, "img/1.jpg": 1})
    words = ["--source", "t.jsonl", "--url", "url", "--caption", "texts", "--images", "img", "--names", "basename", "--max-missing", "1"]
    made = run(tmp_path, "table", *words)
    assert list(made.samples) == ["row-000000000"]
    assert [(one["name"], one["reason"]) for one in made.skipped] == [("t.jsonl:2", "no caption")]


def test_json_lines_with_lists_of_captions_and_urls(tmp_path):
    rows = [{"url": f"https://h/{n}.jpg", "texts": [f"a {n}", f"b {n}"], "score": 0.5, "none": None} for n in range(2)]
    text = "\n".join(json.dumps(row) for row in rows) + "\nnot json\n"
    put(tmp_path, {"t.jsonl.gz": gzip.compress(text.encode()), "img/0.jpg": 0, "img/1.jpg": 1})
    made = run(tmp_path, "table", "--source", "t.jsonl.gz", "--url", "url", "--caption", "texts", "--images", "img", "--names", "basename")
    assert made.samples["row-000000001"].captions == ("a 1", "b 1") and made.meta("row-000000001")["score"] == 0.5
    assert [one["reason"] for one in made.skipped] == ["line is not JSON"] and made.code == 1


def test_parquet_with_pictures_inside(tmp_path):
    cells = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(4)] + [None]
    columns = {
        "image": cells,
        "caption": [f"c {n}" for n in range(5)],
        "when": pa.array([0] * 5, pa.timestamp("s")),
        "p": [float("nan")] * 5,
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    words = ["--source", "t.parquet", "--bytes", "image.bytes", "--caption", "caption"]
    made = run(tmp_path, "table", *words, "--max-missing", "20%")
    assert made.code == 0 and [group["jpg"] for group in made.members.values()] == [jpeg(n) for n in range(4)]
    assert made.meta("row-000000003") == {"when": "1970-01-01 00:00:00", "id": 3, "image_id": 3, "caption_ids": [3], **SIZE}
    shuffled = run(tmp_path, "table", *words, "--shuffle", "1", out="shuffled")
    assert sorted(shuffled.samples) == list(made.samples) and list(shuffled.samples) != list(made.samples)
    with pytest.raises(DataError, match="no column 'imag'"):
        run(tmp_path, "table", "--source", "t.parquet", "--bytes", "imag", "--caption", "caption", out="typo")


def test_a_damaged_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"image": ["a.jpg"], "title": ["word " * 99]}), tmp_path / "t.parquet", compression="zstd")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"\x28\xb5\x2f\xfd", b"zstd"))
    with pytest.raises(DataError, match=r"t\.parquet: row group 0 cannot be read .*; copy it again"):
        run(tmp_path, "table", "--source", "t.parquet", "--image", "image", "--caption", "title")


def test_folder(tmp_path):
    put(
        tmp_path / "src",
        {
            "a/1.jpg": 1,
            "a/1.txt": "\ufeffone\ntwo\n\n",
            "b.c.png": 2,
            "b.c.json": {"captions": ["x", "y"], "objects": [{"box": [1, 2, 3, 4]}]},
            "d.JPG": 3,
            "e.jpg": 4,
            "e.json": {"statement": "it is so", "label": True},
            "e.txt": "it is so",
            "f.png": 5,
            "f.jpg": 6,
            "g.JPG": 6,
            "g.jpg": 7,
            "notes.txt": "nothing to see",
            ".hidden.jpg": 7,
        },
    )
    made = run(tmp_path, "folder", "--source", "src")
    assert list(made.samples) == ["b_c", "e", "a/1"] and made.samples["a/1"].captions == ("one\ntwo",)
    assert made.samples["b_c"].captions == ("x", "y") and made.meta("b_c") == {"id": "b.c", "objects": [{"box": [1, 2, 3, 4]}], **SIZE}
    assert made.samples["e"].captions == () and made.samples["e"].statements == (Statement("it is so", True),)
    assert [(one["name"], one["reason"]) for one in made.skipped] == [
        ("d", "no caption"),
        ("f", "two pictures of one name"),
        ("g", "two pictures of one name"),
    ]
    more = run(tmp_path, "folder", "--source", "src", "--caption-per-line", "--pictures-only", out="more")
    assert more.samples["a/1"].captions == ("one", "two") and list(more.samples) == ["b_c", "d", "e", "a/1"]
    assert sorted(more.members["d"]) == ["jpg", "json"]


def test_a_folder_with_names_that_are_not_utf8(tmp_path, capfd):
    place = put(tmp_path, {"src/fine.jpg": 0, "src/fine.txt": "fine"}) / "src"
    for name, content in ((b"caf\xe9.jpg", jpeg(1)), (b"caf\xe9.txt", b"black"), (b"tr\xe8s.jpg", jpeg(2)), (b"tr\xe8s.png", picture(3))):
        (place / os.fsdecode(name)).write_bytes(content)
    made = run(tmp_path, "folder", "--source", "src")
    assert made.code == 1 and list(made.samples) == ["fine"] and "tr?s" in capfd.readouterr().out
    assert {(os.fsencode(one["name"]), one["reason"]) for one in made.skipped} == {
        (b"tr\xe8s", "two pictures of one name"),
        (b"caf_", "text is not UTF-8"),
    }


def test_text_lines_and_paragraphs(tmp_path):
    put(tmp_path, {"books/one.txt": "First sentence .\nSecond one .\n\n  Third .  \n", "books/sub/two.txt.gz": gzip.compress(b"Fourth .")})
    made = run(tmp_path, "text", "--source", "books")
    keys = ["one-000000001", "one-000000002", "one-000000004", "sub/two-000000001"]
    assert list(made.samples) == keys and made.members["one-000000004"] == {"txt": b"Third ."}
    assert made.samples[keys[0]].captions == ("First sentence .",) and made.samples[keys[0]].images == ()
    blocks = run(tmp_path, "text", "--source", "books", "--unit", "paragraph", out="blocks")
    assert blocks.samples["one-000000001"].captions == ("First sentence .\nSecond one .",) and len(blocks.samples) == 3
    files = run(tmp_path, "text", "--source", "books/one.txt", "--unit", "file", out="files")
    assert files.samples["one-000000001"].captions == ("First sentence .\nSecond one .\n\n  Third .",)
    joined = run(tmp_path, "text", "--source", "books", "--join", "64", out="joined")
    assert [sample.captions for sample in joined.samples.values()] == [("First sentence .\nSecond one .\nThird .",), ("Fourth .",)]


def test_text_json_lines_and_long_texts(tmp_path):
    long = " ".join(f"Sentence number {n} ends here." for n in range(20))
    rows = [{"id": "12", "url": "https://w/12", "title": "Anarchism", "text": "short"}, {"id": "13", "text": long}, {"id": "14"}]
    put(tmp_path, {"wiki_00.json": "\n".join(json.dumps(row) for row in rows)})
    made = run(tmp_path, "text", "--source", "wiki_00.json", "--unit", "json", "--max-bytes", "200")
    assert made.code == 1 and [one["reason"] for one in made.skipped] == ["JSON without a text 'text'"]
    assert made.meta("wiki_00-000000001") == {"id": "12", "url": "https://w/12", "title": "Anarchism"}
    parts = [sample.captions[0] for key, sample in made.samples.items() if key.startswith("wiki_00-000000002-")]
    assert len(parts) > 2 and " ".join(parts) == long and all(part.endswith(".") and len(part) <= 200 for part in parts)
    assert made.meta("wiki_00-000000002-001") == {"id": "13"}


def test_cuts_lose_nothing_and_keep_characters_whole():
    for text in ("x" * 1000, "ä" * 500, "word " * 200, "一二三。" * 100, "short"):
        pieces = list(cut(text, 100))
        assert all(0 < len(piece.encode()) <= 100 for piece in pieces)
        assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_nothing_to_build(tmp_path):
    put(tmp_path, {"empty/x.txt": "\n\n", "none/readme.md": "x", "t.csv": "a,b\n", "zero.csv": b"", "blank.csv": "\na,b\n"})
    for words, says in (
        (["text", "--source", "empty"], r"no sample in /.*/empty$"),
        (["text", "--source", "gone"], "gone does not exist"),
        (["text", "--source", "none"], "no text file in it"),
        (["folder", "--source", "none"], "no picture in it"),
        (["table", "--source", "t.csv", "--image", "a", "--caption", "b"], r"no sample in /.*/t\.csv$"),
        (
            ["table", "--source", "zero.csv", "--image", "a", "--caption", "b"],
            r"zero\.csv: the file is empty; the first line names the columns",
        ),
        (["table", "--source", "blank.csv", "--image", "a", "--caption", "b"], r"blank\.csv: its first line is empty; the first"),
    ):
        with pytest.raises(DataError, match=says):
            run(tmp_path, *words)
    assert not list(tmp_path.glob(".*.building"))


def test_a_table_whose_pictures_are_not_found_says_what_to_do(tmp_path):
    put(tmp_path, {"pairs.csv": "filepath,title\n1.jpg,one\n2.jpg,two\n", "img/none.txt": "x"})
    words = ["--source", "pairs.csv", "--image", "filepath", "--caption", "title"]
    found = "no record became a sample, such as row-000000000: picture is missing"
    with pytest.raises(DataError, match=rf"{found} \({tmp_path}/1\.jpg\); name the folder of the pictures by --images FOLDER$"):
        run(tmp_path, "table", *words)
    with pytest.raises(
        DataError, match=r"the first was left out: row-000000000: picture is missing \(1\.jpg\); is --images \S*img their folder\?$"
    ):
        run(tmp_path, "table", *words, "--images", "img")


def test_what_is_not_utf8_is_left_out_and_told(tmp_path):
    rows = "image,caption\na.jpg,café noir\nb.jpg,plain\n\nb.jpg,again\n\n"
    text = "café\nplain\n\nmore\n"
    put(tmp_path, {"a.jpg": 0, "b.jpg": 1, "old.csv": rows.encode("latin-1"), "old.txt": text.encode("latin-1")})
    made = run(tmp_path, "table", "--source", "old.csv", "--image", "image", "--caption", "caption", "--max-missing", "1")
    assert made.code == 0 and [sample.captions for sample in made.samples.values()] == [("plain", "again")]
    reason = {"reason": "text is not UTF-8", "detail": "byte 0xe9 at 'caf'; convert the file, such as by iconv"}
    assert made.skipped == [{"name": "row-000000000", **reason}]
    texts = run(tmp_path, "text", "--source", "old.txt", "--join", "64", out="texts")
    assert texts.code == 1 and [sample.captions for sample in texts.samples.values()] == [("plain\nmore",)]
    assert texts.skipped == [{"name": "old.txt:1", **reason}]


def test_a_json_list_is_read_as_json_lines_are(tmp_path):
    rows = [{"image": f"{n}.jpg", "caption": [f"a {n}", f"b {n}"]} for n in range(2)]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    put(tmp_path, {"list.json": rows, "list.json.gz": gzip.compress(json.dumps(rows).encode()), "rows.json": lines, "0.jpg": 0, "1.jpg": 1})
    for number, name in enumerate(("list.json", "list.json.gz", "rows.json")):
        made = run(tmp_path, "table", "--source", name, "--image", "image", "--caption", "caption", out=f"out{number}")
        assert made.code == 0 and [sample.captions for sample in made.samples.values()] == [("a 0", "b 0"), ("a 1", "b 1")]


def test_a_column_without_bytes_of_pictures_is_refused(tmp_path):
    columns = {"image": [{"bytes": jpeg(0), "path": "0.jpg"}], "caption": ["a"], "none": [None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    for column, says in (
        ("image", r"'image' is a struct of bytes, path; name the field: --bytes image\.bytes$"),
        ("image.data", r"'image' is a struct of bytes, path; name the field: --bytes image\.bytes$"),
        ("image.path", r"'image\.path' holds string, not the bytes of pictures; for paths take --image"),
        ("caption", "'caption' holds string, not the bytes of pictures"),
    ):
        with pytest.raises(DataError, match=says):
            run(tmp_path, "table", "--source", "t.parquet", "--bytes", column, "--caption", "caption")

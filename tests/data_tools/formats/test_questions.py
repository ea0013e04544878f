"""VQA and NLVR2, each in its real layout."""

from __future__ import annotations

import json

import pytest
from helpers.building import put, run

from mmpretrain.data.errors import DataError
from mmpretrain.types import Statement


def vqa(folder):
    answers = ["net"] * 6 + ["netting"] * 3 + ["Mesh "]
    rows = [{"answer": answer, "answer_confidence": "yes", "answer_id": k} for k, answer in enumerate(answers, 1)]
    annotation = {
        "question_type": "what is this",
        "multiple_choice_answer": "net",
        "answers": rows,
        "image_id": 458752,
        "answer_type": "other",
        "question_id": 458752000,
    }
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco", "license": {}}
    questions = [
        {"image_id": 458752, "question": "What is this photo taken looking through?", "question_id": 458752000},
        {"image_id": 262146, "question": "Is it?", "question_id": 262146000},
        {"image_id": 458752, "question": "What position?", "question_id": 458752001},
    ]
    dev = [{"image_id": 262144, "question": "Is the ball flying?", "question_id": 262144000}]
    return put(
        folder,
        {
            "train2014/COCO_train2014_000000458752.jpg": 1,
            "test2015/COCO_test2015_000000262144.jpg": 2,
            "q.json": {**head, "data_subtype": "train2014", "questions": questions},
            "dev.json": {**head, "data_subtype": "test-dev2015", "questions": dev},
            "a.json": {**head, "data_subtype": "train2014", "annotations": [annotation]},
        },
    )


def test_vqa(tmp_path):
    made = run(vqa(tmp_path), "vqa", "--questions", "q.json", "--annotations", "a.json", "--images", "train2014")
    assert made.code == 1 and [(one["name"], one["reason"]) for one in made.skipped] == [
        ("vqa-train2014-000000262146", "picture is missing")
    ]
    key = "vqa-train2014-000000458752"
    assert made.samples[key].captions == () and "txt" not in made.members[key]
    assert made.meta(key) == {
        "id": 458752,
        "image_id": 458752,
        "split": "train2014",
        "questions": [
            {
                "id": 458752000,
                "question": "What is this photo taken looking through?",
                "answer": "net",
                "answers": {"net": 1.0, "netting": 0.9, "mesh": 0.3},
                "type": "other",
                "question_type": "what is this",
            },
            {"id": 458752001, "question": "What position?"},
        ],
        "width": 24,
        "height": 20,
    }


def test_answers_of_another_split_are_told(tmp_path):
    with pytest.raises(DataError, match=r"a\.json: has no answer to any of the questions; is it of another split"):
        run(vqa(tmp_path), "vqa", "--questions", "dev.json", "--annotations", "a.json", "--images", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_vqa_test_dev_asks_about_pictures_of_test(tmp_path):
    made = run(vqa(tmp_path), "vqa", "--questions", "dev.json", "--images", str(tmp_path))
    assert made.code == 0 and list(made.samples) == ["vqa-test-dev2015-000000262144"]


def test_ids_of_another_kind_are_told(tmp_path):
    put(tmp_path, {"q.json": {"questions": [{"question_id": 1, "image_id": "a", "question": "What?"}]}, "img/a.jpg": 1})
    with pytest.raises(DataError, match=r"annotations are not of this format \(after 0 records: ValueError"):
        run(tmp_path, "vqa", "--questions", "q.json", "--images", "img")


def test_soft_scores_are_the_official_accuracy():
    from mmpretrain.data_tools.formats.vqa import SCORES

    for given in range(5):  # of ten people; the others said something else; the mean over leaving one person out
        others = [min(1.0, (given - 1) / 3)] * given + [min(1.0, given / 3)] * (10 - given)
        assert SCORES[given] == pytest.approx(sum(others) / 10)


def example(identifier, sentence, label, **more):
    urls = {"left_url": "https://a/l.jpg", "right_url": "https://a/r.jpg"}
    known = {"writer": "61", "synset": "beer bottle", "query": "some beer bottles38", "validation": {"61": label}}
    return json.dumps({"identifier": identifier, "sentence": sentence, "label": label, **urls, **known, **more})


def test_nlvr2(tmp_path):
    train = [
        example("train-10171-0-0", "An image shows one bottle.", "True", directory=34),
        example("train-10171-0-1", "There are two.", "False", directory=34),
        example("train-9-3-0", "No pictures.", "True", directory=34),
        "not json",
    ]
    files = {f"images/train/34/train-10171-0-img{side}.png": 3 + side for side in (0, 1)}
    jpeg = {"dev/dev-850-2-img0.png": 5}  # the names lie: some are JPEG
    put(tmp_path, {**files, **jpeg, "train.json": "\n".join(train), "dev.json": example("dev-850-2-0", "A path.", "True") + "\n"})
    (tmp_path / "dev/dev-850-2-img1.png").write_bytes((put(tmp_path, {"x.jpg": 6}) / "x.jpg").read_bytes())
    made = run(tmp_path, "nlvr2", "--annotations", "train.json", "dev.json", "--images", str(tmp_path))
    assert made.code == 1 and [one["reason"] for one in made.skipped] == ["line is not an example of NLVR2", "picture is missing"]
    assert list(made.samples) == ["train-10171-0", "dev-850-2"]
    found = made.samples["train-10171-0"]
    assert found.statements == (Statement("An image shows one bottle.", True), Statement("There are two.", False))
    assert found.captions == () and len(found.images) == 2
    assert sorted(made.members["train-10171-0"]) == ["img0.png", "img1.png", "json"]
    assert sorted(made.members["dev-850-2"]) == ["img0.png", "img1.jpg", "json"]
    raw = json.loads(made.members["train-10171-0"]["json"])
    assert raw["statements"][1] == {"text": "There are two.", "label": False, "id": "train-10171-0-1", "writer": "61"}
    assert dict(found.meta) == {
        "id": "train-10171-0",
        "image_id": "train-10171-0",
        "split": "train",
        "directory": 34,
        "synset": "beer bottle",
        "query": "some beer bottles38",
        "left_url": "https://a/l.jpg",
        "right_url": "https://a/r.jpg",
    }

"""Visual Genome, GQA and RefCOCO, each in its real layout."""

from __future__ import annotations

import os
import pickle

import pytest
from helpers.building import put, run

from mmpretrain.data.errors import DataError

SIZE = {"width": 24, "height": 20}
HOST = "https://cs.stanford.edu/people/rak248"


def visual_genome(folder):
    man = {"synsets": ["man.n.01"], "h": 9, "object_id": 1023, "merged_object_ids": [], "names": ["man", "guy"], "w": 4, "y": 2, "x": 1}
    bike = {"synsets": ["bicycle.n.01"], "h": 5, "object_id": 1031, "merged_object_ids": [], "names": ["bike"], "w": 8, "y": 9, "x": 3}
    shoe = {"name": "shoe", "h": 1, "synsets": [], "object_id": 5046, "w": 2, "y": 18, "x": 2}
    seen = {**{key: value for key, value in man.items() if key != "names"}, "name": "man"}
    return put(
        folder,
        {
            "VG_100K/2.jpg": 2,
            "VG_100K_2/1.jpg": 1,
            "ann/image_data.json": [
                {"image_id": 1, "url": f"{HOST}/VG_100K_2/1.jpg", **SIZE, "coco_id": None, "flickr_id": None},
                {"image_id": 2, "url": f"{HOST}/VG_100K/2.jpg", "width": 800, "height": 600, "coco_id": 7, "flickr_id": 88},
            ],
            "ann/region_descriptions.json": [
                {"id": 2, "regions": [{"region_id": 9, "width": 5, "height": 6, "image_id": 2, "phrase": " a wall ", "y": 0, "x": 1}]},
                {
                    "id": 1,
                    "regions": [
                        {"region_id": 1382, "width": 8, "height": 9, "image_id": 1, "phrase": "a man on a bike", "y": 2, "x": 1},
                        {"region_id": 1383, "width": 2, "height": 1, "image_id": 1, "phrase": "", "y": 2, "x": 1},
                        {"region_id": 1384, "width": 2, "height": 1, "image_id": 1, "phrase": "his shoe", "y": 18, "x": 2},
                    ],
                },
            ],
            "ann/objects.json": [{"image_id": 1, "objects": [man, bike], "image_url": f"{HOST}/VG_100K_2/1.jpg"}],
            "ann/attributes.json": [{"image_id": 1, "attributes": [{**bike, "attributes": [" red", "old", "red"]}, man]}],
            "ann/relationships.json": [
                {
                    "relationships": [
                        {"predicate": "ON", "object": bike, "relationship_id": 15927, "synsets": ["along.r.01"], "subject": seen},
                        {"predicate": "wears ", "object": shoe, "relationship_id": 15928, "synsets": [], "subject": seen},
                    ],
                    "image_id": 1,
                },
                {"relationships": [], "image_id": 2},
            ],
            "ann/question_answers.json": [
                {
                    "id": 1,
                    "qas": [{"a_objects": [], "question": "Who?", "image_id": 1, "qa_id": 986768, "answer": "A man.", "q_objects": []}],
                }
            ],
        },
    )


def test_visual_genome(tmp_path):
    made = run(visual_genome(tmp_path), "visual-genome", "--annotations", "ann", "--images", "VG_100K", "VG_100K_2")
    assert made.code == 0 and list(made.samples) == ["vg-1", "vg-2"]
    assert made.samples["vg-1"].captions == ("a man on a bike", "his shoe")
    assert made.meta("vg-1") == {
        "id": 1,
        "image_id": 1,
        **SIZE,
        "url": f"{HOST}/VG_100K_2/1.jpg",
        "objects": [
            {"name": "man", "box": [1, 2, 4, 9], "id": 1023, "names": ["man", "guy"], "synsets": ["man.n.01"]},
            {"name": "bike", "box": [3, 9, 8, 5], "id": 1031, "synsets": ["bicycle.n.01"], "attributes": ["red", "old"]},
            {"name": "shoe", "box": [2, 18, 2, 1], "id": 5046},
        ],
        "triples": [[0, "on", 1], [0, "wears", 2]],
        "questions": [{"id": 986768, "question": "Who?", "answer": "A man."}],
        "caption_ids": [1382, 1384],
        "caption_boxes": [[1, 2, 8, 9], [2, 18, 2, 1]],
    }
    assert made.meta("vg-2")["coco_id"] == 7 and "objects" not in made.meta("vg-2")
    assert made.manifest["made"]["resized"] == 1  # image 2 is annotated as 800 x 600


def test_visual_genome_in_part(tmp_path):
    visual_genome(tmp_path)
    words = ["visual-genome", "--annotations", "ann", "--images", "VG_100K", "VG_100K_2"]
    graph = run(tmp_path, *words, "--without", "regions", "qas", "attributes")
    assert graph.samples["vg-1"].captions == () and "questions" not in graph.meta("vg-1")
    assert [one.get("attributes") for one in graph.meta("vg-1")["objects"]] == [None, None, None]
    (tmp_path / "ann/objects.json").write_text('[{"image_id": 1, "objects": [')
    with pytest.raises(DataError, match=r"objects\.json: not JSON near element 0, or cut short"):
        run(tmp_path, *words, out="cut")


def gqa(folder):
    question = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "bird (2)"}],
        "entailed": [],
        "equivalent": ["02930152"],
        "question": "What is on the white wall?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "14-wall_on,s"},
        "answer": "pipe",
        "semanticStr": "select: wall [1]",
        "annotations": {"answer": {"0": "1"}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "relS", "semantic": "rel", "structural": "query"},
        "fullAnswer": "The pipe is on the wall.",
    }
    pipe = {"name": "pipe", "h": 4, "w": 3, "y": 2, "x": 1, "attributes": ["long"], "relations": [{"object": "681256", "name": "on"}]}
    wall = {"name": "wall", "h": 9, "w": 20, "y": 0, "x": 0, "attributes": [], "relations": {"1": {"object": "681267", "name": "of"}}}
    return put(
        folder,
        {
            "images/n161313.jpg": 1,
            "images/2386621.jpg": 2,
            "q/train_0.json": {"02930152": question},
            "q/train_1.json": {"07333408": {"question": "Is it?", "imageId": "n161313", "isBalanced": False}},
            "g.json": {
                "n161313": {**SIZE, "location": "kitchen", "objects": {"681267": pipe, "681256": wall}},
                "2386621": {**SIZE, "weather": "none", "objects": {}},
                "9": {**SIZE, "objects": {}},
            },
        },
    )


def test_gqa(tmp_path):
    made = run(gqa(tmp_path), "gqa", "--questions", "q", "--scene-graphs", "g.json", "--images", "images")
    assert made.code == 1 and [one["name"] for one in made.skipped] == ["gqa-9"] and list(made.samples) == ["gqa-n161313", "gqa-2386621"]
    assert made.meta("gqa-n161313") == {
        "id": "n161313",
        "image_id": "n161313",
        **SIZE,
        "location": "kitchen",
        "objects": [
            {"name": "pipe", "box": [1, 2, 3, 4], "id": "681267", "attributes": ["long"]},
            {"name": "wall", "box": [0, 0, 20, 9], "id": "681256"},
        ],
        "triples": [[0, "on", 1], [1, "of", 0]],
        "questions": [
            {
                "id": "02930152",
                "question": "What is on the white wall?",
                "answer": "pipe",
                "full_answer": "The pipe is on the wall.",
                "type": "query",
                "semantic": "rel",
                "detailed": "relS",
                "balanced": True,
            },
            {"id": "07333408", "question": "Is it?", "balanced": False},
        ],
    }
    questions = run(tmp_path, "gqa", "--questions", "q/train_0.json", "--images", "images", out="questions")
    assert list(questions.samples) == ["gqa-n161313"] and "objects" not in questions.meta("gqa-n161313")


REFS = [
    {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": [
            {"tokens": ["the", "lady"], "raw": "THE LADY ", "sent_id": 0, "sent": "the lady"},
            {"tokens": ["café"], "raw": "café", "sent_id": 1, "sent": "café"},
        ],
        "category_id": 1,
    },
    {
        "sent_ids": [2],
        "ann_id": 5,
        "ref_id": 1,
        "image_id": 581857,
        "split": "testA",
        "sentences": [{"sent": "x", "raw": "x", "sent_id": 2}],
    },
]


def refcoco(folder):
    name = "COCO_train2014_000000581857.jpg"
    image = {"file_name": name, **SIZE, "id": 581857, "license": 1, "flickr_url": ""}
    boxes = [
        {"bbox": [1, 2, 3, 4], "category_id": 1, "image_id": 581857, "id": number, "iscrowd": 0, "area": 3} for number in (44, 1719310)
    ]
    instances = {"images": [image], "annotations": boxes, "categories": [{"id": 1, "name": "person", "supercategory": "person"}]}
    return put(folder, {f"train2014/{name}": 1, "instances.json": instances, "refs.json": REFS})


@pytest.mark.parametrize("kind", ["refs.json", *range(6)])
def test_refcoco_from_a_pickle_of_any_protocol_or_json(tmp_path, kind):
    refcoco(tmp_path)
    if kind != "refs.json":
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(REFS, kind))
        kind = "refs(unc).p"
    words = ["--refs", kind, "--instances", "instances.json", "--images", "train2014"]
    made = run(tmp_path, "refcoco", *words, "--split", "train")
    assert made.code == 0 and made.meta("refcoco-000000581857") == {
        "id": 581857,
        "image_id": 581857,
        "file_name": "COCO_train2014_000000581857.jpg",
        **SIZE,
        "objects": [{"name": "person", "box": [1, 2, 3, 4], "id": number, "category_id": 1} for number in (44, 1719310)],
        "references": [{"id": 0, "object": 1, "split": "train", "sentences": [{"id": 0, "text": "THE LADY"}, {"id": 1, "text": "café"}]}],
    }
    whole = run(tmp_path, "refcoco", *words, out="whole")
    assert whole.code == 1 and whole.skipped[0]["reason"] == "object of a reference is not in the instances"


def test_refcoco_never_runs_what_a_pickle_asks_for(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    refcoco(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{**REFS[0], "extra": Canary()}]))
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: the pickle instruction .* is refused"):
        run(tmp_path, "refcoco", "--refs", "refs(unc).p", "--instances", "instances.json", "--images", "train2014")
    assert not (tmp_path / "ran").exists()

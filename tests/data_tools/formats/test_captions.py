"""COCO, Karpathy's files and Flickr30k, each in its real layout."""

from __future__ import annotations

import json

import pytest
from helpers.building import put, run
from helpers.shards import picture

from mmpretrain.data.errors import DataError

SIZE = {"width": 24, "height": 20}


def coco_images(*numbers):
    return [
        {
            "license": 3,
            "file_name": f"{n:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{n:012d}.jpg",
            **SIZE,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/{n}.jpg",
            "id": n,
        }
        for n in numbers
    ]


def coco(folder):
    captions = [{"image_id": n, "id": 100 * n + k, "caption": f" caption {k} of {n}.\n"} for k in (0, 1) for n in (9, 25)]
    info = {"info": {"year": 2017}, "licenses": [{"id": 3, "name": "Attribution License", "url": ""}]}
    boxes = [
        {
            "segmentation": [[1, 2, 3, 4, 5, 6]],
            "area": 14.0,
            "iscrowd": 0,
            "image_id": 9,
            "bbox": [1.5, 2, 3, 4],
            "category_id": 18,
            "id": 7,
        },
        {
            "segmentation": {"counts": [1], "size": [20, 24]},
            "area": 9,
            "iscrowd": 1,
            "image_id": 9,
            "bbox": [0, 0, 9, 9],
            "category_id": 1,
            "id": 8,
        },
    ]
    classes = [{"supercategory": "person", "id": 1, "name": "person"}, {"supercategory": "animal", "id": 18, "name": "dog"}]
    return put(
        folder,
        {
            "train2017/000000000009.jpg": 9,
            "train2017/000000000025.jpg": 25,
            "captions.json": {**info, "images": coco_images(9, 25, 30), "annotations": captions},
            "instances.json": {**info, "images": coco_images(9, 25, 30), "annotations": boxes, "categories": classes},
        },
    )


def test_coco(tmp_path):
    made = run(coco(tmp_path), "coco", "--images", "train2017", "--captions", "captions.json", "--instances", "instances.json")
    assert made.code == 1 and made.skipped == [{"name": "coco-000000000030", "reason": "picture is missing", "detail": "000000000030.jpg"}]
    assert list(made.samples) == ["coco-000000000009", "coco-000000000025"]
    key = "coco-000000000009"
    assert made.samples[key].captions == ("caption 0 of 9.", "caption 1 of 9.")
    assert made.members[key]["txt"] == b"caption 0 of 9." and made.members[key]["jpg"] == picture(9, kind="JPEG")
    assert made.meta(key) == {
        "id": 9,
        "image_id": 9,
        "file_name": "000000000009.jpg",
        **SIZE,
        "license": 3,
        "flickr_url": "http://farm9.staticflickr.com/9.jpg",
        "coco_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
        "date_captured": "2013-11-14 11:18:45",
        "objects": [
            {"name": "dog", "box": [1.5, 2, 3, 4], "id": 7, "category_id": 18},
            {"name": "person", "box": [0, 0, 9, 9], "id": 8, "category_id": 1, "crowd": True},
        ],
        "caption_ids": [900, 901],
    }
    assert made.meta("coco-000000000025")["objects"] == []


def test_coco_with_ids_that_are_texts_and_captions_of_no_image(tmp_path):
    images = [{"id": "shop/a.1", "file_name": "a 1.jpg"}]
    captions = [{"id": n, "image_id": image, "caption": f"caption {n}"} for n, image in enumerate(["shop/a.1", "gone", 7, "gone"])]
    put(tmp_path, {"own.json": {"images": images, "annotations": captions}, "img/a 1.jpg": 1})
    made = run(tmp_path, "coco", "--images", "img", "--captions", "own.json", "--max-missing", "2")
    assert made.code == 0 and list(made.samples) == ["coco-shop/a_1"] and made.meta("coco-shop/a_1")["id"] == "shop/a.1"
    reason = "captions of an image that is not listed"
    assert made.skipped == [
        {"name": "coco-gone", "reason": reason, "detail": "image_id gone"},
        {"name": "coco-000000000007", "reason": reason, "detail": "image_id 7"},
    ]


def test_coco_without_captions_and_with_outlines(tmp_path):
    words = ["--images", "train2017", "--instances", "instances.json", "--segmentation", "--max-missing", "1"]
    made = run(coco(tmp_path), "coco", *words)
    assert made.code == 0 and made.samples["coco-000000000009"].captions == () and "txt" not in made.members["coco-000000000009"]
    assert made.meta("coco-000000000009")["objects"][0]["segmentation"] == [[1, 2, 3, 4, 5, 6]]


def karpathy(folder, source, images):
    return put(folder, {"dataset.json": {"dataset": source, "images": images}})


def karpathy_image(number, name, split, **more):
    sentences = [{"tokens": ["a", "b"], "raw": f"A b {number} {k}.", "imgid": number, "sentid": 10 * number + k} for k in range(5)]
    return {
        "sentids": [10 * number + k for k in range(5)],
        "imgid": number,
        "sentences": sentences,
        "split": split,
        "filename": name,
        **more,
    }


def test_karpathy_coco_with_restval(tmp_path):
    names = [f"COCO_{part}_{n:012d}.jpg" for n, part in ((9, "train2014"), (42, "val2014"), (73, "val2014"), (74, "val2014"))]
    images = [
        karpathy_image(k, name, split, filepath=name.split("_")[1], cocoid=int(name[-16:-4]))
        for k, (name, split) in enumerate(zip(names, ("train", "restval", "val", "test"), strict=True))
    ]
    put(karpathy(tmp_path, "coco", images), {f"{name.split('_')[1]}/{name}": k for k, name in enumerate(names)})
    made = run(tmp_path, "karpathy", "--annotations", "dataset.json", "--images", str(tmp_path), "--split", "train", "restval")
    assert made.code == 0 and list(made.samples) == ["coco-000000000009", "coco-000000000042"]
    found = made.samples["coco-000000000042"]
    assert len(found.captions) == 5 and found.captions[4] == "A b 1 4."
    expected = {"id": 1, "image_id": 42, "split": "restval", "file_name": names[1], "caption_ids": [10, 11, 12, 13, 14], **SIZE}
    assert dict(found.meta) == expected
    rest = run(
        tmp_path, "karpathy", "--annotations", "dataset.json", "--images", "train2014", "val2014", "--split", "val", "test", out="rest"
    )
    assert [sample.meta["split"] for sample in rest.samples.values()] == ["val", "test"]


def test_boxes_of_another_split_are_told(tmp_path):
    other = json.loads((coco(tmp_path) / "instances.json").read_text())
    name = "COCO_train2014_000000000073.jpg"
    put(tmp_path, {"other.json": {**other, "images": [], "annotations": []}, f"train2014/{name}": 1})
    karpathy(tmp_path, "coco", [karpathy_image(0, name, "train", cocoid=73)])
    for words in (["coco", "--captions", "captions.json"], ["karpathy", "--annotations", "dataset.json"]):
        with pytest.raises(DataError, match=r"other\.json: lists none of the images; is it of another split"):
            run(tmp_path, *words, "--images", "train2014", "--instances", "other.json")


def test_karpathy_flickr30k(tmp_path):
    images = [karpathy_image(k, f"{1000092795 + k}.jpg", split) for k, split in enumerate(("train", "val"))]
    put(karpathy(tmp_path, "flickr30k", images), {"flickr30k-images/1000092795.jpg": 1, "flickr30k-images/1000092796.jpg": 2})
    made = run(tmp_path, "karpathy", "--annotations", "dataset.json", "--images", "flickr30k-images", "--split", "train")
    assert list(made.samples) == ["flickr30k-1000092795"] and made.meta("flickr30k-1000092795")["image_id"] == 0
    with pytest.raises(DataError, match="no image of split test"):
        run(tmp_path, "karpathy", "--annotations", "dataset.json", "--images", "flickr30k-images", "--split", "test", out="none")


def test_flickr30k_token_file(tmp_path):
    lines = [f"{n}.jpg#{k}\tTwo young guys , number {k} of {n} ." for n in (1000092795, 10002456) for k in range(5)]
    token = "\n".join([*lines, "a line of something else"])
    put(tmp_path, {"results_20130124.token": token, "images/1000092795.jpg": 1, "images/10002456.jpg": 2, "train.txt": "10002456\n"})
    made = run(tmp_path, "flickr30k", "--captions", "results_20130124.token", "--images", "images", "--max-missing", "1")
    assert made.code == 0 and list(made.samples) == ["flickr-1000092795", "flickr-10002456"]
    assert made.skipped == [{"name": "results_20130124.token:11", "reason": "line is not NAME#N, tab, caption"}]
    found = made.samples["flickr-10002456"]
    assert len(found.captions) == 5 and found.captions[3] == "Two young guys , number 3 of 10002456 ."
    assert found.meta["caption_ids"][3] == "10002456.jpg#3" and found.meta["id"] == "10002456"
    only = run(tmp_path, "flickr30k", "--captions", "results_20130124.token", "--images", "images", "--only", "train.txt", out="only")
    assert list(only.samples) == ["flickr-10002456"] and only.code == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"images": []}, "no list 'annotations' in it"),
        ([1], "holds a list where this format has a dict"),
        ("{", "not JSON"),
        ({"images": coco_images(9), "annotations": [{"id": 1, "caption": "x"}]}, "no field 'image_id'"),
        ({"images": [{"id": 9}], "annotations": []}, "no field 'file_name'"),
        ({"images": [3], "annotations": []}, "the annotations are not of this format"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content, says):
    put(tmp_path, {"c.json": content, "images/000000000009.jpg": 9})
    with pytest.raises(DataError, match=says) as error:
        run(tmp_path, "coco", "--images", "images", "--captions", "c.json")
    assert "\n" not in str(error.value) and not list(tmp_path.glob(".*"))

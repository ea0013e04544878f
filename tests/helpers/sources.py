"""Small sources of every format under the names that docs/build.md uses."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.building import put
from helpers.shards import picture, sample, write_tar

COCO = 581857


def put_all(folder: Path) -> None:
    """Write them all."""
    put(folder, {**_coco(), **_flickr(), **_visual_genome(), **_web(), **_questions(), **_own()})
    pq.write_table(pa.table({"image": [{"bytes": picture(0)}], "caption": ["c"]}), folder / "pairs.parquet")
    table = pa.table({"image": [picture(0)], "caption": [["c"]], "image_id": ["a.jpg"], "split": ["train"]})
    (folder / "arrows").mkdir()
    with (
        pa.OSFile(str(folder / "arrows/coco_caption_karpathy_train.arrow"), "wb") as sink,
        pa.RecordBatchFileWriter(sink, table.schema) as out,
    ):
        out.write_table(table)
    write_tar(folder / "cc12m/00000.tar", sample(0))


def _coco() -> dict[str, Any]:
    old, new = f"COCO_train2014_{COCO:012d}.jpg", f"{COCO:012d}.jpg"
    boxes = {"annotations": [{"id": 1, "image_id": COCO, "category_id": 1, "bbox": [1, 2, 3, 4]}], "categories": [{"id": 1, "name": "cat"}]}
    sentences = [{"raw": "a cat", "sentid": 1, "imgid": 0, "tokens": ["a", "cat"]}]
    karpathy = {"filename": old, "filepath": "train2014", "cocoid": COCO, "imgid": 0, "split": "restval", "sentences": sentences}
    reference = {"ref_id": 1, "ann_id": 1, "image_id": COCO, "split": "train", "sentences": [{"sent_id": 1, "raw": "cat", "sent": "cat"}]}
    return {
        f"coco/train2017/{new}": 1,
        f"coco/train2014/{old}": 1,
        "coco/annotations/captions_train2017.json": {
            "images": [{"id": COCO, "file_name": new}],
            "annotations": [{"id": 1, "image_id": COCO, "caption": "a cat"}],
        },
        "coco/annotations/instances_train2017.json": {"images": [{"id": COCO, "file_name": new}], **boxes},
        "karpathy/dataset_coco.json": {"dataset": "coco", "images": [karpathy]},
        "refcoco/instances.json": {"images": [{"id": COCO, "file_name": old}], **boxes},
        "refcoco/refs(unc).p": pickle.dumps([reference], 2),
    }


def _flickr() -> dict[str, Any]:
    image = {"filename": "1.jpg", "imgid": 0, "split": "test", "sentences": [{"raw": "a dog", "sentid": 0}]}
    return {
        "flickr30k-images/1.jpg": 1,
        "karpathy/dataset_flickr30k.json": {"dataset": "flickr30k", "images": [image]},
        "results_20130124.token": "1.jpg#0\ta dog\n1.jpg#1\ta hound\n",
    }


def _visual_genome() -> dict[str, Any]:
    region = {"region_id": 1, "image_id": 1, "phrase": "a man", "x": 0, "y": 0, "width": 3, "height": 3}
    return {
        "vg/VG_100K/1.jpg": 1,
        "vg/VG_100K_2/2.jpg": 2,
        "vg/annotations/image_data.json": [{"image_id": 1, "url": "https://h/VG_100K/1.jpg", "width": 24, "height": 20}],
        "vg/annotations/region_descriptions.json": [{"id": 1, "regions": [region]}],
    }


def _web() -> dict[str, Any]:
    url = "http://h/a.jpg"
    return {
        "sbu/sbu-captions-all.json": {"image_urls": [url], "captions": ["a"], "user_ids": ["u"]},
        "sbu/images/a.jpg": 1,
        "cc3m/Train_GCC-training.tsv": f"a caption\t{url}\nanother\thttp://h/gone.jpg\n",
        f"cc3m/training/0_{zlib.crc32(url.encode())}": picture(1, kind="JPEG"),
    }


def _questions() -> dict[str, Any]:
    answers = [{"answer": "yes", "answer_id": k} for k in range(10)]
    annotation = {"question_id": 1, "image_id": COCO, "answers": answers, "multiple_choice_answer": "yes", "answer_type": "yes/no"}
    example = {"identifier": "train-1-0-0", "sentence": "Two.", "label": "True", "directory": 3}
    return {
        "vqa/v2_OpenEnded_mscoco_train2014_questions.json": {
            "data_subtype": "train2014",
            "questions": [{"question_id": 1, "image_id": COCO, "question": "Is it?"}],
        },
        "vqa/v2_mscoco_train2014_annotations.json": {"annotations": [annotation]},
        "gqa/images/1.jpg": 1,
        "gqa/train_balanced_questions.json": {"01": {"imageId": "1", "question": "Is it?", "answer": "yes"}},
        "gqa/train_sceneGraphs.json": {"1": {"width": 24, "height": 20, "objects": {}}},
        "nlvr2/data/train.json": json.dumps(example) + "\n",
        **{f"nlvr2/images/train/3/train-1-0-img{side}.png": side for side in (0, 1)},
    }


def _own() -> dict[str, Any]:
    return {
        "pairs.csv": "filepath,title\nholiday/beach.jpg,a beach\n",
        "holiday/beach.jpg": 1,
        "holiday/beach.txt": "a beach",
        "books/one.txt": "It was night .\nNobody came .\n",
    }

"""VQA v1 and v2 (Antol et al. 2015, Goyal et al. 2017): questions, and annotations with ten answers each."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.build_records import MISSING, Record, Skip
from mmpretrain.data_tools.formats.common import Pictures, add_files, add_images, grouped, load_json, part

SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # the official accuracy of an answer that n of ten people gave, averaged over nine of them at a time


def add_options(parser: Any) -> None:
    add_images(parser)
    add_files(parser, "--questions", "v2_OpenEnded_mscoco_train2014_questions.json and the like")
    add_files(parser, "--annotations", "v2_mscoco_train2014_annotations.json and the like; none for a test set", required=False)


def records(options: argparse.Namespace) -> Iterator[Record | Skip]:
    """A sample for each image of each question file, with all its questions."""
    pictures = Pictures(options.images)
    answers: dict[int, Mapping[str, Any]] = {}
    for path in options.annotations or ():
        answers.update({row["question_id"]: row for row in part(load_json(path), path, "annotations")})
    answered = not answers
    for path in options.questions:
        found = load_json(path)
        subset = str(found.get("data_subtype") or "")
        folder = subset.replace("test-dev", "test")  # test-dev2015 asks about pictures of test2015
        for image, rows in grouped(part(found, path, "questions"), "image_id").items():
            answered |= any(row["question_id"] in answers for row in rows)
            name = f"COCO_{folder}_{image:012d}.jpg"
            picture = pictures.find(name, f"{folder}/{name}", f"{image:012d}.jpg", f"{folder}/{image:012d}.jpg")
            key = f"vqa-{subset}-{image:012d}" if subset else f"vqa-{image:012d}"
            if picture is None:
                yield Skip(key, MISSING, name)
                continue
            questions = [question(row, answers.get(row["question_id"])) for row in rows]
            yield Record(key, (picture,), (), {"id": image, "image_id": image, "split": subset, "questions": questions})
    if not answered:
        raise DataError(f"{options.annotations[0]}: has no answer to any of the questions; is it of another split?")


def question(row: Mapping[str, Any], annotation: Mapping[str, Any] | None) -> dict[str, Any]:
    """``{"id", "question"}``, and with an annotation ``answer`` (the most frequent), ``type``, ``question_type`` and ``answers``, a map
    answer -> soft score by :data:`SCORES`. Answers are as in the file, in lower case and without outer white space."""
    made = {"id": row["question_id"], "question": row["question"]}
    if annotation is None:
        return made
    counts = Counter(str(one["answer"]).strip().lower() for one in annotation.get("answers", ()))
    return {
        **made,
        "answer": annotation["multiple_choice_answer"],
        "answers": {answer: SCORES[min(count, 4)] for answer, count in counts.most_common()},
        "type": annotation.get("answer_type"),
        "question_type": annotation.get("question_type"),
    }

"""What questions are answered with: a list of answers, read from a file or counted over the training set (LXMERT, arXiv 1908.07490).

A question in ``KEY.json`` has ``answer``, a text, or ``answers``, a mapping of texts to scores in (0, 1] (``mmpretrain data build vqa``).
Answers are compared in lower case with single spaces. The list is kept with the tokenizer of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.cache import cache_root, locked, write_atomic
from mmpretrain.data.decode import questions
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader

_VERSION = 1


@dataclass(frozen=True)
class AnswerOptions:
    """Which answers a run knows; questions with other answers have no label.

    Args:
        file: a text file with one answer in each line, or a JSON list; None: those of the training set, the most frequent first.
        most: so many of them.
        min_count: leave out answers that fewer questions have.

    Raises:
        DataError: an option out of its range.
    """

    file: str | None = None
    most: int = 9500
    min_count: int = 1

    def __post_init__(self) -> None:
        if self.most < 2 or self.min_count < 1:
            raise DataError(f"data.answers: most={self.most} must be at least 2 and min_count={self.min_count} at least 1")


def plain(answer: Any) -> str:
    """An answer as answers are compared."""
    return " ".join(str(answer).lower().split())


def scores(question: Mapping[str, Any]) -> dict[str, float]:
    """The scores of the answers of a question: that of ``answers``, else 1 for ``answer``; {} where it has none.

    Raises:
        BadSample: ``answers`` is not a mapping of texts to numbers from 0 to 1.
    """
    found = question.get("answers")
    if found is None:
        answer = question.get("answer")
        return {plain(answer): 1.0} if isinstance(answer, str | int | float) and plain(answer) else {}
    if not isinstance(found, dict) or not all(isinstance(x, int | float) and 0 <= x <= 1 for x in found.values()):
        raise BadSample("json.questions: answers are not a mapping of texts to scores from 0 to 1")
    made: dict[str, float] = {}
    for answer, score in found.items():
        if score > 0:
            made[plain(answer)] = max(float(score), made.get(plain(answer), 0.0))
    return made


def make(options: AnswerOptions, reader: ShardReader) -> tuple[str, ...]:
    """The answers that the options ask for; those counted over these shards before are taken from the cache.

    Raises:
        DataError: a file that does not exist or holds no two answers, or a set without answers.
    """
    if options.file is not None:
        return _of_file(Path(options.file).expanduser())
    facts = [_VERSION, reader.fingerprint, options.most, options.min_count]
    target = cache_root() / "answers" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.json"
    with locked(str(target)):
        if target.is_file():
            return tuple(json.loads(target.read_text(encoding="utf-8")))
        made = _counted(options, reader)
        with contextlib.suppress(OSError):  # without a writable cache they are counted again next time
            write_atomic(target, json.dumps(made, ensure_ascii=False).encode("utf-8"))
    return made


def _of_file(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise DataError(f"data.answers.file={path}: no such file")
    text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except ValueError as error:
        raise DataError(f"data.answers.file={path}: it is no JSON ({error})") from None
    made = tuple(dict.fromkeys(name for one in found if (name := plain(one)))) if isinstance(found, list) else ()
    if len(made) < 2:
        raise DataError(f"data.answers.file={path}: it holds no two answers; give one in each line, or a JSON list")
    return made


def _counted(options: AnswerOptions, reader: ShardReader) -> tuple[str, ...]:
    counts = Counter(answer for found in _asked(reader) for answer in found)
    kept = sorted((answer for answer, count in counts.items() if count >= options.min_count), key=lambda answer: (-counts[answer], answer))
    if len(kept) < 2:
        raise DataError(
            "data.answers: the training shards hold no two answers; give data.answers.file, or questions with answer or answers"
        )
    return tuple(kept[: options.most])


def _asked(reader: ShardReader) -> Iterator[dict[str, float]]:
    """The scores of every question of every sample; samples that cannot be read have none."""
    for shard, index in enumerate(reader.indexes):
        for sample in np.flatnonzero(np.asarray(index.questions_S)).tolist():
            with contextlib.suppress(BadSample):
                found = reader.read_at(shard, sample, images=False)
                yield from [scores(question) for question in questions(found.meta)]

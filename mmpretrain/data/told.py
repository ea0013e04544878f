"""The texts that a run tells of its samples, and what it tells objectives about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmpretrain.data.answers import scores
from mmpretrain.data.decode import questions
from mmpretrain.data.errors import BadSample
from mmpretrain.data.scenegraph_parse import parse
from mmpretrain.data.tags import Tagger
from mmpretrain.data.units import TEXTS
from mmpretrain.types import Sample

_PARTS = {"objects": 2, "attributes": 3, "relations": 4}  # of a scene graph -> numbers of an entry


def texts(sample: Sample, text_from: str) -> Sequence[str]:
    """The texts of a sample, of all kinds of ``data.text_from``, by their numbers."""
    of_kind: dict[str, Callable[[], list[str]]] = {
        "captions": lambda: list(sample.captions),
        "statements": lambda: [one.text for one in sample.statements],
        "questions": lambda: [one["question"] for one in questions(sample.meta)],
    }
    return [text for kind in TEXTS[text_from] for text in of_kind[kind]()]


class Telling(NamedTuple):
    """What is said of the text that is shown."""

    matched: bool
    about: dict[str, Any]  # goes into the example's ``meta``


def telling(sample: Sample, text_from: str, number: int, wants: Collection[str], answers: Mapping[str, int]) -> Telling:
    """What is said of text ``number`` of a sample: ``caption_index``, ``statement_index`` or ``question_index``; of a question
    ``answer_scores``, number of a known answer -> score; and what preparers want.

    Raises:
        BadSample: answers or a scene graph in ``KEY.json`` that are not as they should be.
    """
    kinds = TEXTS[text_from]
    kind = kinds[0]
    if len(kinds) > 1 and number >= len(sample.captions):
        kind, number = kinds[1], number - len(sample.captions)
    about: dict[str, Any] = {f"{kind.removesuffix('s')}_index": number}
    if "captions" in wants:
        about["captions"] = sample.captions
    matched = sample.statements[number].label if kind == "statements" else True
    if kind == "questions" and answers:
        found = scores(questions(sample.meta)[number])
        about["answer_scores"] = {answers[name]: score for name, score in found.items() if name in answers}
    if "graph" in wants:
        said = texts(sample, kind)[number]
        graphs = sample.meta.get("scene_graph") if kind == "captions" else None
        about["graph"] = _checked(graphs[number], said) if isinstance(graphs, list) and number < len(graphs) else parse(said)
    return Telling(matched, about)


def _checked(graph: Any, text: str) -> Mapping[str, Any]:
    """A scene graph whose spans lie in the text."""
    for part, numbers in _PARTS.items():
        spans = graph.get(part, []) if isinstance(graph, dict) else None
        good = isinstance(spans, list) and all(
            isinstance(span, list)
            and len(span) == numbers
            and all(isinstance(x, int) for x in span)
            and 0 <= span[0] < span[1] <= len(text)
            for span in spans
        )
        if not good:
            raise BadSample(f"json.scene_graph: {part} are not lists of {numbers} numbers that begin with a span of the caption")
    return graph


class Told(NamedTuple):
    """What texts a run tells beside captions and statements, so that the tokenizer learns their words, too.

    ``tagger``: texts are told with tags; ``questions``: questions are told.
    """

    tagger: Tagger | None = None
    questions: bool = False

    @property
    def facts(self) -> list[Any]:
        """What the corpus of the tokenizer depends on; [] where captions and statements are all."""
        tags = [] if self.tagger is None else [vars(self.tagger.options), self.tagger.classes, self.tagger.background]
        return [*tags, *(["questions"] if self.questions else [])]

    def of(self, sample: Sample) -> Iterator[str]:
        """The further texts of a sample, without those that hang on its regions."""
        try:
            if self.tagger is not None and (tags := self.tagger.tags(sample)):
                yield tags
        except BadSample:
            return  # named when the sample is shown
        if self.questions:
            yield from texts(sample, "questions")

    def names(self, times: int) -> Iterator[str]:
        """The names that regions may give, each so many times."""
        if self.tagger is not None and self.tagger.reads_regions:
            for name in self.tagger.classes or ():
                yield from [name] * times

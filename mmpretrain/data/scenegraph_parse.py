"""Objects, attributes and relations of a caption, as character spans: a small parser by rules, for plain English captions.

It knows closed lists of words (articles, prepositions, auxiliaries, frequent adjectives and verbs) and takes every other word for a noun.
What it does not do: pronouns, scope of "and" (``a man and a woman on a bench``: only the woman is on it), attachment over distance (``on a
horse in a field``: the horse is in the field), passives, words that are verbs here and nouns there. docs/tools.md tells how often it is
right.
"""

from __future__ import annotations

import re
from typing import NamedTuple

Graph = dict[str, list[list[int]]]  # objects [start, end], attributes [start, end, object], relations [start, end, subject, object]

_TOKEN = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+|[.,;:!?]")
_ARTICLES = frozenset(
    "a an the some this that these those his her its their my our your another each every no one two three four five six "
    "seven eight nine ten several many few all both any other exactly only".split()
)
_SKIPPED = frozenset(  # carry no content of their own; "and" and marks end what they stand between
    "is are was were be being been am there here we you i he she it they them who which can could may see seen sees show "
    "shows shown contain contains has have had as while also not very quite just so up down out off away together".split()
)
_FRAMES = frozenset("picture image photo photograph photography view shot group bunch couple pair lot front back top side".split())
_ADJECTIVES = frozenset(
    "red yellow green blue purple pink cyan black white brown orange grey gray gold golden silver beige dark light bright "
    "small little tiny large big huge tall short long wide narrow old young new wooden metal plastic leather stone brick "
    "glass concrete grassy sandy snowy sunny cloudy wet dry dirty clean empty full open closed beautiful pretty cute happy "
    "sad plain striped dotted hollow round square-shaped hot cold fresh delicious fluffy furry busy crowded colorful "
    "colourful male female elderly adult asian african american modern antique vintage electric various different single "
    "double solid".split()
)
_PREPOSITIONS = sorted(
    (
        phrase.split()
        for phrase in (
            "to the left of,to the right of,on the left of,on the right of,on the left side of,on the right side of,"
            "left of,right of,in front of,next to,on top of,close to,in between,in the middle of,higher than,"
            "lower than,out of,inside of,above,below,under,underneath,beneath,over,on,in,at,by,with,near,"
            "behind,beside,beneath,between,among,inside,into,onto,through,across,along,around,against,toward,"
            "towards,from,for,of,off"
        ).split(",")
    ),
    key=len,
    reverse=True,
)
_VERBS = frozenset(
    "rides ride holds hold sits sit stands stand walks walk wears wear eats eat plays play looks look lies lie flies fly runs "
    "run jumps jump carries carry drives drive catches catch throws throw hits hit swings swing leans lean rests rest sleeps "
    "sleep covers cover surrounds covered filled surrounded parked seated topped dressed made attached".split()
)
_PARTICIPLE = re.compile(r".{2,}(?:ing|ed)$")
_END = frozenset(".;:!?")


class Word(NamedTuple):
    """A word, or several that are one preposition."""

    text: str
    start: int
    end: int
    kind: str  # article, skipped, adjective, relation, noun, and, mark


def words(caption: str) -> list[Word]:
    """The words of a caption with their kinds."""
    tokens = [(match[0].lower(), match.start(), match.end()) for match in _TOKEN.finditer(caption)]
    found: list[Word] = []
    at = 0
    while at < len(tokens):
        text, start, end = tokens[at]
        phrase = next((p for p in _PREPOSITIONS if [token[0] for token in tokens[at : at + len(p)]] == p), None)
        if phrase is not None:
            found.append(Word(" ".join(phrase), start, tokens[at + len(phrase) - 1][2], "relation"))
            at += len(phrase)
            continue
        found.append(Word(text, start, end, _kind(text, found, tokens[at + 1][0] if at + 1 < len(tokens) else "")))
        at += 1
    return found


def _kind(text: str, before: list[Word], following: str) -> str:
    if not text[0].isalnum():
        return "mark"
    if text == "and":
        return "and"
    if text in _ADJECTIVES:
        return "adjective"
    if text in _ARTICLES or text.isdigit():
        return "skipped" if text == "that" and before and before[-1].kind == "noun" else "article"
    if text in _SKIPPED:
        return "skipped"
    last = before[-1].kind if before else "mark"
    if text in _VERBS:
        return "relation" if last not in ("article", "adjective") else "adjective"
    if _PARTICIPLE.fullmatch(text) and following[:1].isalpha():
        return "adjective" if last in ("article", "adjective") else "relation"
    return "noun"


def parse(caption: str) -> Graph:
    """The graph of a caption."""
    graph: Graph = {"objects": [], "attributes": [], "relations": []}
    state = _State(graph)
    listed = words(caption)
    at = 0
    while at < len(listed):
        word = listed[at]
        if word.kind in ("noun", "adjective"):
            at = _phrase(listed, at, state)
            continue
        state.meet(word, listed[at - 1] if at else None)
        at += 1
    return graph


class _State:
    """What the words so far leave open."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.subject: int | None = None  # the last object of the clause
        self.spans: list[list[int]] = []  # relations since then, [start, end]
        self.fresh = True  # whether the next relation word begins a new span
        self.fronted: list[list[int]] | None = None  # "above B there is A"
        self.object_of_front: int | None = None

    def meet(self, word: Word, before: Word | None) -> None:
        """A word that is no part of a noun phrase."""
        if word.kind == "relation":
            if self.fresh or not self.spans:
                self.spans.append([word.start, word.end])
            else:
                self.spans[-1][1] = word.end
            self.fresh = False
        elif word.kind == "and":
            self.fresh = True
        elif word.kind == "mark":
            self.spans = []
            if word.text in _END or word.text == ",":
                self.subject = None if word.text in _END else self.subject
                self.fronted = None
        elif word.text == "there" and self.fronted is not None and before is not None and before.kind == "noun":
            self.spans = []

    def object(self, start: int, end: int) -> int:
        """A noun phrase ends: an object, and the relations that lead to it."""
        number = len(self.graph["objects"])
        self.graph["objects"].append([start, end])
        if self.spans and self.subject is not None:
            self.graph["relations"] += [[*span, self.subject, number] for span in self.spans]
        elif self.spans:
            self.fronted, self.object_of_front = self.spans, number
        elif self.fronted is not None and self.object_of_front is not None:
            self.graph["relations"] += [[*span, number, self.object_of_front] for span in self.fronted]
            self.fronted = None
        self.subject, self.spans, self.fresh = number, [], True
        return number


def _phrase(listed: list[Word], at: int, state: _State) -> int:
    """Read adjectives and nouns from ``at``; returns where they end."""
    first = at
    while at < len(listed) and (listed[at].kind in ("noun", "adjective") or _joins(listed, at)):
        at += 1
        if listed[at - 1].kind == "noun" and (at >= len(listed) or listed[at].kind != "noun"):
            break
    run = listed[first:at]
    nouns = [word for word in run if word.kind == "noun"]
    adjectives = [word for word in run if word.kind == "adjective"]
    if not nouns:  # "that is red and striped", "is small": said of the last object
        if state.subject is not None and not state.spans:
            state.graph["attributes"] += [[word.start, word.end, state.subject] for word in adjectives]
        return at
    following = listed[at].text if at < len(listed) else ""
    if nouns[-1].text in _FRAMES and (following == "of" or (state.subject is None and following in ("shows", "contains", "there"))):
        return at + (following == "of")  # "a picture of"
    number = state.object(nouns[0].start, nouns[-1].end)
    state.graph["attributes"] += [[word.start, word.end, number] for word in adjectives]
    return at


def _joins(listed: list[Word], at: int) -> bool:
    """Whether "and" or a comma stands between two adjectives."""
    between = listed[at].kind == "and" or listed[at].text == ","
    return between and listed[at - 1].kind == "adjective" and at + 1 < len(listed) and listed[at + 1].kind == "adjective"

"""English for claims: one grammar, whose free choices (a ``Style``) are drawn once per sentence.

The same style gives the same words in the same places whatever the claim says, so that an edited claim differs from the caption in
what it claims and in nothing else. No word begins with a vowel where an article could stand before it: swapping two nouns never
turns "a" into "an", so that swaps keep the bag of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmpretrain.data_tools.scenes_logic import (
    At,
    Bigger,
    Both,
    Claim,
    Every,
    In,
    More,
    Noun,
    Number,
    Of,
    PairClaim,
    Pictures,
    Relation,
    There,
    Together,
)
from mmpretrain.data_tools.scenes_world import Rng

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_SIZE_WORDS = ({"small": "small", "large": "large"}, {"small": "little", "large": "big"})
_RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "above", "higher than"),
    "below": ("below", "under", "lower than"),
}
_THERE = (
    "{list}",
    "there {be} {list}",
    "a picture of {list}",
    "the picture shows {list}",
    "we see {list}",
    "in the picture there {be} {list}",
    "this image contains {list}",
    "here {be} {list}",
)
ALSO = -1  # the form of a list that goes on after another part
_RELATION = (
    "{a} is {relation} {b}",
    "{a} can be seen {relation} {b}",
    "the picture shows {a} {relation} {b}",
    "{relation} {b} there is {a}",  # from here on without "the"
    "there is {a} {relation} {b}",
    "{a} {relation} {b}",  # only alone
)
_AT = ("{a} is {place}", "{a} can be seen {place}", "{place} there is {a}", "{a} {place}")
_NO_MARKS = str.maketrans("", "", ",.;:?")
_JOINERS = (", and ", ", ", ". ", "; ")


class Style(NamedTuple):
    """The free choices of one sentence."""

    form: int  # of the parts; each part takes it modulo the number of its forms
    size_words: int
    relation_words: int
    noun: str  # for a noun without a shape: "shape" or "thing"
    clause: bool  # "a circle that is red" instead of "a red circle"
    definite: bool  # "the red circle" in relations and places, where the form allows it
    joiner: int
    sentence: bool  # a capital letter and a full stop
    several: bool = False  # the claim is one of several parts: whole clauses only


def sample_style(rng: Rng) -> Style:
    return Style(
        form=rng.below(24),
        size_words=rng.below(2),
        relation_words=rng.below(3),
        noun=rng.choice(("shape", "thing")),
        clause=rng.chance(1, 6),
        definite=rng.chance(1, 3),
        joiner=rng.below(len(_JOINERS)),
        sentence=rng.chance(1, 2),
    )


def noun_text(noun: Noun, style: Style, plural: bool = False) -> str:
    """"large striped red circle(s)", or "large circle(s) that is (are) striped and red"."""
    head = (noun.shape or style.noun) + (("es" if noun.shape == "cross" else "s") if plural else "")
    size = [_SIZE_WORDS[style.size_words][noun.size]] if noun.size else []
    looks = [word for word in (noun.material, noun.colour) if word]
    if style.clause and looks:
        return " ".join([*size, head, "that", "are" if plural else "is", " and ".join(looks)])
    return " ".join([*size, *looks, head])


def _a(noun: Noun, style: Style) -> str:
    return ("the " if style.definite else "a ") + noun_text(noun, style)


def joined(phrases: Sequence[str]) -> str:
    """"a, b and c"."""
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def _counted(noun: Noun, count: int | None, style: Style) -> str:
    if count is None:
        return "a " + noun_text(noun, style)
    return f"{NUMBERS[count]} {noun_text(noun, style, plural=count != 1)}"


def _relation_text(relations: Sequence[str], style: Style) -> str:
    words = [_RELATION_WORDS[relation][style.relation_words] for relation in relations]
    return " and ".join(words)


def _place(region: str) -> str:
    if " " in region:
        return f"in the {region} corner"
    return f"on the {region} side" if region in ("left", "right") else f"at the {region}"


def say(claim: Claim, style: Style) -> str:
    """The claim in lower case, without a full stop."""
    if isinstance(claim, There):
        phrases = [_counted(noun, count, style) for noun, count in zip(claim.nouns, claim.counts, strict=True)]
        form = "there {be} also {list}" if style.form == ALSO else _THERE[style.form % len(_THERE)]
        return form.format(list=joined(phrases), be="is" if claim.counts[0] in (None, 1) else "are")
    if isinstance(claim, Relation):
        form = _RELATION[style.form % (len(_RELATION) - style.several)]
        style = style._replace(definite=style.definite and form in _RELATION[:3])
        a, b = (_a(noun, style) for noun in claim.nouns)
        return form.format(a=a, b=b, relation=_relation_text(claim.relations, style))
    if isinstance(claim, At):
        form = _AT[style.form % (len(_AT) - style.several)]
        style = style._replace(definite=style.definite and form in _AT[:2])
        return form.format(a=_a(claim.nouns[0], style), place=_place(claim.region))
    if isinstance(claim, Both):
        style = style._replace(several=len(claim.parts) > 1)
        return _JOINERS[style.joiner].join(say(part, style) for part in claim.parts)
    if isinstance(claim, Number):
        pattern = style.form % len(_THERE) if claim.compare == "exactly" and style.form % 2 else 1
        compared = "" if claim.count == 0 or (claim.compare == "exactly" and style.relation_words) else claim.compare + " "
        text = compared + NUMBERS[claim.count] + " " + noun_text(claim.nouns[0], style, plural=claim.count != 1)
        return _THERE[pattern].format(list=text, be="is" if claim.count == 1 else "are")
    if isinstance(claim, Of):
        (noun,) = claim.nouns
        what = " and ".join(word for word in (noun.size and _SIZE_WORDS[style.size_words][noun.size], noun.material, noun.colour) if word)
        return f"{NUMBERS[claim.count]} of the {NUMBERS[claim.total]} {style.noun}s {'is' if claim.count == 1 else 'are'} {what}"
    return _compared(claim, style)


def _compared(claim: More | Every | Bigger, style: Style) -> str:
    first, second = claim.nouns
    if isinstance(claim, Bigger):
        word = ("larger", "bigger")[style.size_words]
        return f"the {noun_text(first, style)} is {word} than the {noun_text(second, style)}"
    if isinstance(claim, Every):
        what = second.colour or second.material or _SIZE_WORDS[style.size_words][second.size or "small"]
        if style.form % 2:
            return f"every {noun_text(first, style)} is {what}"
        return f"all {noun_text(first, style, plural=True)} are {what}"
    a, b = noun_text(first, style, plural=True), noun_text(second, style, plural=True)
    return f"there are as many {a} as {b}" if claim.same else f"there are more {a} than {b}"


def say_pair(claim: PairClaim, style: Style) -> str:
    """A claim about two pictures."""
    image = ("image", "picture")[style.form % 2]
    if isinstance(claim, In):
        text = say(claim.claim, style._replace(form=style.form % 2))
        where = f"in the {('left', 'right')[claim.side]} {image}"
        return f"{where} {text}" if style.relation_words else f"{text} {where}"
    if isinstance(claim, Pictures):
        text = say(claim.claim, style._replace(form=1, definite=False))
        where = (f"in neither {image}", f"in exactly one of the {image}s", f"in both {image}s")[claim.count]
        return f"{where} {text}"
    nouns = noun_text(claim.nouns[0], style, plural=True)
    if isinstance(claim, Together):
        total = f"{NUMBERS[claim.count]} {noun_text(claim.nouns[0], style, plural=claim.count != 1)}"
        return f"there {'is' if claim.count == 1 else 'are'} {total} in the two {image}s together"
    if claim.side is None:
        return f"both {image}s contain the same number of {nouns}"
    sides = ("left", "right") if claim.side == 0 else ("right", "left")
    return f"the {sides[0]} {image} contains more {nouns} than the {sides[1]} {image}"


def ask(claim: Claim, style: Style) -> str:
    """The yes-no question whose answer is whether the claim holds (There of one noun, Relation, More, Bigger)."""
    if isinstance(claim, There):
        return f"is there {_counted(claim.nouns[0], claim.counts[0], style)}?"
    if isinstance(claim, Relation):
        a, b = (_a(noun, style) for noun in claim.nouns)
        return f"is {a} {_relation_text(claim.relations, style)} {b}?"
    assert isinstance(claim, More | Bigger)
    text = _compared(claim, style)
    if isinstance(claim, Bigger):
        before, after = text.split(" is ") if not style.clause else text.rsplit(" is ", 1)
        return f"is {before} {after}?"
    return f"are there {text.removeprefix('there are ')}?"


def finish(text: str, style: Style) -> str:
    """With a capital letter and a full stop where the style says so."""
    if not style.sentence and ". " not in text:
        return text
    return ". ".join(part[0].upper() + part[1:] for part in text.split(". ")) + "."


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: what a bag of words sees."""
    return text.lower().translate(_NO_MARKS).split()

"""Conditions: what they mean, that they are data and not code, and the guess of a language."""

from __future__ import annotations

import json

import pytest

from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data_tools.expressions import fields, holds, parse
from mmpretrain.data_tools.language import guess

FACTS = {
    "width": 640,
    "lang": "en",
    "nsfw": False,
    "score": 0.25,
    "tags": ["cat", "Dog"],
    "url": "http://A.org/x.jpg",
    "zero": 0,
    "id": "7",
    "price": "75.50",
    "none": "0",
    "tweet": "1234567890123456789",
}

TRUE = (
    "width>=200 and lang=en", "width >= 640", "width == 640", "not width<640", "width != 3", "score<.3", "score > 2e-1", "lang in [de, en]",
    "lang not in [de, fr]", "not (lang = de or lang = fr)", "tags ~ cat", "url ~ 'a.ORG'", "nsfw = false", "nsfw != true", "width",
    "not zero",
    "lang='en'", 'lang="en" and (width<1 or width>1)', "id = 7", "not missing",
    "not missing > 3", "lang >= de", "price > 8", "price = 75.5", "price < 100", "price in [1, 75.5]", "price > '8' or price < '8'",
    "id = '7'", "id > 6 and id < 10", "lang != 3", "id", "not none", "tweet = 1234567890123456789",
)  # fmt: skip
FALSE = (
    "missing",
    "missing > 3",
    "missing != 3",
    "width = en",
    "lang > 3 and lang < 3",
    "tags ~ dog",
    "nsfw",
    "width in [1, 2]",
    "lang < de",
    "price > '8'",
    "price = '75.5'",
    "id > 10",
    "tweet = 1234567890123456788",
)


@pytest.mark.parametrize("text", TRUE)
def test_holds(text):
    assert holds(json.loads(json.dumps(parse(text))), FACTS.get)


@pytest.mark.parametrize("text", FALSE)
def test_does_not_hold(text):
    assert not holds(parse(text), FACTS.get)


@pytest.mark.parametrize(
    "text",
    ["", "width >=", "and", "width 3", "(width", "width)", "lang in en", "lang not en", "lang in [en", "a = 'b", "x = !", "not", "in = 3"],
)
def test_mistakes_name_the_place(text):
    with pytest.raises(DataError, match="the condition"):
        parse(text)


@pytest.mark.parametrize("operator", [">>", "=<", "<>", "=~", "!"])
def test_an_unknown_operator_is_named(operator):
    with pytest.raises(DataError, match=f"the condition 'width {operator} 3': unknown operator '{operator}'; take one of = == !="):
        parse(f"width {operator} 3")


def test_nothing_is_evaluated_and_depth_is_bounded():
    with pytest.raises(DataError):
        parse("__import__('os').system('x')")
    for text in ("(" * 1000 + "a" + ")" * 1000, "not " * 1000 + "a"):
        with pytest.raises(DataError, match="nested deeper"):
            parse(text)
    assert fields(parse("a>1 and (b in [1] or not c.d)")) == {"a", "b", "c.d"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A man is standing next to a red car", "en"), ("Ein Mann steht neben einem roten Auto", "de"),
        ("Un homme est debout devant la voiture", "fr"), ("Un hombre está junto a un coche", "es"), ("赤い車の隣に立つ男", "ja"),
        ("一个男人站在红色汽车旁边", "zh"), ("Мужчина стоит", "ru"), ("DSC_0012.jpg", "und"), ("", "und"),
    ],
)  # fmt: skip
def test_guess_of_the_language(text, language):
    assert guess(text) == language


def test_guess_on_short_names(real_shards):
    """The names of emojis in several languages: two or three words each, most without any little word."""
    right = wrong = unknown = 0
    reader = ShardReader([real_shards / "emoji_val" / "00000.tar"])
    for number in range(len(reader)):
        for language, name in reader.read(number).meta["names"].items():
            found = guess(name if isinstance(name, str) else name[0])
            unknown += found == "und"
            right += found == language
            wrong += found not in ("und", language)
    print(f"names of emojis: {right} right, {wrong} wrong, {unknown} unknown")
    assert right > 2 * wrong

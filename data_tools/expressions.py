"""Conditions on fields, as ``--where`` and the recipes of ``filter`` write them: parsed into plain lists, never evaluated as code.

::

    condition  = all {"or" all}
    all        = one {"and" one}
    one        = "not" one | "(" condition ")" | comparison
    comparison = FIELD | FIELD OP value | FIELD ["not"] "in" "[" value {"," value} "]"
    OP         = "=" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    value      = number | word | 'text' | "text" | true | false | null

A field alone holds where its value is there and neither false, 0 (also as a text), empty nor null. ``~`` asks whether a text holds another
(letters of any case) or a list holds a value. A comparison with a field that is missing, or of another type, does not hold, whatever its
operator. A text that is written as a number (tables have no other) is compared with a number as one, and with a value in quotes as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mmpretrain.data.errors import DataError

_TOKEN = re.compile(r"""\s*(?:([=<>!~]+|[()\[\],])|'([^']*)'|"([^"]*)"|([^\s=<>!~()\[\],'"]+))""")
_OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=", "~")
_BRACKETS = ("(", ")", "[", "]", ",")
_CONSTANTS = {"true": True, "false": False, "null": None}
_WORDS = ("and", "or", "not", "in")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d{1,99}")
_DEEPEST = 50

Condition = list[Any]  # ["or", a, b, ...], ["and", ...], ["not", a], ["has", field], ["in", field, values], [operator, field, value]
Field = Callable[[str], Any]  # the value of a field; None where it is missing


def parse(text: str) -> Condition:
    """The condition of a text, as nested lists of JSON types.

    Raises:
        DataError: not a condition, naming the place.
    """
    parser = _Parser(text)
    found = parser.any_of(0)
    if parser.at < len(parser.tokens):
        raise parser.error("'and' or 'or' is missing")
    return found


def fields(condition: Condition) -> set[str]:
    """The fields that a condition reads."""
    if condition[0] in ("and", "or", "not"):
        return {name for part in condition[1:] for name in fields(part)}
    return {condition[1]}


def holds(condition: Condition, field: Field) -> bool:
    """Whether a condition holds of something whose fields ``field`` gives."""
    kind = condition[0]
    if kind == "or":
        return any(holds(part, field) for part in condition[1:])
    if kind == "and":
        return all(holds(part, field) for part in condition[1:])
    if kind == "not":
        return not holds(condition[1], field)
    found = field(condition[1])
    if kind == "has":
        return bool(found if (number := _numeral(found)) is None else number)
    if kind == "in":
        return any(_compare(found, "=", value) for value in condition[2])
    return _compare(found, kind, condition[2])


def _compare(found: Any, operator: str, wanted: Any) -> bool:
    if found is None:
        return False
    if operator == "~":
        if isinstance(found, list):
            return any(_compare(one, "=", wanted) for one in found)
        return isinstance(found, str) and str(wanted).lower() in found.lower()
    if _is_number(found) and _is_number(wanted):
        return _ordered(found, operator, wanted)
    if isinstance(found, bool) and isinstance(wanted, bool) and operator in ("=", "!="):
        return (found == wanted) == (operator == "=")
    if isinstance(found, str) and _is_number(wanted):
        return operator == "!=" if (number := _numeral(found)) is None else _ordered(number, operator, wanted)
    return isinstance(found, str) and isinstance(wanted, str) and _ordered(found, operator, wanted)


def _numeral(value: Any) -> int | float | None:
    """The number that a text is written as; None: it is none."""
    text = value.strip() if isinstance(value, str) else ""
    if _WHOLE.fullmatch(text):  # as it is: a float holds 15 digits
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(a: Any, operator: str, b: Any) -> bool:
    return {"=": a == b, "!=": a != b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b}[operator]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.tokens: list[tuple[str, str, int]] = []  # (operator, text or word; itself; place)
        place = 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise DataError(f"the condition {text!r} cannot be read at {text[place:].strip()[:20]!r}; see docs/tools.md")
            operator, single, double, word = match.groups()
            if operator is not None:
                if operator not in (*_OPERATORS, *_BRACKETS):
                    raise DataError(f"the condition {text!r}: unknown operator {operator!r}; take one of {' '.join(_OPERATORS)}")
                self.tokens.append(("operator", operator, place))
            elif word is not None:
                self.tokens.append(("word", word, place))
            else:
                self.tokens.append(("text", single if single is not None else double, place))
            place = match.end()

    def error(self, what: str) -> DataError:
        place = self.tokens[self.at][2] if self.at < len(self.tokens) else len(self.text)
        where = f"at {self.text[place:].strip()[:20]!r}" if self.at < len(self.tokens) else "at its end"
        return DataError(f"the condition {self.text!r}: {what} {where}; see docs/tools.md")

    def take(self, kind: str, *values: str) -> str | None:
        """The next token if it is of this kind and one of these values."""
        if self.at < len(self.tokens) and self.tokens[self.at][0] == kind and (not values or self.tokens[self.at][1] in values):
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def any_of(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise self.error(f"nested deeper than {_DEEPEST}")
        parts = [self.all_of(depth)]
        while self.take("word", "or"):
            parts.append(self.all_of(depth))
        return parts[0] if len(parts) == 1 else ["or", *parts]

    def all_of(self, depth: int) -> Condition:
        parts = [self.one(depth)]
        while self.take("word", "and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else ["and", *parts]

    def one(self, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise self.error(f"nested deeper than {_DEEPEST}")
        if self.take("word", "not"):
            return ["not", self.one(depth + 1)]
        if self.take("operator", "("):
            found = self.any_of(depth + 1)
            if not self.take("operator", ")"):
                raise self.error("')' is missing")
            return found
        return self.comparison()

    def comparison(self) -> Condition:
        name = self.take("word")
        if name is None or name in _WORDS:
            self.at -= name is not None
            raise self.error("the name of a field is missing")
        negated = self.take("word", "not") is not None
        if self.take("word", "in"):
            found: Condition = ["in", name, self.values()]
            return ["not", found] if negated else found
        if negated:
            raise self.error("'in' is missing")
        operator = self.take("operator", *_OPERATORS)
        return ["has", name] if operator is None else ["=" if operator == "==" else operator, name, self.value()]

    def values(self) -> list[Any]:
        if not self.take("operator", "["):
            raise self.error("'[' is missing")
        found = [self.value()]
        while self.take("operator", ","):
            found.append(self.value())
        if not self.take("operator", "]"):
            raise self.error("']' is missing")
        return found

    def value(self) -> Any:
        quoted = self.take("text")
        if quoted is not None:
            return quoted
        word = self.take("word")
        if word is None:
            raise self.error("a value is missing")
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        return word if (number := _numeral(word)) is None else number

"""Reads a pickle that holds nothing but plain containers, texts and numbers, and runs nothing.

This is not Python's ``pickle``: a machine of its own that knows the instructions for dict, list, tuple, str, bytes, int, float, bool and
None. Every instruction that could name a class or call something (GLOBAL, REDUCE, BUILD, INST, OBJ, NEWOBJ, PERSID, EXT...) is refused with
its offset before anything happens. For annotation files that were published in this form only (``refs(unc).p`` of RefCOCO).

Texts of Python 2 (``str``) are read as UTF-8, or Latin-1 where they are not. Protocols 0 to 5 (without out-of-band buffers).
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from mmpretrain.data.errors import DataError

_MARK = object()
_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
_MOST_MEMO = 1 << 26
_SIZED = {"B": ("<I", True), "C": ("<B", True), "\x8e": ("<Q", True), "X": ("<I", False), "\x8c": ("<B", False), "\x8d": ("<Q", False)}
_SIZED_OLD = {"T": "<i", "U": "<B"}  # str of Python 2
_NUMBERS = {"J": "<i", "K": "<B", "M": "<H", "G": ">d"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "N": lambda: None,
    "\x88": lambda: True,
    "\x89": lambda: False,
    "]": list,
    ")": tuple,
    "}": dict,
}


class Machine:
    """A stack, a memo and the place in the bytes. A subclass may know more instructions; it must look no name of the file up."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name, self.at = data, name, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            start, code = self.at, chr(self.data[self.at])
            self.at += 1
            if code == ".":
                return self.stack.pop()
            if not (self.value(code) or self.container(code) or self.memory(code)):
                known = _NAMES.get(code, repr(code))
                raise DataError(
                    f"{self.name}: the pickle instruction {known} at offset {start} is refused: only plain lists, dicts, texts and numbers "
                    "are read; write the file as JSON in the program that made it"
                )

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.data) - self.at:
            raise IndexError(size)
        self.at += size
        return self.data[self.at - size : self.at]

    def line(self) -> bytes:
        end = self.data.index(b"\n", self.at)
        found, self.at = self.data[self.at : end], end + 1
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, code: str) -> bool:
        """Instructions that push one value."""
        if code in _CONSTANTS:
            value = _CONSTANTS[code]()
        elif code in _NUMBERS:
            value = self.number(_NUMBERS[code])
        elif code in _SIZED:
            form, binary = _SIZED[code]
            found = self.take(self.number(form))
            value = found if binary else found.decode("utf-8", "surrogatepass")
        elif code in "STU":
            value = self.old_text(code)
        elif code in "\x8a\x8b":
            value = int.from_bytes(self.take(self.number("<B" if code == "\x8a" else "<i")), "little", signed=True)
        elif code in "IL":
            digits = self.line()
            value = {b"00": False, b"01": True}.get(digits) if code == "I" and digits in (b"00", b"01") else _integer(digits)
        elif code == "F":
            value = float(self.line())
        elif code == "V":
            value = self.line().decode("raw-unicode-escape")
        else:
            return False
        self.stack.append(value)
        return True

    def old_text(self, code: str) -> str:
        """A text of Python 2."""
        return text_of(self.old_bytes(code))

    def old_bytes(self, code: str) -> bytes:
        """The bytes of a text of Python 2."""
        return _literal(self.line()) if code == "S" else self.take(self.number(_SIZED_OLD[code]))

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken from the stack with it."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError("no mark")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def container(self, code: str) -> bool:
        """Instructions that make or fill containers."""
        if code == "(":
            self.stack.append(_MARK)
        elif code in "lt":
            found = self.marked()
            self.stack.append(found if code == "l" else tuple(found))
        elif code in "\x85\x86\x87":
            size = ord(code) - 0x84
            found = self.stack[-size:]
            if len(found) < size or _MARK in found:
                raise IndexError(size)
            self.stack[-size:] = [tuple(found)]
        elif code == "a":
            value = self.stack.pop()
            _is(self.stack[-1], list).append(value)
        elif code == "e":
            found = self.marked()
            _is(self.stack[-1], list).extend(found)
        elif code in "dsu":
            found = [self.stack.pop(-2), self.stack.pop()] if code == "s" else self.marked()
            if code == "d":
                self.stack.append({})
            _is(self.stack[-1], dict).update(zip(found[::2], found[1::2], strict=True))
        else:
            return False
        return True

    def memory(self, code: str) -> bool:
        """Instructions that keep and repeat values, and those without effect here."""
        if code == "\x80":
            self.take(1)
        elif code == "\x95":
            self.take(8)
        elif code == "0":
            self.stack.pop()
        elif code == "1":
            self.marked()
        elif code == "2":
            self.stack.append(self.stack[-1])
        elif code in "ghj":
            self.stack.append(self.memo[self._slot(code)])
        elif code in "pqr":
            self.memo[self._slot(code)] = self.stack[-1]
        elif code == "\x94":
            self.memo[len(self.memo)] = self.stack[-1]
        else:
            return False
        return True

    def _slot(self, code: str) -> int:
        slot = int(self.line()) if code in "gp" else self.number("<B" if code in "hq" else "<I")
        if not 0 <= slot < _MOST_MEMO:
            raise IndexError(slot)
        return slot


def loads(data: bytes, name: str = "pickle", machine: type[Machine] | None = None) -> Any:
    """The value in ``data``.

    Args:
        data: a whole pickle.
        name: of the file, for messages.
        machine: one that knows more instructions; :class:`Machine` by default.

    Raises:
        DataError: an instruction that is not allowed, or a damaged file; nothing has been executed.
    """
    reader = (machine or Machine)(data, name)
    try:
        return reader.run()
    except (IndexError, KeyError, TypeError, struct.error, UnicodeError, OverflowError, MemoryError) as error:
        raise DataError(f"{name}: damaged at offset {reader.at} ({type(error).__name__}); copy it again") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: damaged at offset {reader.at} ({error}); copy it again") from None


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(kind.__name__)
    return value


def _integer(digits: bytes) -> int:
    if len(digits) > 40:
        raise ValueError("an integer of more than 40 digits")
    return int(digits.removesuffix(b"L"))


def _literal(line: bytes) -> bytes:
    """The bytes of a text in quotes, as Python 2 wrote them."""
    if len(line) < 2 or line[:1] not in (b"'", b'"') or line[-1:] != line[:1]:
        raise ValueError("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0]


def text_of(data: bytes) -> str:
    """UTF-8, or Latin-1 where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")

"""Values that VOLTA and ViLBERT wrote with Python's ``pickle``: plain containers, texts, numbers and numeric arrays of numpy, nothing else.

``plain_pickle`` reads the containers. Added here are the handful of names by which numpy spells an array: they are compared as texts and
stand for themselves; no module is imported and no name of the file is ever looked up, so there is nothing to call. Every other name is
refused.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data_tools import plain_pickle
from mmpretrain.data_tools.stores import numeric

_CORE = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_KNOWN = {
    **{(module, "_reconstruct"): "reconstruct" for module in _CORE},
    **{(module, "scalar"): "scalar" for module in _CORE},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "dict",
    ("builtins", "bytes"): "bytes",
    ("__builtin__", "bytes"): "bytes",
}


class _Name(NamedTuple):
    """One of the known names. It has no connection with what it names."""

    text: str


class _Type:
    """A numeric type while it is being spelled."""

    def __init__(self, code: str) -> None:
        self.code = code  # such as f4
        self.order = "="


class _Array:
    """An array of which the shape and the bytes are still to come."""


class _Old(str):
    """A text of Python 2 with its bytes: what it holds may be the bytes of an array."""

    raw: bytes


def loads(data: bytes, name: str = "value") -> Any:
    """The value in ``data``.

    Raises:
        BadSample: an instruction or a name that is not allowed, or damaged bytes; nothing has been executed.
    """
    try:
        # no unpickler: a machine of our own that knows plain values and arrays, and calls nothing
        return plain_pickle.loads(data, name, _Machine)
    except BadSample:
        raise
    except DataError as error:
        raise BadSample(str(error)) from None


class _Machine(plain_pickle.Machine):
    """``plain_pickle`` with numeric arrays."""

    def old_text(self, code: str) -> str:
        raw = self.old_bytes(code)
        found = _Old(plain_pickle.text_of(raw))
        found.raw = raw
        return found

    def container(self, code: str) -> bool:
        if code in "c\x93":
            self.stack.append(self._named(code))
        elif code == "R":
            arguments = self.stack.pop()
            self.stack.append(self._called(self.stack.pop(), arguments))
        elif code == "b":
            self._built(self.stack.pop())
        elif code == "\x96":  # BYTEARRAY8
            self.stack.append(self.take(self.number("<Q")))
        else:
            return super().container(code)
        return True

    def _named(self, code: str) -> _Name:
        name, module = (self.stack.pop(), self.stack.pop()) if code == "\x93" else (None, self.line().decode("utf-8"))
        name = self.line().decode("utf-8") if name is None else name
        known = _KNOWN.get((str(module), str(name)))
        if known is None:
            raise BadSample(
                f"{self.name}: the pickle names {str(module)[:60]}.{str(name)[:60]}, which is refused: only plain "
                "containers, numbers and numeric arrays are read; write the store again with those in the program that made it"
            )
        return _Name(known)

    def _called(self, name: Any, arguments: Any) -> Any:
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise BadSample(f"{self.name}: the pickle calls what is no name of an array; refused")
        if name.text == "reconstruct" and len(arguments) == 3 and arguments[0] == _Name("ndarray"):
            return _Array()
        if name.text == "dtype" and 1 <= len(arguments) <= 3 and isinstance(arguments[0], str):
            return _Type(str(arguments[0]))
        if name.text == "scalar" and len(arguments) == 2 and isinstance(arguments[0], _Type):
            return self._array(arguments[1], arguments[0], (), False)[()]
        if name.text == "frombuffer" and len(arguments) == 4 and isinstance(arguments[1], _Type):
            return self._array(arguments[0], arguments[1], arguments[2], arguments[3] == "F")
        if name.text == "encode" and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
            return arguments[0].encode("latin-1")
        if name.text in ("dict", "bytes") and arguments == ():
            return {} if name.text == "dict" else b""
        raise BadSample(f"{self.name}: the pickle calls {name.text} in a way that numpy does not; refused")

    def _built(self, state: Any) -> None:
        top = self.stack[-1]
        if isinstance(top, _Type) and isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "="):
            top.order = str(state[1])
        elif isinstance(top, _Array) and isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], _Type):
            self.stack[-1] = self._array(state[4], state[2], state[1], bool(state[3]))
            self.memo.update((slot, self.stack[-1]) for slot, value in self.memo.items() if value is top)
        else:
            raise BadSample(f"{self.name}: the pickle fills an object that is no array; refused")

    def _array(self, data: Any, kind: _Type, shape: Any, fortran: bool) -> Any:
        data = data.raw if isinstance(data, _Old) else data
        if not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise BadSample(f"{self.name}: an array of objects in a pickle is refused: only numbers are read")
        code = kind.code if kind.code[:1] in "<>=|" else kind.order + kind.code
        array: np.ndarray = numeric(data, code, shape[::-1] if fortran else shape)
        return array.T if fortran else array

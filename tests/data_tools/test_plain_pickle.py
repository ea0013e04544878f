"""The reader of plain pickles: what Python and Python 2 wrote is read, and nothing that could run anything is."""

from __future__ import annotations

import os
import pickle
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpretrain.data.errors import DataError
from mmpretrain.data_tools.plain_pickle import loads

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def without_bytes(value):
    """Protocols below 3 spell bytes by a call, which is refused."""
    if isinstance(value, dict):
        return {key: without_bytes(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_bytes(one) for one in value)
    return value.hex() if isinstance(value, bytes) else value


@settings(max_examples=50, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_what_python_writes_is_read(value, protocol):
    value = without_bytes(value) if protocol < 3 else value
    assert loads(pickle.dumps(value, protocol)) == value


def test_what_python_2_writes_is_read():
    text = b"(lp0\n(dp1\nS'sent'\np2\nS'left \\'one\\' caf\\xe9'\np3\nsS'ref_id'\np4\nI7\nsVname\np5\nL12L\nsa."
    assert loads(text) == [{"sent": "left 'one' café", "ref_id": 7, "name": 12}]
    binary = b"\x80\x02]q\x00}q\x01(U\x05splitq\x02U\x05trainq\x03U\x01iq\x04K\x01ua."
    assert loads(binary) == [{"split": "train", "i": 1}]


def test_one_value_at_two_places_stays_one():
    shared = ["a"]
    found = loads(pickle.dumps([shared, shared]))
    assert found[0] is found[1]


class Canary:
    """Makes a file when it is unpickled by Python."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_calls_and_classes_are_refused(tmp_path, protocol):
    for value in (Canary(tmp_path / "ran"), Fraction(1, 2), os.system, {"a": [Canary(tmp_path / "ran")]}):
        with pytest.raises(DataError, match=r"x\.p: the pickle instruction \w+ at offset \d+ is refused.*as JSON"):
            loads(pickle.dumps(value, protocol), "x.p")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"(i__main__\nC\n.",
        b"Pid\n.",
        b"\x82\x01.",
        b"(cos\nsystem\no.",
        b"\x80\x02\x8c\x02os\x8c\x06system\x93.",
        b"\x96" + b"\0" * 8 + b".",
    ],
)
def test_the_other_ways_to_an_object_are_refused(data):
    with pytest.raises(DataError, match="is refused"):
        loads(data)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_an_error(data):
    try:
        loads(data)
    except DataError as error:
        assert "\n" not in str(error)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damaged_files_give_a_value_or_an_error(data):
    whole = bytearray(pickle.dumps([{"a": [1, 2.5, "x", None, (True, "yy")], "b": {"c": -3}}] * 2, data.draw(st.integers(0, 5))))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    try:
        loads(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    except DataError as error:
        assert "\n" not in str(error)

"""Any bytes end in a result or in our own error, and nothing is lost silently: hypothesis on the checks that the fuzz targets use.

60 fixed examples of each; ``MMPRETRAIN_FUZZ_EXAMPLES=100000 pytest tests/data/test_fuzz.py`` takes so many random ones.
"""

from __future__ import annotations

import io
import json
import os
import tarfile

import numpy as np
import pytest
from fuzz.checks import check_codes, check_index, check_regions, check_tar, check_texts
from helpers.regions import made
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpretrain.data.codes import encode_codes
from mmpretrain.data.regions import encode_regions

EXAMPLES = os.environ.get("MMPRETRAIN_FUZZ_EXAMPLES")
few = settings(max_examples=int(EXAMPLES or 60), deadline=None, derandomize=EXAMPLES is None, database=None)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150)
MEMBERS = st.lists(
    st.tuples(NAMES, st.sampled_from(["txt", "json", "png", "regions.npz", "pkl", "a.b"]), st.binary(max_size=600)), max_size=6
)
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), max_size=4)


def archive(members: list[tuple[str, str, bytes]], kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for name, extension, data in members:
            info = tarfile.TarInfo(f"{name}.{extension}")
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def flipped(data: bytes, flips: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, bit in flips:
        changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


@pytest.mark.fault(1, 2, 3)
@few
@given(MEMBERS, st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]), FLIPS, st.integers(0, 3000))
def test_archives_are_read_whole_or_refused(members, kind, flips, cut):
    sound = archive(members, kind)
    check_tar(sound, sound=True)
    check_index(sound)
    for damaged in (flipped(sound, flips), sound[: max(len(sound) - cut * 7, 0)]):
        check_tar(damaged)
        check_index(damaged)


@few
@given(st.binary(max_size=2000))
def test_any_bytes_are_no_archive_or_one(data):
    check_tar(data)
    check_index(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
FIELDS = st.dictionaries(st.sampled_from(["captions", "statement", "label", "statements", "edits", "objects", "text"]), JSON)


@pytest.mark.fault(19)
@few
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | FIELDS.map(lambda fields: json.dumps(fields).encode()))
def test_any_bytes_are_texts_or_refused(data):
    check_texts(data)


SOUND = encode_regions(made(3))


@pytest.mark.fault(20)
@few
@given(FLIPS, st.integers(0, len(SOUND)))
def test_regions_are_within_the_schema_or_refused(flips, length):
    check_regions(flipped(SOUND, flips))
    check_regions(SOUND[:length])


@few
@given(st.binary(max_size=400))
def test_any_bytes_are_no_regions(data):
    assert check_regions(data) is None


CODES = encode_codes(np.arange(12).reshape(3, 4))


@pytest.mark.fault(20)
@few
@given(FLIPS, st.integers(0, len(CODES)), st.binary(max_size=200))
def test_codes_are_within_the_schema_or_refused(flips, length, data):
    for damaged in (flipped(CODES, flips), CODES[:length], CODES[:length] + data, data):
        check_codes(damaged)


def test_a_header_that_numpy_cannot_read_is_refused():
    """Found by many random examples: a vertical tab for the line break at its end."""
    check_codes(CODES.replace(b"\n", b"\x0b", 1))

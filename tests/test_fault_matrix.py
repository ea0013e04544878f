"""``docs/faults.md``: a row for every fault, every test that a row links exists and carries its number, and every mark has its row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
PAGE = TREE / "docs" / "faults.md"
NUMBERS = range(1, 55)
LINK = re.compile(r"\[(\w+)\]\(\.\./(tests/[\w/]+\.py)(?:#(\w+))?\)")


def rows() -> dict[int, list[str]]:
    """Number -> cells after it: fault, mmpretrain, tests, webdataset, open_clip, Lightning."""
    found: dict[int, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            assert int(cells[0]) not in found, f"two rows of {cells[0]}"
            found[int(cells[0])] = cells[1:]
    return found


@cache
def marked(file: str) -> dict[str, set[int]]:
    """Test of a file -> numbers of its marker ``fault``."""
    found: dict[str, set[int]] = {}
    for node in ast.parse((TREE / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            calls = [one for one in node.decorator_list if isinstance(one, ast.Call) and ast.unparse(one.func) == "pytest.mark.fault"]
            found[node.name] = {ast.literal_eval(number) for call in calls for number in call.args}
    return found


def links(cells: list[str]) -> list[tuple[str, str]]:
    """(file, test) of every link to a test; that of ``measured`` stands behind the ``#``."""
    return [(file, anchor or name) for cell in cells for name, file, anchor in LINK.findall(cell)]


def test_every_fault_has_a_row_with_a_test():
    found = rows()
    assert list(found) == list(NUMBERS)
    assert [number for number, cells in found.items() if len(cells) != 6 or not cells[0] or not cells[1] or not LINK.search(cells[2])] == []


@pytest.mark.parametrize("number", NUMBERS)
def test_linked_tests_exist_and_carry_the_number(number):
    cells = rows()[number]
    for file, name in links(cells):
        assert (TREE / file).is_file(), file
        assert name in marked(file), f"{file} has no {name}"
        assert number in marked(file)[name], f"{file}::{name} has no @pytest.mark.fault({number})"
    assert len(links(cells)) == sum(cell.count("](../tests/") for cell in cells), "a link of another form"


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_said_of_others_is_measured_or_read(number):
    for cell in rows()[number][3:]:
        assert cell == "-" or cell.startswith(("read: ", "[measured](../tests/")), cell
        assert cell.count("measured") == len(re.findall(r"\[measured\]\(\.\./tests/[\w/]+\.py#test_\w+\)", cell)), cell


def test_marks_are_numbers_of_the_page():
    files = [str(path.relative_to(TREE)) for path in sorted((TREE / "tests").rglob("test_*.py"))]
    marks = {(file, name): numbers for file in files for name, numbers in marked(file).items() if numbers}
    assert {test: numbers for test, numbers in marks.items() if not numbers <= set(NUMBERS)} == {}
    assert set().union(*marks.values()) == set(NUMBERS)

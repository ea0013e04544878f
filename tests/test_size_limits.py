"""Files and functions stay small enough to be read. Exceptions give their reason, and the list only shrinks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
FILE_LINES = 300
FUNCTION_LINES = 60
RECIPE_LINES = 40

FILES: dict[str, str] = {}  # file -> reason for more than FILE_LINES
FUNCTIONS: dict[str, str] = {}  # file:function -> reason for more than FUNCTION_LINES


def python_files() -> list[Path]:
    folders = ("mmpretrain", "data_tools", "benchmarks", "tests", "configs")
    return sorted(path for folder in folders for path in (TREE / folder).rglob("*.py")) + [TREE / "mmpretrain_cli_entry.py"]


def test_files_are_short():
    sizes = {str(path.relative_to(TREE)): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {name: size for name, size in sizes.items() if size > FILE_LINES and name not in FILES} == {}
    assert [name for name in FILES if sizes.get(name, 0) <= FILE_LINES] == [], "no longer needed in the list"


def test_functions_are_short():
    sizes = {}
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                sizes[f"{path.relative_to(TREE)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES and name not in FUNCTIONS} == {}
    assert [name for name in FUNCTIONS if sizes.get(name, 0) <= FUNCTION_LINES] == [], "no longer needed in the list"


@pytest.mark.parametrize("path", sorted((TREE / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= RECIPE_LINES

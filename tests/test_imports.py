"""The direction of imports, held over the syntax tree; the list of packages in the wheel; which copy of the package is under test."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
BASE = {"types", "random"}
# what each package may import, besides itself
ALLOWED = {
    "types": set(),
    "random": set(),
    "nn": BASE,
    "models": BASE | {"nn"},
    "objectives": BASE | {"nn"},
    "methods": BASE | {"nn", "objectives"},
    "data": BASE,
    "data_tools": BASE | {"data", "report"},
    "weights": BASE | {"nn", "models", "methods"},
    "evaluate": BASE | {"nn", "models", "data", "weights"},
    "generate": BASE | {"nn", "models", "objectives", "data", "weights", "evaluate"},
    "report": {"types"},
    "train": BASE | {"nn", "models", "objectives", "methods", "data", "data_tools", "weights", "evaluate", "generate", "report"},
    "cli": BASE | {"nn", "models", "objectives", "methods", "data", "data_tools", "weights", "evaluate", "generate", "report", "train"},
}
# (file, imported package) -> reason; only shrinks
EXCEPTIONS = {
    ("mmpretrain/data/sources.py", "data_tools"): "the source 'scenes' is generated at first use; imported inside the function",
    ("mmpretrain/evaluate/loading.py", "objectives"): "only the base class, to refuse class paths of a checkpoint that are no objective",
}
DISTRIBUTED = ("mmpretrain/train/", "mmpretrain/objectives/gather.py")


def sources() -> list[tuple[str, Path]]:
    """(package, file) of every module of the suite."""
    found = [(path.relative_to(TREE / "mmpretrain").parts[0].removesuffix(".py"), path) for path in (TREE / "mmpretrain").rglob("*.py")]
    found += [("data_tools", path) for path in (TREE / "data_tools").rglob("*.py")]
    return [(package, path) for package, path in sorted(found) if package not in ("__init__", "__main__")]


def imported(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports anywhere, with the line; names under ``if TYPE_CHECKING`` are left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    only_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_follow_the_direction(package):
    wrong = []
    for owner, path in sources():
        if owner != package:
            continue
        name = str(path.relative_to(TREE))
        for module, line in imported(path):
            parts = module.split(".")
            if parts[0] != "mmpretrain" or len(parts) < 2 or parts[1] not in ALLOWED:
                continue
            if parts[1] != package and parts[1] not in ALLOWED[package] and (name, parts[1]) not in EXCEPTIONS:
                wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_every_package_has_a_place_in_the_direction():
    assert {package for package, _ in sources()} == set(ALLOWED)


def test_exceptions_are_still_needed():
    for name, package in EXCEPTIONS:
        assert any(module.startswith(f"mmpretrain.{package}") for module, _ in imported(TREE / name)), (name, package)


def test_collectives_stay_in_train_and_gather():
    wrong = [
        f"{path.relative_to(TREE)}:{line}"
        for _, path in sources()
        for module, line in imported(path)
        if module.startswith("torch.distributed") and not str(path.relative_to(TREE)).startswith(DISTRIBUTED)
    ]
    assert wrong == []


def test_the_wheel_lists_every_package():
    configured = tomllib.loads((TREE / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in (TREE / "mmpretrain").rglob("*.py")}
    found = {".".join(folder.relative_to(TREE).parts) for folder in folders} | {"mmpretrain.configs"}
    found |= {".".join(("mmpretrain", *path.parent.relative_to(TREE).parts)) for path in (TREE / "data_tools").rglob("*.py")}
    assert set(configured) == found


def test_importing_the_package_is_light():
    code = "import sys, mmpretrain, mmpretrain.configs, mmpretrain.data_tools; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_package_under_test_is_the_installed_one():
    import mmpretrain

    if os.environ.get("MMPRETRAIN_EXPECT_INSTALLED") == "1":
        assert "site-packages" in mmpretrain.__file__, f"the source tree shadows the installed package: {mmpretrain.__file__}"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = mmpretrain.lode

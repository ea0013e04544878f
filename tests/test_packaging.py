"""The wheel and the editable installation, each in an environment of its own that borrows the dependencies of this one."""

from __future__ import annotations

import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
PARTS = ("mmpretrain", "configs", "data_tools", "mmpretrain_cli_entry.py", "pyproject.toml", "README.md", "LICENSE")
LOOK = (
    "import mmpretrain, mmpretrain.configs, mmpretrain.data_tools, mmpretrain_cli_entry; "
    "from mmpretrain.cli.layering import layer; from importlib.resources import files; "
    "assert layer(['vilt.yaml']).config['model']['objectives']; assert layer(['paper/vilt']).config['data']['batch_size'] == 4096; "
    "assert (files('mmpretrain.report') / 'assets' / 'page.css').is_file(); assert (files('mmpretrain') / 'py.typed').is_file(); "
    "print(mmpretrain.__file__)"
)


def environment(folder: Path) -> Path:
    """A virtual environment without the suite that sees the other packages of this interpreter. Returns its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    own = Path(subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True).strip())
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in {Path(p) for p in (sysconfig.get_paths()["purelib"], *site.getsitepackages())}:
        for entry in path.iterdir() if path.is_dir() else ():
            ours = entry.name.startswith(("mmpretrain", "__editable__", "_editable_")) or entry.suffix == ".pth"
            if not ours and not (borrowed / entry.name).exists():
                (borrowed / entry.name).symlink_to(entry)
    (own / "borrowed.pth").write_text(f"{borrowed}\n")
    return python


def test_type_checkers_are_told_of_the_annotations():
    assert (TREE / "mmpretrain" / "py.typed").read_bytes() == b""
    assert "py.typed" in tomllib.loads((TREE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]


def test_every_extra_is_used():
    """An optional dependency that nothing names, in code or as the option of a library, has no business in the list."""
    extras = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = "\n".join(path.read_text(encoding="utf-8") for part in ("mmpretrain", "data_tools") for path in (TREE / part).rglob("*.py"))
    for extra in extras.keys() - {"test"}:
        names = [re.split(r"[\[><=]", requirement)[0].replace("-", "_") for requirement in extras[extra]]
        assert [name for name in names if not re.search(rf"\b{name}\b", code)] == [], extra


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installation(tmp_path, editable):
    source = tmp_path / "source"
    for part in PARTS:
        path = TREE / part
        copy = shutil.copytree if path.is_dir() else shutil.copy
        (source / part).parent.mkdir(parents=True, exist_ok=True)
        copy(path, source / part)
    python = environment(tmp_path / "venv")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, *(["-e"] if editable else []), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = {"cwd": elsewhere, "env": {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, "text": True, "capture_output": True}
    found = subprocess.run([python, "-c", LOOK], check=False, **run)
    assert found.returncode == 0, found.stderr
    inside = source if editable else tmp_path / "venv"
    assert Path(found.stdout.strip()).is_relative_to(inside)
    command = python.parent / "mmpretrain"
    assert subprocess.run([command, "--version"], check=True, **run).stdout.startswith("mmpretrain-vl 0.")
    assert "vilt.yaml" in subprocess.run([command, "systems", "--json"], check=True, **run).stdout

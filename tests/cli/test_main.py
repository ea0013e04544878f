"""The command as a user runs it: quick answers, one line for an error, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mmpretrain.cli.main import main
from mmpretrain.report.printing import WIDE, printer

HEAVY = ("torch", "lightning", "jsonargparse", "transformers", "numpy", "open_clip", "timm", "PIL", "wandb")


def command(*words: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mmpretrain_cli_entry", *words], capture_output=True, text=True, check=False, **kwargs)


QUICK = ["--help", "--version", "systems", "systems --json", "systems --help", "doctor --help", "data --help", "nothing"]
QUICK += [f"{name} --help" for name in ("compare", "demo", "evaluate", "embed", "export", "report")]


@pytest.mark.parametrize("words", [text.split() for text in QUICK], ids=QUICK)
def test_quick_commands_import_nothing_heavy(words):
    code = (
        "import atexit, sys; from mmpretrain_cli_entry import main; "  # argparse leaves after a help
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])); sys.exit(main() and 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_names_every_command():
    from mmpretrain.cli.main import COMMANDS

    done = command("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_every_data_tool_is_there_and_has_a_help(capsys):
    from mmpretrain.cli.data import TOOLS

    assert main(["data", "--help"]) == 0
    listed = capsys.readouterr().out
    assert main(["data"]) == 2
    for name in TOOLS:
        assert f"  {name} " in listed
        with pytest.raises(SystemExit) as stop:
            main(["data", name, "--help"])
        assert stop.value.code == 0 and f"usage: mmpretrain data {name} " in capsys.readouterr().out


def test_version_is_one_line_with_torch():
    done = command("--version")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith("mmpretrain-vl ") and "torch 2." in done.stdout


def test_an_unknown_command_is_one_line():
    done = command("fti")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "mmpretrain: error: there is no command 'fti'. Did you mean 'fit'? See mmpretrain --help\n"


def test_no_command_shows_the_help_and_fails():
    done = command()
    assert done.returncode == 2 and "commands:" in done.stdout


def test_systems_lists_recipes_with_what_they_were_proved_against():
    done = command("systems", "--json")
    found = {row["recipe"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 0
    assert found["vilt.yaml"]["objectives"] == ["mlm", "itm", "wpa"]
    for row in found.values():
        assert row["parameters"] > 0 and row["proof"] and row["command"].startswith("mmpretrain fit")


def test_systems_has_one_line_for_each_recipe_where_there_is_no_terminal():
    wide = {name: value for name, value in os.environ.items() if name != "COLUMNS"}  # given, since readline sets it for children
    names = [row["recipe"] for row in json.loads(command("systems", "--json").stdout)]
    done = command("systems", env=wide)
    _, *lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(names)
    assert all(f" {name} " in line for name, line in zip(names, lines, strict=True))
    assert max(map(len, command("systems", env={**wide, "COLUMNS": "80"}).stdout.splitlines())) <= 80


def fake_distribution(folder, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_tables_are_as_wide_as_a_terminal_and_no_narrower_elsewhere(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert printer().width == WIDE  # pytest's output is no terminal
    monkeypatch.setenv("COLUMNS", "70")
    assert printer().width == 70


def test_openmmlabs_package_beside_ours_stops_every_command(tmp_path, monkeypatch):
    fake_distribution(tmp_path, "mmpretrain", "1.2.0")
    monkeypatch.syspath_prepend(tmp_path)
    import mmpretrain_cli_entry

    problem = mmpretrain_cli_entry.clash()
    assert problem is not None and "OpenMMLab" in problem and "1.2.0" in problem and "pip uninstall -y mmpretrain" in problem
    assert "\n" not in problem


def test_it_stops_even_when_our_files_were_overwritten(tmp_path):
    """OpenMMLab's package installed later replaces ``mmpretrain/__init__.py``: the entry point must not need it."""
    fake_distribution(tmp_path, "mmpretrain", "1.2.0")
    (tmp_path / "mmpretrain").mkdir()
    (tmp_path / "mmpretrain" / "__init__.py").write_text("raise ImportError('mmcv is missing')\n")
    import mmpretrain_cli_entry

    entry = mmpretrain_cli_entry.__file__
    code = f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}]; runpy.run_path({entry!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "OpenMMLab" in done.stderr and done.stderr.count("\n") == 1

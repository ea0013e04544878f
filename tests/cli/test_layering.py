"""The rules of layered YAML, and what a user sees when a file is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpretrain.cli import layering
from mmpretrain.cli.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_later_files_win_and_each_file_is_applied_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "low.yaml", "a: {x: 1, y: 1}\nlist: [1, 2]\n")
    write(tmp_path, "recipe.yaml", "defaults: [low.yaml]\na: {y: 2}\nlist: [3]\n")
    write(tmp_path, "mine.yaml", "defaults: [low.yaml]\na: {z: 3}\n")
    found = layering.layer(["recipe.yaml", "mine.yaml"])
    assert found.config == {"a": {"x": 1, "y": 2, "z": 3}, "list": [3]}
    assert [path.name for path in found.files] == ["low.yaml", "recipe.yaml", "mine.yaml"]
    assert Path(found.origin["a.y"]).name == "recipe.yaml"


def test_what_a_file_replaces_came_from_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "low.yaml", "a: {x: 1}\nb: 2\ndata: {val: {one: x}, train: y}\n")
    write(tmp_path, "mine.yaml", "defaults: low.yaml\na: 2\nb: {y: 1}\ndata: {val: {two: x}}\n")
    origin = {key: Path(file).name for key, file in layering.layer(["mine.yaml"]).origin.items()}
    assert origin == {"a": "mine.yaml", "b.y": "mine.yaml", "data.val.two": "mine.yaml", "data.train": "low.yaml"}


def test_objectives_are_replaced_whole():
    lower = {"model": {"objectives": {"mlm": {"class_path": "A"}, "itm": {"class_path": "B"}}, "seed": 1}}
    upper = {"model": {"objectives": {"mlm": {"class_path": "C"}}}}
    assert layering.merge(lower, upper) == {"model": {"objectives": {"mlm": {"class_path": "C"}}, "seed": 1}}


def test_a_size_replaces_the_system_whole_and_options_reach_into_it():
    text = {"class_path": "T", "init_args": {"width": 96, "init": "torch"}}
    tiny = {"model": {"system": {"class_path": "A", "init_args": {"text": text}}}}
    base = {"model": {"system": {"class_path": "A", "init_args": {"text": {"class_path": "T", "init_args": {"width": 768}}}}}}
    assert layering.merge(tiny, base) == base
    within = {"model": {"system": {"init_args": {"text": {"init_args": {"width": 64}}, "dropout": 0.1}}}}
    arguments = layering.merge(tiny, within)["model"]["system"]["init_args"]
    assert arguments == {"text": {"class_path": "T", "init_args": {"width": 64, "init": "torch"}}, "dropout": 0.1}


def test_another_class_path_drops_the_arguments_of_the_first():
    lower = {"model": {"schedule": {"class_path": "A", "init_args": {"warmup": 3}}}}
    upper = {"model": {"schedule": {"class_path": "B", "init_args": {"floor": 1}}}}
    assert layering.merge(lower, upper)["model"]["schedule"] == {"class_path": "B", "init_args": {"floor": 1}}
    same = {"model": {"schedule": {"class_path": "A", "init_args": {"floor": 1}}}}
    assert layering.merge(lower, same)["model"]["schedule"]["init_args"] == {"warmup": 3, "floor": 1}


def test_arguments_without_a_class_belong_to_the_class_below():
    saved = {"class_path": "A", "init_args": {"lr": 1, "eps": 2}}  # as a checkpoint has it
    assert layering.merge({"o": saved}, {"o": {"lr": 3}})["o"] == {"class_path": "A", "init_args": {"lr": 3, "eps": 2}}
    assert layering.merge({"o": saved}, {"o": {"init_args": {"lr": 3}}})["o"]["init_args"] == {"lr": 3, "eps": 2}
    assert layering.merge({"o": {"lr": 3}}, {"o": saved})["o"] == saved


def test_merge_changes_neither_side():
    lower, upper = {"a": {"x": 1}}, {"a": {"y": 2}}
    layering.merge(lower, upper)
    assert lower == {"a": {"x": 1}} and upper == {"a": {"y": 2}}


def test_a_file_on_disk_comes_before_a_shipped_one(tmp_path, monkeypatch):
    shipped = layering.find("base.yaml")
    assert shipped.parent == layering.shipped().resolve()
    monkeypatch.chdir(tmp_path)
    mine = write(tmp_path, "base.yaml", "seed_everything: 7\n")
    assert layering.find("base.yaml") == mine.resolve()
    assert layering.find("debug").name == "debug.yaml"  # the suffix may be left out


def test_defaults_are_looked_for_beside_the_file_first(tmp_path, monkeypatch):
    write(tmp_path, "folder/base.yaml", "seed_everything: 7\n")
    write(tmp_path, "folder/mine.yaml", "defaults: base.yaml\n")
    monkeypatch.chdir(tmp_path)
    assert layering.layer(["folder/mine.yaml"]).config == {"seed_everything": 7}


def test_numbers_without_a_point_are_numbers(tmp_path):
    path = write(tmp_path, "a.yaml", "a: 1e-4\nb: -2E+3\nc: 1.5e2\nd: text\n")
    assert layering.read(path) == {"a": 1e-4, "b": -2000.0, "c": 150.0, "d": "text"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1, 2\nb: 3\n", ["line 2", "not readable as YAML"]),
        ("a: 1\na: 2\n", ["line 2", "given twice"]),
        ("- 1\n- 2\n", ["must be a mapping"]),
        ("a: !!python/object/apply:os.system ['true']\n", ["line 1", "not readable as YAML"]),
        ("defaults: 3\n", ["'defaults' must be a list"]),
        ("defaults: [bad.yaml]\n", ["round in a circle"]),
        ("defaults: [nothing-like-it.yaml]\n", ["there is no file 'nothing-like-it.yaml'"]),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, text, says):
    path = write(tmp_path, "bad.yaml", text)
    with pytest.raises(UserError) as error:
        layering.layer([str(path)])
    assert str(tmp_path) in str(error.value)
    for part in says:
        assert part in str(error.value)


def test_a_missing_file_names_the_nearest_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no file 'vlit.yaml'.*Did you mean 'vilt.yaml' or 'vlbert.yaml'\? mmpretrain systems lists"):
        layering.find("vlit.yaml")
    with pytest.raises(UserError, match=r"no file 'missing.yaml', neither here nor a shipped one. mmpretrain systems lists the recipes$"):
        layering.find("missing.yaml")


def test_a_folder_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "run/config.yaml", "")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"^run: the folder of a run.* run/config.yaml, or give --ckpt_path run to go on with it$"):
        layering.find("run")
    with pytest.raises(UserError, match=r"checkpoints: a folder, not a file of configuration$"):
        layering.find("run/checkpoints")

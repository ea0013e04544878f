"""Every YAML: read, parsed by the real parser, built without memory, counted, and (recipes) stepped twice on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mmpretrain.cli.layering import layer, leaves, names, read, shipped
from mmpretrain.cli.systems import FIELDS, header, recipes

ROOT = shipped()
RECIPES = [recipe.recipe for recipe in recipes()]
SIZES = [name for name in names() if name.startswith("sizes/")]


def parsed(files: list[str], *options: str):
    """The namespace of ``fit`` for these files, as the command line makes it, before anything is instantiated."""
    from mmpretrain.cli.train import CLI

    class ParseOnly(CLI):
        def before_instantiate_classes(self) -> None:
            self._dump_config()

        def instantiate_classes(self) -> None:
            return None

    return ParseOnly("fit", layer(files), list(options))


def root_on_meta(files: list[str]):
    """The model and its bound objectives, without memory."""
    import torch

    from mmpretrain.train.pretraining import Pretraining
    from mmpretrain.types import Vocabulary

    cli = parsed(files)
    with torch.device("meta"):
        built = cli.parser.instantiate_classes(cli.config).fit.model
        root: Pretraining = built.root
        root.bind(Vocabulary(root.model.spec.vocab_size, 0, 1, 2, 3, (0, 1, 2, 3)))
    return root


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_file_is_read_and_is_found_by_name():
    for name in names():
        assert isinstance(read(ROOT / name), dict)
    assert {path.name for path in ROOT.glob("*.yaml")} == {Path(r).name for r in RECIPES if "/" not in r} | {"base.yaml", "debug.yaml"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_headers_say_everything(recipe):
    fields = header(ROOT / recipe)
    assert set(FIELDS) <= set(fields)
    assert fields["command"].startswith(f"mmpretrain fit --config {recipe}")


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_parsed_and_what_they_say_is_what_the_parser_has(recipe):
    cli = parsed([recipe])
    plain = lambda key: key.replace(".init_args.", ".")  # what may be left out where the type is known, at any depth
    dumped = {plain(key): value for key, value in leaves(cli.config_dump)}
    for key, value in leaves(layer([recipe]).config):
        assert dumped.get(plain(key)) == value, key


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_parameters_in_the_header_are_those_of_the_module(recipe):
    said = next(r.parameters for r in recipes() if r.recipe == recipe)
    assert count(root_on_meta([recipe])) == said


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_of_a_size_are_those_of_the_model(size):
    first = (ROOT / size).read_text().splitlines()[0]
    said = int(first.rpartition("Parameters: ")[2].replace(",", ""))
    recipe = "clip.yaml" if Path(size).name.startswith("clip") else "vilt.yaml"
    lower = [name for name in layer([recipe]).files if "sizes" not in str(name)]
    files = [str(path) for path in lower if path.name == "base.yaml"] + [size, _objectives(recipe)]
    assert count(root_on_meta(files).model) == said


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _objectives(recipe: str) -> str:
    """A file with everything of a recipe but its system."""
    config = layer([recipe]).config
    config["model"] = {key: value for key, value in config["model"].items() if key != "system"}
    Path("rest.yaml").write_text(yaml.safe_dump(config))
    return "rest.yaml"


def test_debug_goes_over_any_recipe():
    for recipe in RECIPES:
        config = parsed([recipe, "debug.yaml"]).config_dump
        assert config["trainer"]["max_steps"] == 4


@pytest.mark.parametrize("recipe", ["vilt.yaml", "clip.yaml"])
@pytest.mark.parametrize("data", [name for name in names() if name.startswith("data/")])
def test_data_goes_over_a_recipe(recipe, data, monkeypatch):
    monkeypatch.setenv("MMPRETRAIN_REAL_SHARDS", "/some/where")
    dumped = dict(leaves(parsed([recipe, data]).config_dump))
    for key, value in leaves(read(ROOT / data)):
        assert dumped[key] == value, key


def test_every_file_is_of_one_kind():
    kinds = {"sizes", "data", "paper"}
    known = [name for name in names() if name in RECIPES or name in ("base.yaml", "debug.yaml") or Path(name).parts[0] in kinds]
    assert sorted(known) == sorted(names())
    assert {name for name in names() if name.startswith("paper/")} <= set(RECIPES)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if "/" in recipe])  # the others: tests/cli/test_fit.py
def test_every_paper_recipe_takes_two_steps_at_its_tiny_size(recipe, tmp_path, monkeypatch):
    from mmpretrain.cli.main import main
    from mmpretrain.data_tools import scenes

    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))
    train = scenes.write(tmp_path / "train", 16, 0, "train", shard_size=16, progress=False)
    size = "sizes/vilt-tiny.yaml" if "vilt" in recipe else "sizes/clip-tiny.yaml"
    words = ["fit", *(word for name in (recipe, size, "debug.yaml") for word in ("--config", name)), "--trainer.max_steps", "2"]
    words += ["--data.train", str(train), "--data.val", "{}", "--data.batch_size", "8", "--data.workers", "0", "--data.max_tokens", "52"]
    words += ["--data.text.tokenizer", "wordpiece", "--data.text.vocab_size", "200", "--data.image.size", "64"]
    words += ["--data.image.multiple", "16"]
    words += ["--trainer.limit_val_batches", "0", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--loggers", "[]"]
    assert main([*words, "--final.measure", "false"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 2 and all(0 < loss < 20 for loss in losses)

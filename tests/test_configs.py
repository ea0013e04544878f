"""Every YAML: read, parsed by the real parser, built without memory, counted, and (recipes) stepped twice on tiny data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers import scene_regions
from helpers.recipes import module_on_meta, parsed, root_on_meta

from mmpretrain.cli.layering import layer, leaves, names, read, shipped
from mmpretrain.cli.systems import FIELDS, header, recipes

ROOT = shipped()
RECIPES = [recipe.recipe for recipe in recipes()]
SIZES = [name for name in names() if name.startswith("sizes/")]


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


@pytest.mark.parametrize("system, parts", [("vilbert", ("text.", "text_blocks.")), ("interbert", ("text.", "joint_", "text_blocks."))])
def test_released_rates_are_a_tenth_for_embeddings_and_text_layers_alone(system, parts):
    """The releases list 5 tensors of the embeddings and 16 of each of BERT's 12 layers, 12 of which are ours, and no head."""
    module = module_on_meta([f"paper/{system}-release.yaml"])
    groups = module.optimizer.groups(module.root)
    slow = [name for group in groups if group["lr"] == pytest.approx(1e-5) for name in group["names"]]
    assert all(group["lr"] in (pytest.approx(1e-5), 1e-4) for group in groups)
    assert len(slow) == 5 + 12 * 12 and all(name.startswith(tuple(f"model.{part}" for part in parts)) for name in slow)
    for group in groups:  # the two groups of decay are the wrong way round
        decayed = {name.endswith("bias") or "norm" in name for name in group["names"]}
        assert decayed == {group["weight_decay"] > 0}


@pytest.mark.parametrize("size", SIZES)
def test_the_parameters_of_a_size_are_those_of_the_model(size):
    first = (ROOT / size).read_text().splitlines()[0]
    said = int(first.rpartition("Parameters: ")[2].replace(",", ""))
    others = {name: f"{name}.yaml" for name in ("beit", "clip", "dalle", "dvae")}  # whose objectives read other states than those of fusion
    recipe = next((name for beginning, name in others.items() if Path(size).name.startswith(beginning)), "vilt.yaml")
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


def tiny(recipe: str) -> list[str]:
    """Options that bring a paper's recipe to its tiny size: the size, a small vocabulary, the classes of the scenes' regions."""
    config = layer([recipe]).config
    size = next(path.stem for path in reversed(layer([recipe]).files) if path.parent.name == "sizes")
    family = next(name for name in sorted(TINY, key=len, reverse=True) if size.startswith(name))
    kind = "-e2e" if size.endswith("-e2e") else ""
    words = ["--config", recipe, "--config", f"sizes/{family}-tiny{kind}.yaml", "--config", "debug.yaml"]
    merged = "byte_bpe" if (config["data"].get("text") or {}).get("dropout") else "wordpiece"  # dropout is one of merges
    words += ["--data.text.tokenizer", merged, "--data.text.vocab_size", "300", "--data.max_tokens", "52"]
    show = config["data"].get("show", "image")
    if show in ("regions", "both"):
        words += ["--data.regions", "{}"]  # scenes have 1 to 4, and no scores to choose by
        if "mrc" in config["model"]["objectives"]:
            words += ["--model.objectives.mrc.init_args.classes", "6", "--model.objectives.mrc.init_args.background", "null"]
    if show != "regions":
        words += ["--data.image.size", "64", "--data.image.multiple", "32" if "pixelbert" in recipe else "16"]
    if show == "image+codes":
        words += ["--data.image.mode", "squash", "--model.objectives.mim.init_args.codes", "512"]  # as the codes beside the scenes are
    return words + (["--data.buckets", "null"] if "buckets" in config["data"] else [])


PAPER = [recipe for recipe in RECIPES if "/" in recipe]  # the others: tests/cli/test_fit.py
TINY = [Path(size).name.removesuffix("-tiny.yaml") for size in SIZES if size.endswith("-tiny.yaml")]
# one of each system in the quick suite; releases and large sizes differ from it in values
QUICK = {f"paper/{name}.yaml" for name in ("vilt", "clip-vit-b-32", "uniter", "lxmert", "oscar-plus", "vlbert-e2e")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A few scenes with and without regions, to train and to validate on."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, n in (("train", 16), ("val", 8)):
        scene_regions.write(folder / split, n, split, shard_size=16)
    return folder


@pytest.mark.parametrize("recipe", [pytest.param(r, marks=() if r in QUICK else pytest.mark.slow) for r in PAPER])
def test_every_paper_recipe_takes_two_steps_at_its_tiny_size(recipe, scenes, tmp_path, monkeypatch):
    from mmpretrain.cli.main import main

    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))
    words = ["fit", *tiny(recipe), *_sources(recipe, scenes), "--data.batch_size", "8", "--data.workers", "0", "--trainer.max_steps", "2"]
    words += ["--trainer.limit_val_batches", "0", "--trainer.precision", "32-true", "--trainer.accelerator", "cpu", "--loggers", "[]"]
    assert main([*words, "--final.measure", "false"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    # ImageBERT's squared distance is a sum over the values of a feature, LXMERT divides its sums by 0.15
    most = 1000 if any(name in recipe for name in ("imagebert", "lxmert")) else 20
    assert len(losses) == 2 and all(0 < loss < most for loss in losses)


def _sources(recipe: str, scenes: Path) -> list[str]:
    if "train" in layer([recipe]).config["data"]:
        return scene_regions.sources(recipe, scenes / "train", scenes / "val")
    shown = "codes" if "codes" in layer([recipe]).config["data"].get("show", "") else "plain"
    return ["--data.train", str(scenes / "train" / shown), "--data.val", "{}"]

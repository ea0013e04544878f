"""Closed forms of the parameters of the systems over regions, as docs/regions-family.md writes them, and the counts on their pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mmpretrain.cli.layering import layer, shipped
from mmpretrain.evaluate.rebuild import build
from mmpretrain.objectives.base import Objective
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Vocabulary

DOCS = Path(__file__).parents[2] / "docs"
FAMILY = (DOCS / "regions-family.md").read_text(encoding="utf-8")
SIZES = shipped() / "sizes"
NAMES = {  # beginning of a size -> system
    "vilbert": "ViLBERT", "ernie-vil": "ERNIE-ViL", "lxmert": "LXMERT", "interbert": "InterBERT", "uniter": "UNITER",
    "unicoder-vl": "Unicoder-VL", "imagebert": "ImageBERT", "oscar": "Oscar", "oscar-plus": "Oscar+", "visualbert": "VisualBERT",
    "vlbert": "VL-BERT", "pixelbert": "Pixel-BERT",
}  # fmt: skip
PAGES = sorted({name.removesuffix("-plus") for name in NAMES})
BOX = {"none": 0, "xyxy": 4, "xyxya": 5, "xyxywh": 6, "xyxywha": 7}


def family(size: str) -> str:
    return max((name for name in NAMES if size.startswith(name)), key=len)


FILES = sorted(path.stem for path in SIZES.glob("*.yaml") if any(path.stem.startswith(f"{name}-") for name in NAMES))


def python(formula: str) -> str:
    """The formula with its products written out: ``2 d m`` -> ``2 * d * m``; a name right before its bracket is a function."""
    formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula)
    return formula.replace("^", "**")


def formulas(block: int) -> tuple[dict[str, str], dict[str, str]]:
    """The lines of a block of the section: what is defined, as parts of a lambda, and the system's own."""
    section = FAMILY.partition("\n## Parameters\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^```text\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[block].splitlines()
    parts: dict[str, str] = {}
    systems: dict[str, str] = {}
    for name, _, rest in (line.partition(" = ") for line in lines if line):
        formula = python(re.split(r" {2,}", rest.strip())[0])
        if name[0].islower():
            called, _, arguments = name.strip().partition("(")
            parts[called] = f"lambda {arguments.rstrip(')')}: {formula}" if arguments else formula
        else:
            systems |= dict.fromkeys((one.strip() for one in name.split(",")), formula)
    return parts, systems


def compute(system: str, known: dict[str, int], block: int) -> int:
    """What the page's formula gives; a name that is not known is an error."""
    parts, systems = formulas(block)
    scope: dict[str, Any] = {"__builtins__": {}, **known}
    for name, formula in parts.items():
        scope[name] = eval(formula, scope)
    return eval(systems[system], scope)


def stack(node: dict[str, Any]) -> tuple[int, int, int]:
    """Width, blocks and width of the MLP."""
    options = node["init_args"]
    return options["width"], options["depth"], int(options["width"] * options.get("mlp_ratio", 4))


def known(size: str, model: nn.Module) -> dict[str, int]:
    """The letters of a size, by its file; of ``model`` the network alone, whose count is torchvision's (tests/nn/test_cnn.py)."""
    parts = yaml.safe_load((SIZES / f"{size}.yaml").read_text())["model"]["system"]["init_args"]
    options = lambda name: parts[name]["init_args"]
    text, seen = options("text" if "text" in parts else "embed"), options(next(x for x in ("regions", "image", "embed") if x in parts))
    width, depth, hidden = stack(parts["blocks" if "blocks" in parts else "text_blocks"])
    found = {"V": text["vocab_size"], "P": text["positions"], "S": text.get("segments", 3), "D": width, "L": depth, "M": hidden, "C": 1024}
    found |= dict(zip("EKN", stack(parts["image_blocks"]), strict=True)) if "image_blocks" in parts else {}
    joint = next((name for name in ("co_attention", "cross", "joint_blocks") if name in parts), None)
    found |= {"J": options(joint)["depth"]} if joint else {}
    found |= {"C": options(joint)["width"]} if joint == "co_attention" else {}
    found |= {"C": parts["pooled_width"]} if "pooled_width" in parts else {}
    network = getattr(model, "detector", None) or (model.image if "image" in parts else None)
    found |= {"R": count(network.cnn)} if network is not None else {}
    found["F"] = network.cnn.channels[-1] if "image" in parts else seen.get("features", 2048)
    found["B"] = seen.get("geometry", 2048) if "embed" in parts else BOX[seen.get("box", "xyxya")]
    return found


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for p in nn.ModuleList(modules).parameters())


def made(size: str) -> nn.Module:
    with torch.device("meta"):
        return build(yaml.safe_load((SIZES / f"{size}.yaml").read_text())["model"]["system"], nn.Module, "system")


def named(size: str) -> str:
    return NAMES[family(size)] + (" end to end" if size.endswith("-e2e") else "")


@pytest.mark.parametrize("size", FILES)
def test_the_closed_form_of_a_model(size: str) -> None:
    model = made(size)
    assert compute(named(size), known(size, model), 0) == count(model)


def with_heads(size: str, recipe: str) -> tuple[int, int]:
    """Parameters of a size with the objectives of a recipe, built and by the closed forms."""
    model, nodes = made(size), layer([f"paper/{recipe}.yaml"]).config["model"]["objectives"]
    with torch.device("meta"):
        root = Pretraining(model, {name: build(node, Objective, name) for name, node in nodes.items()})
        root.bind(Vocabulary(model.spec.vocab_size, 0, 1, 2, 3, (0, 1, 2, 3)))
    options = lambda name: nodes.get(name, {}).get("init_args", {})
    letters = {"A": options("mrc").get("classes") or options("objects").get("classes"), "T": options("objects").get("attributes")}
    letters = {**known(size, model), **letters, "Q": options("vqa").get("answers")}
    return count(root), sum(compute(named(size), {k: v for k, v in letters.items() if v is not None}, block) for block in (0, 1))


def rows(page: str) -> dict[str, list[str]]:
    """The table of sizes of a page: first cell -> the others."""
    (table,) = (part for part in (DOCS / f"{page}.md").read_text(encoding="utf-8").split("\n\n") if "file in `configs/sizes/`" in part)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {first: rest for first, *rest in cells}


def numbers(cell: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]+", cell)]


@pytest.mark.parametrize("page", PAGES)
def test_the_counts_of_a_page(page: str) -> None:
    table = rows(page)
    files = [re.findall(r"`([\w-]+)\.yaml`", cell) for cell in table["file in `configs/sizes/`"]]
    assert [numbers(cell) for cell in table["parameters"]] == [[count(made(size)) for size in sizes] for sizes in files]
    (heads,) = (cells for first, cells in table.items() if first.startswith("with the heads of pre-training"))
    for sizes, cell in zip(files, heads, strict=True):
        if not sizes[0].endswith("-tiny"):
            recipe = "vlbert-e2e" if sizes[0].endswith("-e2e") else family(sizes[0])
            built, closed = with_heads(sizes[0], recipe)
            assert numbers(cell) == [built] == [closed], sizes
    listed = {f"{page}-{kind}" for kind in ("base", "large")} & set(FILES)
    assert listed <= {size for sizes in files for size in sizes}


def test_the_heads_of_the_released_interbert() -> None:
    assert with_heads("interbert-base", "interbert-release") == (157_021_565, 157_021_565)
    assert "157,021,565" in (DOCS / "interbert.md").read_text(encoding="utf-8")


def test_the_table_of_the_family() -> None:
    table = FAMILY.partition("\n## Networks\n\n")[2].partition("\n\n")[0].splitlines()
    lines = [line.strip("|").split("|") for line in table[2:]]
    # not strict: the cell of Pixel-BERT has the number of its ResNet-50 behind the count
    found = {name.strip(): number for cells in lines for name, number in zip(cells[0].split(";"), numbers(cells[-1]), strict=False)}
    sizes = {name: f"{beginning}-{'r50' if beginning == 'pixelbert' else 'base'}" for beginning, name in NAMES.items()}
    assert found == {name: count(made(size)) for name, size in sizes.items()}

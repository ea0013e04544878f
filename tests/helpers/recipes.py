"""Recipes as the command line makes them, without data and without memory."""

from __future__ import annotations

from typing import Any

import torch

from mmpretrain.cli.layering import layer
from mmpretrain.cli.train import CLI
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Vocabulary


class ParseOnly(CLI):
    """Parsed, not instantiated."""

    def before_instantiate_classes(self) -> None:
        self._dump_config()

    def instantiate_classes(self) -> None:
        return None


def parsed(files: list[str], *options: str) -> ParseOnly:
    """The namespace of ``fit`` for these files, before anything is instantiated."""
    return ParseOnly("fit", layer(files), list(options))


def module_on_meta(files: list[str]) -> Any:
    """What is trained, objectives bound, without memory."""
    cli = parsed(files)
    with torch.device("meta"):
        built = cli.parser.instantiate_classes(cli.config).fit.model
        root: Pretraining = built.root
        known = Vocabulary(root.model.spec.vocab_size, 0, 1, 2, 3, (0, 1, 2, 3), answers=("no", "yes"))
        paper = str(files[0]).startswith("paper/")  # these say everything themselves; recipes on scenes have 6 shapes and 14 attributes
        root.bind(known if paper else known._replace(region_classes=6, region_attributes=14))
    return built


def root_on_meta(files: list[str]) -> Pretraining:
    """The model and its bound objectives, without memory."""
    return module_on_meta(files).root

"""``mmpretrain compare``: every recipe goes through the parser of ``fit`` before any of them is trained."""

from __future__ import annotations

from collections.abc import Iterable

from mmpretrain.cli.compare_plan import Recipe
from mmpretrain.cli.errors import UserError
from mmpretrain.cli.layering import Layers
from mmpretrain.cli.parser import Refused
from mmpretrain.cli.train import CLI


class Parsed(CLI):
    """``fit`` as far as its parser: nothing is seeded and nothing made."""

    def _set_seed(self) -> None:
        """Nothing."""

    before_instantiate_classes = instantiate_classes = _set_seed


def check(recipe: Recipe, typed: Iterable[str]) -> None:
    """A recipe must be one that ``fit`` reads.

    Raises:
        UserError: it is not; names the recipe, the key and the file, or that the key was ``typed``.
    """
    try:
        Parsed("fit", Layers(recipe.config, (), dict(recipe.origin)), [], typed=typed)
    except Refused as error:
        raise UserError(f"{recipe.label}: {error}") from error

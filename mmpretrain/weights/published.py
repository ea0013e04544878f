"""Weights that the authors of a system published, as the beginning of a run or for evaluation.

A file must be a state dict (see ``weights.files``); its layout is named, because several systems have kept BERT's names for different
things. Every tensor of the file must be mapped or be among those that the layout is known to have beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.weights import beit, ernie_vil, interbert, lxmert, oscar, uniter, vilbert, visualbert, vlbert
from mmpretrain.weights.files import WeightsError, read_state
from mmpretrain.weights.keymap import KeyMapError
from mmpretrain.weights.layout import Imported, Layout, from_published, load_heads, load_model

LayoutName = Literal[
    "lxmert", "lxmert-transformers", "visualbert", "visualbert-transformers", "vilbert", "uniter", "interbert", "oscar", "oscar-plus",
    "vlbert", "ernie-vil", "beit", "beit-transformers",
]  # fmt: skip
_ALL = (
    lxmert.OFFICIAL, lxmert.TRANSFORMERS, visualbert.OFFICIAL, visualbert.TRANSFORMERS, vilbert.OFFICIAL, uniter.OFFICIAL,
    interbert.OFFICIAL, oscar.OFFICIAL, oscar.PLUS, vlbert.OFFICIAL, ernie_vil.OFFICIAL,
    beit.OFFICIAL, beit.TRANSFORMERS,
)  # fmt: skip
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _ALL}
assert tuple(LAYOUTS) == get_args(LayoutName)


def import_weights(
    model: nn.Module, path: str | Path, layout: str | None = None, objectives: Mapping[str, Any] | None = None
) -> Imported:
    """Fill a model, and the heads of its objectives, from a published file.

    Args:
        path: a state dict: ``.safetensors``, ``torch.save``, ``.npz``, or a folder of transformers.
        layout: one of ``LAYOUTS``; None: the one of the authors of this system.
        objectives: by name, with their heads; those that the file has nothing for stay as they are.

    Returns:
        everything that was in the file, under our names.

    Raises:
        WeightsError: the file cannot be read, is of another layout, or does not fit the model.
    """
    chosen = _layout(model, layout)
    source = f"{path} ({chosen.name})"
    try:
        found = from_published(chosen, model, read_state(path))
    except KeyMapError as error:
        raise WeightsError(f"{source}: {error}") from None
    load_model(model, found.model, source)
    filled, left = load_heads(objectives or {}, found)
    lists = {"heads filled": filled, "heads left as they were": left, "kinds of heads in the file": list(found.heads)}
    told = "; ".join(f"{what}: {', '.join(names) or 'none'}" for what, names in lists.items())
    return found._replace(said=f"{type(model).__name__} starts as {source}; {told}")


def _layout(model: nn.Module, name: str | None) -> Layout:
    """
    Raises:
        WeightsError: an unknown name, or none is known for the model.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise WeightsError(f"there is no layout {name!r}; known are {', '.join(LAYOUTS)}")
        return LAYOUTS[name]
    found = next((layout for layout in _ALL if type(model) is layout.model), None)
    if found is None:
        raise WeightsError(f"no published layout of {type(model).__name__} is known; known are {', '.join(LAYOUTS)}")
    return found


class FromPublished(ModelTransform):
    """The whole model starts as a published checkpoint, in the sizes of that checkpoint.

    Args:
        path: of the weights, see ``import_weights``.
        layout: how they are laid out.
        heads: fill the heads of the objectives too, where kind and size agree.
    """

    initialises: ClassVar[bool] = True

    def __init__(self, path: str, layout: LayoutName, heads: bool = True) -> None:
        self.path, self.layout, self.heads = path, layout, heads

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        """
        Raises:
            WeightsError: see ``import_weights``.
        """
        self.said = import_weights(model, self.path, self.layout, around.objectives if self.heads else None).said
        return model

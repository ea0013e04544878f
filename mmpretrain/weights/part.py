"""Published weights as the beginning of a part of a model: a transform for ``model.transforms`` of a recipe.

    transforms:
    - class_path: mmpretrain.weights.part.FromFile
      init_args: {path: resnet50-11ad3fa6.pth, part: image.cnn, skip: [fc.]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.weights.files import WeightsError, read_state


class FromFile(ModelTransform):
    """One part of the model starts as a file says.

    Args:
        path: of weights, see ``weights.files.read_state``. torchvision's and timm's networks fit ``mmpretrain.nn.cnn`` by name.
        part: name of the part in the model: ``image.cnn`` (Pixel-BERT), ``detector.cnn`` (VL-BERT).
        prefix: what the names of the part begin with in the file; everything else in the file is left alone.
        skip: beginnings of further names, without the prefix, that the part has no place for.
    """

    initialises: ClassVar[bool] = True

    def __init__(self, path: str, part: str, prefix: str = "", skip: Sequence[str] = ()) -> None:
        self.path, self.part, self.prefix, self.skip = Path(path), part, prefix, tuple(skip)

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        """
        Raises:
            WeightsError: the file cannot be read, the model has no such part, or names or shapes differ.
        """
        try:
            part = model.get_submodule(self.part)
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children())
            raise WeightsError(f"FromFile: {type(model).__name__} has no part {self.part!r}; its parts are {names}") from None
        found = {name.removeprefix(self.prefix): t for name, t in read_state(self.path).items() if name.startswith(self.prefix)}
        own = part.state_dict()
        lost = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
        more = [name for name in found if name not in own and not name.startswith(self.skip)]
        if lost or more:
            what = f"lacks {lost[0]!r} and {len(lost) - 1} more" if lost else f"has {more[0]!r} and {len(more) - 1} more that find no place"
            raise WeightsError(f"FromFile: {self.path} {what}: see prefix={self.prefix!r} and skip={list(self.skip)} for {self.part}")
        for name, value in own.items():
            if name in found and found[name].shape != value.shape:
                raise WeightsError(f"FromFile: {self.path}: {name} is {tuple(found[name].shape)}, the model takes {tuple(value.shape)}")
        part.load_state_dict({name: found.get(name, value) for name, value in own.items()})
        return model

"""Changes of a model before training begins: weights from elsewhere, other layers in place of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn


class Around(NamedTuple):
    """What a transform may know of the run beside the model."""

    objectives: Mapping[str, Any] = {}  # by name, with their heads
    tokens: Mapping[str, int] | None = None  # of the tokenizer: token -> id


class ModelTransform(ABC):
    """Base of what ``model.transforms`` may name: a function of the model, called once, on whole parameters on the CPU, before any is
    sharded, with heads built and tied.

    A subclass takes plain arguments and reads no file before it is called. It gives the same result on every rank: what it draws, it draws
    from torch's generator or from a seed of its own, never from the rank.
    """

    said = ""  # what was done, a line for people, written by the call
    initialises: ClassVar[bool] = False  # it sets values and nothing else, so that a run that goes on from a checkpoint leaves it out

    @abstractmethod
    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008  (immutable)
        """The model, changed in place, or another one.

        Raises:
            ValueError: the model is none that this is for, or a file does not hold what it needs.
        """

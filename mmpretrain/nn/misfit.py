"""What a batch may lack for a model."""

from __future__ import annotations


class Misfit(ValueError):
    """A batch does not fit the model, since two options do not fit each other, or one the machine. The message names the option to change:
    one line, no traceback, whenever such a batch comes."""

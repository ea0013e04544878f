"""What can be wrong with data. Each message is one line that names the file, the key and the remedy."""

from __future__ import annotations


class DataError(ValueError):
    """A source, a shard or an option of the data module is wrong, and the user can mend it."""


class BadSample(DataError):
    """One sample cannot be read or decoded. The message names shard and key."""


class ResumeError(DataError):
    """The saved position in the data does not belong to these data or options."""

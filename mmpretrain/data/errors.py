"""What can be wrong with data. Each message is one line that names the file, the key and the remedy."""

from __future__ import annotations


class DataError(ValueError):
    """A source, a shard or an option of the data module is wrong, and the user can mend it."""


def named(shard: str, key: str) -> str:
    """How messages name a sample."""
    return f"{shard} key {key!r}"


class BadSample(DataError):
    """One sample cannot be read or decoded. The message names shard and key; ``shard`` and ``key`` do where the error is ``of`` a sample,
    else they are empty."""

    def __init__(self, message: str, shard: str = "", key: str = "") -> None:
        super().__init__(message)
        self.shard, self.key = shard, key

    @classmethod
    def of(cls, shard: object, key: str, why: object) -> BadSample:
        """That the sample ``key`` of ``shard`` is bad, and why."""
        return cls(f"{named(str(shard), key)}: {why}", str(shard), key)


class ResumeError(DataError):
    """The saved position in the data does not belong to these data or options."""

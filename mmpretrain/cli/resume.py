"""What a checkpoint says of its configuration, and where this command differs: what the user types wins, every difference is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.cli.errors import UserError
from mmpretrain.cli.layering import leaves

PLACE_ONLY = (  # of this command alone
    "ckpt_path", "config", "trainer.default_root_dir", "trainer.enable_progress_bar", "verbose", "return_predictions", "predictions"
)  # fmt: skip


class Difference(NamedTuple):
    """A key whose value is not the checkpoint's. A missing key is ``ABSENT``."""

    key: str
    here: Any
    there: Any


ABSENT = "(not set)"


def saved_entry(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run: ``config``, ``tokenizer`` and so on. Only plain types are loaded. Where ``last`` is torn, the
    checkpoint before it is read, as the run itself will.

    Raises:
        UserError: not a checkpoint of this suite.
    """
    import pickle  # only for the name of the error that a file which is no checkpoint gives

    import torch

    from mmpretrain.train.atomic import CheckpointError, choose

    try:
        content = torch.load(choose(path), map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    entry = content.get("mmpretrain") if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{path}: a checkpoint, but not one of this suite (it has no 'mmpretrain' entry)")
    return {**entry, "config": entry.get("config") or {}}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in leaves(config)}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[Difference]:
    """Leaves that differ between the configuration of this command and the checkpoint's, in the order of this one."""
    now, then = _flat(here), _flat(there)
    keys = list(now) + [key for key in then if key not in now]
    found = [Difference(key, now.get(key, ABSENT), then.get(key, ABSENT)) for key in keys]
    skip = tuple(PLACE_ONLY)
    return [d for d in found if d.here != d.there and not d.key.startswith(skip) and not _empty(d)]


def _empty(difference: Difference) -> bool:
    nothing: tuple[Any, ...] = (None, ABSENT, {}, [])
    return difference.here in nothing and difference.there in nothing


def shown(difference: Difference) -> str:
    """One line for the user."""
    return f"{difference.key}: {difference.here} here, {difference.there} in the checkpoint; {difference.here} is used"


def find_checkpoint(text: str | Path, root: Path = Path("runs")) -> Path:
    """The checkpoint that the user names.

    Args:
        text: a checkpoint (a file, or the folder of a sharded one); the folder of a run, for its last one; or ``last`` and ``best``,
            for those of the run that a launcher named (``MMPRETRAIN_RUN_DIR``), else of the newest run under ``root``.

    Raises:
        UserError: there is none.
    """
    path = Path(text).expanduser()
    if str(text) in ("last", "best"):
        named = os.environ.get("MMPRETRAIN_RUN_DIR")
        if named and (found := _named(Path(named) / "checkpoints", str(text))):
            return found
        runs = sorted((p for p in root.glob("*/checkpoints") if _named(p, str(text))), key=lambda p: p.stat().st_mtime)
        if not runs:
            raise UserError(f"--ckpt_path {text}: no run under {root.resolve()} has a checkpoint yet; name a file")
        return _named(runs[-1], str(text))
    if (path / "checkpoints").is_dir():
        found = _named(path / "checkpoints", "last")
        if found is None:
            raise UserError(f"{path}: this run has no checkpoint yet")
        return found
    if path.exists():
        return path
    raise UserError(f"there is no checkpoint {path}; name a file, the folder of a run, or 'last'")


def _named(folder: Path, name: str) -> Path | None:
    for candidate in (folder / f"{name}.ckpt", folder / name):
        if candidate.exists():
            return candidate
    return None

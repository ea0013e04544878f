"""What a checkpoint says of its configuration, and where this command differs: what the user types wins, every difference is shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.cli.errors import UserError
from mmpretrain.cli.layering import leaves
from mmpretrain.train import places

PLACE_ONLY = (  # of this command alone
    "ckpt_path", "config", "trainer.default_root_dir", "trainer.enable_progress_bar", "verbose", "return_predictions", "predictions"
)  # fmt: skip


UNTRUSTED = "data.allow_pipe"  # lets sources run commands: a file from elsewhere has no say in it


class NothingSaved(UserError):
    """The run that is to be continued has saved nothing yet."""


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
    import torch

    from mmpretrain.train.atomic import CheckpointError, choose, unreadable

    try:
        content = torch.load(choose(path), map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except OSError:
        raise
    except Exception as error:  # of damaged bytes the unpickler of torch may say anything
        raise UserError(f"{path}: not a readable checkpoint ({unreadable(error)})") from error
    entry = content.get("mmpretrain") if isinstance(content, dict) else None
    if not isinstance(entry, dict):
        raise UserError(f"{path}: a checkpoint, but not one of this suite (it has no 'mmpretrain' entry)")
    config = entry.get("config") or {}
    if not isinstance(config, dict) or not all(isinstance(config.get(section, {}), dict) for section in ("data", "model")):
        raise UserError(f"{path}: the configuration inside is no mapping of keys to values")
    return {**entry, "config": config}


def trusted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint as a layer below what the user says: without ``UNTRUSTED``, and without what would bring in
    further files or set a key by another spelling."""
    kept = {key: value for key, value in config.items() if "." not in str(key) and key not in ("config", "ckpt_path")}
    section, _, name = UNTRUSTED.partition(".")
    if isinstance(inner := kept.get(section), Mapping):
        kept[section] = {key: value for key, value in inner.items() if key != name}
    return kept


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


def same_system(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Raise UserError where the model of a checkpoint is of another class than that of this command."""
    ours, theirs = (((config.get("model") or {}).get("system") or {}).get("class_path") for config in (here, there))
    if ours and theirs and ours != theirs:
        raise UserError(
            f"{path}: a checkpoint of {theirs.rpartition('.')[2]}, but the configuration is of {ours.rpartition('.')[2]}; name one of this "
            "system, or leave --config out to go on with that run"
        )


def shown(difference: Difference) -> str:
    """One line for the user."""
    return f"{difference.key}: {difference.here} here, {difference.there} in the checkpoint; {difference.here} is used"


def find_checkpoint(text: str | Path, root: Path = Path("runs"), recipe: str | None = None) -> Path:
    """The checkpoint that the user names.

    Args:
        text: a checkpoint (a file, or the folder of a sharded one); the folder of a run, for its last one; or ``last`` and ``best``,
            for those of the run that a launcher or a job script named (``MMPRETRAIN_RUN_DIR``), else of the newest run under ``root``.
        root: where runs are.
        recipe: only runs of this recipe count as the newest; None: of any.

    Raises:
        NothingSaved: the run that ``MMPRETRAIN_RUN_DIR`` names has no ``last`` yet.
        UserError: there is none.
    """
    path = Path(text).expanduser()
    if str(text) in ("last", "best"):
        if chosen := os.environ.get(places.VARIABLE):
            run = Path(chosen)
            if (found := places.named(run, str(text))) is None:
                kind = NothingSaved if str(text) == "last" else UserError
                raise kind(f"--ckpt_path {text}: {run}, which {places.VARIABLE} names, has no such checkpoint yet")
            return found
        newest = places.latest(root, recipe, str(text))
        if newest is None:
            of = f" of {recipe}" if recipe else ""
            raise UserError(f"--ckpt_path {text}: no run{of} under {root.resolve()} has a checkpoint yet; name a file or a run's folder")
        return places.named(newest, str(text))
    if (path / "checkpoints").is_dir():
        found = places.named(path)
        if found is None:
            raise UserError(f"{path}: this run has no checkpoint yet")
        return found
    if path.exists():
        return path
    raise UserError(f"there is no checkpoint {path}; name a file, the folder of a run, or 'last'")


def split_config(words: list[str]) -> tuple[list[str], list[str]]:
    """(values of ``--config`` and ``-c`` in order, the other words)."""
    files, others = [], []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        name, equals, value = word.partition("=")
        if name not in ("--config", "-c"):
            others.append(word)
        elif equals:
            files.append(value)
        elif index < len(words):
            files.append(words[index])
            index += 1
        else:
            raise UserError("--config needs the name of a file, for example --config vilt.yaml")
    return files, others


def with_checkpoint(options: list[str], path: Path | None) -> list[str]:
    """``options`` with ``--ckpt_path`` replaced by the file that it stands for; None: by none."""
    kept, skip = [], False
    for word in options:
        if skip:
            skip = False
        elif word == "--ckpt_path":
            skip = True
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    return [*kept, "--ckpt_path", "null" if path is None else str(path)]

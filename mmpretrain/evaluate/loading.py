"""From a checkpoint to a ``Pretrained``: plain tensors and plain types only, nothing outside the suite imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpretrain.data.collate import Collator
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.regions_info import RegionsInfo
from mmpretrain.data.tags import TagOptions, tagger
from mmpretrain.data.text import Tokenizer
from mmpretrain.data.training_set import Defaults, TrainingSet, specs_of
from mmpretrain.data.visual import RegionOptions, Shown
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.rebuild import RefusedCheckpoint, build, construct
from mmpretrain.objectives.base import Objective
from mmpretrain.types import Vocabulary
from mmpretrain.weights import own
from mmpretrain.weights.files import UNSAFE, unread

WEIGHTS = ("auto", "raw", "ema")
_PREFIXES = ("root.", "_orig_mod.", "module.")


def load(path: str | Path, weights: str = "auto", which: str = "best", device: str | torch.device = "cpu") -> Pretrained:
    """Open a checkpoint for inference.

    Args:
        path: a checkpoint file or folder, the folder of a run, or one that ``mmpretrain export --to safetensors`` wrote.
        weights: ``raw``, ``ema``, or ``auto``: the average where the checkpoint has one.
        which: of a run: ``best`` (the last one where none is marked best) or ``last``.
        device: where the model goes.

    Raises:
        ValueError: nothing to load there, not a checkpoint of this suite, or one that asks for more than a model needs
            (``RefusedCheckpoint``). The message is one line.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is 'auto', 'raw' or 'ema', not {weights!r}")
    file = find(Path(path), which)
    checkpoint = read(file)
    about = _about(checkpoint, file)
    config = about["config"]
    objectives = config["model"].get("objectives") or {}
    if not isinstance(objectives, Mapping):
        raise RefusedCheckpoint(f"{file}: model.objectives is not a table")
    state, chosen = _state(checkpoint, weights, file)
    vocabulary, tokenizer = _vocabulary(about.get("vocabulary"), file), _tokenizer(about.get("tokenizer"), file)
    model, heads = _build(config, vocabulary, file)
    _load_state(nn.ModuleDict({"model": model, "objectives": heads}), state, file)
    transform = _transform(config, file)
    found = Pretrained(
        model.eval(),
        cast(Mapping[str, Any], heads.eval()),
        tokenizer,
        transform,
        vocabulary,
        collate=Collator(vocabulary.pad if vocabulary else 0, transform.mean, transform.std),
        config=config,
        weights=chosen,
        source=_source(file, about),
        place=str(path),
        about={name: value for name, value in about.items() if name not in ("config", "tokenizer", "vocabulary")},
        **_seeing(config, about, transform, file),
    )
    return found.to(device)


def find(path: Path, which: str = "best") -> Path:
    """The checkpoint file that ``path`` stands for.

    Raises:
        ValueError: there is none.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which is 'best' or 'last', not {which!r}")
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint or run")
    if (path / own.ABOUT).is_file():
        return path / own.ABOUT
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    named = [folder / f"{name}.ckpt" for name in (("best", "last") if which == "best" else ("last",))]
    candidates = [file for file in named if file.is_file()] + sorted(folder.glob("step-*.ckpt"), reverse=True)
    if not candidates:
        raise ValueError(f"{path}: holds no checkpoint (no .ckpt file in {folder})")
    return candidates[0].resolve()


def _check(file: Path) -> None:
    """Compare the file with the manifest beside it, where there is one.

    Raises:
        ValueError: torn or altered.
    """
    manifest = file.with_name(f"{file.name}.json")
    if not manifest.is_file():
        return
    try:
        entry = json.loads(manifest.read_text(encoding="utf-8"))
        known = {entry["sha256"], entry.get("previous")}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{manifest}: unreadable manifest; remove it to load the checkpoint unchecked") from None
    with file.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() not in known:
            raise ValueError(f"{file}: does not match its manifest {manifest.name}, so it is torn or altered; take another checkpoint")


def read(file: Path) -> dict[str, Any]:
    """The checkpoint as tensors and plain types (``weights_only=True``).

    Raises:
        ValueError: unreadable, not what its manifest says, or holding something else, which is never executed.
    """
    if file.name == own.ABOUT:
        return own.read(file)
    _check(file)
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  of damaged bytes the unpickler of torch may say anything
        if (reason := unread(file, error)) == UNSAFE:
            raise RefusedCheckpoint(f"{file}: {reason}") from None
        raise ValueError(f"{file}: not a readable checkpoint ({reason})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: is not a checkpoint of mmpretrain")
    return found


def _about(checkpoint: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    about = checkpoint.get("mmpretrain")
    config = about.get("config") if isinstance(about, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        raise ValueError(f"{file}: has no entry 'mmpretrain' with a configuration; it was not written by mmpretrain fit")
    return about


def _state(checkpoint: Mapping[str, Any], weights: str, file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors to load by names below the root, and whether they are "raw" or "ema"."""
    raw = checkpoint.get("state_dict")
    if not isinstance(raw, Mapping):
        raise ValueError(f"{file}: has no state_dict")
    state = {_strip(name): value for name, value in raw.items()}
    if only := checkpoint.get("weights"):  # an exported folder has one kind
        if weights not in ("auto", only):
            raise ValueError(f"{file}: holds {only} weights alone; load it with weights='{only}'")
        return state, str(only)
    average = checkpoint.get("ema")
    if weights == "raw" or (weights == "auto" and not average):
        return state, "raw"
    if not isinstance(average, Mapping) or not average:
        raise ValueError(f"{file}: has no averaged weights; load it with weights='raw', or train with model.ema_decay")
    averaged = {_strip(name): value for name, value in average.items()}
    ties = _shared(state)
    for name, value in list(averaged.items()):  # an average is kept once for names that share one parameter
        for other in ties.get(name, ()):
            averaged.setdefault(other, value)
    return {**state, **averaged}, "ema"


def _shared(state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Name -> other names with the same storage."""
    by_storage: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for name, value in state.items():
        by_storage.setdefault((value.data_ptr(), tuple(value.shape)), []).append(name)
    return {name: [o for o in names if o != name] for names in by_storage.values() if len(names) > 1 for name in names}


def _strip(name: str) -> str:
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, changed = name.removeprefix(prefix), True
    return name.replace("._orig_mod.", ".")


def _build(config: Mapping[str, Any], vocabulary: Vocabulary | None, file: Path) -> tuple[nn.Module, nn.ModuleDict]:
    """Model and objectives with their heads, freshly initialised."""
    model = build(config["model"].get("system"), nn.Module, f"{file}: model.system")
    heads = nn.ModuleDict()
    for name, node in (config["model"].get("objectives") or {}).items():
        objective = build(node, Objective, f"{file}: model.objectives.{name}")
        objective.name = name
        objective.bind(model.spec, vocabulary)
        heads[name] = objective
    for objective in heads.values():
        objective.connect(heads)  # type: ignore[operator]  # an Objective
    return model, heads


def _tokenizer(text: Any, file: Path) -> Tokenizer | None:
    if text is None:
        return None
    try:
        return Tokenizer.from_json(text)
    except DataError as error:
        raise ValueError(f"{file}: {error}") from None


def _transform(config: Mapping[str, Any], file: Path) -> ImageTransform:
    """The image transform of ``data.image``; the default one where the run did not set it, with Pillow where no decoder is named."""
    node = (config.get("data") or {}).get("image") or {}
    if not isinstance(node, Mapping):
        raise RefusedCheckpoint(f"{file}: data.image is not a table")
    if "class_path" in node:
        node = {**node, "init_args": {"decoder": "pil", **(node.get("init_args") or {})}}
        return build(node, ImageTransform, f"{file}: data.image")
    return construct(ImageTransform, {"decoder": "pil", **node}, f"{file}: data.image")


def _seeing(config: Mapping[str, Any], about: Mapping[str, Any], transform: ImageTransform, file: Path) -> dict[str, Any]:
    """What the run showed of samples (``data.show``, ``data.regions``, and those of its sources) and told with texts (``data.tags``);
    pictures alone, and nothing, where it did not say."""
    data = config.get("data") or {}
    regions = _options(RegionOptions, data.get("regions"), f"{file}: data.regions")
    tags = _options(TagOptions, data.get("tags"), f"{file}: data.tags")
    try:
        shown = Shown(data.get("show") or "image", regions or RegionOptions()).check(transform)
        known = TrainingSet(specs_of(data.get("train") or ""), Defaults("captions", "sample", shown))
        by_source = {name: known.shown(name).check(transform) for name in known.specs if name}
        info = RegionsInfo.from_json(about["regions"], file) if about.get("regions") else None
        return {"shown": shown, "by_source": by_source, "tagger": None if tags is None else tagger(tags, info)}
    except (DataError, TypeError) as error:
        raise RefusedCheckpoint(f"{file}: {error}") from None


def _options(kind: type, node: Any, where: str) -> Any:
    """The options at a place of the configuration; None where there are none."""
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise RefusedCheckpoint(f"{where} is not a table")
    try:
        return build(node, kind, where) if "class_path" in node else construct(kind, node, where)
    except DataError as error:
        raise RefusedCheckpoint(f"{where}: {error}") from None


def _vocabulary(found: Any, file: Path) -> Vocabulary | None:
    if found is None:
        return None
    try:
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in found.items()}
        return Vocabulary(**fields)
    except (TypeError, KeyError):
        raise ValueError(f"{file}: its vocabulary is of another version") from None


def _load_state(holder: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Copy the tensors, all of them and no others.

    Raises:
        ValueError: names or shapes differ.
    """
    own = holder.state_dict()
    if missing := sorted(set(own) - set(state)):
        raise ValueError(f"{file}: lacks {len(missing)} tensors of its own configuration, {_few(missing)}")
    if extra := sorted(set(state) - set(own)):
        raise ValueError(f"{file}: holds {len(extra)} tensors that its configuration has no place for, {_few(extra)}")
    if odd := [name for name in own if own[name].shape != state[name].shape]:
        raise ValueError(f"{file}: {odd[0]} has shape {tuple(state[odd[0]].shape)}, the configuration asks for {tuple(own[odd[0]].shape)}")
    holder.load_state_dict(dict(state), strict=True)


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")


def _source(file: Path, about: Mapping[str, Any]) -> str:
    """Name of the checkpoint with a hash of what it is, for stamps and for resuming. An exported or imported folder gives its own name."""
    name = file.resolve().parent.name if file.name == own.ABOUT else file.name
    step = f"{about['step']}-" if about.get("step") is not None else ""
    described = json.dumps({"config": about["config"], "step": about.get("step"), "size": file.stat().st_size}, sort_keys=True, default=str)
    return f"{name}@{step}{hashlib.sha256(described.encode()).hexdigest()[:12]}"

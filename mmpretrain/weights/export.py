"""Export with proof: a complete folder for transformers, open_clip, timm or ``mmpretrain.load``, or in OpenAI's layout (dVAE), opened again
by that library and compared with the checkpoint.

The folder is written under another name and renamed when the proof holds, so that nothing that looks finished is left by a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmpretrain.models.clip import CLIP
from mmpretrain.models.vilt import ViLT
from mmpretrain.weights import clip, clip_config, export_beit, export_dvae, export_files, export_own, export_regions, own, vilt
from mmpretrain.weights.export_check import CHECKS, Proof, has_transformers
from mmpretrain.weights.keymap import KeyMapError

TARGETS = ("transformers", "open_clip", "timm", "openai", "safetensors")
TOLERANCE = 1e-4


class ExportError(ValueError):
    """The checkpoint cannot be exported, or the exported folder is not equal to it."""


def export(
    pretrained: Any,
    to: str,
    out: Path | str,
    images: Sequence[Any] | None = None,
    texts: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write the folder ``out`` and prove it equal.

    Args:
        pretrained: an ``evaluate.Pretrained``.
        to: "transformers", "open_clip", "timm", "openai" or "safetensors" (for ``mmpretrain.load``).
        out: a folder that does not exist yet, or is empty.
        images: to compare on, as ``pretrained.see`` takes them (PIL images, samples with regions); None: samples of the data of the run.
        texts: texts to compare on; None: samples of the data of the run.
        tolerance: largest difference that counts as equal, absolute for vectors of length 1 and for numbers up to 1, relative beyond.

    Returns:
        the path of ``export_report.json``.

    Raises:
        ExportError: one line: no such target for this model, transformers is needed and not installed, the folder exists, or the largest
            difference exceeds the tolerance.
    """
    out = Path(out)
    family, write, check = _writer(pretrained.model, to)
    _installed(pretrained, to)
    samples = "given"
    if images is None or texts is None:
        own_images, own_texts, samples = pretrained.real_samples()
        images, texts = own_images if images is None else images, own_texts if texts is None else texts
    if not images or not texts:
        raise ExportError("export: the proof needs at least one image and one text")  # "" of a model without texts
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out}: exists already; name a new folder or remove it")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        write(pretrained, partial)
        proof = check(pretrained, partial, list(images), list(texts))
        largest = _judge(proof, to, tolerance)
        export_files.write_json(partial / "provenance.json", export_files.provenance(pretrained))
        parameters = export_files.parameters_of(pretrained.model)
        notes = export_regions.notes(pretrained, family) if write is export_regions.write else []
        (partial / "README.md").write_text(export_files.card(pretrained, to, family, parameters, largest, notes), encoding="utf-8")
        report = _report(pretrained, to, family, proof, largest, tolerance, samples)
        report["files"] = export_files.digests(partial)
        export_files.write_json(partial / "export_report.json", report)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
    except ValueError as error:
        remedy = "; export it to safetensors" if isinstance(error, KeyMapError) else ""
        raise error if isinstance(error, ExportError) else ExportError(f"export to {to}: {error}{remedy}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out / "export_report.json"


Check = Callable[[Any, Path, list[Any], list[str]], Proof]


def _writer(model: Any, to: str) -> tuple[str, Callable[[Any, Path], None], Check]:
    """The name of the family, what writes it for this target, and what compares.

    Raises:
        ExportError: there is no such target, or none for this model.
    """
    if to not in TARGETS:
        raise ExportError(f"export: unknown target {to!r}; known are {', '.join(TARGETS)}")
    known = "CLIP" if isinstance(model, CLIP) else "ViLT" if isinstance(model, ViLT) else export_regions.family_of(model)
    family = known or type(model).__name__
    writers: dict[tuple[str, str], tuple[Callable[[Any, Path], None], Check]] = {
        ("transformers", "CLIP"): (_clip_transformers, CHECKS["transformers", "CLIP"]),
        ("open_clip", "CLIP"): (_clip_open_clip, CHECKS["open_clip", "CLIP"]),
        ("timm", "CLIP"): (_clip_timm, CHECKS["timm", "CLIP"]),
        ("transformers", "ViLT"): (_vilt_transformers, CHECKS["transformers", "ViLT"]),
        ("transformers", "LXMERT"): (export_regions.write, export_regions.check),
        ("transformers", "VisualBERT"): (export_regions.write, export_regions.check),
        ("transformers", "BEiT"): (export_beit.write, export_beit.check),
        ("openai", "DVAE"): (export_dvae.write, export_dvae.check),
        ("safetensors", family): (own.write, export_own.check),
    }
    if (to, family) not in writers:
        homes = [target for target, name in writers if name == family]
        raise ExportError(f"export: {to} has no {family}; export it to {' or '.join(homes)}")
    return (family, *writers[to, family])


def _installed(pretrained: Any, to: str) -> None:
    """open_clip reads every tokenizer but its own with transformers too."""
    needed = to == "transformers" or (to == "open_clip" and pretrained.tokenizer is not None and pretrained.tokenizer.style != "clip")
    if needed and not has_transformers():
        raise ExportError(f"export to {to}: the proof opens the folder with transformers; pip install 'mmpretrain-vl[export]'")


def _judge(proof: Proof, to: str, tolerance: float) -> float:
    """The largest difference; raises ExportError where the proof fails."""
    if proof.tokens_differ is not None:
        raise ExportError(f"export to {to}: the exported tokenizer gives other ids than ours for {proof.tokens_differ!r}")
    if proof.pixels is not None and not proof.pixels <= 1.0:
        raise ExportError(f"export to {to}: the exported preprocessing differs by {proof.pixels:.2g} of 255 on average")
    worst = max(proof.outputs, key=lambda comparison: comparison.difference)
    if not worst.difference <= tolerance:
        said = f"{worst.name} differs by {worst.difference:.3g}, more than {tolerance:g}; nothing was written"
        raise ExportError(f"export to {to}: {said} (reasons: docs/export.md, Limits; --tolerance allows more)")
    return worst.difference


def _report(pretrained: Any, to: str, family: str, proof: Proof, largest: float, tolerance: float, samples: str) -> dict[str, Any]:
    return {
        "to": to,
        "model": family,
        "checkpoint": pretrained.source,
        "weights": pretrained.weights,
        "largest_difference": largest,
        "tolerance": tolerance,
        "samples": {"from": samples, "images": proof.images, "texts": proof.texts},
        "outputs": [comparison._asdict() for comparison in proof.outputs],
        "tokenizer_equal": None if proof.texts == 0 else proof.tokens_differ is None,
        "preprocessing_mean_difference_of_255": proof.pixels,
        "library": proof.library,
    }


def _end(pretrained: Any) -> int:
    """Id of the token that ends every text."""
    vocabulary = pretrained.vocabulary
    if vocabulary is None or vocabulary.sep is None:
        raise ExportError("export: the tokenizer has no token that ends a text, which CLIP reads")
    return vocabulary.sep


def _clip_transformers(pretrained: Any, folder: Path) -> None:
    model, vocabulary = pretrained.model, pretrained.vocabulary
    start = vocabulary.cls if vocabulary is not None else None
    config = clip_config.transformers_config(model, eos_token_id=_end(pretrained), bos_token_id=start, pad_token_id=vocabulary.pad)
    export_files.write_weights(folder / "model.safetensors", clip.to_transformers(model.state_dict()))
    _transformers_files(pretrained, folder, config, "CLIP")


def _vilt_transformers(pretrained: Any, folder: Path) -> None:
    mlm = next((pretrained.objectives[n] for n in pretrained.objectives if hasattr(pretrained.objectives[n], "predict")), None)
    itm = next((pretrained.objectives[n] for n in pretrained.objectives if hasattr(pretrained.objectives[n], "score")), None)
    head = None if mlm is None else mlm.head.state_dict()
    config = vilt.transformers_config(pretrained.model, mlm=mlm is not None)
    export_files.write_weights(folder / "model.safetensors", vilt.to_transformers(pretrained.model.state_dict(), head))
    if itm is not None:
        export_files.write_weights(folder / export_files.HEADS, {f"itm.{name}": t for name, t in itm.head.state_dict().items()})
    _transformers_files(pretrained, folder, config, "ViLT")


def _transformers_files(pretrained: Any, folder: Path, config: dict[str, Any], family: str) -> None:
    import transformers

    config |= {"dtype": "float32", "transformers_version": transformers.__version__}
    export_files.write_json(folder / "config.json", config)
    export_files.write_json(folder / "preprocessor_config.json", export_files.transformers_preprocessor(pretrained.image_transform, family))
    pretrained.tokenizer.save_transformers(folder)


def _clip_open_clip(pretrained: Any, folder: Path) -> None:
    preprocess = export_files.open_clip_preprocess(pretrained.image_transform)
    config = clip_config.open_clip_config(pretrained.model, preprocess, _end(pretrained))
    if pretrained.tokenizer.style != "clip":
        config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "local"  # with local-dir, open_clip reads the tokenizer of the folder
    export_files.write_json(folder / "open_clip_config.json", config)
    export_files.write_weights(folder / "open_clip_model.safetensors", clip.to_open_clip(pretrained.model.state_dict()))
    pretrained.tokenizer.save_transformers(folder)


def _clip_timm(pretrained: Any, folder: Path) -> None:
    transform = pretrained.image_transform
    export_files.write_json(folder / "config.json", clip_config.timm_config(pretrained.model, transform.mean, transform.std))
    export_files.write_weights(folder / "model.safetensors", clip.to_timm(pretrained.model.state_dict()))

"""Opens an exported folder with the library it was written for, and compares what comes out with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpretrain.types import Batch
from mmpretrain.weights.export_files import HEADS


class Comparison(NamedTuple):
    """One output of both models."""

    name: str
    difference: float  # largest absolute difference over max(1, ``scale``)
    absolute: float  # largest absolute difference
    scale: float  # largest absolute value of ours


class Proof(NamedTuple):
    """What was compared."""

    outputs: list[Comparison]
    images: int
    texts: int
    tokens_differ: str | None  # a text for which the exported tokenizer gives other ids, or None
    pixels: float | None  # mean difference of preprocessing in grey values of 255, or None where it was not compared
    library: str  # name and version of what opened the folder


def compare(name: str, ours: Tensor, theirs: Tensor) -> Comparison:
    """Largest difference of two tensors; infinite where shapes differ or a number is not finite."""
    ours, theirs = ours.detach().float().cpu(), theirs.detach().float().cpu()
    if ours.shape != theirs.shape or not bool(torch.isfinite(theirs).all() & torch.isfinite(ours).all()):
        return Comparison(name, float("inf"), float("inf"), float("nan"))
    absolute, scale = float((ours - theirs).abs().max()), float(ours.abs().max())
    return Comparison(name, absolute / max(1.0, scale), absolute, scale)


def ours(pretrained: Any, images: Sequence[Any], texts: Sequence[str]) -> tuple[list[Any], list[Any], Batch]:
    """Transformed images, tokens and the batch of both, as the checkpoint reads them."""
    pixels, tokens = [pretrained.transform(image) for image in images], pretrained.tokenize(list(texts))
    keys = torch.zeros(len(tokens), dtype=torch.int64, device=pretrained.device)
    rows = [pixels[i % len(pixels)] for i in range(len(tokens))]
    return pixels, tokens, Batch(("",) * len(tokens), keys, text=pretrained.text(tokens), image=pretrained.pixels(rows))


def different_text(texts: Sequence[str], tokens: Sequence[Any], theirs: Callable[[str], Sequence[int]]) -> str | None:
    return next((text for text, token in zip(texts, tokens, strict=True) if list(token.ids) != list(theirs(text))), None)


def _mean_pixels(ours_normalised: Sequence[Tensor], theirs: Sequence[Tensor], std: Sequence[float]) -> float:
    """Mean absolute difference of preprocessed images in grey values of 255."""
    if any(a.shape != b.shape for a, b in zip(ours_normalised, theirs, strict=True)):
        return float("inf")
    scale = 255 * torch.tensor(std).view(3, 1, 1)
    return max(float(((a - b).abs() * scale).mean()) for a, b in zip(ours_normalised, theirs, strict=True))


def _normalised(pretrained: Any, pixels: Sequence[Tensor]) -> list[Tensor]:
    return [pretrained.pixels([image]).floats()[0].cpu() for image in pixels]


def has_transformers() -> bool:
    """Whether transformers can be imported: the suite does without it, but for some exports."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """No gradients; transformers, where it is installed, without progress bars and advice."""
    if not has_transformers():
        with torch.no_grad():
            yield
        return
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.no_grad():
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _clip_transformers(pretrained: Any, folder: Path, images: list[Any], texts: list[str]) -> Proof:
    import transformers

    pixels, tokens, batch = ours(pretrained, images, texts)
    inputs = _normalised(pretrained, pixels)
    with quiet():
        model = transformers.CLIPModel.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        mask = torch.zeros_like(batch.text.ids_BT).cpu()
        for row, length in zip(mask, batch.text.lengths, strict=True):
            row[:length] = 1
        out = model(input_ids=batch.text.ids_BT.cpu(), attention_mask=mask, pixel_values=torch.stack(inputs))
        theirs = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
    image_E, text_E = pretrained.encode_pixels(pixels), pretrained.encode_tokens(tokens)
    logits = image_E @ text_E.T * pretrained.logit_scale()[0]
    outputs = [
        compare("image_embeds", image_E, out.image_embeds),
        compare("text_embeds", text_E, out.text_embeds),
        compare("logits_per_image", logits, out.logits_per_image),
    ]
    differs = different_text(texts, tokens, lambda text: tokenizer(text, truncation=True).input_ids)
    shift = _mean_pixels(inputs, theirs, pretrained.image_transform.std)
    return Proof(outputs, len(images), len(texts), differs, shift, f"transformers {transformers.__version__}")


def _clip_open_clip(pretrained: Any, folder: Path, images: list[Any], texts: list[str]) -> Proof:
    import open_clip

    pixels, tokens, _ = ours(pretrained, images, texts)
    name = f"local-dir:{folder}"
    with quiet():
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        model = model.eval()
        prepared = [preprocess(image) for image in images]
        inputs = _normalised(pretrained, pixels)
        image_E = model.encode_image(torch.stack(inputs), normalize=True)
        ids = tokenizer(texts)
        text_E = model.encode_text(ids, normalize=True)
        logits = model.get_logits(torch.stack(inputs), ids)[0]
    ours_image, ours_text = pretrained.encode_pixels(pixels), pretrained.encode_tokens(tokens)
    scale, bias = pretrained.logit_scale()
    outputs = [
        compare("encode_image", ours_image, image_E),
        compare("encode_text", ours_text, text_E),
        compare("logits", ours_image @ ours_text.T * scale + (bias or 0.0), logits),
    ]
    rows = {text: row.tolist() for text, row in zip(texts, ids, strict=True)}
    differs = next((text for text, token in zip(texts, tokens, strict=True) if list(token.ids) != rows[text][: len(token.ids)]), None)
    shift = _mean_pixels(inputs, prepared, pretrained.image_transform.std)
    return Proof(outputs, len(images), len(texts), differs, shift, f"open_clip {open_clip.__version__}")


def _clip_timm(pretrained: Any, folder: Path, images: list[Any], texts: list[str]) -> Proof:
    import timm

    pixels = [pretrained.transform(image) for image in images]
    inputs = _normalised(pretrained, pixels)
    with torch.no_grad():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        feature = torch.nn.functional.normalize(model(torch.stack(inputs)), dim=-1)
        preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        prepared = [preprocess(image) for image in images]
    outputs = [compare("normalised forward", pretrained.encode_pixels(pixels), feature)]
    shift = _mean_pixels(inputs, prepared, pretrained.image_transform.std) if pretrained.image_transform.mode == "clip" else None
    return Proof(outputs, len(images), 0, None, shift, f"timm {timm.__version__}")


def _vilt_transformers(pretrained: Any, folder: Path, images: list[Any], texts: list[str]) -> Proof:
    import transformers
    from safetensors.torch import load_file

    pixels, tokens, batch = ours(pretrained, images, texts)
    mlm = next((pretrained.objectives[n] for n in pretrained.objectives if hasattr(pretrained.objectives[n], "predict")), None)
    kind = transformers.ViltModel if mlm is None else transformers.ViltForMaskedLM
    with quiet():
        model = kind.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        inputs = _vilt_inputs(batch)
        body = (model if mlm is None else model.vilt)(**inputs)
        logits = None if mlm is None else model(**inputs).logits
        theirs = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images]
    hidden = pretrained.forward(batch, lambda hidden, _: hidden)
    keep = inputs["attention_mask"].bool()
    outputs = [
        compare("last_hidden_state of the text", hidden.text.x_ND, body.last_hidden_state[:, : keep.shape[1]][keep]),
        compare("pooler_output", hidden.pooled_BD, body.pooler_output),
    ]
    if logits is not None:
        outputs.append(compare("masked-word logits", pretrained.run(lambda *_: mlm.head(hidden.text.x_ND)), logits[keep]))
    if (folder / HEADS).is_file():
        head = load_file(str(folder / HEADS))
        itm = next(pretrained.objectives[n] for n in pretrained.objectives if hasattr(pretrained.objectives[n], "score"))
        match = body.pooler_output @ head["itm.weight"].T + head["itm.bias"]
        outputs.append(compare("matching log-odds", pretrained.run(lambda *_: itm.score(hidden)), match[:, 1] - match[:, 0]))
    differs = different_text(texts, tokens, lambda text: tokenizer(text, truncation=True).input_ids)
    shift = _mean_pixels(_normalised(pretrained, pixels), theirs, pretrained.image_transform.std)
    return Proof(outputs, len(images), len(texts), differs, shift, f"transformers {transformers.__version__}")


def _vilt_inputs(batch: Batch) -> dict[str, Tensor]:
    """Our batch as transformers' ViLT takes it: padded, with masks."""
    text, image = batch.text, batch.image
    words = torch.zeros_like(text.ids_BT).cpu()
    for row, length in zip(words, text.lengths, strict=True):
        row[:length] = 1
    pixels = image.floats().cpu()
    mask = torch.zeros(pixels.shape[0], *pixels.shape[2:], dtype=torch.int64)
    for row, (height, width) in zip(mask, image.sizes, strict=True):
        row[:height, :width] = 1
    return {"input_ids": text.ids_BT.cpu(), "attention_mask": words, "pixel_values": pixels * mask[:, None], "pixel_mask": mask}


CHECKS: dict[tuple[str, str], Callable[[Any, Path, list[Any], list[str]], Proof]] = {
    ("transformers", "CLIP"): _clip_transformers,
    ("open_clip", "CLIP"): _clip_open_clip,
    ("timm", "CLIP"): _clip_timm,
    ("transformers", "ViLT"): _vilt_transformers,
}

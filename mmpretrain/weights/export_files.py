"""The files of exported folders, beside the weights: preprocessing, provenance and the model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpretrain.nn.heads import VocabularyHead

HEADS = "mmpretrain_heads.safetensors"  # heads that the target library has no place for
BICUBIC = 3  # Pillow's number


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file of fp32 tensors, each with memory of its own."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().cpu() for name, t in state.items()}
    tensors = {name: (t.float() if t.is_floating_point() else t).clone().contiguous() for name, t in tensors.items()}
    save_file(tensors, str(path), metadata={"format": "pt"})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def transformers_preprocessor(transform: Any, family: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of the evaluation transform.

    Args:
        transform: an image transform with ``mode``, ``size``, ``multiple``, ``mean`` and ``std``.
        family: "ViLT", "CLIP" or "BEiT", whose pictures are those of CLIP.
    """
    size = transform.size
    config: dict[str, Any] = {
        "do_resize": True,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
    }
    if family != "BEiT":  # it has no texts, so no processor of both
        config["processor_class"] = f"{'Vilt' if family == 'ViLT' else 'CLIP'}Processor"
    if transform.mode == "vilt":
        config |= {"image_processor_type": "ViltImageProcessor", "size": {"shortest_edge": size}}
        return config | {"size_divisor": transform.multiple, "do_pad": True}
    square = {"height": size, "width": size}
    config |= {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "crop_size": square}
    if transform.mode == "squash":
        return config | {"size": square, "do_center_crop": False}
    return config | {"size": {"shortest_edge": size}, "do_center_crop": True}


def open_clip_preprocess(transform: Any) -> dict[str, Any]:
    """``preprocess_cfg`` of ``open_clip_config.json``.

    Raises:
        ValueError: open_clip has no such transform.
    """
    if transform.mode == "vilt":
        raise ValueError("open_clip has no transform that keeps the aspect ratio (data.image.mode=vilt)")
    mode = "squash" if transform.mode == "squash" else "shortest"
    return {"mean": list(transform.mean), "std": list(transform.std), "interpolation": "bicubic", "resize_mode": mode}


def provenance(pretrained: Any) -> dict[str, Any]:
    """Where the weights come from: checkpoint, configuration, data with what made their regions and codes, tokenizer."""
    about = dict(getattr(pretrained, "about", {}))
    tokenizer = pretrained.tokenizer.to_json() if pretrained.tokenizer is not None else ""
    return {
        "checkpoint": pretrained.source,
        "weights": pretrained.weights,
        "step": about.get("step"),
        "data_fingerprint": about.get("data_fingerprint"),
        "regions": about.get("regions"),
        "codes": about.get("codes"),
        "global_batch": about.get("global_batch"),
        "versions": about.get("versions"),
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "config": pretrained.config,
    }


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


_USE = {
    ("transformers", "CLIP"): """from transformers import CLIPModel, CLIPImageProcessor, AutoTokenizer

model = CLIPModel.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
image_processor = CLIPImageProcessor.from_pretrained("DIR")""",
    ("transformers", "ViLT"): """from transformers import ViltForMaskedLM, ViltImageProcessor, AutoTokenizer

model = ViltForMaskedLM.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
image_processor = ViltImageProcessor.from_pretrained("DIR")""",
    ("open_clip", "CLIP"): """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIR")
tokenizer = open_clip.get_tokenizer("local-dir:DIR")""",
    ("transformers", "LXMERT"): """from transformers import AutoTokenizer, LxmertForPreTraining

model = LxmertForPreTraining.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
# B pictures with up to R regions: visual_feats (B, R, F), visual_pos (B, R, 4) with x1 / width, y1 / height, x2 / width, y2 / height,
# visual_attention_mask (B, R) with 1 where there is a region
words = tokenizer(texts, padding=True, return_tensors="pt")
output = model(**words, visual_feats=features, visual_pos=boxes, visual_attention_mask=mask)""",
    ("transformers", "VisualBERT"): """import torch
from transformers import AutoTokenizer, VisualBertForPreTraining

model = VisualBertForPreTraining.from_pretrained("DIR")
tokenizer = AutoTokenizer.from_pretrained("DIR")
# B pictures with up to R regions: visual_embeds (B, R, F), visual_attention_mask (B, R) with 1 where there is a region;
# the type of regions is 0 here, which must be said, since the default of transformers is 1
words, types = tokenizer(texts, padding=True, return_tensors="pt"), torch.zeros(mask.shape, dtype=torch.long)
output = model(**words, visual_embeds=features, visual_attention_mask=mask, visual_token_type_ids=types)""",
    ("safetensors", ""): """import mmpretrain

pretrained = mmpretrain.load("DIR")  # a Pretrained: encode_image, encode_text, score, see(image), tokenize(text)""",
    ("openai", "DVAE"): """from dall_e import Decoder, Encoder  # these build the published sizes; docs/dvae.md for others
from safetensors.torch import load_file

encoder, decoder = Encoder(n_hid=256, vocab_size=8192), Decoder(n_hid=256, n_init=128, vocab_size=8192)  # as config.json says
encoder.load_state_dict(load_file("DIR/encoder.safetensors"))
decoder.load_state_dict(load_file("DIR/decoder.safetensors"))""",
    ("transformers", "BEiT"): """from transformers import AutoImageProcessor, BeitForMaskedImageModeling

model = BeitForMaskedImageModeling.from_pretrained("DIR")  # BeitModel where config.json says so
image_processor = AutoImageProcessor.from_pretrained("DIR")
# model(pixel_values, bool_masked_pos).logits are those of the codes of all patches; model.beit is the encoder""",
    ("timm", "CLIP"): """import timm

model = timm.create_model("local-dir:DIR", pretrained=True)  # forward gives the image feature before it is normalised""",
}


def card(pretrained: Any, to: str, family: str, parameters: int, difference: float, notes: Sequence[str] = ()) -> str:
    """``README.md``: what it is, how it opens, what it was trained on and how it was checked. ``notes``: lines behind the code."""
    about, data = dict(getattr(pretrained, "about", {})), (pretrained.config.get("data") or {})
    objectives = ", ".join(pretrained.objectives) or "none"
    code, note = _USE[to, family if to != "safetensors" else ""], "".join(f"\n\n{line}" for line in notes)
    if not any(isinstance(getattr(pretrained.objectives[name], "head", None), VocabularyHead) for name in pretrained.objectives):
        code = code.replace("ViltForMaskedLM", "ViltModel").replace("ForPreTraining", "Model")
    if (to, family) == ("transformers", "ViLT"):
        note = f"\n\nA matching head, where there is one, is in `{HEADS}`: two logits of the pooled output, the second means match."
    use = f"```python\n{code}\n```{note}"
    library = "mmpretrain" if to in ("safetensors", "openai") else to
    trained = f"objectives: {objectives}; {pretrained.weights} weights, step {about.get('step', 'unknown')}"
    return f"""---
library_name: {library}
tags: [{family.lower()}, image-text, mmpretrain]
---
# {family}, exported from mmpretrain

{family} with {parameters:,} parameters, trained with mmpretrain ({trained}).

{use}

- Training data: `{data.get("train", "unknown")}`, fingerprint `{about.get("data_fingerprint", "unknown")}`.
- Proof: outputs of this folder, opened by {library}, differ from those of the checkpoint by at most {difference:.2g}
  (`export_report.json`). `provenance.json` has the configuration and versions.
- Licence: weights carry the terms of the data they were trained on and of the weights they were initialised from.
"""


def parameters_of(model: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())

"""LXMERT and VisualBERT as folders of transformers, and the comparison of what comes out of them on samples with regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpretrain.models.lxmert import LXMERT
from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.nn.boxes import box_code
from mmpretrain.nn.ragged import Layout
from mmpretrain.types import Batch
from mmpretrain.weights import export_files, lxmert, visualbert
from mmpretrain.weights.export_check import Comparison, Proof, compare, different_text, quiet
from mmpretrain.weights.layout import heads_of, to_published

HOMES = {"LXMERT": ("mlm", "itm", "objects", "vqa"), "VisualBERT": ("mlm", "sip")}  # kinds of heads that transformers has
PAIR = "cls.seq_relationship"
_CPU = torch.device("cpu")


def family_of(model: nn.Module) -> str | None:
    """"LXMERT" or "VisualBERT"; None for all others."""
    return "LXMERT" if isinstance(model, LXMERT) else "VisualBERT" if isinstance(model, VisualBERT) else None


def homed(pretrained: Any, family: str) -> dict[str, nn.Module]:
    """The heads that go into the model of transformers; without a masked-word head none do, since its pre-training model has one."""
    found = heads_of(pretrained.objectives)
    return {kind: found[kind] for kind in HOMES[family] if kind in found} if "mlm" in found else {}


def write(pretrained: Any, folder: Path) -> None:
    """Configuration, weights, tokenizer, and the heads that transformers has no place for.

    Raises:
        ValueError: the model has parts that transformers' lacks.
    """
    import transformers

    model, family = pretrained.model, str(family_of(pretrained.model))
    heads = homed(pretrained, family)
    if family == "LXMERT":
        masker = next((one.masker for one in pretrained.objectives.values() if getattr(one, "head", None) is heads.get("objects", 0)), None)
        config = lxmert.transformers_config(model, heads, 0.15 if masker is None else masker.prob)
        state, trunk = to_published(lxmert.TRANSFORMERS, model, heads), "lxmert."
    else:
        config = visualbert.transformers_config(model, heads)
        state, trunk = to_published(visualbert.TRANSFORMERS, model, heads), "visual_bert."
    if not heads:
        state = {name.removeprefix(trunk): t for name, t in state.items()}
    elif f"{PAIR}.weight" not in state:  # their model has it in any case
        state |= {f"{PAIR}.weight": torch.zeros(2, model.text.width), f"{PAIR}.bias": torch.zeros(2)}
    export_files.write_weights(folder / "model.safetensors", state)
    if rest := _rest(pretrained, heads):
        export_files.write_weights(folder / export_files.HEADS, rest)
    config |= {"dtype": "float32", "transformers_version": transformers.__version__}
    if pretrained.vocabulary is not None:
        config["pad_token_id"] = pretrained.vocabulary.pad
        if "vqa" in heads and pretrained.vocabulary.answers:
            export_files.write_json(folder / "answers.json", {str(i): name for i, name in enumerate(pretrained.vocabulary.answers)})
    export_files.write_json(folder / "config.json", config)
    pretrained.tokenizer.save_transformers(folder)


def _rest(pretrained: Any, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """``OBJECTIVE.NAME`` of all heads that have no place."""
    rest: dict[str, Tensor] = {}
    for name, objective in pretrained.objectives.items():
        head = getattr(objective, "head", None)
        if isinstance(head, nn.Module) and not any(head is one for one in heads.values()):
            rest |= {f"{name}.{leaf}": t for leaf, t in head.state_dict().items()}
    return rest


def notes(pretrained: Any, family: str) -> list[str]:
    """What a user of the folder must know, for the model card."""
    heads, lines = homed(pretrained, family), []
    if heads and ("itm" if family == "LXMERT" else "sip") not in heads:
        lines.append(f"`{PAIR}` is zero: the run had no such objective.")
    if rest := sorted({name.partition(".")[0] for name in _rest(pretrained, heads)}):
        lines.append(f"`{export_files.HEADS}` has the heads that transformers has no place for: {', '.join(rest)}.")
    regions = pretrained.about.get("regions") or {}
    made_by = f"made by {regions.get('source')} ({str(regions.get('fingerprint'))[:12]})" if regions else "of the extractor of the run"
    lines.append(f"Regions must be those {made_by}: {pretrained.model.regions.features} values each.")
    return lines


def _inputs(batch: Batch, box: str) -> tuple[Layout, Layout, Tensor, Tensor]:
    """Layouts of texts and regions; features and codes of boxes, padded."""
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    return text, regions, regions.pad(batch.regions.features_NF.cpu()), regions.pad(box_code(batch.regions, box).cpu())


def check(pretrained: Any, folder: Path, images: Sequence[Any], texts: Sequence[str]) -> Proof:
    """States, pooled state and the logits of every head that went along, on the given samples."""
    import transformers

    family = str(family_of(pretrained.model))
    heads = homed(pretrained, family)
    seen = [pretrained.see(images[i % len(images)]) for i in range(len(texts))]
    tokens = [pretrained.told(token, visual) for token, visual in zip(pretrained.tokenize(list(texts)), seen, strict=True)]
    keys = torch.zeros(len(tokens), dtype=torch.int64, device=pretrained.device)
    batch = Batch(("",) * len(tokens), keys, text=pretrained.text(tokens), **pretrained.visuals(seen))
    name = ("Lxmert" if family == "LXMERT" else "VisualBert") + ("ForPreTraining" if heads else "Model")
    with quiet():
        model = getattr(transformers, name).from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        theirs = (_lxmert if family == "LXMERT" else _visualbert)(model, batch, pretrained.model, heads)

    def read(hidden: Any, _: Any) -> dict[str, Tensor]:
        own = {"states of the text": hidden.text.x_ND, "states of the regions": hidden.image.x_ND, "pooled state": hidden.pooled_BD}
        for kind, head in heads.items():
            own |= _predicted(kind, head, hidden)
        return own

    own = pretrained.forward(batch, read)
    outputs: list[Comparison] = [compare(what, own[what], theirs[what]) for what in own]
    encoded = lambda token: tokenizer(*((token.text,) if token.second is None else (token.text, token.second)), truncation=True).input_ids
    told = dict(zip(texts, tokens, strict=True))
    differs = different_text(texts, tokens, lambda text: encoded(told[text]))
    return Proof(outputs, len(images), len(texts), differs, None, f"transformers {transformers.__version__}")


def _predicted(kind: str, head: Any, hidden: Any) -> dict[str, Tensor]:
    """What a head says of the states of all words or regions, or of the pooled state."""
    if kind == "mlm":
        return {"masked-word logits": head(hidden.text.x_ND)}
    if kind == "objects":
        x_ND = head.transform(hidden.image.x_ND)
        return {f"logits of {part}": head(x_ND, part) for part in head.decoders}
    return {f"logits of {kind}": head(hidden.pooled_BD)}


def _lxmert(model: Any, batch: Batch, ours: LXMERT, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    text, regions, features, places = _inputs(batch, ours.regions.box)
    segments = torch.zeros_like(batch.text.ids_BT) if batch.text.segments_BT is None else batch.text.segments_BT
    inputs = {
        "input_ids": batch.text.ids_BT.cpu(), "attention_mask": text.mask_BL(_CPU).float(), "token_type_ids": segments.cpu(),
        "visual_feats": features, "visual_pos": places, "visual_attention_mask": regions.mask_BL(_CPU).float(),
    }  # fmt: skip
    trunk = (model.lxmert if heads else model)(**inputs)
    found = {
        "states of the text": text.pack(trunk.language_output),
        "states of the regions": regions.pack(trunk.vision_output),
        "pooled state": trunk.pooled_output,
    }
    if heads:
        out = model(**inputs)
        found |= {"masked-word logits": text.pack(out.prediction_logits), "logits of itm": out.cross_relationship_score}
        found |= {"logits of vqa": out.question_answering_score} if "vqa" in heads else {}
    if "objects" in heads:
        found |= {f"logits of {part}": regions.pack(logits) for part, logits in model.obj_predict_head(trunk.vision_output).items()}
    return found


def _visualbert(model: Any, batch: Batch, ours: VisualBERT, heads: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    text, regions, features, places = _inputs(batch, ours.regions.box)
    real = regions.mask_BL(_CPU)
    segments = torch.zeros_like(batch.text.ids_BT) if batch.text.segments_BT is None else batch.text.segments_BT
    inputs = {
        "input_ids": batch.text.ids_BT.cpu(), "attention_mask": text.mask_BL(_CPU).long(), "token_type_ids": segments.cpu(),
        "visual_embeds": torch.cat([features, places], dim=2), "visual_attention_mask": real.float(),
        "visual_token_type_ids": torch.zeros(real.shape, dtype=torch.int64),  # their default is 1
    }  # fmt: skip
    trunk = (model.visual_bert if heads else model)(**inputs)
    states = trunk.last_hidden_state
    found = {
        "states of the text": text.pack(states[:, : text.max_len]),
        "states of the regions": regions.pack(states[:, text.max_len :]),
        "pooled state": trunk.pooler_output,
    }
    if heads:
        out = model(**inputs)
        found |= {"masked-word logits": text.pack(out.prediction_logits[:, : text.max_len]), "logits of sip": out.seq_relationship_logits}
    return found

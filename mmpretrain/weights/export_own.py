"""``--to safetensors``: a folder that ``mmpretrain.load`` opens, compared with the checkpoint it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.hidden import Causal, Coded, Paired
from mmpretrain.types import Batch
from mmpretrain.weights.export_check import Proof, compare


def check(pretrained: Any, folder: Path, images: Sequence[Any], texts: Sequence[str]) -> Proof:
    """Everything the model returns, and what matching and masked-word heads say of it, from the folder and from the checkpoint."""
    import mmpretrain

    opened = mmpretrain.load(folder)
    own, theirs = outputs(pretrained, images, texts), outputs(opened, images, texts)
    first, second = pretrained.tokenizer, opened.tokenizer
    differs = None if first is None else next((t for t in texts if first.tokenize(t).ids != second.tokenize(t).ids), None)
    compared = [compare(name, own[name], theirs.get(name, torch.zeros(0))) for name in own]
    return Proof(compared, len(images), 0 if first is None else len(texts), differs, None, f"mmpretrain {mmpretrain.__version__}")


def outputs(pretrained: Any, images: Sequence[Any], texts: Sequence[str]) -> dict[str, Tensor]:
    """What comes out of a ``Pretrained`` for texts and images side by side, by name."""
    seen = [pretrained.see(images[i % len(images)]) for i in range(len(texts))]
    batch = Batch(("",) * len(texts), torch.zeros(len(texts), dtype=torch.int64, device=pretrained.device), **pretrained.visuals(seen))
    if pretrained.tokenizer is not None:
        tokens = [pretrained.told(token, visual) for token, visual in zip(pretrained.tokenize(list(texts)), seen, strict=True)]
        batch = batch._replace(text=pretrained.text(tokens))

    def read(hidden: Any, objectives: Any) -> dict[str, Tensor]:
        if isinstance(hidden, Paired):
            parts = {"image vectors": hidden.image_BE, "text vectors": hidden.text_BE, "logit scale": hidden.logit_scale}
            return {name: x for name, x in parts.items() if x is not None}
        if isinstance(hidden, Coded):
            return {"logits of the codes": hidden.logits_BKhw, "output of the decoder": hidden.output_BCHW}
        sides = {"text": hidden.text, "image": hidden.image}
        found = {f"states of the {name}": states.x_ND for name, states in sides.items() if states is not None}
        if isinstance(hidden, Causal):
            return found | {f"logits of {name}": objectives[name].logits(hidden, batch) for name in objectives}
        if hidden.pooled_BD is not None:
            found["pooled state"] = hidden.pooled_BD
        for name in objectives:
            objective = objectives[name]
            if hasattr(objective, "score") and hidden.pooled_BD is not None:
                found[f"log-odds of {name}"] = objective.score(hidden)
            elif isinstance(getattr(objective, "head", None), VocabularyHead) and hidden.text is not None:
                found[f"logits of {name}"] = objective.head(hidden.text.x_ND)
            elif (getattr(objective, "kind", ""), getattr(objective, "predicts", "")) == ("fused", "codes") and hidden.image is not None:
                found[f"logits of {name}"] = objective.head(hidden.image.x_ND)
        return found

    return pretrained.forward(batch, read)

"""``--to transformers`` of BEiT: ``BeitForMaskedImageModeling`` where the run predicted codes, else ``BeitModel``; what comes out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmpretrain.types import Batch
from mmpretrain.weights import beit, export_files
from mmpretrain.weights.export_check import Proof, compare, quiet
from mmpretrain.weights.layout import to_published


def write(pretrained: Any, folder: Path) -> None:
    """Configuration, weights, preprocessing, and the heads that transformers has no place for.

    Raises:
        ValueError: the model has parts that transformers' lacks, or pictures keep their shape.
    """
    import transformers

    model = pretrained.model
    head: Any = beit.codes_head(pretrained.objectives)
    if pretrained.image_transform.mode == "vilt":
        raise ValueError("transformers' BEiT has no transform that keeps the shape of pictures (data.image.mode=vilt)")
    config = beit.transformers_config(model, None if head is None else head.decoder.out_features)
    state = to_published(beit.TRANSFORMERS, model, {} if head is None else {"mim": head})
    if head is None:
        state = {name.removeprefix("beit."): t for name, t in state.items()}
    export_files.write_weights(folder / "model.safetensors", state)
    if rest := _rest(pretrained, head):
        export_files.write_weights(folder / export_files.HEADS, rest)
    config |= {"dtype": "float32", "transformers_version": transformers.__version__}
    export_files.write_json(folder / "config.json", config)
    export_files.write_json(folder / "preprocessor_config.json", export_files.transformers_preprocessor(pretrained.image_transform, "BEiT"))


def _rest(pretrained: Any, exported: nn.Module | None) -> dict[str, Tensor]:
    """``OBJECTIVE.NAME`` of all heads that have no place."""
    rest: dict[str, Tensor] = {}
    for name, objective in pretrained.objectives.items():
        head = getattr(objective, "head", None)
        if isinstance(head, nn.Module) and head is not exported:
            rest |= {f"{name}.{leaf}": t for leaf, t in head.state_dict().items()}
    return rest


def check(pretrained: Any, folder: Path, images: Sequence[Any], texts: Sequence[str]) -> Proof:
    """States of the patches, and the logits of all of them with every third one masked, picture by picture; preprocessing."""
    import transformers

    pixels = [pretrained.transform(image) for image in images]
    pixels = [one if isinstance(one, Tensor) else one.image for one in pixels]
    head, model = beit.codes_head(pretrained.objectives), pretrained.model
    kind = transformers.BeitModel if head is None else transformers.BeitForMaskedImageModeling
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with quiet():
        opened: Any = kind.from_pretrained(folder).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        for image in pixels:
            given = pretrained.pixels([image])
            inputs = given.floats().cpu()
            batch = Batch(("",), torch.zeros(1, dtype=torch.int64, device=pretrained.device), image=given)
            states = pretrained.forward(batch, lambda hidden, _: _states(hidden))
            theirs = opened(inputs).last_hidden_state if head is None else opened.layernorm(opened.beit(inputs).last_hidden_state)
            found.setdefault("states of the patches", []).append((states, theirs[0, 1:]))
            if head is not None:
                masked_N = torch.arange(states.shape[0], device=pretrained.device) % 3 == 0
                hidden = batch._replace(image=given._replace(masked_N=masked_N))
                logits = pretrained.forward(hidden, lambda hidden, _: head(_states(hidden)))
                found.setdefault("logits of codes", []).append((logits, opened(inputs, masked_N[None].cpu()).logits[0]))
        prepared = [processor(image, return_tensors="pt")["pixel_values"][0] for image in images if not hasattr(image, "images")]
    outputs = [compare(name, *(torch.cat([pair[i].float().cpu() for pair in pairs]) for i in (0, 1))) for name, pairs in found.items()]
    shift = _shift(pretrained, pixels, prepared) if len(prepared) == len(pixels) else None
    return Proof(outputs, len(images), 0, None, shift, f"transformers {transformers.__version__} ({type(model).__name__})")


def _states(hidden: Any) -> Tensor:
    """Of the patches of one picture."""
    return hidden.image.x_ND[hidden.image_prefix :]


def _shift(pretrained: Any, pixels: Sequence[Tensor], prepared: Sequence[Tensor]) -> float:
    """Mean difference of the preprocessing in grey values of 255, of the worst picture; infinite where sizes differ."""
    std = torch.tensor(pretrained.image_transform.std).view(3, 1, 1) * 255
    ours = [pretrained.pixels([image]).floats()[0].cpu() for image in pixels]
    same = all(a.shape == b.shape for a, b in zip(ours, prepared, strict=True))
    return max(float(((a - b).abs() * std).mean()) for a, b in zip(ours, prepared, strict=True)) if same else float("inf")

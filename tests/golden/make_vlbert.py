"""Records what the released VL-BERT returns for the inputs of ``tests/helpers/vlbert_case.py`` and the weights of ``closed_form.py``.

Run from the folder ``tests``, with a checkout of the repository:

    python golden/make_vlbert.py CHECKOUT golden/vlbert_states.npz
"""

from __future__ import annotations

import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import closed_form, vlbert_case

BASE = {
    "with_pooler": False, "input_transform_type": 1, "visual_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 16, "type_vocab_size": 3, "vocab_size": 60,
    "initializer_range": 0.02, "visual_scale_text_init": 0.0, "visual_scale_object_init": 0.0, "visual_ln": True,
    "pos_embedding_frozen": False, "word_embedding_frozen": False, "position_padding_idx": -1, "obj_pos_id_relative": True,
    "visual_region_classes": 11, "from_scratch": True,
}  # fmt: skip
NETWORK = {
    "IMAGE_SEMANTIC": False, "IMAGE_STRIDE_IN_1x1": True, "IMAGE_C5_DILATED": True, "IMAGE_NUM_LAYERS": 50,
    "IMAGE_PRETRAINED_EPOCH": 0, "OUTPUT_CONV5": False, "IMAGE_FROZEN_BN": True, "IMAGE_FROZEN_BACKBONE_STAGES": [1, 2],
    "IMAGE_FINAL_DIM": 32, "BERT_MODEL_NAME": "none", "BERT_PRETRAINED": "", "WITH_REL_LOSS": False, "WITH_MLM_LOSS": True,
    "WITH_MVRC_LOSS": True, "MASK_RAW_PIXELS": True, "MLM_LOSS_NORM_IN_BATCH_FIRST": False, "MVRC_LOSS_NORM_IN_BATCH_FIRST": False,
}  # fmt: skip


def released(checkout: Path) -> Any:
    """The module of the pre-training model. Its package of BERT is entered without what only its tokenizers need; its compiled ROIAlign,
    of which torchvision's is the successor, is torchvision's."""
    sys.path.insert(0, str(checkout))
    bert = types.ModuleType("external.pytorch_pretrained_bert")
    bert.__path__ = [str(checkout / "external" / "pytorch_pretrained_bert")]
    bert.BertTokenizer = types.SimpleNamespace(from_pretrained=lambda name: None)  # type: ignore[attr-defined]
    sys.modules["external.pytorch_pretrained_bert"] = bert
    roi_align = torchvision.ops.roi_align
    compiled = types.ModuleType("common.lib.roi_pooling.C_ROIPooling")
    compiled.roi_align_forward = lambda x, rois, scale, h, w, n: roi_align(x, rois, (h, w), scale, n)  # type: ignore[attr-defined]
    sys.modules["common.lib.roi_pooling.C_ROIPooling"] = compiled
    from pretrain.modules import resnet_vlbert_for_pretraining_multitask as found

    return found


def build(checkout: Path, precomputed: bool) -> torch.nn.Module:
    """The tiny model with weights in closed form, in evaluation mode."""
    module = released(checkout)
    settings = types.SimpleNamespace(**NETWORK, IMAGE_FEAT_PRECOMPUTED=precomputed, VLBERT=types.SimpleNamespace(**BASE))
    settings.IMAGE_PRETRAINED = ""
    with tempfile.TemporaryDirectory() as folder:
        if not precomputed:  # its networks insist on a file
            settings.IMAGE_PRETRAINED = f"{folder}/resnet50"
            torch.save(torchvision.models.resnet50(weights=None).state_dict(), f"{folder}/resnet50-0000.model")
        made = module.ResNetVLBERTForPretrainingMultitask(types.SimpleNamespace(NETWORK=settings))
    tensors = dict(made.named_parameters()) | dict(made.named_buffers())
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(closed_form.weight(name, tensor.shape))
    made.eval()
    return made


def boxes_of(case: vlbert_case.Case, features: bool) -> torch.Tensor:
    """Boxes as the release's data set and collation give them: the picture first, padded with -2."""
    rows = []
    for i in range(len(case.sizes)):
        (height, width), own = case.sizes[i], case.rows(i)
        boxes = np.concatenate([[[0.0, 0.0, width - 1.0, height - 1.0]], case.boxes[own].numpy()]).astype(np.float32)
        if features:
            kept = case.features[own].numpy()
            mean = kept.mean(0) * len(kept)
            for row in kept[case.removed[own].numpy()]:
                mean = mean - row
            mean = mean / (len(kept) - case.removed[own].sum().item() + 1e-5)
            boxes = np.concatenate([boxes, np.concatenate([mean[None], kept])], axis=1)
        rows.append(torch.from_numpy(boxes.astype(np.float32)))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-2.0)


def run(model: torch.nn.Module, case: vlbert_case.Case, precomputed: bool) -> dict[str, np.ndarray]:
    """States and logits of the captions and of the texts alone, which the release runs together."""
    seen: dict[str, torch.Tensor] = {}
    model.vlbert.mlm_head.register_forward_hook(lambda m, x, y: seen.update(text=x[0]))
    model.vlbert.mvrc_head.register_forward_hook(lambda m, x, y: seen.update(objects=x[0], mvrc=y))
    boxes = boxes_of(case, precomputed)
    size = len(case.sizes)
    ops = torch.nn.utils.rnn.pad_sequence([torch.cat([torch.zeros(1), case.removed[case.rows(i)].float()]) for i in range(size)], True)
    image = None
    if not precomputed:
        image = case.pixels.clone()
        for i in range(size):
            for box in case.boxes[case.rows(i)][case.removed[case.rows(i)]]:
                x1, y1, x2, y2 = box
                image[i, :, int(y1) : (int(y2) + 1), int(x1) : (int(x2) + 1)] = 0
        model.image_feature_extractor.register_forward_hook(lambda m, x, y: seen.update(raw=y["obj_reps_raw"]))
    info = torch.tensor([[w, h, 1.0, 1.0, 0.0] for h, w in case.sizes])
    labels = torch.zeros(size, boxes.shape[1], BASE["visual_region_classes"])
    nothing = torch.full_like(case.ids, -1)
    with torch.no_grad():
        out, _ = model(image, boxes, info, case.ids, None, nothing, ops.long(), labels, case.alone, torch.full_like(case.alone, -1))
    found = {"text": seen["text"][:size], "alone": seen["text"][size:], "objects": seen["objects"][:size]}
    found |= {"mlm": out["mlm_logits_wvc"][:, :, :7], "mvrc": seen["mvrc"][:size]}
    if not precomputed:
        found["raw"] = seen["raw"][:, :, ::128]
    return {name: t.flatten(0, 1).numpy() for name, t in found.items()}


def main(checkout: str, out: str) -> None:
    """Both ways of getting features."""
    golden: dict[str, np.ndarray] = {}
    for name, precomputed in (("precomputed", True), ("end_to_end", False)):
        found = run(build(Path(checkout), precomputed), vlbert_case.case(name), precomputed)
        golden |= {f"{name}.{key}": value for key, value in found.items()}
    np.savez(out, **golden)
    print({name: (value.shape, float(np.abs(value).max())) for name, value in golden.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

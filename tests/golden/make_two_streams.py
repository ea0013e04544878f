"""Records what the released ViLBERT and InterBERT return for the batch and the weights of ``tests/helpers/official.py``.

Run from the folder ``tests``, with checkouts of the two repositories:

    python golden/make_two_streams.py vilbert CHECKOUT_OF_vilbert-multi-task golden/vilbert_states.npz
    python golden/make_two_streams.py vilbert-tasks CHECKOUT_OF_vilbert-multi-task golden/vilbert_tasks_states.npz
    python golden/make_two_streams.py interbert CHECKOUT_OF_InterBERT golden/interbert_states.npz

Nothing of theirs is kept but the numbers. Their modules import packages for downloads and logging that a forward does not need; empty ones
stand in for those. The released model runs in float64.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.official import INTERBERT, TASK, VILBERT, Sizes, batch, values

ABSENT = ("boto3", "botocore", "botocore.exceptions", "tensorboardX", "torch._six", "requests", "pytorch_transformers")


def stand_ins() -> None:
    for name in ABSENT:
        module = types.ModuleType(name)
        module.inf, module.ClientError, module.SummaryWriter = float("inf"), Exception, object
        sys.modules[name] = module


def options(sizes: Sizes) -> dict:
    """What the two configuration classes have in common."""
    return {
        "hidden_size": sizes.text,
        "num_attention_heads": sizes.text_heads,
        "intermediate_size": sizes.text_hidden,
        "max_position_embeddings": sizes.positions,
        "v_feature_size": sizes.features,
        "v_hidden_size": sizes.image,
        "v_num_hidden_layers": sizes.image_depth,
        "v_num_attention_heads": sizes.image_heads,
        "v_intermediate_size": sizes.image_hidden,
        "bi_hidden_size": sizes.pooled,
        "bi_num_attention_heads": sizes.pooled_heads,
        "v_biattention_id": list(range(sizes.image_depth)),
        "t_biattention_id": list(range(sizes.text_depth - sizes.image_depth, sizes.text_depth)),
    }


def released(system: str, checkout: str) -> torch.nn.Module:
    """The released trunk, tiny, with the weights of the formula."""
    stand_ins()
    sys.path.insert(0, checkout)
    if system.startswith("vilbert"):
        code, sizes = importlib.import_module("vilbert.vilbert"), VILBERT
        config = code.BertConfig(sizes.vocab, num_hidden_layers=sizes.text_depth, **options(sizes))
        config.task_specific_tokens = system == "vilbert-tasks"
        model = code.BertModel(config)
    else:
        code, sizes = importlib.import_module("bertmodel.modules"), INTERBERT
        config = code.BertConfig(sizes.vocab, num_hidden_layers=sizes.text_depth, **options(sizes))
        config.num_hidden_layers, config.t_num_hidden_layers = sizes.joint_depth, sizes.text_depth
        model = code.InterBertModel(config)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values(name, tuple(parameter.shape))))
    return model


def inputs(sizes: Sizes) -> dict[str, torch.Tensor]:
    """The batch as the released data loaders give it: padded, the mean feature first with the box 0 0 1 1 1."""
    text, regions = batch(sizes).text, batch(sizes).regions
    longest = 1 + max(regions.lengths)
    features, boxes = torch.full((3, longest, sizes.features), 9.0).double(), torch.full((3, longest, 5), 9.0).double()
    start = 0
    for i, (count, (height, width)) in enumerate(zip(regions.lengths, regions.sizes, strict=True)):
        own = slice(start, start + count)
        place = regions.boxes_N4[own].double() / torch.tensor([width, height, width, height])
        area = (place[:, 2] - place[:, 0]) * (place[:, 3] - place[:, 1])
        features[i, 0], features[i, 1 : count + 1] = regions.features_NF[own].double().mean(0), regions.features_NF[own]
        boxes[i, 0], boxes[i, 1 : count + 1] = torch.ones(5), torch.cat([place, area[:, None]], 1)
        boxes[i, 0, :2] = 0
        start += count
    mask = lambda lengths, size: (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).long()
    return {
        "ids": text.ids_BT,
        "types": text.segments_BT,
        "features": features,
        "boxes": boxes,
        "text_mask": mask(text.lengths, text.ids_BT.shape[1]),
        "image_mask": mask([n + 1 for n in regions.lengths], longest),
    }


def main(system: str, checkout: str, out: str) -> None:
    model = released(system, checkout)
    x = inputs(INTERBERT if system == "interbert" else VILBERT)
    arguments = [x["ids"], x["features"], x["boxes"], x["types"], x["text_mask"], x["image_mask"]]
    if system == "interbert":
        arguments.append(torch.cat([x["image_mask"], x["text_mask"]], 1))
    tasks = {"task_ids": torch.full((3, 1), TASK)} if system == "vilbert-tasks" else {}
    with torch.no_grad():
        text, image, pooled_text, pooled_image, _ = model(*arguments, **tasks)
    if tasks:  # the state of the task, which is no word's
        text = torch.cat([text[:, :1], text[:, 2:]], 1)
    packed = {"text": text[x["text_mask"].bool()], "image": image[x["image_mask"].bool()], "pooled": pooled_text * pooled_image}
    np.savez(out, **{name: value.numpy().astype(np.float32) for name, value in packed.items()})
    print({name: (tuple(value.shape), float(value.abs().max())) for name, value in packed.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

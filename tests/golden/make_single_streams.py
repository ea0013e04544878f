"""Records what the released UNITER, VILLA and Oscar return for the batches and the weights of ``tests/helpers/official_single.py``.

Run from the folder ``tests``, with a checkout of the repository; Oscar needs a folder with pytorch-transformers 1.0.0 too
(``pip install --no-deps --target FOLDER pytorch-transformers==1.0.0``), which it has as a submodule:

    python golden/make_single_streams.py uniter CHECKOUT_OF_UNITER golden/uniter_states.npz
    python golden/make_single_streams.py villa CHECKOUT_OF_VILLA golden/villa_states.npz
    python golden/make_single_streams.py oscar CHECKOUT_OF_Oscar golden/oscar_states.npz FOLDER
    python golden/make_single_streams.py oscar_plus CHECKOUT_OF_Oscar golden/oscar_plus_states.npz FOLDER

Nothing of theirs is kept but the numbers. apex's LayerNorm is torch's; empty modules stand in for packages that a forward does not need.
The released model runs in float64, with padding that is not zero.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.official import values
from helpers.official_single import SIZES, inputs

from mmpretrain.types import Batch

PADDING = 9.0


def stand_in(name: str, folder: Path | None = None, **members: object) -> None:
    """A module that was never imported; with ``folder``, a package whose modules lie there and whose own code does not run."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    if folder is not None:
        module.__path__ = [str(folder)]
    sys.modules[name] = module


def released(system: str, checkout: str, package: str | None) -> torch.nn.Module:
    """The released trunk, tiny, with the weights of the formula."""
    s = SIZES
    sizes = {"hidden_size": s.text, "num_hidden_layers": s.text_depth, "num_attention_heads": s.text_heads}
    sizes |= {"intermediate_size": s.text_hidden, "max_position_embeddings": s.positions, "type_vocab_size": 2}
    sys.path.insert(0, checkout)
    if system in ("uniter", "villa"):
        for name in ("apex", "apex.normalization"):
            stand_in(name, Path(checkout))
        stand_in("apex.normalization.fused_layer_norm", FusedLayerNorm=torch.nn.LayerNorm)
        code = importlib.import_module("model.model")
        model = code.UniterModel(code.UniterConfig(s.vocab, **sizes), s.features)
    else:
        stand_in("transformers", Path(package))
        stand_in("transformers.pytorch_transformers", Path(package, "pytorch_transformers"))
        stand_in("oscar.utils.cbs", ConstrainedBeamSearch=None, select_best_beam_with_constraints=None)
        for name in ("boto3", "botocore.config", "botocore.exceptions"):
            stand_in(name, Config=object, ClientError=Exception)
        stand_in("botocore", Path(checkout))
        code = importlib.import_module("oscar.modeling.modeling_bert")
        config = code.BertConfig(s.vocab, **sizes)
        config.img_feature_dim, config.img_feature_type = s.features + 6, "faster_r-cnn"
        config.use_img_layernorm, config.img_layer_norm_eps = int(system == "oscar_plus"), 1e-12
        model = code.BertImgModel(config)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values(name, tuple(parameter.shape))))
    return model


def padded(rows: Tensor, lengths: tuple[int, ...], value: float = PADDING) -> Tensor:
    """Packed rows as (samples, longest, ...)."""
    return torch.nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True, padding_value=value)


def boxes(batch: Batch) -> Tensor:
    """x1 y1 x2 y2 width height of each region as shares of its picture, as the released data sets write them: (N, 6)."""
    sides = torch.repeat_interleave(torch.tensor([(w, h) for h, w in batch.regions.sizes]), torch.tensor(batch.regions.lengths), 0).double()
    corners = batch.regions.boxes_N4.double() / sides.repeat(1, 2)
    return torch.cat([corners, corners[:, 2:] - corners[:, :2]], 1)


def run_uniter(model: torch.nn.Module, batch: Batch, villa: bool) -> dict[str, Tensor]:
    """Words and regions of each sample made contiguous by the index that its collation makes. Packed states, and VILLA's gradients."""
    text, regions = batch.text, batch.regions
    counts = list(zip(text.lengths, regions.lengths, strict=True))
    longest = max(t + r for t, r in counts)
    index, mask = torch.arange(longest).repeat(len(counts), 1), torch.zeros(len(counts), longest, dtype=torch.long)
    for i, (t, r) in enumerate(counts):
        index[i, t : t + r] = max(text.lengths) + torch.arange(r)
        mask[i, : t + r] = 1
    six = boxes(batch)
    seven = torch.cat([six, six[:, 4:5] * six[:, 5:]], 1)
    given = [text.ids_BT, torch.arange(text.ids_BT.shape[1])[None], padded(regions.features_NF.double(), regions.lengths)]
    given += [padded(seven, regions.lengths), mask]
    deltas = []
    if villa:
        pairs = ((text.delta_ND, text.lengths), (regions.delta_NF, regions.lengths))
        deltas = [padded(rows.double(), lengths).requires_grad_() for rows, lengths in pairs]
        given += [True, ["text", "image"], *deltas]
    masks = padded(regions.removed_N, regions.lengths, 0)
    states = model(*given, index, masks, output_all_encoded_layers=False, txt_type_ids=text.segments_BT)
    pooled = model.pooler(states)
    found = {
        "text": torch.cat([states[i, :t] for i, (t, _) in enumerate(counts)]),
        "image": torch.cat([states[i, t : t + r] for i, (t, r) in enumerate(counts)]),
        "pooled": pooled,
    }
    if villa:
        lengths = (text.lengths, regions.lengths)
        for name, grad, own in zip(("text_grad", "image_grad"), torch.autograd.grad(pooled.sum(), deltas), lengths, strict=True):
            real = torch.arange(grad.shape[1])[None] < torch.tensor(own)[:, None]
            assert grad[~real].abs().max() == 0
            found[name] = grad[real]
    return found


def run_oscar(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Words and tags, padded, then regions, padded, with one mask over both."""
    text, regions = batch.text, batch.regions
    given = padded(torch.cat([regions.features_NF.double(), boxes(batch)], 1), regions.lengths)
    masks = [torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None] for lengths in (text.lengths, regions.lengths)]
    states, pooled = model(text.ids_BT, text.segments_BT, torch.cat(masks, 1).double(), img_feats=given)[:2]
    longest = max(text.lengths)
    return {"text": states[:, :longest][masks[0]], "image": states[:, longest:][masks[1]], "pooled": pooled}


def main(system: str, checkout: str, out: str, package: str | None = None) -> None:
    model, batch = released(system, checkout, package), inputs(system)
    found = run_oscar(model, batch) if system.startswith("oscar") else run_uniter(model, batch, system == "villa")
    np.savez(out, **{name: value.detach().numpy().astype(np.float32) for name, value in found.items()})
    print({name: (tuple(value.shape), float(value.detach().abs().max())) for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])

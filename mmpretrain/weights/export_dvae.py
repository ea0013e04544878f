"""``--to openai``: the dVAE as the two state dicts of OpenAI's release, in safetensors, with what is needed to build it.

===================  ===============================================================================================================
file                 content
===================  ===============================================================================================================
encoder.safetensors  ``blocks.input.w``, ``blocks.group_1.block_1.res_path.conv_1.w``, ..., fp32
decoder.safetensors  likewise
config.json          ``encoder`` and ``decoder``: the arguments of the release's classes of that name, ``widths`` for ``n_hid`` where these
                     cannot build it; ``image_size``; ``epsilon`` of the pixel map
===================  ===============================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmpretrain.models.dvae import DVAE
from mmpretrain.nn.dvae import EPSILON, map_pixels, unit_pixels
from mmpretrain.weights import dvae, export_files
from mmpretrain.weights.export_check import Proof, compare, has_transformers, quiet
from mmpretrain.weights.files import read_json

ENCODER, DECODER, CONFIG = "encoder.safetensors", "decoder.safetensors", "config.json"


def released(model: DVAE) -> bool:
    """Whether the release's classes can build it: four groups that double their width from 64 or more on, and 512 codes or more."""
    first = model.widths[0]
    return model.widths == (first, 2 * first, 4 * first, 8 * first) and first >= 64 and model.codes >= 512


def config(model: DVAE) -> dict[str, Any]:
    """``config.json``."""
    both: dict[str, Any] = {"group_count": len(model.widths), "n_blk_per_group": model.block_count, "vocab_size": model.codes}
    both |= {"n_hid": model.widths[0]} if released(model) else {"widths": list(model.widths)}
    return {
        "encoder": {**both, "input_channels": 3},
        "decoder": {**both, "n_init": model.code_width, "output_channels": 3},
        "image_size": model.image_size,
        "epsilon": EPSILON,
    }


def write(pretrained: Any, folder: Path) -> None:
    """Write the three files of a ``Pretrained``.

    Raises:
        WeightsError: the model has a codebook of vectors.
    """
    parts = dvae.to_openai(pretrained.model)
    export_files.write_weights(folder / ENCODER, parts.encoder)
    export_files.write_weights(folder / DECODER, parts.decoder)
    export_files.write_json(folder / CONFIG, config(pretrained.model))


def read(folder: Path) -> DVAE:
    """The model that the files of a folder say, and nothing else.

    Raises:
        WeightsError: a file is missing, damaged, or does not fit.
    """
    told = read_json(folder / CONFIG)
    encoder, decoder = told["encoder"], told["decoder"]
    widths = encoder.get("widths") or [encoder["n_hid"] * 2**g for g in range(encoder["group_count"])]
    sizes = {"widths": widths, "blocks": encoder["n_blk_per_group"], "codes": encoder["vocab_size"], "code_width": decoder["n_init"]}
    model = DVAE(**sizes, image_size=told["image_size"])
    dvae.load(model, folder / ENCODER, folder / DECODER)
    return model.eval()


def check(pretrained: Any, folder: Path, images: Sequence[Any], texts: Sequence[str]) -> Proof:
    """Logits, codes and pictures of the model that the folder holds, and the logits of transformers' encoder where it can be built."""
    pixels = unit_pixels(pretrained.pixels([pretrained.transform(image) for image in images])).cpu()
    opened, model = read(folder), pretrained.model

    def run(own: DVAE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        there = pixels.to(next(own.parameters()).device)
        ids = own.encode(there)
        return own.encoder(map_pixels(there)), ids, own.decode(ids)

    with quiet():
        ours, theirs = pretrained.run(lambda *_: run(model)), run(opened)
        outputs = [compare(name, a, b) for name, a, b in zip(("logits", "codes", "pictures"), ours, theirs, strict=True)]
        library = "mmpretrain, from the files alone"
        if has_transformers() and model.widths == tuple(model.widths[0] * 2**g for g in range(4)):
            outputs.append(compare("logits of transformers' FlavaImageCodebook", ours[0], _flava(opened)(map_pixels(pixels))))
            library += "; transformers"
    return Proof(outputs, len(images), 0, None, None, library)


def _flava(model: DVAE) -> torch.nn.Module:
    from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

    sizes = {"hidden_size": model.widths[0], "num_blocks_per_group": model.block_count, "vocab_size": model.codes}
    built: Any = FlavaImageCodebook(FlavaImageCodebookConfig(**sizes))
    built.load_state_dict(dvae.to_flava(model))
    return built.eval()

"""The dVAE in the layout of OpenAI's release (a state dict of the encoder, one of the decoder) and of transformers' ``FlavaImageCodebook``
(the encoder).

=============================  ============================================  =======================================================
ours                           OpenAI                                        Flava
=============================  ============================================  =======================================================
``input.weight``               ``blocks.input.w``                            ``blocks.input.weight``
``groups.G.B.convs.K.weight``  ``blocks.group_G.block_B.res_path.conv_K.w``  ``blocks.group_G.group.block_B.res_path.path.conv_K.weight``
``groups.G.B.shortcut.weight`` ``blocks.group_G.block_B.id_path.w``          ``blocks.group_G.group.block_B.id_path.weight``
``output.weight``              ``blocks.output.conv.w``                      ``blocks.output.conv.weight``
=============================  ============================================  =======================================================

G, B and K count from 0 here and from 1 there. Both files of the release, ``encoder.pkl`` and ``decoder.pkl``, are pickled modules: they are
refused, and have to be written as state dicts where they are trusted (docs/dvae.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.models.dvae import DVAE
from mmpretrain.weights import own
from mmpretrain.weights.files import WeightsError, read_state
from mmpretrain.weights.keymap import KeyMap, KeyMapError, Rule, strip

_THEIRS = re.compile(r"blocks\.group_(\d+)\.(?:group\.)?block_(\d+)\.")


class Parts(NamedTuple):
    """The two state dicts of the release."""

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]


def _rules(groups: int, blocks: int, flava: bool) -> list[Rule]:
    inside, path = (".group", ".path") if flava else ("", "")
    stems = [("input", "blocks.input", False), ("output", "blocks.output.conv", False)]
    for g in range(groups):
        for b in range(blocks):
            ours, theirs = f"groups.{g}.{b}", f"blocks.group_{g + 1}{inside}.block_{b + 1}"
            stems += [(f"{ours}.convs.{k}", f"{theirs}.res_path{path}.conv_{k + 1}", False) for k in range(4)]
            stems.append((f"{ours}.shortcut", f"{theirs}.id_path", True))
    kinds = (("weight", "weight"), ("bias", "bias")) if flava else (("weight", "w"), ("bias", "b"))
    return [Rule(f"{ours}.{a}", f"{theirs}.{b}", optional=optional) for ours, theirs, optional in stems for a, b in kinds]


def keymap(groups: int, blocks: int, flava: bool = False) -> KeyMap:
    """The map of an encoder or a decoder with so many groups of so many blocks."""
    return KeyMap(_rules(groups, blocks, flava), "transformers' FlavaImageCodebook" if flava else "OpenAI's dVAE")


def _of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): t for name, t in state.items() if name.startswith(f"{part}.")}


def to_openai(model: DVAE) -> Parts:
    """The state dicts of both halves under OpenAI's names.

    Raises:
        WeightsError: the model has a codebook of vectors, for which that layout has no place.
    """
    if model.codebook is not None:
        raise WeightsError("OpenAI's layout has no place for a codebook of vectors (sample: nearest); export it to safetensors")
    chosen, state = keymap(len(model.widths), model.block_count), model.state_dict()
    return Parts(*(chosen.to_theirs(_of(state, part)) for part in Parts._fields))


def to_flava(model: DVAE) -> dict[str, Tensor]:
    """The state dict of the encoder under the names of transformers' ``FlavaImageCodebook``, which is built with four groups."""
    return keymap(len(model.widths), model.block_count, flava=True).to_theirs(_of(model.state_dict(), "encoder"))


def _depth(state: Mapping[str, Tensor], what: str) -> tuple[int, int]:
    """Groups and blocks of each group of one of their state dicts."""
    found = [match for name in state if (match := _THEIRS.match(name))]
    if not found:
        raise WeightsError(f"{what}: is no state dict of a dVAE in OpenAI's layout (blocks.group_1.block_1.res_path.conv_1.w, ...)")
    return max(int(match[1]) for match in found), max(int(match[2]) for match in found)


def from_theirs(state: Mapping[str, Tensor], what: str = "the file") -> dict[str, Tensor]:
    """An encoder or a decoder in OpenAI's layout, or an encoder in Flava's, under our names, in fp32.

    Raises:
        WeightsError: something is missing, or there is something that has no place here.
    """
    state = strip(state, "image_codebook.", "encoder.", "decoder.")
    depth = _depth(state, what)
    chosen = keymap(*depth, flava=any(".group." in name for name in state))
    try:
        converted = chosen.to_ours(state)
    except KeyMapError as error:
        raise WeightsError(f"{what}: {error}") from None
    if converted.leftover:
        raise WeightsError(f"{what}: no place here for {', '.join(converted.leftover[:3])}")
    return {name: t.float() for name, t in converted.state.items()}


def sizes(encoder: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of ``DVAE`` that an encoder under our names says: widths, blocks and codes."""
    numbers = [tuple(map(int, name.split(".")[1:3])) for name in encoder if name.startswith("groups.")]
    groups, blocks = max(g for g, _ in numbers) + 1, max(b for _, b in numbers) + 1
    widths = [encoder[f"groups.{g}.0.convs.3.weight"].shape[0] for g in range(groups)]
    return {"widths": widths, "blocks": blocks, "codes": encoder["output.weight"].shape[0]}


def load(model: nn.Module, encoder: str | Path | None = None, decoder: str | Path | None = None) -> str:
    """Fill a dVAE, or one half of it, from files of the release's layout; a line for people about it.

    Args:
        encoder, decoder: state dicts, ``.safetensors`` or of ``torch.save``; None: that half stays as it is.

    Raises:
        WeightsError: a file cannot be read, holds a pickled module, or does not fit the model.
    """
    if not isinstance(model, DVAE) or model.codebook is not None:
        raise WeightsError(f"OpenAI's layout is of a DVAE without a codebook of vectors, not of {type(model).__name__}")
    if encoder is None and decoder is None:
        raise WeightsError("name the file of the encoder, of the decoder, or both")
    told = []
    for name, path, half in (("encoder", encoder, model.encoder), ("decoder", decoder, model.decoder)):
        if path is None:
            continue
        state, own_state = from_theirs(read_state(path), str(path)), half.state_dict()
        if missing := [key for key in own_state if key not in state]:
            raise WeightsError(f"{path}: has nothing for {', '.join(missing[:3])} of the {name}; build the model in the sizes of the file")
        for key, tensor in state.items():
            if key not in own_state or own_state[key].shape != tensor.shape:
                there = f"the {name} has {tuple(own_state[key].shape)}" if key in own_state else f"the {name} has no such part"
                raise WeightsError(f"{path}: {key} is {tuple(tensor.shape)}, {there}; build the model in the sizes of the file")
        half.load_state_dict(state)
        told.append(f"{name} from {path}")
    return "the dVAE starts with its " + " and its ".join(told)


class FromOpenAI(ModelTransform):
    """The dVAE starts as published weights, in their sizes.

    Args:
        encoder: state dict of the encoder; None: it starts at random.
        decoder: state dict of the decoder; None: it starts at random.
    """

    initialises: ClassVar[bool] = True

    def __init__(self, encoder: str | None = None, decoder: str | None = None) -> None:
        self.encoder, self.decoder = encoder, decoder

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        """
        Raises:
            WeightsError: see ``load``.
        """
        self.said = load(model, self.encoder, self.decoder)
        return model


def import_folder(encoder: str | Path, decoder: str | Path, out: str | Path, image_size: int = 256) -> DVAE:
    """Published weights as a folder that ``mmpretrain.load``, ``mmpretrain data tokens`` and ``mmpretrain generate`` open.

    Args:
        encoder, decoder: state dicts, see ``load``.
        out: a new folder.
        image_size: side of the pictures, in pixels.

    Raises:
        WeightsError: see ``load``; or the folder has something in it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WeightsError(f"{out}: exists already; name a new folder or remove it")
    first = sizes(from_theirs(read_state(encoder), str(encoder)))
    width = from_theirs(read_state(decoder), str(decoder))["input.weight"].shape[0]
    arguments = {**first, "code_width": int(width), "image_size": image_size}
    model = DVAE(**arguments)
    load(model, encoder, decoder)
    out.mkdir(parents=True, exist_ok=True)
    own.write(_Held(model, arguments), out)
    return model


class _Held:
    """What ``own.write`` reads of a ``Pretrained``: the model and its configuration."""

    def __init__(self, model: DVAE, arguments: Mapping[str, Any]) -> None:
        system = {"class_path": f"{DVAE.__module__}.{DVAE.__qualname__}", "init_args": dict(arguments)}
        self.model, self.objectives, self.about = model, dict[str, Any](), dict[str, Any]()
        self.vocabulary = self.tokenizer = None
        image = {"mode": "dalle", "size": arguments["image_size"], "normalize": "unit"}
        self.config = {"model": {"system": system, "objectives": {}}, "data": {"image": image}}
        self.weights = "raw"

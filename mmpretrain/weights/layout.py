"""How a published checkpoint is laid out: the model and the heads of its pre-training, both ways, and what of it has no place here.

Our side of a map has the names ``model.*`` and, for each kind of head, ``<kind>.*``:

=========  ============================  =============================================================
kind       module                        of the objective
=========  ============================  =============================================================
``mlm``    ``VocabularyHead``            masked words; without a decoder where it is the word table
``itm``    ``MatchHead``                 ITM; row 1 means match
``sip``    ``MatchHead``                 SIP; row 1: the second caption belongs to the picture
``tags``   ``MatchHead``                 TagContrast; row 1 means intact
``mrc``    ``RegionHead``                classes or features of masked regions
``mrfr``   ``TiedFeatureHead``           features, tied to the projection
``objects``  ``RegionHeads``             LXMERT's object prediction
``vqa``    ``AnswerHead``                LXMERT's question answering
``mim``    ``CodeHead``                  codes of masked patches
=========  ============================  =============================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.region_heads import RegionHead, RegionHeads, TiedFeatureHead
from mmpretrain.weights.files import WeightsError, renamed, without
from mmpretrain.weights.keymap import KeyMap, Rule

OLD_NORMS = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
BUFFERS = r".*\.position_ids"  # indices, of old versions
_MODULES = {"mlm": VocabularyHead, "mrc": RegionHead, "mrfr": TiedFeatureHead, "objects": RegionHeads}
_OBJECTIVES = {"itm": "ITM", "sip": "SIP", "tags": "TagContrast", "vqa": "VQA", "mim": "MIM"}
KINDS = (*_MODULES, *_OBJECTIVES)


class Layout(NamedTuple):
    """One published layout of one system."""

    name: str
    model: type  # class that it is of
    rules: Callable[[Any], list[Rule]]  # of a model of that class
    unused: tuple[str, ...] = ()  # regular expressions of names that have no place here, as a whole
    spellings: tuple[tuple[str, str], ...] = ()  # parts of names: other versions' -> this one's
    aliases: tuple[tuple[str, str], ...] = ()  # two names of one tensor, of which a file may have one

    def keymap(self, model: nn.Module) -> KeyMap:
        """The map for this model.

        Raises:
            WeightsError: the model is of another class.
        """
        if not isinstance(model, self.model):
            raise WeightsError(f"the layout {self.name!r} is of {self.model.__name__}, the model is {type(model).__name__}")
        return KeyMap(self.rules(model), f"the layout {self.name!r}")


class Imported(NamedTuple):
    """A published checkpoint under our names."""

    model: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]  # by kind
    unused: tuple[str, ...]  # what was expected and has no place
    words: Tensor | None  # the word table; None: the model reads no text
    said: str = ""  # what was filled, a line for people


def here(rules: Sequence[Rule], prefix: str = "model.") -> list[Rule]:
    """The rules with ``prefix`` before our names."""

    def put(side: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return prefix + side if isinstance(side, str) else tuple(prefix + name for name in side)

    return [rule._replace(ours=put(rule.ours)) for rule in rules]


def words_of(model: Any) -> Tensor:
    """The word table of a model that reads text."""
    return model.spec.token_table.weight


def to_published(layout: Layout, model: nn.Module, heads: Mapping[str, nn.Module] | None = None) -> dict[str, Tensor]:
    """The state dict of a published checkpoint. Tied decoders are written beside the table that they are.

    Args:
        heads: kind -> head, see above; those that are absent are left out.

    Raises:
        KeyMapError: the layout lacks something that model or heads have, or asks for something that the model has not.
    """
    state = {f"model.{name}": t for name, t in model.state_dict().items()}
    for kind, head in (heads or {}).items():
        state |= {f"{kind}.{name}": t for name, t in head.state_dict().items()}
        if kind == "mlm":
            state.setdefault("mlm.decoder.weight", words_of(model))
        if kind == "mrfr" and isinstance(head, TiedFeatureHead):
            state["mrfr.weight"] = head.weight
    with torch.no_grad():
        return layout.keymap(model).to_theirs({name: t.detach() for name, t in state.items()})


def from_published(layout: Layout, model: nn.Module, state: Mapping[str, Tensor]) -> Imported:
    """A published state dict under our names, in fp32.

    Raises:
        KeyMapError, WeightsError: something is missing, or there is something that is neither mapped nor among what is expected.
    """
    state = renamed(without(state, "module."), *OLD_NORMS, *layout.spellings)
    for one, other in layout.aliases:
        for name, alias in ((one, other), (other, one)):
            if name not in state and alias in state:
                state[name] = state[alias]
    found = layout.keymap(model).to_ours(state)
    unknown = [name for name in found.leftover if not any(re.fullmatch(one, name) for one in (*layout.unused, BUFFERS))]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise WeightsError(f"the layout {layout.name!r} has no place for {', '.join(unknown[:3])}{more}")
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in found.state.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = tensor.float() if tensor.is_floating_point() else tensor
    own = parts.pop("model")
    if "mrfr" in parts:
        parts["mrfr"].pop("weight", None)
    spec: Any = model.spec
    if spec.token_table is None:
        return Imported(own, parts, found.leftover, None)
    table = next(name for name, parameter in model.named_parameters() if parameter is words_of(model))
    if "mlm" in parts and torch.equal(parts["mlm"].get("decoder.weight", own[table]), own[table]):
        parts["mlm"].pop("decoder.weight", None)
    return Imported(own, parts, found.leftover, own[table])


def load_model(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy all tensors of a model, or of a part of one.

    Raises:
        WeightsError: names or shapes differ.
    """
    own = model.state_dict()
    if missing := [name for name in own if name not in state]:
        raise WeightsError(f"{source} has nothing for {', '.join(missing[:3])} of the model")
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            there = f"the model has {tuple(own[name].shape)}" if name in own else "the model has no such part"
            raise WeightsError(f"{source}: {name} is {tuple(tensor.shape)}, {there}; build the model in the sizes of the file")
    model.load_state_dict(state, strict=True)


def is_kind(kind: str, objective: Any) -> bool:
    """Whether an objective has a head of its own of this kind."""
    head = getattr(objective, "head", None)
    if head is None:
        return False
    return isinstance(head, _MODULES[kind]) if kind in _MODULES else type(objective).__name__ == _OBJECTIVES[kind]


def heads_of(objectives: Mapping[str, Any]) -> dict[str, nn.Module]:
    """Kind -> head, the first of each kind."""
    found: dict[str, nn.Module] = {}
    for kind in KINDS:
        for objective in objectives.values():
            if is_kind(kind, objective):
                found.setdefault(kind, objective.head)
    return found


def load_heads(objectives: Mapping[str, Any], imported: Imported) -> tuple[list[str], list[str]]:
    """Fill the heads of objectives.

    Returns:
        names of the objectives whose head was filled, and of those with a head that was not: the checkpoint has none of that kind and size.
    """
    filled, left = [], []
    for name, objective in objectives.items():
        states = [_state_for(objective.head, imported, kind) for kind in KINDS if is_kind(kind, objective)]
        fitting = next((state for state in states if state is not None), None)
        if fitting is not None:
            objective.head.load_state_dict(fitting, strict=True)
            filled.append(name)
        elif isinstance(getattr(objective, "head", None), nn.Module):
            left.append(name)
    return filled, left


def _state_for(head: nn.Module, imported: Imported, kind: str) -> dict[str, Tensor] | None:
    """The tensors of a head of this kind; None where they do not fit."""
    state, own = dict(imported.heads.get(kind, {})), head.state_dict()
    if state and kind == "mlm" and "decoder.weight" in own and imported.words is not None:
        state.setdefault("decoder.weight", imported.words)
    fits = state.keys() == own.keys() and all(own[name].shape == tensor.shape for name, tensor in state.items())
    return state if fits else None

"""What must hold before a picture is drawn: each refusal is one line that names the checkpoint or the prompt, and the remedy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmpretrain.data.codes_info import CodesInfo, digest
from mmpretrain.evaluate.loading import find, load
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.objectives.next_token import NextCode, NextText

_LOG = logging.getLogger("mmpretrain")
_MOST = 1_000_000  # tokens of a prompt that are counted


def head_of(dalle: Pretrained) -> str:
    """The name of the objective that turns states into logits of codes.

    Raises:
        ValueError: the checkpoint is of another kind, or has no such objective.
    """
    spec = dalle.model.spec
    if "causal" not in spec.kinds or not spec.codes or spec.code_grid is None:
        raise ValueError(
            f"{dalle.named}: pictures are drawn by a left-to-right model over image codes (dalle.yaml), and this checkpoint gives "
            f"{', '.join(spec.kinds)} states"
        )
    found = next((name for name in dalle.objectives if isinstance(dalle.objectives[name], NextCode)), None)
    if found is None:
        raise ValueError(f"{dalle.named}: none of its objectives predicts codes (mmpretrain.objectives.next_token.NextCode)")
    return found


def codes_of(dalle: Pretrained) -> CodesInfo | None:
    """What made the codes that a transformer was trained on; None where its checkpoint does not say."""
    told = dalle.about.get("codes")
    return CodesInfo.from_json(told, dalle.named) if told else None


def same_codes(dalle: Pretrained, dvae: Pretrained) -> CodesInfo | None:
    """:func:`codes_of`, held to an autoencoder; with a warning where the checkpoint does not say whose codes they are.

    Raises:
        ValueError: see :func:`made_codes`.
    """
    info = codes_of(dalle)
    made_codes(dvae, dalle.model.spec.codes, info, dalle.named)
    if info is None or not info.weights:
        _LOG.warning("%s does not say whose codes it was trained on: %s may be another autoencoder than theirs", dalle.named, dvae.named)
    return info


def maker(path: str | Path, info: CodesInfo | None, device: str | torch.device = "cpu") -> Pretrained:
    """An autoencoder as ``load`` opens it; of a run whose best checkpoint did not make the codes ``info``, the last one if that did."""
    found = load(path, device=device)
    if info is None or not info.weights or not Path(path).is_dir() or find(Path(path)) == find(Path(path), "last"):
        return found
    if digest(found.model.state_dict()) == info.weights:
        return found
    last = load(path, which="last", device=device)
    return last if digest(last.model.state_dict()) == info.weights else found


def unguided(dalle: Pretrained) -> bool:
    """Whether a transformer was trained with its captions alone, so that it never saw the empty one that guidance needs."""
    return not any(isinstance(one, NextText) and one.dropout > 0 for one in dalle.objectives.values())


def made_codes(dvae: Pretrained, codes: int, info: CodesInfo | None, reader: str) -> None:
    """
    Args:
        dvae: what is to decode.
        codes: that the transformer knows.
        info: what made the codes that it is trained on; None: not known, and not checked.
        reader: how messages name the transformer.

    Raises:
        ValueError: ``dvae`` is no discrete autoencoder, has another number of codes, or did not make these codes.
    """
    if "coded" not in dvae.model.spec.kinds:
        kinds = ", ".join(dvae.model.spec.kinds)
        raise ValueError(f"{dvae.named}: no discrete autoencoder (dvae.yaml): this checkpoint gives {kinds} states")
    if dvae.model.spec.codes != codes:
        own = dvae.model.spec.codes
        raise ValueError(f"{dvae.named} has {own} codes, {reader} draws from {codes}: name the autoencoder that it was trained with")
    if info is not None and info.weights and info.weights != (found := digest(dvae.model.state_dict())):
        raise ValueError(
            f"{dvae.named} did not make the codes that {reader} was trained on: those are of {info.source} "
            f"({info.weights[:12]}), these weights are {found[:12]} ({dvae.weights}); a code means something else to each"
        )


def same_tokenizer(dalle: Pretrained) -> None:
    """
    Raises:
        ValueError: the checkpoint has no tokenizer, or one with more tokens, or longer texts, than its model has.
    """
    if dalle.tokenizer is None or dalle.vocabulary is None:
        raise ValueError(f"{dalle.named}: it has no tokenizer, so there is no way from a prompt to a picture")
    own, size = dalle.model.spec.vocab_size, dalle.tokenizer.vocabulary.size
    if size > own or size != dalle.vocabulary.size:
        raise ValueError(
            f"{dalle.named}: its tokenizer has {size} tokens, the model was trained with {dalle.vocabulary.size} and has room for {own}: "
            "the two do not belong together"
        )
    positions = dalle.model.spec.text_pads
    if positions and dalle.tokenizer.max_tokens > positions:
        raise ValueError(
            f"{dalle.named}: its tokenizer cuts texts at {dalle.tokenizer.max_tokens} tokens, the model has {positions} positions"
        )


def counter(model: Pretrained) -> tuple[Callable[[str], int], int]:
    """A function that counts the tokens of a text, special ones included, without cutting it; and the most that the model reads."""
    uncut = model.tokenizer.with_max_tokens(_MOST)
    return (lambda text: len(uncut.tokenize(text).ids)), model.tokenizer.max_tokens


def has_word(text: str, dalle: Pretrained) -> bool:
    """Whether the tokenizer knows anything of a text."""
    return bool(text.strip()) and bool(set(dalle.tokenize(text).ids) - set(dalle.tokenizer.vocabulary.special))


def prompts(given: Sequence[str], dalle: Pretrained, scorer: Any = None) -> list[str]:
    """The prompts without white space at their ends.

    Raises:
        ValueError: there is none; one is empty, says nothing that the tokenizer knows, or is too long for the transformer or the scorer.
    """
    if not given:
        raise ValueError("generate: there is no prompt")
    models = [(dalle, "the transformer"), (getattr(scorer, "pretrained", None), "the CLIP that re-ranks")]
    counters = [(*counter(model), what) for model, what in models if model is not None]
    found = []
    for number, text in enumerate(given, 1):
        name = f"prompt {number}" if len(given) > 1 else "the prompt"
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is empty: say what is to be seen, such as 'a red circle left of a blue square'")
        text = text.strip()
        name = f"{name}, {(text if len(text) <= 60 else text[:57] + '...')!r},"
        if not has_word(text, dalle):
            raise ValueError(f"{name} has no word that the tokenizer of {dalle.named} knows")
        for length, most, what in counters:
            if length(text) > most:
                raise ValueError(f"{name} has {length(text)} tokens, {what} reads {most}: shorten it")
        found.append(text)
    return found

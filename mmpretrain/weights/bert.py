"""Models whose text, or whose only stream, starts as a BERT (Devlin et al., arXiv 1810.04805) from a folder of transformers.

=========================  ==================================  ======================================================
model                      its blocks                          start as BERT's layers
=========================  ==================================  ======================================================
ViLBERT, ERNIE-ViL         ``text_blocks``                     the first ones, in order
LXMERT                     ``text_blocks``                     the first ones (an option of its code)
InterBERT                  ``joint_blocks``, ``text_blocks``   the first ones go on: 0 to 5 and 6 to 11
single streams, VL-BERT    ``transformer``                     the first ones
=========================  ==================================  ======================================================

Word, position and segment tables, the LayerNorm after them, a pooler of the same shape and the masked-word head are taken too, and the head
of SIP (VisualBERT) or of TagContrast with two classes (Oscar) starts as BERT's for the next sentence. What BERT does not have stays as it
was initialised.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.heads import PairPooler, Pooler, VocabularyHead
from mmpretrain.weights.bert_names import block_rules, mlm_rules
from mmpretrain.weights.files import WeightsError, read_json, read_state, renamed
from mmpretrain.weights.keymap import KeyMap, Rows
from mmpretrain.weights.layout import is_kind, load_model

STACKS = ("joint_blocks", "text_blocks", "transformer")  # in the order in which they take BERT's layers
_PAIRS = {"sip": Rows((1, 0)), "tags": Rows((1, 0))}  # kinds of heads; BERT's row 0 means the next sentence, our row 1 a text that belongs
_WORDS = "embeddings.word_embeddings.weight"
_TABLES = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
_POSITIONS_AFTER_PAD = ("roberta", "xlm-roberta", "camembert", "data2vec-text")  # position 0 is in the row behind that of padding
_OTHER_NAMES = (
    ("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("lm_head.dense.", "cls.predictions.transform.dense."), ("lm_head.layer_norm.", "cls.predictions.transform.LayerNorm."),
    ("lm_head.decoder.weight", "cls.predictions.decoder.weight"), ("lm_head.bias", "cls.predictions.bias"),
)  # fmt: skip
_LOG = logging.getLogger("mmpretrain")


class Parts(NamedTuple):
    """What of a model BERT can fill."""

    words: nn.Embedding
    positions: nn.Embedding
    segments: nn.Embedding | None
    norm: nn.LayerNorm
    stacks: Mapping[str, Transformer]
    pooler: Pooler | None


class Bert(NamedTuple):
    """A BERT from a folder."""

    folder: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]  # names without a prefix in front of ``embeddings``, ``encoder`` and ``pooler``
    tokens: Mapping[str, int] | None  # None: the folder has no vocabulary that can be read


def parts_of(model: nn.Module) -> Parts:
    """
    Raises:
        ValueError: the model has no part that is built as BERT is.
    """
    name, both = type(model).__name__, (getattr(model, "embed", None), getattr(model, "text", None))
    embed = next((one for one in both if isinstance(getattr(one, "words", None), nn.Embedding)), None)
    norms = [one for one in (getattr(embed, "norm", None), getattr(model, "norm", None)) if isinstance(one, nn.LayerNorm)]
    stacks = {key: stack for key in STACKS if isinstance(stack := getattr(model, key, None), Transformer)}
    if embed is None or not norms or not stacks:
        raise ValueError(f"FromBERT: {name} has no part that is built as BERT is")
    if odd := [key for key, stack in stacks.items() if stack.causal or not all(block.post for block in stack.blocks)]:
        raise ValueError(f"FromBERT: {odd[0]} of {name} is no encoder of BERT's kind: it needs norm: post and causal: false")
    pooler = getattr(model, "pooler", None)
    pooler = pooler.text if isinstance(pooler, PairPooler) else pooler
    return Parts(embed.words, embed.positions, embed.segments, norms[0], stacks, pooler if isinstance(pooler, Pooler) else None)


def read_bert(folder: str | Path) -> Bert:
    """A folder of transformers with ``config.json`` and weights.

    Raises:
        WeightsError: something is missing, or it is not a BERT's.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"FromBERT: {folder} is no folder; save a BERT there with transformers' save_pretrained")
    config = read_json(folder / "config.json")
    state = renamed(read_state(folder), *_OTHER_NAMES)
    found = [name.removesuffix(_WORDS) for name in state if name.endswith(_WORDS)]
    if len(found) != 1:
        raise WeightsError(f"FromBERT: {folder} has {len(found)} tensors called *{_WORDS}; it is not a BERT")
    state = {name.removeprefix(found[0]): t.float() for name, t in state.items()}
    if lost := [name for name in _TABLES if name not in state]:
        raise WeightsError(f"FromBERT: {folder} has no {lost[0]}; it is not a BERT")
    return Bert(folder, config, state, _tokens(folder))


def _tokens(folder: Path) -> dict[str, int] | None:
    """Token -> id of the vocabulary beside the weights."""
    if (folder / "tokenizer.json").is_file():  # first, as data.text.tokenizer reads it: vocab.txt lacks what was added
        found = read_json(folder / "tokenizer.json")
        vocab = (found.get("model") or {}).get("vocab")
        added = {one["content"]: one["id"] for one in found.get("added_tokens") or []}
        return {**vocab, **added} if isinstance(vocab, dict) else None
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        return {line: number for number, line in enumerate(lines) if line}
    return None


class FromBERT(ModelTransform):
    """Text (or single-stream) parts start as the BERT of a folder, see the table above.

    Words are found by their token where the folder has a vocabulary, so that a run with another tokenizer keeps what the two have in
    common; the rows of all other words stay as they were initialised.

    Args:
        folder: of transformers, any model with BERT's names (BERT, RoBERTa, ERNIE): ``config.json``, weights, and a vocabulary.
        head: fill the masked-word head and the head of text pairs too, where the folder has them.
        image_tables: the position and type tables of VisualBERT's regions start as those of the text, as in its release.
    """

    initialises: ClassVar[bool] = True

    def __init__(self, folder: str, head: bool = True, image_tables: bool = True) -> None:
        self.folder, self.head, self.image_tables = folder, head, image_tables

    @torch.no_grad()
    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        """
        Raises:
            ValueError: the model is of another kind or size than the BERT, or the folder holds none.
        """
        parts, bert = parts_of(model), read_bert(self.folder)
        _check(parts, bert)
        ours, theirs, said = _rows(parts, bert, around)
        parts.words.weight[ours] = bert.state[_WORDS][theirs]
        done = [said, *self._tables(model, parts, bert), *_blocks(parts, bert)]
        if parts.pooler is not None and parts.pooler.activation == "tanh" and _fill(parts.pooler, bert.state, "pooler."):
            done += ["pooler", *(_pairs(around, bert) if self.head else ())]
        if self.head and _head(around, bert, ours, theirs):
            done.append("masked-word head")
        self.said = f"{type(model).__name__} starts as {bert.folder}: {', '.join(done)}"
        return model

    def _tables(self, model: nn.Module, parts: Parts, bert: Bert) -> list[str]:
        """Fill positions, segments and the norm."""
        positions, types = (bert.state[name] for name in _TABLES)
        if bert.config.get("model_type") in _POSITIONS_AFTER_PAD:
            positions = positions[int(bert.config.get("pad_token_id", 1)) + 1 :]
        if parts.segments is None:  # BERT adds type 0 to every token
            positions = positions + types[:1]
        tables = {"positions": (parts.positions, positions)} | ({"segments": (parts.segments, types)} if parts.segments is not None else {})
        own = getattr(model, "regions", None)
        if self.image_tables:
            tables |= {f"region {k}": (t, s) for k, s in (("positions", positions), ("types", types)) if (t := getattr(own, k, None))}
        done = []
        for name, (table, source) in tables.items():
            count = min(len(source), table.num_embeddings)
            table.weight[:count] = source[:count]
            done.append(f"{count} of {table.num_embeddings} {name}")
        if not _fill(parts.norm, bert.state, "embeddings.LayerNorm."):
            raise WeightsError(f"FromBERT: {bert.folder} has no embeddings.LayerNorm of {parts.norm.normalized_shape[0]} values")
        return done


def _check(parts: Parts, bert: Bert) -> None:
    """
    Raises:
        WeightsError: BERT has another size, or too few layers.
    """
    asked = bert.config
    for name, stack in parts.stacks.items():
        facts = {
            "width": ("hidden_size", stack.width), "heads": ("num_attention_heads", stack.heads),
            "MLP's hidden width": ("intermediate_size", stack.hidden), "activation": ("hidden_act", stack.activation),
        }  # fmt: skip
        for what, (key, mine) in facts.items():
            if asked.get(key) != mine:
                raise WeightsError(f"FromBERT: {what} of {name} is {mine}, that of {bert.folder} {asked.get(key)} ({key}): make them equal")
    needed, there = sum(stack.depth for stack in parts.stacks.values()), int(asked.get("num_hidden_layers", 0))
    if needed > there:
        raise WeightsError(f"FromBERT: {' and '.join(parts.stacks)} have {needed} blocks, {bert.folder} {there} layers: lower depth")
    if parts.words.embedding_dim != bert.state[_WORDS].shape[1]:
        raise WeightsError(f"FromBERT: words of {bert.folder} have {bert.state[_WORDS].shape[1]} values, here {parts.words.embedding_dim}")


def _rows(parts: Parts, bert: Bert, around: Around) -> tuple[Tensor, Tensor, str]:
    """Our rows of the word table, BERT's rows that they start as, and what to say of it.

    Raises:
        WeightsError: the two vocabularies have nothing in common.
    """
    size, there = parts.words.num_embeddings, len(bert.state[_WORDS])
    if bert.tokens is None or around.tokens is None:
        count = min(size, there)
        if size != there:
            _LOG.warning(
                "FromBERT: %s has %d words, the model %d, and there is no vocabulary to compare: the first %d rows are taken by their "
                "number, which is right for its own tokenizer alone", bert.folder, there, size, count,
            )  # fmt: skip
        return torch.arange(count), torch.arange(count), f"{count} of {size} words by number"
    own = {token: number for token, number in around.tokens.items() if number < size}
    pairs = [(number, bert.tokens[token]) for token, number in own.items() if bert.tokens.get(token, there) < there]
    if not pairs:
        raise WeightsError(f"FromBERT: no token of the tokenizer is in {bert.folder}'s vocabulary: set data.text.tokenizer to that folder")
    if any(mine != theirs for mine, theirs in pairs) or len(pairs) < len(own):
        _LOG.warning(
            "FromBERT: the tokenizer is not that of %s: %d of its %d tokens are in that vocabulary and start as there, the others as they "
            "were initialised; set data.text.tokenizer to that folder for all of them", bert.folder, len(pairs), len(own),
        )  # fmt: skip
    table = torch.tensor(sorted(pairs))
    return table[:, 0], table[:, 1], f"{len(pairs)} of {size} words"


def _blocks(parts: Parts, bert: Bert) -> list[str]:
    """Fill the stacks, one after another."""
    start, done = 0, []
    for name, stack in parts.stacks.items():
        keep = {f"encoder.layer.{start + i}.": f"layer.{i}." for i in range(stack.depth)}
        layers = {}
        for key, tensor in bert.state.items():
            head = ".".join(key.split(".")[:3]) + "."
            if head in keep:
                layers[keep[head] + key.removeprefix(head)] = tensor
        filled = KeyMap(block_rules("blocks.{i}", "layer.{i}"), f"the BERT in {bert.folder}").to_ours(layers)
        if filled.leftover:
            raise WeightsError(f"FromBERT: {bert.folder} has {filled.leftover[0]} in its layers, which a BERT has not")
        own = {key: t for key, t in stack.state_dict().items() if not key.startswith("blocks.")}
        load_model(stack, {**own, **filled.state}, f"FromBERT: {bert.folder}")
        done.append(f"{name} from layers {start} to {start + stack.depth - 1}")
        start += stack.depth
    return done


def _fill(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether ``state`` has all tensors of ``module`` under ``prefix`` in their shapes; they are copied then."""
    found = {name: state.get(prefix + name) for name in module.state_dict()}
    if any(found[name] is None or found[name].shape != t.shape for name, t in module.state_dict().items()):
        return False
    module.load_state_dict(found)
    return True


def _head(around: Around, bert: Bert, ours: Tensor, theirs: Tensor) -> bool:
    """Fill the masked-word heads of the objectives; False where there is none on either side."""
    filled = KeyMap(mlm_rules(), f"the BERT in {bert.folder}").to_ours(bert.state).state
    heads = [one.head for one in around.objectives.values() if isinstance(getattr(one, "head", None), VocabularyHead)]
    parts = {name.removeprefix("mlm."): t for name, t in filled.items()}
    if not heads or "dense.weight" not in parts or "norm.weight" not in parts:
        return False
    decoder = parts.get("decoder.weight", bert.state[_WORDS])
    for head in heads:
        for name in ("dense", "norm"):
            getattr(head, name).load_state_dict({leaf: parts[f"{name}.{leaf}"] for leaf in ("weight", "bias")})
        if "bias" in parts:
            head.bias[ours] = parts["bias"][theirs]
        if head.decoder is not None:
            head.decoder.weight[ours] = decoder[theirs]
    return True


def _pairs(around: Around, bert: Bert) -> list[str]:
    """Fill the heads of text pairs that have BERT's shape, and say which they are."""
    theirs = {leaf: bert.state.get(f"cls.seq_relationship.{leaf}") for leaf in ("weight", "bias")}
    done = []
    for name, one in around.objectives.items():
        op = next((op for kind, op in _PAIRS.items() if is_kind(kind, one)), None)
        own = one.head.state_dict() if op is not None else {}
        if op is None or any(t is None or t.shape != own[leaf].shape for leaf, t in theirs.items()):
            continue
        one.head.load_state_dict({leaf: op.to_ours([t])[0] for leaf, t in theirs.items()})
        done.append(f"head of {name}")
    return done

"""The names that BERT's code gave its parts, which most of the published systems over regions have kept, beside ours."""

from __future__ import annotations

from collections.abc import Sequence

from mmpretrain.weights.keymap import Op, Rule, Same, Split

QKV = ("query", "key", "value")


def block_rules(ours: str, theirs: str) -> list[Rule]:
    """A post-norm block of ``nn.blocks``.

    Args:
        ours, theirs: the block on both sides, with ``{i}`` for its number.
    """
    return [
        *self_attention(ours, f"{theirs}.attention"),
        *mlp(ours, f"{theirs}.intermediate", f"{theirs}.output"),
    ]


def self_attention(ours: str, theirs: str) -> list[Rule]:
    """Self-attention with residual and LayerNorm: ``theirs`` has ``self`` and ``output``."""
    return [
        Rule(f"{ours}.attention.qkv.{{p}}", tuple(f"{theirs}.self.{part}.{{p}}" for part in QKV), Split(3)),
        Rule(f"{ours}.attention.out.{{p}}", f"{theirs}.output.dense.{{p}}"),
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.output.LayerNorm.{{p}}"),
    ]


def mlp(ours: str, inner: str, outer: str) -> list[Rule]:
    """The MLP of a block with residual and LayerNorm."""
    return [
        Rule(f"{ours}.mlp.up.{{p}}", f"{inner}.dense.{{p}}"),
        Rule(f"{ours}.mlp.down.{{p}}", f"{outer}.dense.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{outer}.LayerNorm.{{p}}"),
    ]


def text_rules(ours: str, theirs: str, norm: str | None = None) -> list[Rule]:
    """Word, position and segment tables and their LayerNorm.

    Args:
        ours, theirs: the embedder on both sides.
        norm: our LayerNorm; None: ``ours`` has it.
    """
    return [
        Rule(f"{ours}.words.weight", f"{theirs}.word_embeddings.weight"),
        Rule(f"{ours}.positions.weight", f"{theirs}.position_embeddings.weight"),
        Rule(f"{ours}.segments.weight", f"{theirs}.token_type_embeddings.weight"),
        Rule(f"{norm or ours + '.norm'}.{{p}}", f"{theirs}.LayerNorm.{{p}}"),
    ]


def transform_rules(ours: str, theirs: str, optional: bool = False) -> list[Rule]:
    """Dense and LayerNorm before a decoder."""
    return [
        Rule(f"{ours}.dense.{{p}}", f"{theirs}.dense.{{p}}", optional=optional),
        Rule(f"{ours}.norm.{{p}}", f"{theirs}.LayerNorm.{{p}}", optional=optional),
    ]


def mlm_rules(theirs: str = "cls.predictions", ours: str = "mlm") -> list[Rule]:
    """The masked-word head, which may be absent."""
    return [
        *transform_rules(ours, f"{theirs}.transform", optional=True),
        Rule(f"{ours}.decoder.weight", f"{theirs}.decoder.weight", optional=True),
        Rule(f"{ours}.bias", f"{theirs}.bias", optional=True),
    ]


def linear_rules(ours: str, theirs: str, op: Op = Same()) -> list[Rule]:  # noqa: B008  (immutable)
    """A linear layer that may be absent."""
    return [Rule(f"{ours}.{{p}}", f"{theirs}.{{p}}", op, optional=True)]


def numbered(rules: Sequence[Rule], ours: int, theirs: int) -> list[Rule]:
    """The rules of one block, ``{i}`` being ``ours`` here and ``theirs`` there."""

    def fill(side: str | tuple[str, ...], number: int) -> str | tuple[str, ...]:
        put = lambda name: name.replace("{i}", str(number))
        return put(side) if isinstance(side, str) else tuple(map(put, side))

    return [rule._replace(ours=fill(rule.ours, ours), theirs=fill(rule.theirs, theirs)) for rule in rules]
